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

    def data(self) -> dict[str, Any]:
        """Return the report for machines; a module to which nothing was given has no error."""
        return {
            "error": self.error,
            "error_at_start": self.start,
            "sweeps": self.sweeps,
            "adapters": self.adapters,
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
        several = self.adapters if len(self.adapters) > 1 else {}
        worst = sorted(several.items(), key=lambda pair: -pair[1])
        each = (f"{100 * error:7.2f}  {name}" for name, error in worst[:_SHOWN])
        more = [f"         and {len(worst) - _SHOWN} with less"] if len(worst) > _SHOWN else []
        return "\n".join(("relative error, in percent", str(Table(head, rows, ())), *each, *more))


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
