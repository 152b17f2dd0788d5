"""The folder of an adapter: written in one step, read strictly.

| file | |
|---|---|
| ``bishare_config.json`` | `AdapterConfig`: versions, seed, the base and its shapes, digests |
| ``adapter.safetensors`` | each tensor of the plan once, under its own name; but for those that the config |
| | says are drawn from the seed, or stored in parts |
| ``spec.share`` | the spec's text, from which the plan is made again |
| ``README.md`` | a model card; no part of the adapter, and kept as it is once somebody has edited it |

Format 1, which bishare 0.1 wrote, has the plan too, in ``plan.json``. It must say what the spec says.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from safetensors import SafetensorError, deserialize

from bishare_dsl.adapter.card import model_card
from bishare_dsl.adapter.config import FORMAT, AdapterConfig, versions_here
from bishare_dsl.adapter.replan import packages_of, plan_again, plan_of_text
from bishare_dsl.adapter.resident import whole
from bishare_dsl.diagnostics import AdapterError, BishareError, Problem, one_line, raise_errors
from bishare_dsl.diagnostics.codes import adapter as codes
from bishare_dsl.diagnostics.codes.spec import BROKEN_PLUGIN
from bishare_dsl.models.site import Architecture
from bishare_dsl.plan import Plan
from bishare_dsl.writing import Digest, commit, content_of, digest_of, finish, locked

if TYPE_CHECKING:
    import torch

    from bishare_dsl.adapter.stored import Frozen, Rounded

CONFIG = "bishare_config.json"
TENSORS = "adapter.safetensors"
PLAN = "plan.json"
"""Of format 1."""
SPEC = "spec.share"
CARD = "README.md"

_ALWAYS_FITS = 2**28
"""Parameters of an adapter for which no base is too small."""

_DTYPES = ("F64", "F32", "BF16", "F16")


@dataclass(frozen=True)
class StoredAdapter:
    """An adapter that was read, once, and found whole."""

    folder: Path
    config: AdapterConfig
    plan: Plan
    spec_text: str
    content: bytes = field(repr=False)
    """Of the file of tensors."""

    @property
    def compact(self) -> bool:
        """Whether there are tensors of which only what running needs was saved."""
        return bool(self.config.compact)

    def tensors(self, device: str = "cpu") -> dict[str, torch.Tensor]:
        """Give the tensors by name, as they were saved; those that were not are drawn again.

        Raises:
            AdapterError: parts of a tensor do not make it (BS608), or this torch draws other numbers than
                the one that saved the adapter (BS634).
            SpecError: a package's transform fails to restore a compact tensor (BS214).
        """
        from safetensors.torch import load

        from bishare_dsl.adapter.stored import draw_again, restored, widened

        # Copies: in the file's memory they are not aligned as torch aligns its own, and kernels give
        # other last bits.
        narrow = self.config.rounded
        stored = {name: widened(t, narrow).clone() for name, t in load(self.content).items()}
        whole = {name: t for name, t in stored.items() if name in self.plan.tensor}
        with _reading(self.folder / TENSORS):
            whole |= restored(self.plan, self.config, stored)
        whole |= draw_again(self.plan, self.config)
        return {name: tensor.to(device) for name, tensor in whole.items()}


def save_adapter(
    folder: str | os.PathLike[str],
    plan: Plan,
    tensors: Mapping[str, torch.Tensor],
    spec_text: str,
    *,
    seed: int,
    base_revision: str | None = None,
    frozen: Frozen = "seed",
    compact: bool = False,
    dtype: Rounded = None,
) -> tuple[Problem, ...]:
    """Write an adapter folder, or replace the adapter in it, in one step.

    A kill at any moment leaves the adapter that was there, or the new one. Other files in the folder
    are not touched.

    Args:
        folder: made with its parents where it does not exist.
        plan: names the tensors.
        tensors: values by name, on any device; written in the type that they have.
        spec_text: what the plan was made from.
        seed: that drew the tensors.
        base_revision: the commit of the base on the Hub, where it is known.
        frozen: ``"seed"`` leaves out the frozen tensors that the seed draws again, and a loader checks
            that it does; ``"tensors"`` stores them.
        compact: store of each tensor only what running needs, where its transform knows how. What is
            loaded from that gives the same updates, and cannot train.
        dtype: ``"bfloat16"`` rounds float32 tensors to it, for a file of half the size.

    Returns:
        What to warn of: frozen tensors that had to be stored (BS635), nothing to be made compact (BS636),
        values that are not finite (BS660).

    Raises:
        AdapterError: a file that is no adapter's is in the way (BS615), the system refuses (BS616), a
            tensor has no values (BS617), or the text does not give the plan (BS661).
        SpecError: a package's transform fails to make a tensor compact (BS214).
    """
    from safetensors.torch import save

    from bishare_dsl.adapter.stored import compacted, drawn, not_finite, part_name, rounded

    folder = Path(folder)
    if plan_of_text(spec_text, plan.base).digest != plan.digest:
        raise AdapterError(codes.OTHER_COMPILER(help="this is a mistake of whoever saves it"))
    values, warnings = whole(plan, tensors), []
    warnings += not_finite(values)
    left_out = drawn(plan, values, seed) if frozen == "seed" else {}
    changed = [t.name for t in plan.tensors if not t.trainable and t.name not in left_out]
    if changed and frozen == "seed":
        warnings.append(codes.FROZEN_CHANGED(seed=seed, names=_some(changed)))
    for name in left_out:
        del values[name]
    parts = compacted(plan, values) if compact else {}
    if compact and not parts:
        warnings.append(codes.NOTHING_COMPACT())
    for name, made in parts.items():
        del values[name]
        values |= {part_name(name, label): part for label, part in made.items()}
    # Clones, because a tensor that is a view of another cannot be written as it is.
    values = {name: rounded(t.cpu(), dtype).clone().contiguous() for name, t in values.items()}
    files = {
        TENSORS: save(values, {"format": "pt"}),
        SPEC: spec_text.encode(),
        CARD: model_card(plan, spec_text).encode(),
    }
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with locked(folder):
            old = listed_files(folder)
            finish(folder, old)
            if (folder / CARD).exists() and not is_own_card(folder, old):
                del files[CARD]
            for name in files:
                if os.path.lexists(folder / name) and not (folder / CONFIG).exists():
                    raise AdapterError(
                        codes.FOREIGN_FILE(path=folder / name, help="choose another folder")
                    )
            config = AdapterConfig(
                versions=versions_here(),
                seed=seed,
                base_model=plan.base.model_id or plan.base.name,
                base_revision=base_revision,
                base=plan.base,
                plan=plan.digest,
                drawn=left_out,
                compact={name: tuple(made) for name, made in parts.items()},
                packages=packages_of(plan),
                rounded=dtype,
                files={name: digest_of(data) for name, data in files.items()},
            )
            commit(folder, files, (CONFIG, config.text().encode()))
            if PLAN in old:
                (folder / PLAN).unlink(missing_ok=True)
    except OSError as error:
        raise AdapterError(
            codes.CANNOT_WRITE(path=error.filename or folder, reason=error.strerror or error)
        ) from error
    return tuple(warnings)


def read_adapter(folder: str | os.PathLike[str]) -> StoredAdapter:
    """Read an adapter folder and check all of it: each file once, so that what is checked is what is used.

    Raises:
        AdapterError: BS601 to BS612, BS619 and BS661, everything that is wrong with the tensors at once.
        SpecError: a package's transform cannot be used (BS214).
    """
    folder = Path(folder)
    config, files = _read_files(folder)
    with _reading(folder / SPEC):
        spec_text = files[SPEC].decode()
        plan = plan_again(spec_text, config, files.get(PLAN))
    _check_names(folder / CONFIG, plan, config)
    with _reading(folder / TENSORS):
        entries = deserialize(files[TENSORS])  # type: ignore[no-untyped-call]
    header = {name: (tuple(entry["shape"]), entry["dtype"]) for name, entry in entries}
    raise_errors(AdapterError, list(_tensor_problems(plan, config, header)))
    return StoredAdapter(folder, config, plan, spec_text, files[TENSORS])


def base_problems(plan: Plan, architecture: Architecture) -> Iterator[Problem]:
    """Say why an adapter with this plan does not fit a model (BS613), or may not be meant for it (BS614)."""
    here = {site.path: site for site in architecture.sites}
    reason = None
    for site in plan.sites:
        if (found := here.get(site.path)) is None:
            reason = f"it has no linear layer `{site.path}`"
        elif (found.d_in, found.d_out) != (site.d_in, site.d_out):
            reason = (
                f"`{site.path}` maps {found.d_in} features to {found.d_out} in it, and "
                f"{site.d_in} to {site.d_out} in the adapter's base"
            )
        if reason is not None:
            break
    else:
        if architecture.layers != plan.base.layers:
            reason = (
                f"it has {architecture.layers} layers, and the adapter's base {plan.base.layers}"
            )
    # What a seed draws, or a part stands for, is not in the file, and may be of any size.
    size = sum(tensor.size for tensor in plan.tensors)
    if reason is None and size > max(_ALWAYS_FITS, 4 * architecture.parameters):
        reason = f"it has {architecture.parameters:,} parameters, and the adapter {size:,}"
    if reason is not None:
        yield codes.OTHER_BASE(base=plan.base.name, model=architecture.name, reason=reason)
    elif architecture.family != plan.base.family:
        yield codes.OTHER_FAMILY(base=plan.base.family, model=architecture.family)


def is_own_card(folder: Path, listed: Mapping[str, Digest]) -> bool:
    """Tell whether the card in a folder is as bishare wrote it, by what the config lists.

    Raises:
        OSError: it cannot be read.
    """
    return CARD in listed and digest_of((folder / CARD).read_bytes()) == listed[CARD]


def listed_files(folder: Path) -> Mapping[str, Digest]:
    """Give what the config in a folder lists; nothing where it has none that can be read."""
    if not (folder / CONFIG).exists():
        return {}
    try:
        return _read_config(folder).files
    except AdapterError:
        return {}  # A broken adapter may be replaced.


def _read_config(folder: Path) -> AdapterConfig:
    path = folder / CONFIG
    try:
        if not path.is_file():
            raise AdapterError(_not_an_adapter(folder))
        fields = json.loads(path.read_bytes())
        # A newer format may have fields that this version does not know, so this comes first.
        found = fields.get("format") if isinstance(fields, dict) else None
        if type(found) is int and found > FORMAT:
            writer = fields.get("versions")
            version = writer.get("bishare") if isinstance(writer, dict) else None
            raise AdapterError(
                codes.NEWER_FORMAT(
                    folder=folder,
                    found=found,
                    version=version or "a later version",
                    known=FORMAT,
                    help="pip install --upgrade bishare",
                )
            )
        config = AdapterConfig.of(fields)
        needed = {TENSORS, SPEC} | ({PLAN} if config.format == 1 else set())
        if config.format < 1 or not needed <= config.files.keys() <= {*needed, CARD}:
            raise ValueError("its list of files is not that of an adapter")
    except (OSError, ValueError, RecursionError) as error:
        raise AdapterError(codes.BROKEN_CONFIG(path=path, reason=one_line(error))) from error
    return config


def is_peft(folder: str | os.PathLike[str]) -> bool:
    """Tell whether a folder has an adapter of PEFT, and none of bishare; one out of reach has neither."""
    folder = Path(folder)
    try:
        return (folder / "adapter_config.json").is_file() and not (folder / CONFIG).exists()
    except OSError:
        return False


def _not_an_adapter(folder: Path) -> Problem:
    if not folder.is_dir():
        return codes.NO_SUCH_FOLDER(folder=folder)
    if is_peft(folder):
        help = "`bishare import` makes an adapter of bishare's of it"
        return codes.PEFT_ADAPTER(folder=folder, help=help)
    return codes.NOT_AN_ADAPTER(folder=folder)


def _read_files(folder: Path) -> tuple[AdapterConfig, dict[str, bytes]]:
    """Read the config of an adapter, and the files that it means."""
    while True:
        config = _read_config(folder)
        try:
            found = {n: _content(folder, n, d) for n, d in config.files.items() if n != CARD}
        except AdapterError:
            if _read_config(folder) == config:
                raise  # Else another adapter was saved in the meantime, and its files are there.
        else:
            return config, found


def _content(folder: Path, name: str, digest: Digest) -> bytes:
    path = folder / name
    with _reading(path):
        if (content := content_of(folder, name, digest)) is not None:
            return content
        if not path.is_file():
            raise AdapterError(codes.MISSING_FILE(folder=folder, file=name))
        size = path.stat().st_size
    if size != digest.bytes:
        reason = f"it has {size:,} bytes of {digest.bytes:,}"
    else:
        reason = "its content is another"
    raise AdapterError(codes.CHANGED_FILE(path=path, reason=reason))


def _check_names(path: Path, plan: Plan, config: AdapterConfig) -> None:
    """See that what the config says is not stored whole are tensors that need not be."""
    frozen = {tensor.name for tensor in plan.tensors if not tensor.trainable}
    used = {name for term in plan.terms for name in term.tensors.values()}
    for names, allowed in ((config.drawn, frozen), (config.compact, used - config.drawn.keys())):
        if wrong := sorted(set(names) - allowed):
            reason = f"`{wrong[0]}` must be in the file"
            raise AdapterError(codes.BROKEN_CONFIG(path=path, reason=reason))


def _tensor_problems(
    plan: Plan, config: AdapterConfig, found: Mapping[str, tuple[tuple[int, ...], str]]
) -> Iterator[Problem]:
    """Find everything that is wrong with the header of the file of tensors."""
    expected: dict[str, tuple[int, ...] | None] = {
        tensor.name: tensor.shape
        for tensor in plan.tensors
        if tensor.name not in config.drawn and tensor.name not in config.compact
    }
    for name, labels in config.compact.items():
        expected |= dict.fromkeys(f"{name}:{label}" for label in labels)  # Who restores it looks.
    for name, wanted in expected.items():
        if name not in found:
            yield codes.MISSING_TENSOR(name=name)
        elif wanted is not None:
            shape, dtype = found[name]
            if shape != wanted:
                yield codes.WRONG_SHAPE(name=name, found=shape, expected=wanted)
            if dtype not in _DTYPES:
                yield codes.WRONG_DTYPE(name=name, found=dtype)
    for name in found:
        if name not in expected:
            yield codes.UNEXPECTED_TENSOR(name=name)


def _some(names: Sequence[str]) -> str:
    """Show the first names of a list that may be long."""
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return ", ".join(f"`{name}`" for name in names[:3]) + more


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    """Say that a file is broken (BS608) where what is made of it fails, but for what has its own words."""
    try:
        yield
    except (OSError, ValueError, SafetensorError, BishareError) as error:
        problem = error.problems[0] if isinstance(error, BishareError) else None
        if isinstance(error, AdapterError) or (problem and problem.code == BROKEN_PLUGIN.code):
            raise
        reason = problem.message if problem else one_line(error)
        raise AdapterError(codes.BROKEN_FILE(path=path, reason=reason)) from error
