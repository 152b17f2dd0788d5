"""An adapter folder, read and held against the base that the server has."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from bishare_dsl.adapter.contents import StoredAdapter, base_problems
from bishare_dsl.adapter.files import TENSORS, config_in, place_of, read_adapter
from bishare_dsl.adapter.stored import not_finite
from bishare_dsl.diagnostics import AdapterError, raise_errors
from bishare_dsl.diagnostics.codes import adapter as codes
from bishare_dsl.export.effective import check_linear
from bishare_dsl.export.from_peft import read_peft

if TYPE_CHECKING:
    from torch import Tensor

    from bishare_dsl.models.site import Architecture
    from bishare_dsl.plan import Plan


@dataclass(frozen=True)
class Stamp:
    """Which writing of a folder was read: an adapter that is saved again has another one."""

    folder: Path
    file: int
    changed: int

    @classmethod
    def of(cls, folder: str | Path) -> Stamp | None:
        """Return the stamp of a folder, or of an adapter of a library; None where it is not bishare's."""
        try:
            place = place_of(folder)[0]
            if (path := config_in(place)) is None:
                return None
            tensors = place / TENSORS  # By whose renaming an adapter is saved.
            found = (tensors if tensors.is_file() else path).stat()
        except OSError:
            return None
        return cls(Path(folder), found.st_ino, found.st_mtime_ns)


def read_for(folder: str | Path, base: Architecture) -> StoredAdapter:
    """Read a folder that is to be served with a base.

    Raises:
        AdapterError: it is damaged (BS601 to BS612, BS619), of another base (BS613), or not linear in its
            input (BS633), or of heads or embeddings (BS680).
    """
    stored = read_adapter(folder)
    raise_errors(AdapterError, list(base_problems(stored.plan, base)))
    check_linear(stored.plan.terms, "serve the adapter with vLLM")
    _check_outside(folder, stored.plan)
    return stored


def read_any(
    folder: str | Path,
    base: Architecture,
    tensors_of: Callable[[StoredAdapter], dict[str, Tensor]] = StoredAdapter.tensors,
) -> tuple[Plan, Callable[[], dict[str, Tensor]]]:
    """Read a folder of bishare's, or of plain LoRA, as its plan and what gives the plan's tensors.

    Args:
        folder: that is read.
        base: that is served.
        tensors_of: gives the tensors of a folder of bishare's.

    Raises:
        AdapterError: as `read_for`; or a plain LoRA is damaged (BS608), of another base (BS613), more than a
            plain one (BS656), or has values that are not finite (BS694).
    """
    if Stamp.of(folder) is not None:
        stored = read_for(folder, base)
        return stored.plan, lambda: tensors_of(stored)
    _, plan, tensors = read_peft(folder, base)
    _check_outside(folder, plan)
    check_finite(folder, tensors)
    return plan, lambda: tensors


def check_finite(folder: str | Path, tensors: Mapping[str, Tensor]) -> None:
    """Raise AdapterError (BS694) where values of an adapter are not finite."""
    for problem in not_finite(tensors):
        raise AdapterError(codes.NOT_FINITE_ADAPTER(folder=folder, what=problem.message))


def _check_outside(folder: str | Path, plan: Plan) -> None:
    """Check that vLLM has a layer for all that the adapter adds."""
    paths = [site.path for site in plan.sites if site.layer is None and plan.terms_of[site.path]]
    if plan.trained:
        what = f"`{plan.trained[0].parameter}`, trained in full"
        raise AdapterError(codes.NOT_SERVED(folder=folder, what=what))
    if paths:
        raise AdapterError(codes.NOT_SERVED(folder=folder, what=f"terms at `{paths[0]}`"))
