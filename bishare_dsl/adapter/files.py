"""The folder of an adapter: written in one step, read strictly.

| file | |
|---|---|
| ``bishare_config.json`` | `AdapterConfig`: versions, seed, base, digests of the other files |
| ``adapter.safetensors`` | each tensor of the plan once, under its own name; but for those that the config |
| | says are drawn from the seed, or stored in parts |
| ``plan.json`` | the `Plan` |
| ``spec.share`` | the spec's text |
| ``README.md`` | a model card; no part of the adapter, and kept as it is once somebody has edited it |
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import ValidationError
from safetensors import SafetensorError, safe_open

from bishare_dsl.adapter import journal
from bishare_dsl.adapter.card import model_card
from bishare_dsl.adapter.config import FORMAT, AdapterConfig, Digest, Versions
from bishare_dsl.adapter.resident import whole
from bishare_dsl.diagnostics import AdapterError, Problem, raise_errors
from bishare_dsl.diagnostics.codes import adapter as codes
from bishare_dsl.models.site import Architecture
from bishare_dsl.plan import Plan
from bishare_dsl.transforms.registry import installed_as, transform_names

if TYPE_CHECKING:
    import torch

    from bishare_dsl.adapter.stored import Frozen

CONFIG = "bishare_config.json"
TENSORS = "adapter.safetensors"
PLAN = "plan.json"
SPEC = "spec.share"
CARD = "README.md"

_DTYPES = ("F64", "F32", "BF16", "F16")


@dataclass(frozen=True)
class StoredAdapter:
    """An adapter that was read and found whole. The tensors' values are still in their file."""

    folder: Path
    config: AdapterConfig
    plan: Plan
    spec_text: str
    tensors_file: Path

    @property
    def compact(self) -> bool:
        """Whether there are tensors of which only what running needs was saved."""
        return bool(self.config.compact)

    def tensors(self, device: str = "cpu") -> dict[str, torch.Tensor]:
        """The tensors by name, as they were saved; those that were not are drawn again.

        Raises:
            AdapterError: the file cannot be read any more (BS608), or this torch draws other numbers
                than the one that saved the adapter (BS634).
            SpecError: a package's transform fails to restore a compact tensor (BS214).
        """
        from bishare_dsl.adapter.stored import draw_again, restored

        try:
            with safe_open(self.tensors_file, framework="pt", device=device) as file:
                # Copies: in the file's memory they are not aligned as torch aligns its own, and
                # kernels give other last bits.
                stored = {n: file.get_tensor(n).clone() for n in file.keys()}  # noqa: SIM118
            whole = {name: t for name, t in stored.items() if name in self.plan.tensor}
            whole |= restored(self.plan, self.config, stored)
        except (OSError, SafetensorError, ValueError) as error:
            reason = _reason(error)
            raise AdapterError(codes.BROKEN_FILE(path=self.tensors_file, reason=reason)) from error
        return whole | {name: t.to(device) for name, t in draw_again(self.plan, self.config)}


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

    Returns:
        What to warn of: frozen tensors that had to be stored (BS635), nothing to be made compact (BS636).

    Raises:
        AdapterError: a file that is no adapter's is in the way (BS615), the system refuses (BS616), or
            a tensor has no values (BS617).
        SpecError: a package's transform fails to make a tensor compact (BS214).
    """
    from safetensors.torch import save

    from bishare_dsl.adapter.stored import compacted, drawn, part_name

    folder = Path(folder)
    values, warnings = whole(plan, tensors), []
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
    values = {name: t.cpu().clone().contiguous() for name, t in values.items()}
    files = {
        TENSORS: save(values, {"format": "pt"}),
        PLAN: plan.model_dump_json().encode(),
        SPEC: spec_text.encode(),
        CARD: model_card(plan, spec_text).encode(),
    }
    try:
        folder.mkdir(parents=True, exist_ok=True)
        old = _old_files(folder)
        journal.finish(folder, old)
        if (folder / CARD).exists() and not (
            CARD in old and journal.matches(folder / CARD, old[CARD])
        ):
            del files[CARD]
        for name in files:
            if (folder / name).exists() and not (folder / CONFIG).exists():
                raise AdapterError(
                    codes.FOREIGN_FILE(path=folder / name, help="choose another folder")
                )
        config = AdapterConfig(
            versions=Versions.here(),
            seed=seed,
            base_model=plan.base.model_id or plan.base.name,
            base_revision=base_revision,
            drawn=left_out,
            compact={name: tuple(made) for name, made in parts.items()},
            packages=_packages(plan),
            files={name: journal.digest_of(data) for name, data in files.items()},
        )
        text = config.model_dump_json(indent=2) + "\n"
        journal.commit(folder, files, (CONFIG, text.encode()))
    except OSError as error:
        raise AdapterError(
            codes.CANNOT_WRITE(path=error.filename or folder, reason=error.strerror or error)
        ) from error
    return tuple(warnings)


def read_adapter(folder: str | os.PathLike[str]) -> StoredAdapter:
    """Read an adapter folder and check all of it; the tensors' values stay on disk.

    Raises:
        AdapterError: BS601 to BS612 and BS619, everything that is wrong with the tensors at once.
    """
    folder = Path(folder)
    config = _read_config(folder)
    paths = {
        name: _find(folder, name, digest) for name, digest in config.files.items() if name != CARD
    }
    spec_text = _read_text(paths[SPEC])
    plan = _read_plan(paths[PLAN])
    raise_errors(AdapterError, list(_missing_transforms(plan, config)))
    _check_names(folder / CONFIG, plan, config)
    raise_errors(AdapterError, list(_tensor_problems(plan, config, paths[TENSORS])))
    return StoredAdapter(folder, config, plan, spec_text, paths[TENSORS])


def base_problems(plan: Plan, architecture: Architecture) -> Iterator[Problem]:
    """Why an adapter with this plan does not fit a model (BS613), or may not be meant for it (BS614)."""
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
    if reason is not None:
        yield codes.OTHER_BASE(base=plan.base.name, model=architecture.name, reason=reason)
    elif architecture.family != plan.base.family:
        yield codes.OTHER_FAMILY(base=plan.base.family, model=architecture.family)


def _old_files(folder: Path) -> Mapping[str, Digest]:
    """What the config in a folder lists; nothing where it has none that can be read."""
    if not (folder / CONFIG).exists():
        return {}
    try:
        return _read_config(folder).files
    except AdapterError:
        return {}  # A broken adapter may be replaced.


def _read_config(folder: Path) -> AdapterConfig:
    path = folder / CONFIG
    if not folder.is_dir():
        raise AdapterError(codes.NO_SUCH_FOLDER(folder=folder))
    if not path.is_file():
        if (folder / "adapter_config.json").is_file():
            help = "load it with `peft.PeftModel.from_pretrained`"
            raise AdapterError(codes.PEFT_ADAPTER(folder=folder, help=help))
        raise AdapterError(codes.NOT_AN_ADAPTER(folder=folder))
    import json

    try:
        fields = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise AdapterError(codes.BROKEN_CONFIG(path=path, reason=_reason(error))) from error
    # A newer format may have fields that this version does not know, so this comes first.
    if isinstance(fields, dict):
        found = fields.get("format")
        if type(found) is int and found > FORMAT:
            versions = fields.get("versions")
            version = versions.get("bishare") if isinstance(versions, dict) else None
            problem = codes.NEWER_FORMAT(
                folder=folder,
                found=found,
                version=version or "a later version",
                known=FORMAT,
                help="pip install --upgrade bishare",
            )
            raise AdapterError(problem)
    try:
        config = AdapterConfig.model_validate(fields)
    except ValidationError as error:
        raise AdapterError(codes.BROKEN_CONFIG(path=path, reason=_reason(error))) from error
    needed = {TENSORS, PLAN, SPEC}
    if config.format < 1 or not needed <= config.files.keys() <= {*needed, CARD}:
        reason = "its list of files is not that of an adapter"
        raise AdapterError(codes.BROKEN_CONFIG(path=path, reason=reason))
    return config


def _find(folder: Path, name: str, digest: Digest) -> Path:
    try:
        if (found := journal.find(folder, name, digest)) is not None:
            return found
        if not (folder / name).is_file():
            raise AdapterError(codes.MISSING_FILE(folder=folder, file=name))
        size = (folder / name).stat().st_size
    except OSError as error:
        raise AdapterError(codes.BROKEN_FILE(path=folder / name, reason=_reason(error))) from error
    if size != digest.bytes:
        reason = f"it has {size:,} bytes of {digest.bytes:,}"
    else:
        reason = "its content is another"
    raise AdapterError(codes.CHANGED_FILE(path=folder / name, reason=reason))


def _read_text(path: Path) -> str:
    try:
        return path.read_bytes().decode()
    except (OSError, ValueError) as error:
        raise AdapterError(codes.BROKEN_FILE(path=path, reason=_reason(error))) from error


def _read_plan(path: Path) -> Plan:
    try:
        return Plan.model_validate_json(path.read_bytes())
    except (OSError, ValueError) as error:
        raise AdapterError(codes.BROKEN_FILE(path=path, reason=_reason(error))) from error


def _packages(plan: Plan) -> dict[str, str]:
    """The packages that the plan's transforms are from, but for our own."""
    found = {name: installed_as(name) for name in sorted({t.transform for t in plan.terms})}
    return {name: package for name, package in found.items() if package}


