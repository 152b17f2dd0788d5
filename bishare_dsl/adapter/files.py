"""The folder of an adapter: written in one step, read strictly.

| file | |
|---|---|
| ``bishare_config.json`` | `AdapterConfig`: versions, seed, the base and its shapes, digests |
| ``adapter.safetensors`` | each tensor of the plan once, under its own name; but for those that the config |
| | says are drawn from the seed, or stored in parts |
| ``spec.share`` | the spec's text, from which the plan is made again |
| ``README.md`` | a model card; no part of the adapter, and kept as it is once somebody has edited it |

A library has the tensors that all its adapters share in ``adapter.safetensors``, and those of each in
``adapters/NAME.safetensors``; ``FOLDER#NAME`` is read as an adapter.

Format 1, which bishare 0.1 wrote, has the plan too, in ``plan.json``. It must say what the spec says.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors import SafetensorError, deserialize

from bishare_dsl.adapter.card import model_card
from bishare_dsl.adapter.config import LIBRARY, AdapterConfig, installed_versions
from bishare_dsl.adapter.devices import gather_tensors
from bishare_dsl.adapter.replan import packages_of, plan_of_text, replan
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
from bishare_dsl.models.site import Architecture, most_parameters
from bishare_dsl.plan import Plan, Tensor
from bishare_dsl.reading import MAX_CONFIG, read_file
from bishare_dsl.writing import Digest, commit, content_of, digest_of, finish_commit, lock_folder

if TYPE_CHECKING:
    import torch

    from bishare_dsl.adapter.stored import Frozen, Rounded

CONFIG = "bishare_config.json"
TENSORS = "adapter.safetensors"
PLAN = "plan.json"
"""Of format 1."""
SPEC = "spec.share"
MEMBERS = "adapters"
"""The folder, in that of a library, of what each adapter has for itself."""
CARD = "README.md"

_DTYPES = ("F64", "F32", "BF16", "F16")


@dataclass(frozen=True)
class StoredAdapter:
    """An adapter that was read, once, and found whole."""

    folder: Path
    config: AdapterConfig
    plan: Plan
    spec_text: str
    contents: tuple[bytes, ...] = field(repr=False)
    """Of the files of tensors."""

    @property
    def compact(self) -> bool:
        """Whether there are tensors of which only what running needs was saved."""
        return bool(self.config.compact)

    def stored(self, tell: Callable[[Problem], None] | None = None) -> dict[str, torch.Tensor]:
        """Return what the files hold, by name: tensors and parts of them.

        Args:
            tell: takes what to warn of: values that are not finite (BS660). Without it they are refused.

        Raises:
            AdapterError: values are not finite (BS694).
        """
        from safetensors.torch import load

        from bishare_dsl.adapter.stored import not_finite, widen_tensor

        # Copies: in the file's memory they are not aligned as torch aligns its own, and kernels give
        # other last bits.
        stored = {
            name: widen_tensor(tensor, self.config.rounded).clone()
            for content in self.contents
            for name, tensor in load(content).items()
        }
        for problem in not_finite(stored):
            if tell is None:
                what = problem.message
                raise AdapterError(codes.NOT_FINITE_ADAPTER(folder=self.folder, what=what))
            tell(problem)
        return stored

    def tensors(
        self, device: str = "cpu", tell: Callable[[Problem], None] | None = None
    ) -> dict[str, torch.Tensor]:
        """Return the tensors by name, as they were saved; those that were not are drawn again.

        Args:
            device: where to.
            tell: as in `stored`.

        Raises:
            AdapterError: values are not finite (BS694), parts of a tensor do not make it (BS608), or this
                torch draws other numbers than the one that saved the adapter (BS634).
            SpecError: a package's transform fails to restore a compact tensor (BS214).
        """
        from bishare_dsl.adapter.stored import redraw_tensors, restore_tensors

        stored = self.stored(tell)
        whole = {name: t for name, t in stored.items() if name in self.plan.tensor}
        with _reading(self.folder / TENSORS):
            whole |= restore_tensors(self.plan, self.config, stored)
        whole |= redraw_tensors(self.plan, self.config)
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
        AdapterError: a file that is not an adapter's is in the way (BS615), the system refuses (BS616), a
            tensor has no values (BS617), or the text does not give the plan (BS661).
        SpecError: a package's transform fails to make a tensor compact (BS214).
    """
    from safetensors.torch import save

    from bishare_dsl.adapter.stored import (
        compact_tensors,
        find_drawn,
        not_finite,
        part_name,
        round_tensor,
    )

    folder = Path(folder)
    if plan_of_text(spec_text, plan.base).digest != plan.digest:
        raise AdapterError(codes.OTHER_COMPILER(help="this is a mistake of whoever saves it"))
    values, warnings = gather_tensors(plan, tensors), []
    left_out = find_drawn(plan, values, seed) if frozen == "seed" else {}
    left = [t.name for t in plan.tensors if t.drawn and not t.trainable]
    changed = [name for name in left if name not in left_out]
    if changed and frozen == "seed":
        warnings.append(codes.FROZEN_CHANGED(seed=seed, names=_some(changed)))
    for name in left_out:
        del values[name]
    parts = compact_tensors(plan, values) if compact else {}
    if compact and not parts:
        warnings.append(codes.NOTHING_COMPACT())
    for name, made in parts.items():
        del values[name]
        values |= {part_name(name, label): part for label, part in made.items()}
    warnings += not_finite(values)
    # Clones, because a tensor that is a view of another cannot be written as it is.
    values = {name: round_tensor(t.cpu(), dtype).clone().contiguous() for name, t in values.items()}
    files = {
        TENSORS: save(values, {"format": "pt"}),
        SPEC: spec_text.encode(),
        CARD: model_card(plan, spec_text).encode(),
    }
    config = config_of(
        plan,
        seed=seed,
        base_revision=base_revision,
        drawn=left_out,
        compact={name: tuple(made) for name, made in parts.items()},
        of_base=tuple(t.name for t in plan.tensors if t.init == "base" and t.name not in values),
        rounded=dtype,
    )
    write_files(folder, files, config)
    return tuple(warnings)


