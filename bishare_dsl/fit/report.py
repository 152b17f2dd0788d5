"""The accuracy of a fit, for each module and in total."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from bishare_dsl.diagnostics import Problem
from bishare_dsl.diagnostics.codes import analyse as codes
from bishare_dsl.fit.chunks import Place
from bishare_dsl.show.table import Table, by_layer_and_kind

Squares = Mapping[Place, tuple[float, float]]
"""The squared norm of the residual and of the given update, at each place."""
WARN_ABOVE = 0.1
"""The relative error of an adapter that is warned of."""


@dataclass(frozen=True)
class FitReport:
    """The result of a fit: the residuals of all given or fitted modules after a number of sweeps."""

    squares: Squares
    sweeps: int

    @property
    def error(self) -> float:
        """The residual of all updates, relative to their norm."""
        return relative(self.squares.values())

    @cached_property
    def adapters(self) -> dict[str, float]:
        """The relative error of each adapter."""
        by_adapter: dict[str, list[tuple[float, float]]] = {}
        for (name, _), pair in self.squares.items():
            by_adapter.setdefault(name, []).append(pair)
        return {name: relative(pairs) for name, pairs in by_adapter.items()}

    def problems(self) -> Iterator[Problem]:
        """Warn of adapters that are far from what was given."""
        if far := {name: error for name, error in self.adapters.items() if error > WARN_ABOVE}:
            name, error = max(far.items(), key=lambda pair: pair[1])
            what = f"{len(far):,} adapters are up to" if len(far) > 1 else f"`{name}` is"
            text = f"{error:.1%}" if math.isfinite(error) else "infinitely far"
            yield codes.FAR_FROM_GIVEN(what=what, error=text, limit=WARN_ABOVE)

    def data(self) -> dict[str, Any]:
        """Return the report as plain values; what has no given update has no error."""
        return {
            "error": _finite(self.error),
            "sweeps": self.sweeps,
            "adapters": {name: _finite(error) for name, error in self.adapters.items()},
            "modules": [
                {"adapter": name, "path": site.path, "error": _finite(relative([pair]))}
                for (name, site), pair in self.squares.items()
            ],
        }

    def __str__(self) -> str:
        cells = ((site.layer, site.kind, pair) for (_, site), pair in self.squares.items())
        parts = [
            "relative error of updates, in percent",
            str(by_layer_and_kind(cells, _percent)),
        ]
        if len(self.adapters) > 1:
            worst = sorted(self.adapters.items(), key=lambda item: -item[1])
            lines = [[name, f"{100 * error:.2f}"] for name, error in worst]
            parts.append(str(Table(["adapter", "error"], lines)))
        return "\n\n".join(parts)


def relative(pairs: Iterable[tuple[float, float]]) -> float:
    """Return the residual of some updates, relative to their norm; infinite if only that is zero."""
    left, whole = map(sum, zip(*pairs, strict=True))
    return math.sqrt(left / whole) if whole else math.inf if left else 0.0


def _finite(error: float) -> float | None:
    """Return an error that JSON has a number for."""
    return error if math.isfinite(error) else None


def _percent(pairs: Sequence[tuple[float, float]]) -> str:
    error = relative(pairs) if pairs else 0.0
    return "" if not pairs else "no norm" if math.isinf(error) else f"{100 * error:.2f}"
