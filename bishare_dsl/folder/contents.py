"""The tensors in an adapter's folder by their keys, checked against its config.

A file has stacks (`bishare_dsl.folder.stacks`), each as ``base_model.model.bishare_tensors.STACK``. A state
dict in memory has tensors as ``base_model.model.OWNER.bishare_tensors.TENSOR``, with ``__`` for each dot of
the tensor's name in the plan. If tensors are regenerated from the seed, an empty tensor represents it:
``seed_7`` for seed 7. Keys without ``bishare_tensors`` belong to modules that PEFT saves with an adapter.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from safetensors import SafetensorError, deserialize

from bishare_dsl.diagnostics import (
    AdapterError,
    BishareError,
    Problem,
    nearest,
    one_line,
    raise_errors,
)
from bishare_dsl.diagnostics.codes import adapter as codes
from bishare_dsl.diagnostics.codes.spec import BROKEN_PLUGIN
from bishare_dsl.folder.config import (
    AdapterConfig,
    Entries,
    Entry,
    attribute_in,
    check_transforms,
    is_seed,
    plan_of_text,
)
from bishare_dsl.folder.former import entries_of_sharing
from bishare_dsl.folder.stacks import FLOATS, Stack, common_keys, stacks_of
from bishare_dsl.models.site import MAX_SITES, Architecture, Site, most_parameters
from bishare_dsl.plan import Plan
from bishare_dsl.spec import SINGULAR
from bishare_dsl.version import __version__

if TYPE_CHECKING:
    import torch


MEMBERS = "adapters"
"""Subfolder of a library for the private tensors of its adapters."""

MAX_NUMBERS = 2**31
"""The most numbers that an adapter's frozen random tensors may have, or the factors of one module."""

_T = TypeVar("_T")


@dataclass(frozen=True)
class StoredAdapter:
    """An adapter that was read once and verified."""

    folder: Path
    config: AdapterConfig
    plan: Plan
    entries: Entries = field(repr=False)
    """The contents of its tensor files."""

    beside: Entries = field(repr=False, default_factory=dict)
    """Modules that PEFT has saved with it, by their full keys."""

    @property
    def common(self) -> Entries:
        """The contents that all adapters of its library have."""
        keys = common_keys(self.plan, alone=self.config.alone)
        return {key: entry for key, entry in self.entries.items() if attribute_in(key) in keys}

    @property
    def spec_text(self) -> str:
        """The text of the adapter's spec."""
        return self.config.spec

    def tensors(self, *, with_base: bool = False) -> dict[str, torch.Tensor]:
        """Return the tensors by name as they were saved, regenerating those that were not stored.

        Args:
            with_base: whether the caller computes the tensors that come from the base's weights.

        Raises:
            AdapterError: some come from the base's weights (BS688), values are not finite (BS694), or this
                torch generates other random numbers than the one that saved the adapter (BS634).
        """
        if self.config.marks and not with_base:
            name = next(iter(self.config.marks))
            problem = codes.READS_WEIGHTS(
                tensor=name,
                start=self.plan.tensor[name].init,
                action="what is asked",
                help='load it onto its base, and save it with `frozen="tensors"`',
            )
            raise AdapterError(problem)
        from bishare_dsl.folder.stored import tensor_of

        with reading(self.folder):
            stored = {key: tensor_of(entry) for key, entry in self.entries.items()}
            return complete(self.folder, self.plan, self.config, stored)


def complete(
    folder: Path, plan: Plan, config: AdapterConfig, stored: Mapping[str, torch.Tensor]
) -> dict[str, torch.Tensor]:
    """Return a plan's tensors by name: stored, or regenerated from the seed.

    This is the second half of the check on loading; `check_entries` is the first.

    Args:
        folder: for error messages.
        plan: the adapter's.
        config: specifies which tensors come from the seed.
        stored: the contents of its files, by the last component of their keys.

    Raises:
        AdapterError: as `StoredAdapter.tensors`.
    """
    from bishare_dsl.folder.stored import check_finite, decode, redraw_tensors

    check_finite(folder, {key: tensor for key, tensor in stored.items() if not is_seed(key)})
    return {**dict(decode(plan, config, stored)), **dict(redraw_tensors(plan, config))}