def config_of(plan: Plan, **said: Any) -> AdapterConfig:
    """Describe an adapter of a plan that is not written yet: its files are not named."""
    return AdapterConfig(
        versions=installed_versions(),
        base_model=plan.base.model_id or plan.base.name,
        base=plan.base,
        plan=plan.digest,
        packages=packages_of(plan),
        files={},
        **said,
    )


def write_files(
    folder: Path,
    files: dict[str, bytes],
    config: AdapterConfig,
    own: Mapping[str, bytes] | None = None,
) -> None:
    """Write the files of an adapter, or of a library, in one step; a library and an adapter do not replace
    each other.

    Args:
        folder: made with its parents where it does not exist.
        files: by name.
        config: but for the digests.
        own: the files of the adapters of a library, by their names.

    Raises:
        AdapterError: a file of something else is in the way (BS615), or the system refuses (BS616).
    """
    members = {own_file(name): data for name, data in (own or {}).items()}
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with lock_folder(folder):
            old = listed_files(folder)
            finish_commit(folder, old)
            if (folder / CARD).exists() and not is_own_card(folder, old):
                del files[CARD]
            for name in (*files, *members):
                if os.path.lexists(folder / name) and not (folder / CONFIG).exists():
                    raise _in_the_way(folder / name)
            if old and any(name.startswith(MEMBERS) for name in old) != bool(members):
                raise _in_the_way(folder / CONFIG)
            if members:
                (folder / MEMBERS).mkdir(exist_ok=True)
            digests = {name: digest_of(data) for name, data in files.items()}
            adapters = {name: digest_of(data) for name, data in (own or {}).items()}
            config = config.model_copy(update={"files": digests, "adapters": adapters or None})
            commit(folder, files | members, (CONFIG, config.text().encode()))
            for name in old.keys() - files.keys() - members.keys() - {CARD}:
                (folder / name).unlink(missing_ok=True)
    except OSError as error:
        raise AdapterError(
            codes.CANNOT_WRITE(path=error.filename or folder, reason=error.strerror or error)
        ) from error


