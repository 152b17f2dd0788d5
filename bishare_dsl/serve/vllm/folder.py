"""Read an adapter folder and check it against the served base."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from bishare_dsl.convert.effective import MERGE, check_linear
from bishare_dsl.convert.from_peft import read_peft
from bishare_dsl.diagnostics import AdapterError, raise_errors
from bishare_dsl.diagnostics.codes import adapter as codes
from bishare_dsl.folder.contents import StoredAdapter, base_problems, own_file
from bishare_dsl.folder.files import CONFIG, TENSORS, place_of, read_adapter
from bishare_dsl.folder.files import is_ours as has_ours
from bishare_dsl.folder.stored import check_finite

if TYPE_CHECKING:
    from torch import Tensor

    from bishare_dsl.models.site import Architecture
    from bishare_dsl.plan import Plan


COMPACT = (
    """start vLLM in compact mode, `--additional-config '{"bishare_plans": ["FOLDER"]}'` (without CUDA """
    """graphs `{"bishare_slots_gib": 4}` is enough), or """ + MERGE
)
"""Advice for adapters with a magnitude, which vLLM's own LoRA kernels cannot apply."""

Stamp = tuple[tuple[int, int, int] | None, ...]
"""The version of a folder: inode, modification time and size of each file."""


def stamp_of(folder: str | Path) -> Stamp:
    """Return the stamp of a folder or of a library's adapter; saving it again changes the stamp."""
    place, name = place_of(folder)
    files = [CONFIG, TENSORS, *([] if name is None else [own_file(name)])]
    return tuple(_mark(place / file) for file in files)


def _mark(path: Path) -> tuple[int, int, int] | None:
    with suppress(OSError):
        status = path.stat()
        return status.st_ino, status.st_mtime_ns, status.st_size
    return None


def is_ours(folder: str | Path) -> bool:
    """Return whether a folder or library belongs to bishare; False if it is inaccessible."""
    return has_ours(place_of(folder)[0])


def read_for(folder: str | Path, base: Architecture, *, compact: bool = False) -> StoredAdapter:
    """Read a folder of bishare for serving with a base.

    Args:
        folder: the folder.
        base: the served base.
        compact: whether to accept magnitudes, which compact mode alone applies.

    Raises:
        AdapterError: it is damaged (BS601 to BS612, BS619), belongs to another base (BS613), is nonlinear
            in its input (BS633), has a magnitude (BS675), or adapts heads or embeddings (BS680).
    """
    stored = read_adapter(folder)
    raise_errors(AdapterError, list(base_problems(stored.plan, base)))
    terms = stored.plan.update_terms if compact else stored.plan.terms
    check_linear(terms, "serve the adapter with vLLM", COMPACT)
    check_outside(folder, stored.plan)
    return stored


class Read(NamedTuple):
    """The contents of an adapter folder.

    Attributes:
        plan: the adapter's plan.
        library: the digest of its library's shared tensors; None without any.
        tensors: returns the plan's tensors by name.
    """

    plan: Plan
    library: str | None
    tensors: Callable[[], dict[str, Tensor]]


def read_any(
    folder: str | Path,
    base: Architecture,
    tensors_of: Callable[[StoredAdapter], dict[str, Tensor]] = StoredAdapter.tensors,
) -> Read:
    """Read a folder of bishare or of plain LoRA for compact mode.

    Args:
        folder: the folder.
        base: the served base.
        tensors_of: returns the tensors of a folder of bishare.

    Raises:
        AdapterError: see `read_for`; or a LoRA is damaged (BS608), belongs to another base (BS613), is not
            plain (BS656), or has non-finite values (BS694).
    """
    if is_ours(folder):
        stored = read_for(folder, base, compact=True)
        trained = {tensor.name for tensor in stored.plan.tensors if tensor.trainable}
        shares = stored.config.adapters and not trained.isdisjoint(stored.plan.common)
        library = stored.config.tensors if shares else None
        return Read(stored.plan, library, lambda: tensors_of(stored))
    _, plan, tensors = read_peft(folder, base)
    check_outside(folder, plan)
    check_finite(folder, tensors)
    return Read(plan, None, lambda: tensors)


def check_outside(folder: str | Path, plan: Plan) -> None:
    """Check that vLLM has a layer for every part of the adapter."""
    paths = [site.path for site in plan.sites if site.layer is None and plan.terms_of[site.path]]
    if plan.trained:
        what = f"`{plan.trained[0].parameter}`, trained in full"
        raise AdapterError(codes.NOT_SERVED(folder=folder, what=what))
    if paths:
        raise AdapterError(codes.NOT_SERVED(folder=folder, what=f"terms at `{paths[0]}`"))
