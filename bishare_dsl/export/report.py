"""Reports on exports."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bishare_dsl.diagnostics import Problem


@dataclass(frozen=True)
class ExportedSite:
    """The export of a module.

    Attributes:
        rank: the rank of the written pair.
        rows: the rows of the effective factors; more than the rank if some were redundant or truncated.
        error: the relative error of dW in the Frobenius norm, if a rank or a dtype was requested. Rounding
            to float32 is not counted. With a magnitude, dW is the whole change of the weight.
    """

    path: str
    rank: int
    rows: int
    error: float


@dataclass(frozen=True)
class Compared:
    """The comparison of an output with its source.

    Attributes:
        sites: the number of compared modules.
        worst: the largest relative difference of dW, which is the whole change of the weight if there is a
            magnitude.
        where: the module with this difference.
    """

    sites: int
    worst: float
    where: str


@dataclass(frozen=True)
class ExportReport:
    """The result of an export and its error.

    Attributes:
        out: the folder or file.
        sites: the modules that the adapter changes.
        total_error: the relative error of all updates together; None if no rank or dtype was requested.
        max_lora_rank: the required ``--max-lora-rank`` of vLLM; None if vLLM has no such rank (see
            ``warnings``, BS632) or the export is not for vLLM.
        warnings: known problems in the target programs (BS632, BS693).
        compared: the comparison of the output with the adapter, if it was requested.
    """

    out: Path
    format: str
    sites: tuple[ExportedSite, ...]
    total_error: float | None
    max_lora_rank: int | None = None
    warnings: tuple[Problem, ...] = ()
    compared: Compared | None = None

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
        """The module with the largest error."""
        return max(self.sites, key=lambda site: site.error)

    def data(self) -> dict[str, Any]:
        """Return the report as plain values."""
        compared = {} if self.compared is None else vars(self.compared)
        return {
            "out": str(self.out),
            "format": self.format,
            "modules": self.modules,
            "rank": self.rank,
            "max_lora_rank": self.max_lora_rank,
            "total_error": self.total_error,
            "worst_error": None if self.total_error is None else self.worst.error,
            "sites": [vars(site) for site in self.sites],
            **{f"compared_{name}": value for name, value in compared.items()},
        }

    def __str__(self) -> str:
        lowest = min(site.rank for site in self.sites)
        ranks = f"rank {self.rank}" if lowest == self.rank else f"ranks {lowest} to {self.rank}"
        serve = f"; vLLM needs --max-lora-rank {self.max_lora_rank}" if self.max_lora_rank else ""
        lines = [f"exported {self.modules} modules at {ranks} to {self.out}{serve}"]
        if self.total_error is not None:
            lines.append(
                f"relative error of what is added to the weights: {self.total_error:.3g} in all, at most "
                f"{self.worst.error:.3g} (`{self.worst.path}`)"
            )
        elif shorter := sum(site.rank < site.rows for site in self.sites):
            lines.append(f"{shorter} modules need fewer rows than the sum of their ranks")
        if (compared := self.compared) is not None:
            lines.append(
                f"dW compared at {compared.sites:,} modules: largest difference {compared.worst:.2g}"
            )
        return "\n".join(lines)