def own_file(name: str) -> str:
    """Return the name of the file of what one adapter of a library has for itself."""
    return f"{MEMBERS}/{name}.safetensors"


def place_of(folder: str | os.PathLike[str]) -> tuple[Path, str | None]:
    """Return the folder that is meant, and the adapter of a library in it: ``FOLDER#NAME``.

    A folder that has ``#`` in its own name wins.
    """
    text = os.fspath(folder)
    library, sign, name = text.rpartition("#")
    named = sign and not os.path.exists(text)  # noqa: PTH110 - a name too long is none
    return (Path(library), name) if named else (Path(text), None)


def names_in(folder: str | os.PathLike[str]) -> tuple[str, ...]:
    """Return the names of the adapters of a library; none where a folder is not a library."""
    path = Path(folder)
    if not (path / CONFIG).is_file():
        return ()
    return tuple(_read_config(path).adapters or ())


def _in_the_way(path: Path) -> AdapterError:
    return AdapterError(codes.FOREIGN_FILE(path=path, help="choose another folder"))


def read_adapter(folder: str | os.PathLike[str]) -> StoredAdapter:
    """Read an adapter folder and check all of it: each file once, so that what is checked is what is used.

    Raises:
        AdapterError: BS601 to BS612, BS619 and BS661, everything that is wrong with the tensors at once.
        SpecError: a package's transform cannot be used (BS214).
    """
    place, name = place_of(folder)
    config, files = _read_files(place, name)
    with _reading(place / SPEC):
        spec_text = files[SPEC].decode()
        plan = replan(spec_text, config, files.get(PLAN))
    _check_names(place / CONFIG, plan, config)
    elsewhere = {*config.drawn, *config.compact, *config.of_base}
    stored = [tensor for tensor in plan.tensors if tensor.name not in elsewhere]
    shared = [t for t in stored if name is None or t.name in plan.common]
    parts = {TENSORS: shared}
    if name is not None:
        parts[own_file(name)] = [t for t in stored if t.name not in plan.common]
    problems: list[Problem] = []
    for file, tensors in parts.items():
        with _reading(place / file):
            entries = deserialize(files[file])  # type: ignore[no-untyped-call]
        header = {entry[0]: (tuple(entry[1]["shape"]), entry[1]["dtype"]) for entry in entries}
        problems += _tensor_problems(tensors, config, header)
    raise_errors(AdapterError, problems)
    contents = tuple(files[file] for file in parts)
    return StoredAdapter(Path(folder), config, plan, spec_text, contents)


def base_problems(plan: Plan, architecture: Architecture) -> Iterator[Problem]:
    """Say why an adapter with this plan does not fit a model (BS613), or may not be meant for it (BS614)."""
    here = {site.path: site for site in architecture.every_site}
    reason = None
    for site in plan.sites:
        if (found := here.get(site.path)) is None:
            reason = f"it has no linear layer `{site.path}`"
        elif (found.d_in, found.d_out) != (site.d_in, site.d_out):
            reason = (
                f"`{site.path}` maps {found.d_in} features to {found.d_out} in it, and "
                f"{site.d_in} to {site.d_out} in the adapter's base"
            )
        elif {*found.tied} != {*site.tied}:
            one, other = (" and ".join(f"`{path}`" for path in s.paths) for s in (found, site))
            reason = f"one weight is that of {one} in it, and that of {other} in the adapter's base"
        if reason is not None:
            break
    else:
        if architecture.layers != plan.base.layers:
            reason = (
                f"it has {architecture.layers} layers, and the adapter's base {plan.base.layers}"
            )
    # What a seed draws, or a part stands for, is not in the file, and may be of any size.
    size = sum(tensor.size for tensor in plan.tensors)
    if reason is None and size > most_parameters(architecture):
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
    return CARD in listed and content_of(folder, CARD, listed[CARD]) is not None


