"""How near a fit has come, at each module and in all."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from bishare_dsl.fit.chunks import Place
from bishare_dsl.show.table import Table

_SHOWN = 12
"""Of several adapters, those with the largest errors are shown by themselves."""


@dataclass(frozen=True)
class FittedSite:
    """A module of one adapter: the norm of the update that was given, and of what the fit leaves of it."""

    adapter: str
    path: str
    layer: int | None
    kind: str
    norm: float
    left: float


@dataclass(frozen=True)
class FitReport:
    """What a fit has come to.

    Attributes:
        sites: the modules that are given or fitted, those of each adapter.
        start: the relative error before the first sweep.
        sweeps: how many there were.
    """

    sites: tuple[FittedSite, ...]
    start: float
    sweeps: int

    @classmethod
    def of(
        cls, squares: Mapping[Place, tuple[float, float]], start: float, sweeps: int
    ) -> FitReport:
        """Make the report of what is left and what was given, both squared, at each place."""
        sites = (
            FittedSite(name, s.path, s.layer, s.kind, math.sqrt(whole), math.sqrt(left))
            for (name, s), (left, whole) in squares.items()
        )
        return cls(tuple(sites), start, sweeps)

    @property
    def error(self) -> float:
        """What is left of all updates, of the norm of all that were given."""
        return relative(self.sites)

    @cached_property
    def adapters(self) -> dict[str, float]:
        """The relative error of each adapter."""
        found: dict[str, list[FittedSite]] = {}
        for site in self.sites:
            found.setdefault(site.adapter, []).append(site)
        return {name: relative(sites) for name, sites in found.items()}

    @cached_property
    def by_kind(self) -> dict[str, dict[str, float]]:
        """The relative error of each kind of module, by adapter."""
        found: dict[str, dict[str, list[FittedSite]]] = {}
        for site in self.sites:
            found.setdefault(site.adapter, {}).setdefault(site.kind, []).append(site)
        return {
            name: {kind: relative(sites) for kind, sites in kinds.items()}
            for name, kinds in found.items()
        }

    def data(self) -> dict[str, Any]:
        """Return the report for machines; a module to which nothing was given has no error."""
        return {
            "error": self.error,
            "error_at_start": self.start,
            "sweeps": self.sweeps,
            "adapters": self.adapters,
            "kinds": self.by_kind,
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
        layers = sorted({site.layer for site in self.sites}, key=lambda n: (n is None, n))
        kinds = list(dict.fromkeys(site.kind for site in self.sites))
        cells: dict[tuple[object, object], list[FittedSite]] = {}
        for site in self.sites:
            for row in (site.layer, "all"):
                for column in (site.kind, "all"):
                    cells.setdefault((row, column), []).append(site)
        head = ["layer", *kinds, "all"]
        rows = [
            [str(row), *(_percent(cells.get((row, column), ())) for column in (*kinds, "all"))]
            for row in (*layers, "all")
        ]
        parts: list[str] = ["relative error of updates, in percent", str(Table(head, rows, ()))]
        if len(self.adapters) > 1:
            worst = sorted(self.adapters.items(), key=lambda pair: -pair[1])
            lines = [
                [name, *(f"{100 * e:.2f}" for e in (*self._in_order(name, kinds), error))]
                for name, error in worst[:_SHOWN]
            ]
            parts.append(str(Table(["adapter", *kinds, "all"], lines)))
            if len(worst) > _SHOWN:
                parts.append(f"and {len(worst) - _SHOWN} with smaller errors")
        return "\n\n".join(parts)


def relative(sites: Iterable[FittedSite]) -> float:
    """Return what is left of the updates of sites, of their norm; infinite where they have none."""
    found = tuple(sites)
    norm = math.hypot(*(site.norm for site in found))
    left = math.hypot(*(site.left for site in found))
    return left / norm if norm else math.inf if left else 0.0


def _percent(sites: Iterable[FittedSite]) -> str:
    found = tuple(sites)
    error = relative(found)
    return "" if not found else "no norm" if math.isinf(error) else f"{100 * error:.2f}"
