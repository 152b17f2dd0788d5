"""The accuracy of a fit, for each module and in total."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from bishare_dsl.fit.chunks import Place
from bishare_dsl.show.table import Table, by_layer_and_kind

_SHOWN_ADAPTERS = 12
"""The number of adapters that are shown individually: those with the largest errors."""


@dataclass(frozen=True)
class FittedSite:
    """A module of one adapter, with the norms of its given update and of the residual."""

    adapter: str
    path: str
    layer: int | None
    kind: str
    norm: float
    left: float


@dataclass(frozen=True)
class FitReport:
    """The result of a fit.

    Attributes:
        sites: the given or fitted modules of each adapter.
        start: the relative error before the first sweep.
        sweeps: the number of sweeps.
    """

    sites: tuple[FittedSite, ...]
    start: float
    sweeps: int

    @classmethod
    def of(
        cls, squares: Mapping[Place, tuple[float, float]], start: float, sweeps: int
    ) -> FitReport:
        """Build the report from the squared residual and the squared given norm at each place."""
        sites = (
            FittedSite(name, s.path, s.layer, s.kind, math.sqrt(whole), math.sqrt(left))
            for (name, s), (left, whole) in squares.items()
        )
        return cls(tuple(sites), start, sweeps)

    @property
    def error(self) -> float:
        """The residual of all updates, relative to their norm."""
        return relative(self.sites)

    @cached_property
    def adapters(self) -> dict[str, float]:
        """The relative error of each adapter."""
        by_adapter: dict[str, list[FittedSite]] = {}
        for site in self.sites:
            by_adapter.setdefault(site.adapter, []).append(site)
        return {name: relative(sites) for name, sites in by_adapter.items()}

    @cached_property
    def by_kind(self) -> dict[str, dict[str, float]]:
        """The relative error of each kind of module, by adapter."""
        by_adapter: dict[str, dict[str, list[FittedSite]]] = {}
        for site in self.sites:
            by_adapter.setdefault(site.adapter, {}).setdefault(site.kind, []).append(site)
        return {
            name: {kind: relative(sites) for kind, sites in kinds.items()}
            for name, kinds in by_adapter.items()
        }

    def data(self) -> dict[str, Any]:
        """Return the report as plain values; what has no given update has no error."""
        return {
            "error": _finite(self.error),
            "error_at_start": self.start,
            "sweeps": self.sweeps,
            "adapters": {name: _finite(error) for name, error in self.adapters.items()},
            "kinds": {
                name: {kind: _finite(error) for kind, error in kinds.items()}
                for name, kinds in self.by_kind.items()
            },
            "modules": [
                {
                    "adapter": site.adapter,
                    "path": site.path,
                    "norm": site.norm,
                    "error": site.left / site.norm if site.norm else None,
                }
                for site in self.sites
            ],
        }

    def _in_order(self, adapter: str, kinds: Iterable[str]) -> list[float]:
        return [self.by_kind[adapter].get(kind, 0.0) for kind in kinds]

    def __str__(self) -> str:
        kinds = list(dict.fromkeys(site.kind for site in self.sites))
        modules = by_layer_and_kind(((s.layer, s.kind, s) for s in self.sites), _percent)
        parts: list[str] = ["relative error of updates, in percent", str(modules)]
        if len(self.adapters) > 1:
            worst = sorted(self.adapters.items(), key=lambda pair: -pair[1])
            lines = [
                [name, *(f"{100 * e:.2f}" for e in (*self._in_order(name, kinds), error))]
                for name, error in worst[:_SHOWN_ADAPTERS]
            ]
            parts.append(str(Table(["adapter", *kinds, "all"], lines)))
            if len(worst) > _SHOWN_ADAPTERS:
                parts.append(f"and {len(worst) - _SHOWN_ADAPTERS} with smaller errors")
        return "\n\n".join(parts)


def relative(sites: Iterable[FittedSite]) -> float:
    """Return the residual of some sites' updates, relative to their norm; infinite if that is zero."""
    found = tuple(sites)
    norm = math.hypot(*(site.norm for site in found))
    left = math.hypot(*(site.left for site in found))
    return left / norm if norm else math.inf if left else 0.0


def _finite(error: float) -> float | None:
    """Return an error that JSON has a number for."""
    return error if math.isfinite(error) else None


def _percent(sites: Sequence[FittedSite]) -> str:
    error = relative(sites)
    return "" if not sites else "no norm" if math.isinf(error) else f"{100 * error:.2f}"