def listed_files(folder: Path) -> Mapping[str, Digest]:
    """Return what the config in a folder lists; nothing where it has none that can be read."""
    if not (folder / CONFIG).exists():
        return {}
    try:
        config = _read_config(folder)
    except AdapterError:
        return {}  # A broken adapter may be replaced.
    return config.files | {own_file(name): d for name, d in (config.adapters or {}).items()}


def _read_config(folder: Path) -> AdapterConfig:
    path = folder / CONFIG
    try:
        if not path.is_file():
            raise AdapterError(_not_an_adapter(folder))
        fields = json.loads(read_file(folder, CONFIG, MAX_CONFIG))
        # A newer format may have fields that this version does not know, so this comes first.
        found = fields.get("format") if isinstance(fields, dict) else None
        if type(found) is int and found > LIBRARY:
            writer = fields.get("versions")
            version = writer.get("bishare") if isinstance(writer, dict) else None
            raise AdapterError(
                codes.NEWER_FORMAT(
                    folder=folder,
                    found=found,
                    version=version or "a later version",
                    known=LIBRARY,
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


def _read_files(folder: Path, name: str | None) -> tuple[AdapterConfig, dict[str, bytes]]:
    """Read the config of an adapter, of which library it may be, and the files that it means."""
    while True:
        config = _of_one(folder, name, _read_config(folder))
        try:
            found = {n: _content(folder, n, d) for n, d in config.files.items() if n != CARD}
        except AdapterError:
            if _of_one(folder, name, _read_config(folder)) == config:
                raise  # Else another adapter was saved in the meantime, and its files are there.
        else:
            return config, found


def _of_one(folder: Path, name: str | None, config: AdapterConfig) -> AdapterConfig:
    """Return the config of one adapter, with all of its files, where a config is that of a library."""
    members = config.adapters or {}
    if name is None and members:
        raise AdapterError(
            codes.NEEDS_NAME(folder=folder, count=len(members), help=_named(folder, members))
        )
    if name is None:
        return config
    if not members:
        raise AdapterError(codes.NOT_A_LIBRARY(folder=folder, name=name))
    if name not in members:
        help = nearest(name, members)
        raise AdapterError(codes.NOT_IN_LIBRARY(folder=folder, name=name, help=help))
    files = config.files | {own_file(name): members[name]}
    return config.model_copy(update={"files": files, "adapters": None})


def _named(folder: Path, names: Mapping[str, object]) -> str:
    return f"name one: {', '.join(f'`{folder}#{name}`' for name in [*names][:5])}" + (
        ", ..." if len(names) > 5 else ""
    )


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
    """Check that what the config says is not stored whole are tensors that need not be."""
    frozen = {tensor.name for tensor in plan.tensors if tensor.drawn and not tensor.trainable}
    used = {name for term in plan.terms for name in term.tensors.values()}
    base = {tensor.name for tensor in plan.tensors if tensor.init == "base"}
    compact = used - config.drawn.keys()
    for names, allowed in (
        (config.drawn, frozen),
        (config.compact, compact),
        (config.of_base, base),
    ):
        if wrong := sorted(set(names) - allowed):
            reason = f"`{wrong[0]}` must be in the file"
            raise AdapterError(codes.BROKEN_CONFIG(path=path, reason=reason))


def _tensor_problems(
    tensors: Iterable[Tensor],
    config: AdapterConfig,
    found: Mapping[str, tuple[tuple[int, ...], str]],
) -> Iterator[Problem]:
    """Find everything that is wrong with the header of the file of tensors."""
    expected: dict[str, tuple[int, ...] | None] = {t.name: t.shape for t in tensors}
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