def check_entries(path: Path, plan: Plan, config: AdapterConfig, entries: Entries) -> None:
    """Check for missing and unexpected tensors of an adapter, before it is added to a model.

    Every loader of a folder or of PEFT's state dict calls this, and then `complete`, which checks the values.

    Args:
        path: of the config, for error messages.
        plan: the adapter's.
        config: specifies which tensors are not stored.
        entries: the shapes and types of tensors, by the last component of their keys.

    Raises:
        AdapterError: lists all problems (BS609 to BS612, BS695); or the config omits a tensor that must
            be stored (BS604).
    """
    for name, entry in config.entries.items():
        if not _may_be_omitted(plan, name, entry):
            reason = f"`{name}` must be in the file"
            raise AdapterError(codes.BROKEN_CONFIG(path=path, reason=reason))
    stacks = {stack.key: stack for stack in stacks_of(plan, config.entries, alone=config.alone)}
    problems: list[Problem] = []
    own: Entries = {}
    for name, entry_in_file in entries.items():
        if not is_seed(name):
            own[name] = entry_in_file
        elif name != f"seed_{config.seed}":
            seed = name.removeprefix("seed_")
            problems.append(codes.OTHER_SEED(found=seed, seed=config.seed))
    raise_errors(AdapterError, [*problems, *tensor_problems(stacks, own)])


def _may_be_omitted(plan: Plan, name: str, entry: Entry) -> bool:
    """Tell whether the seed or the base gives a tensor, as an entry of a config states."""
    tensor = plan.tensor.get(name)
    if tensor is None:
        return False
    if entry.marks is not None:
        return not tensor.trainable and tensor.init in SINGULAR
    if entry.way == "seed":
        return not tensor.trainable and tensor.drawn
    return tensor.init == "base"


def check_beside(path: Path, config: AdapterConfig, beside: Entries, *, by_peft: bool) -> None:
    """Check the tensors in a file that do not belong to the adapter.

    Raises:
        AdapterError: there are some, but PEFT is not loading the folder (BS610); or they differ from what
            was saved (BS607).
    """
    if beside and not by_peft:
        help = "if PEFT saved it with the adapter, load the folder by `PeftModel.from_pretrained`"
        raise AdapterError(codes.UNEXPECTED_TENSOR(name=n, help=help) for n in sorted(beside)[:10])
    if config.beside is not None and digest_of(beside) != config.beside:
        reason = "the modules saved with the adapter differ from those in its config"
        raise AdapterError(codes.CHANGED_FILE(path=path, reason=reason))


def digest_of(entries: Entries) -> str:
    """Return the SHA-256 of a tensor file's contents.

    It covers the tensors' names (the last component of their keys), types, shapes and bytes, in the order
    of the names.
    """
    digest = hashlib.sha256()
    for name, entry in sorted(entries.items()):
        digest.update(f"{name} {entry['dtype']} {entry['shape']}\n".encode())
        digest.update(entry["data"])
    return digest.hexdigest()


def entries_in(content: bytes) -> Entries:
    """Return the contents of a tensor file by the last components of its keys.

    Raises:
        SafetensorError: this is not a tensor file.
        ValueError: two tensors have the same name.
    """
    stored = deserialize(content)  # type: ignore[no-untyped-call]
    entries = {attribute_in(key): entry for key, entry in stored}
    if len(entries) < len(stored):
        raise ValueError("two of its tensors have one name")
    return entries


def check_plan(
    config: AdapterConfig, path: Path = Path("adapter_config.json")
) -> tuple[Plan, AdapterConfig]:
    """Rebuild an adapter's plan, and read which tensors an older format does not store.

    Raises:
        BishareError: the spec is invalid or does not fit the base; a transform is not installed (BS619)
            or cannot be used (BS214); the plan differs from the saved one (BS661); `sharing` of an older
            format does not match the spec (BS607).
        ValueError: the other fields are inconsistent.
    """
    if len(config.base.sites) * check_transforms(config) > MAX_SITES:
        raise ValueError(f"its base has {len(config.base.sites):,} sites")
    plan = _small_plan(config.spec, config.base)
    if plan.digest != config.plan:
        version = config.versions.get("bishare")
        help = f"load it with bishare {version}, which saved it" if version != __version__ else None
        raise AdapterError(codes.OTHER_COMPILER(help=help))
    if config.sharing is None:
        return plan, config
    try:
        entries = entries_of_sharing(plan, config.sharing, alone=config.alone)
    except ValueError as error:
        reason = "its `sharing` is not what its spec gives"
        raise AdapterError(codes.CHANGED_FILE(path=path, reason=reason)) from error
    return plan, config.model_copy(update={"entries": entries})


@lru_cache(maxsize=16)
def _small_plan(spec_text: str, base: Architecture) -> Plan:
    """Build the plan of a spec's text whose tensors fit into memory.

    The size of a file does not limit what the seed gives, or the products of small tensors.

    Raises:
        BishareError: see `plan_of_text`.
        ValueError: see `plan_of_text`; or its tensors are too large.
    """
    plan = plan_of_text(spec_text, base)
    random = sum(tensor.size for tensor in plan.tensors if tensor.drawn and not tensor.trainable)
    factors = (plan.rows(site.path) * (site.d_in + site.d_out) for site in plan.sites)
    count = max(random, *factors, 0)
    if count > MAX_NUMBERS:
        raise ValueError(f"it takes {count:,} numbers in memory, and may take {MAX_NUMBERS:,}")
    return plan


