"""What an export says of itself."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bishare_dsl.diagnostics import Problem


@dataclass(frozen=True)
class ExportedSite:
    """What was exported for a module.

    Attributes:
        rank: of the pair that was written.
        rows: of the effective factors; more than the rank where some said nothing, or were cut off.
        error: the Frobenius norm of the difference from dW, over that of dW, where something was asked for
            that makes one: a rank, a type. Rounding to float32 is not counted.
    """

    path: str
    rank: int
    rows: int
    error: float


@dataclass(frozen=True)
class ExportReport:
    """What was exported, and how exactly.

    Attributes:
        out: the folder or file.
        sites: one for each module that the adapter adds something to.
        total_error: as `ExportedSite.error`, of all updates together; None where nothing was asked for that
            makes one.
        max_lora_rank: what vLLM's ``--max-lora-rank`` must be; None where it has no such rank, which
            ``warnings`` say (BS632), or where the export is not for vLLM.
        warnings: what programs that it is for cannot do with it, or do otherwise (BS632, BS693).
    """

    out: Path
    format: str
    sites: tuple[ExportedSite, ...]
    total_error: float | None
    max_lora_rank: int | None = None
    warnings: tuple[Problem, ...] = ()

    @property
    def modules(self) -> int:
        """How many modules there are."""
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
        """Return all of it as plain values."""
        return {
            "out": str(self.out),
            "format": self.format,
            "modules": self.modules,
            "rank": self.rank,
            "max_lora_rank": self.max_lora_rank,
            "total_error": self.total_error,
            "worst_error": None if self.total_error is None else self.worst.error,
            "sites": [vars(site) for site in self.sites],
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
        return "\n".join(lines)
