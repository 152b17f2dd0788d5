"""Convert an adapter to another layout, and verify that dW is unchanged."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from torch import nn

from bishare_dsl.diagnostics import AdapterError, nearest
from bishare_dsl.diagnostics.codes import adapter as codes
from bishare_dsl.export import TARGETS
from bishare_dsl.export.effective import MERGE, check_linear, effective_factors
from bishare_dsl.export.export import export_adapter
from bishare_dsl.export.from_peft import read_peft
from bishare_dsl.export.layouts import LAYOUTS
from bishare_dsl.export.lora import product_norm
from bishare_dsl.export.report import ExportReport
from bishare_dsl.models import architecture_of
from bishare_dsl.models.site import Site
from bishare_dsl.plan import Plan
from bishare_dsl.writing import discard

DORA = "write it as a DoRA of PEFT: `bishare export FOLDER --model BASE --out NEW`"

_NEAR = 1e-5
"""The tolerance for dW after a float32 conversion, relative to its norm."""


@dataclass(frozen=True)
class Converted:
    """The result of a conversion and its comparison with the source.

    Attributes:
        export: the report of the export.
        sites: the number of compared modules.
        worst: the largest relative difference of dW.
        where: the module with this difference.
    """

    export: ExportReport
    sites: int
    worst: float
    where: str

    def data(self) -> dict[str, Any]:
        """Return the result as plain values."""
        proof = {"sites_compared": self.sites, "worst_difference": self.worst}
        return self.export.data() | proof | {"worst_module": self.where}

    def __str__(self) -> str:
        return f"{self.export}\ndW compared at {self.sites:,} modules: largest difference {self.worst:.2g}"


def convert(
    out: str | os.PathLike[str],
    plan: Plan,
    tensors: Mapping[str, torch.Tensor],
    model: nn.Module,
    target: str,
    **options: Any,
) -> Converted:
    """Write an adapter in another layout, read it back, and compare dW at every module.

    Args:
        out: the folder or GGUF file to write.
        plan: the adapter's plan.
        tensors: its tensors by name.
        model: the base, perhaps on the meta device.
        target: one of `TARGETS`.
        **options: ``rank``, ``dtype`` and ``uniform_rank`` of `export_adapter`.

    Raises:
        AdapterError: see `export_adapter`; or dW differs at a module (BS607). The output is then removed.
    """
    if target not in TARGETS:
        raise AdapterError(codes.UNKNOWN_FORMAT(format=target, help=nearest(target, TARGETS)))
    check_linear(plan.terms, "convert the adapter", DORA if target == "peft" else MERGE)
    settings = cast("dict[str, Any]", LAYOUTS[target].target)
    report = export_adapter(out, plan, tensors, model, **settings, **options)
    try:
        return _compared(report, plan, tensors, model, lossy=_is_lossy(**options))
    except BaseException:  # Remove output that was not verified.
        discard(Path(out))
        raise


def _is_lossy(rank: int | None = None, dtype: str = "float32", **_: Any) -> bool:
    return rank is not None or dtype != "float32"


def _compared(
    report: ExportReport,
    plan: Plan,
    tensors: Mapping[str, torch.Tensor],
    model: nn.Module,
    *,
    lossy: bool,
) -> Converted:
    """Read the exported files, and compare them with the source."""
    out = report.out
    _, again, values = read_peft(out, architecture_of(model), lambda: model)
    worst, where = 0.0, ""
    bound = (max(report.worst.error, 0.0) * 1.01 if lossy else 0.0) + _NEAR
    sites, sites_again = ({s.path: s for s in p.sites if p.rows(s.path)} for p in (plan, again))
    compared = sites_again | sites
    for path, site in compared.items():
        one = _factors(plan, tensors, sites.get(path))
        other = _factors(again, values, sites_again.get(path))
        difference, norm = _apart(one, other, site)
        if difference > bound:
            reason = f"dW of `{path}` differs by {difference:.2g} of its norm {norm:.3g}"
            raise AdapterError(codes.CHANGED_FILE(path=out, reason=reason))
        worst, where = max((worst, where), (difference, path))
    for trained in (t for t in plan.trained if t.tensor in tensors):
        saved = next((t.tensor for t in again.trained if t.parameter == trained.parameter), None)
        # The value is stored in the base's dtype.
        wanted = tensors[trained.tensor].to(model.get_parameter(trained.parameter).dtype).cpu()
        if saved is None or not torch.equal(values[saved], wanted.float()):
            reason = f"`{trained.parameter}`, which is trained in full, differs"
            raise AdapterError(codes.CHANGED_FILE(path=out, reason=reason))
    return Converted(report, len(compared), worst, where)


_Pair = tuple[torch.Tensor, torch.Tensor]


def _factors(plan: Plan, tensors: Mapping[str, torch.Tensor], site: Site | None) -> _Pair | None:
    if site is None:
        return None
    down, up = effective_factors(plan, tensors, site)
    return down.cpu(), up.cpu()


def _apart(one: _Pair | None, other: _Pair | None, site: Site) -> tuple[float, float]:
    """Return the norm of the difference of two updates relative to the first, and the norm of the first."""
    nothing = torch.empty(0, site.d_in), torch.empty(0, site.d_out)
    (down, up), (other_down, other_up) = one or nothing, other or nothing
    norm = product_norm(down, up)
    apart = product_norm(torch.cat([down, other_down]), torch.cat([up, -other_up]))
    return (apart / norm if norm else apart), norm