def wanted_values(plan: Plan) -> dict[str, Stack]:
    """Return a plan's tensors in a state dict in memory, each by its attribute."""
    return {stack.key: stack for stack in stacks_of(plan, (), alone=True)}


def tensor_problems(stacks: Mapping[str, Stack], entries: Entries) -> Iterator[Problem]:
    """Find all problems with the shapes and types of the entries of a file or a state dict."""
    for key, stack in stacks.items():
        name = key.replace("__", ".")
        if key not in entries:
            yield codes.MISSING_TENSOR(name=name)
            continue
        shape = tuple(entries[key]["shape"])
        dtype = entries[key]["dtype"]
        if shape != stack.shape:
            yield codes.WRONG_SHAPE(name=name, found=shape, expected=stack.shape)
        if dtype not in FLOATS:
            yield codes.WRONG_DTYPE(name=name, found=dtype)
    for key in entries.keys() - stacks.keys():
        yield codes.UNEXPECTED_TENSOR(name=key.replace("__", "."))


def base_problems(plan: Plan, architecture: Architecture) -> Iterator[Problem]:
    """Report why an adapter with this plan does not fit a model (BS613), or may not belong to it (BS614)."""
    site_at = {site.path: site for site in architecture.every_site}
    reasons = (_misfit(site, site_at.get(site.path)) for site in plan.sites)
    reason = next(filter(None, reasons), None)
    layers = architecture.layers
    adapted_layers = plan.base.layers
    # The file's size does not limit tensors generated from a seed or from parts.
    size = sum(tensor.size for tensor in plan.tensors)
    if reason is None and layers != adapted_layers:
        reason = f"it has {layers} layers, and the adapter's base {adapted_layers}"
    elif reason is None and size > most_parameters(architecture):
        reason = f"it has {architecture.parameters:,} parameters, and the adapter {size:,}"
    if reason is not None:
        yield codes.OTHER_BASE(base=plan.base.name, model=architecture.name, reason=reason)
    elif plan.base.family and architecture.family != plan.base.family:
        yield codes.OTHER_FAMILY(base=plan.base.family, model=architecture.family)


def _misfit(site: Site, match: Site | None) -> str | None:
    """Return why a linear layer of a model is not the one that an adapter was made for."""
    if match is None:
        return f"it has no linear layer `{site.path}`"
    if (match.d_in, match.d_out) != (site.d_in, site.d_out):
        ours = f"{site.d_in} to {site.d_out} in the adapter's base"
        return f"`{site.path}` maps {match.d_in} features to {match.d_out} in it, and {ours}"
    if {*match.tied} != {*site.tied}:
        of_model = " and ".join(f"`{path}`" for path in match.paths)
        of_base = " and ".join(f"`{path}`" for path in site.paths)
        return (
            f"one weight is that of {of_model} in it, and that of {of_base} in the adapter's base"
        )
    return None


def own_file(name: str) -> str:
    """Return the file name of the private tensors of one adapter in a library."""
    return f"{MEMBERS}/{name}.safetensors"


def own_of(folder: Path, name: str | None, members: Mapping[str, _T]) -> dict[str, _T]:
    """Return the file of one adapter of a library with its config entry; empty for a single adapter.

    Raises:
        AdapterError: no name (BS676), unknown name (BS678), or the folder is not a library (BS677).
    """
    if name is None and members:
        some = ", ".join(f"`{folder}#{name}`" for name in [*members][:5])
        help = f"name one: {some}"
        if len(members) > 5:
            help += ", ..."
        raise AdapterError(codes.NEEDS_NAME(folder=folder, count=len(members), help=help))
    if name is None:
        return {}
    if not members:
        help = f"leave `#{name}` out: `{folder}`"
        raise AdapterError(codes.NOT_A_LIBRARY(folder=folder, name=name, help=help))
    if name not in members:
        help = nearest(name, members) or f"`bishare inspect {folder}` lists its adapters"
        raise AdapterError(codes.NOT_IN_LIBRARY(folder=folder, name=name, help=help))
    return {own_file(name): members[name]}


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """Convert errors while a file is read to BS608, except those that have a specific code."""
    try:
        yield
    except (OSError, ValueError, SafetensorError, BishareError) as error:
        problem = error.problems[0] if isinstance(error, BishareError) else None
        if isinstance(error, AdapterError) or (problem and problem.code == BROKEN_PLUGIN.code):
            raise
        reason = problem.message if problem else one_line(error)
        raise AdapterError(codes.BROKEN_FILE(path=path, reason=reason)) from error
