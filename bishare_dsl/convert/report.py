"""Reports on exports."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bishare_dsl.diagnostics import Problem

_EXACT = 1e-5
"""Relative errors that are rounding."""


@dataclass(frozen=True)
class ExportedSite:
    """The export of a module.

    Attributes:
        rank: the rank of the written pair.
        rows: the rows of the effective factors; more than the rank if some were redundant or truncated.
        norm: the Frobenius norm of dW. With a magnitude, dW is the whole change of the weight.
        lost: the norm by which dW in the output differs, which was read again.
    """

    path: str
    rank: int
    rows: int
    norm: float
    lost: float

    @property
    def error(self) -> float:
        """The relative error of dW."""
        return self.lost / self.norm if self.norm else self.lost


@dataclass(frozen=True)
class ExportReport:
    """The result of an export, which was read again.

    Attributes:
        out: the folder or file.
        sites: the modules that the adapter changes.
        max_lora_rank: the required ``--max-lora-rank`` of vLLM; None if vLLM has no such rank (see
            ``warnings``, BS632) or the export is not for vLLM.
        warnings: known problems in the target programs (BS632), or why the output was not
            compared (BS656).
    """

    out: Path
    format: str
    sites: tuple[ExportedSite, ...]
    max_lora_rank: int | None = None
    warnings: tuple[Problem, ...] = ()

    @property
    def modules(self) -> int:
        """The number of modules."""
        return len(self.sites)

    @property
    def rank(self) -> int:
        """The highest rank."""
        return max(site.rank for site in self.sites)

    @property
    def worst(self) -> ExportedSite:
        """The module with the largest relative error."""
        return max(self.sites, key=lambda site: site.error)

    @property
    def total_error(self) -> float:
        """The error of all updates together, relative to their norm."""
        norm = math.hypot(*(site.norm for site in self.sites))
        return math.hypot(*(site.lost for site in self.sites)) / (norm or 1)

    def data(self) -> dict[str, Any]:
        """Return the report as plain values."""
        fields = ("format", "modules", "rank", "max_lora_rank", "total_error")
        data = {"out": str(self.out), **{name: getattr(self, name) for name in fields}}
        of_site = ("path", "rank", "rows", "error")
        sites = [{name: getattr(site, name) for name in of_site} for site in self.sites]
        return data | {"worst_error": self.worst.error, "sites": sites}

    def __str__(self) -> str:
        lowest = min(site.rank for site in self.sites)
        ranks = f"rank {self.rank}" if lowest == self.rank else f"ranks {lowest} to {self.rank}"
        serve = f"; vLLM needs --max-lora-rank {self.max_lora_rank}" if self.max_lora_rank else ""
        lines = [f"exported {self.modules} modules at {ranks} to {self.out}{serve}"]
        shorter = sum(site.rank < site.rows for site in self.sites)
        if shorter:
            lines.append(f"{shorter} modules have fewer rows than the sum of their ranks")
        if self.total_error < _EXACT:
            lines.append("read again: the updates of all modules are equal")
        else:
            lines.append(
                f"read again: the updates differ by {self.total_error:.2g} of their norm, at most by "
                f"{self.worst.error:.2g} (`{self.worst.path}`)"
            )
        return "\n".join(lines)