def _missing_transforms(plan: Plan, config: AdapterConfig) -> Iterator[Problem]:
    for name in sorted({term.transform for term in plan.terms} - set(transform_names())):
        if package := config.packages.get(name):
            help = f"install what it was saved with: {package}"
        else:
            help = "it was registered in Python: import what registers it first"
        yield codes.MISSING_TRANSFORM(name=name, help=help)


def _check_names(path: Path, plan: Plan, config: AdapterConfig) -> None:
    """See that what the config says is not stored whole are tensors that need not be."""
    frozen = {tensor.name for tensor in plan.tensors if not tensor.trainable}
    used = {name for term in plan.terms for name in term.tensors.values()}
    for names, allowed in ((config.drawn, frozen), (config.compact, used - config.drawn.keys())):
        if wrong := sorted(set(names) - allowed):
            reason = f"`{wrong[0]}` must be in the file"
            raise AdapterError(codes.BROKEN_CONFIG(path=path, reason=reason))


def _tensor_problems(plan: Plan, config: AdapterConfig, path: Path) -> Iterator[Problem]:
    try:
        # Only the header is read, for which numpy is as good as torch and quicker to import.
        with safe_open(path, framework="numpy") as file:
            slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118
            found = {n: (tuple(s.get_shape()), s.get_dtype()) for n, s in slices.items()}
    except (OSError, SafetensorError) as error:
        raise AdapterError(codes.BROKEN_FILE(path=path, reason=_reason(error))) from error
    parts = {f"{name}:{part}" for name, labels in config.compact.items() for part in labels}
    for tensor in plan.tensors:
        if tensor.name in config.drawn or tensor.name in config.compact:
            continue
        if tensor.name not in found:
            yield codes.MISSING_TENSOR(name=tensor.name)
            continue
        shape, dtype = found[tensor.name]
        if shape != tensor.shape:
            yield codes.WRONG_SHAPE(name=tensor.name, found=shape, expected=tensor.shape)
        if dtype not in _DTYPES:
            yield codes.WRONG_DTYPE(name=tensor.name, found=dtype)
    for name in sorted(parts - found.keys()):
        yield codes.MISSING_TENSOR(name=name)
    expected = (plan.tensor.keys() - config.drawn.keys() - config.compact.keys()) | parts
    for name in found:
        if name not in expected:
            yield codes.UNEXPECTED_TENSOR(name=name)


def _some(names: Sequence[str]) -> str:
    """The first names of a list that may be long."""
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return ", ".join(f"`{name}`" for name in names[:3]) + more


def _reason(error: Exception) -> str:
    """One line of an exception's own words."""
    if isinstance(error, ValidationError):
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        return f"{where}: {first['msg']}" if where else first["msg"]
    if isinstance(error, OSError):
        return error.strerror or str(error)
    return " ".join(str(error).split()) or type(error).__name__
