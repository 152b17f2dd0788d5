"""Adapter folders, which are PEFT folders: written in one step, read strictly.

| file | |
|---|---|
| ``adapter_config.json`` | `AdapterConfig`: the spec's text, the seed, the base's shapes, digests |
| ``adapter_model.safetensors`` | each tensor of the plan once, unless the seed or the base gives it |
| ``README.md`` | a model card; not part of the adapter |

Renaming the tensor file is the one step that saves an adapter. The new config is written first, under a
temporary name that contains the tensors' digest, and renamed last. If the process is killed in between, a
reader finds the new config by that digest.

A library stores common tensors once in ``adapter_model.safetensors``, and each adapter's private tensors
in ``adapters/NAME.safetensors``. ``FOLDER#NAME`` is read as an adapter.
"""

from __future__ import annotations

import glob
import os
import re
import shutil
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bishare_dsl.diagnostics import AdapterError, Problem, advise, one_line, raise_errors
from bishare_dsl.diagnostics.codes import adapter as codes
from bishare_dsl.diagnostics.tried import near_path
from bishare_dsl.folder.card import CARD, STARTS, write_card
from bishare_dsl.folder.config import (
    NAME,
    PEFT_TYPE,
    AdapterConfig,
    Entries,
    attribute_in,
    broken_config,
    split_entries,
)
from bishare_dsl.folder.contents import (
    MEMBERS,
    StoredAdapter,
    check_beside,
    check_entries,
    check_plan,
    digest_of,
    entries_in,
    own_file,
    own_of,
    reading,
)
from bishare_dsl.folder.groups import GROUPS, read_groups
from bishare_dsl.folder.stacks import common_keys
from bishare_dsl.folder.standing import CONFIG, TENSORS, Kind, obstacle_at
from bishare_dsl.models.site import most_parameters
from bishare_dsl.plan import Plan
from bishare_dsl.reading import MAX_CONFIG, parse_json, read_file
from bishare_dsl.writing import ANY, check_writable, discard, lock_name, new_folder, replace_file

if TYPE_CHECKING:
    import torch

    from bishare_dsl.writing import Standing

# Writing ------------------------------------------------------------------------------------------------


def save_adapter(
    folder: str | os.PathLike[str],
    plan: Plan,
    tensors: Mapping[str, torch.Tensor],
    spec_text: str,
    *,
    check: Callable[[StoredAdapter], None] | None = None,
    seen: Standing = ANY,
    **how: Any,
) -> tuple[Problem, ...]:
    """Write an adapter folder, or replace the adapter in it, in one step.

    If the process is killed, the folder has the old adapter or the new one. Other files are not touched.

    Args:
        folder: created with its parents if missing.
        plan: of the adapter.
        tensors: values by name, on any device; stored in their dtype.
        spec_text: the spec that the plan was built from.
        check: called with the adapter as it will be read, before anything is written; it may raise.
        seen: what may be replaced, as in `bishare_dsl.writing.new_folder`.
        **how: options of `bishare_dsl.folder.stored.pack`: ``seed`` of the initial values, ``origin``,
            ``frozen``, ``dtype``, ``reproduced``, and ``command``.

    Returns:
        Warnings: frozen tensors that had to be stored (BS635), values that are not finite
        (BS660).

    Raises:
        AdapterError: a foreign file is in the way (BS615), the system refuses (BS616), a tensor has no
            values (BS617), or the text does not give the plan (BS661).
    """
    from bishare_dsl.folder.stored import pack

    packed = pack(plan, tensors, spec_text, **how)
    folder = Path(folder)
    content, config = _content_of(packed.tensors, packed.config)
    text = config.text().encode()
    if check is not None:
        written = AdapterConfig.of(parse_json(text))
        check(_checked(folder, folder / CONFIG, written, entries_in(content)))
    with writing(folder), lock_name(folder, seen=seen):
        if folder.exists():
            _check_free(folder)
            _tidy(folder)
            _put_part(folder, TENSORS, content, config)
            write_card(folder, plan, config)
        else:
            with new_folder(folder) as new:
                (new / TENSORS).write_bytes(content)
                (new / CONFIG).write_bytes(text)
                write_card(new, plan, config)
    return packed.warnings


def save_library(
    folder: str | os.PathLike[str],
    plan: Plan,
    adapters: Mapping[str, Mapping[str, torch.Tensor]],
    spec_text: str,
    *,
    seed: int,
    seen: Standing = ANY,
    files: Mapping[str, bytes] = {},
    **how: Any,
) -> tuple[Problem, ...]:
    """Write a library to a folder, or replace the library there, in one step.

    Args:
        folder: created with its parents if missing.
        plan: of each adapter. Tensors in its `Plan.common` are taken from the first adapter.
        adapters: each adapter's tensors by name, by the name of the adapter.
        spec_text: the spec that the plan was built from.
        seed: of the frozen tensors.
        seen: what may be replaced, as in `bishare_dsl.writing.new_folder`.
        files: the contents of further files of the library, by name.
        **how: ``origin``, ``dtype`` and ``command``, as in `bishare_dsl.folder.stored.pack`.

    Returns:
        Warnings, as `save_adapter`, the first of each kind.

    Raises:
        AdapterError: the folder has other contents (BS615), the system refuses (BS616), or the text does
            not give the plan (BS661).
    """
    from bishare_dsl.folder.stored import pack

    check_members(adapters)
    first = next(iter(adapters.values()))
    common = common_keys(plan)
    packed = pack(plan, first, spec_text, seed=seed, **how)
    shared = {key: value for key, value in packed.tensors.items() if attribute_in(key) in common}
    config = packed.config.model_copy(update={"adapters": {}})
    content, config = _content_of(shared, config)
    folder = Path(folder)
    empty = StoredAdapter(folder, config, plan, entries_in(content))
    with writing(folder), new_folder(folder, seen=seen) as new:
        _check_free_for_library(folder)
        _copy_others(folder, new, STARTS, GROUPS)
        for name, text in files.items():
            (new / name).write_bytes(text)
        (new / TENSORS).write_bytes(content)
        (new / MEMBERS).mkdir()
        return _first_of_each([*packed.warnings, *_add_members(new, adapters, empty)])


def add_to_library(
    folder: Path,
    adapters: Mapping[str, Mapping[str, torch.Tensor]],
    out: Path | None = None,
    *,
    began: AdapterConfig | None = None,
    seen: Standing = ANY,
    command: str | None = None,
    newcomers: Mapping[str, str] = {},
) -> tuple[Problem, ...]:
    """Add adapters to a library, replacing those with the same names.

    The config is replaced last, in one step. If the process is killed, each adapter is the old or the new.

    Args:
        folder: the library.
        adapters: each adapter's tensors by name, by the name of the adapter. Tensors shared by the
            library are ignored.
        out: write a copy of the library to this folder instead of changing the original.
        began: the library's config that the adapters were made for; it must share the same tensors
            still, and have the same adapters of these names.
        seen: what ``out`` may replace, as in `bishare_dsl.writing.new_folder`.
        command: the name of the command, if ``out`` is its result alone.
        newcomers: the group of the library that adapters were taken from, by the name of the adapter; it is
            recorded in ``out``.

    Returns:
        Warnings, as `save_library`, of the added adapters.

    Raises:
        AdapterError: the library is damaged, ``out`` has other contents (BS615), the system refuses or
            something has changed meanwhile (BS616).
    """
    check_members(adapters)
    if out is not None:
        check_apart(folder, out)
        with writing(out), new_folder(out, seen=seen) as new:
            _check_free_for_library(out)
            with lock_name(folder):
                library = _library_in(folder, adapters, began)
                _copy_others(out, new, *(path.name for path in folder.iterdir()))
                _copy_others(folder, new)
                groups = read_groups(folder)
                if groups is not None and newcomers:
                    replace_file(new / GROUPS, groups.joined_by(newcomers).text())
                (new / MEMBERS).mkdir()
                # Files, where the Hub's cache has links.
                for file in (CONFIG, TENSORS, *map(own_file, library.config.adapters or ())):
                    content = read_file(folder, file, (folder / file).stat().st_size)
                    (new / file).write_bytes(content)
            config = library.config.model_copy(update={"command": command})
            return _add_members(new, adapters, replace(library, config=config))
    with writing(folder), lock_name(folder):
        library = _library_in(folder, adapters, began)
        config = library.config.model_copy(
            update={"command": None}
        )  # It is more than a result now.
        return _add_members(folder, adapters, replace(library, config=config))


def _library_in(folder: Path, names: Collection[str], began: AdapterConfig | None) -> StoredAdapter:
    """Read a library that is locked, as its first adapter, for `add_to_library`."""

    def kept(config: AdapterConfig) -> tuple[Any, ...]:
        own = map((config.adapters or {}).get, names)
        return config.spec, config.seed, config.base, config.tensors, *own

    before = _config_of(folder, CONFIG)
    _tidy(folder)  # Leftovers of a killed writer are not a change.
    library = read_adapter(f"{folder}#{next(iter(names_in(folder)), '')}")
    if began is not None and kept(began) not in (kept(before), kept(library.config)):
        reason = "its shared tensors, or adapters of these names, changed meanwhile: run again"
        raise AdapterError(codes.CANNOT_WRITE(path=folder, reason=reason))
    return library


def _tidy(folder: Path) -> None:
    """Finish what a killed writer of a folder has begun, or undo it, and remove what it has left.

    A new config is in force as soon as its tensors have replaced the old ones.
    """
    for aside in folder.glob(f".{CONFIG}.*.new"):
        if _is_in_force(folder, aside):
            replace_file(folder / CONFIG, aside.read_bytes())
    for name in (CONFIG, f".{CONFIG}.*", TENSORS, CARD, f"{MEMBERS}/*.safetensors"):
        for left in folder.glob(str(Path(name).with_name(f".{Path(name).name}.*.new"))):
            discard(left)


def _is_in_force(folder: Path, aside: Path) -> bool:
    """Tell whether the tensor file for which a killed writer wrote a config is in its place."""
    with suppress(AdapterError):
        config = _config_of(folder, aside.name)
        members = {own_file(name): digest for name, digest in (config.adapters or {}).items()}
        for file, digest in {TENSORS: config.tensors, **members}.items():
            if _next_config(folder, digest) == aside:
                with reading(folder / file):
                    own, _ = split_entries(entries_in(_content(folder, file, _most(config))))
                return digest_of(own) == digest
    return False


def _put_part(folder: Path, file: str, content: bytes, config: AdapterConfig) -> None:
    """Replace one tensor file of a folder, and then its config, as one step for readers."""
    text = config.text().encode()
    aside = _next_config(folder, digest_of(split_entries(entries_in(content))[0]))
    replace_file(aside, text)
    replace_file(folder / file, content)
    replace_file(folder / CONFIG, text)
    aside.unlink()


def check_members(names: Iterable[str]) -> None:
    """Check the names of a library's adapters: a config with another could not be read.

    Raises:
        AdapterError: a name is invalid (BS638).
    """
    reason = "in a library it has letters, digits, `_`, `.` and `-`, and begins with none of the last two"
    wrong = [name for name in names if not re.fullmatch(NAME, name)]
    raise_errors(AdapterError, [codes.NO_NAME(name=name, reason=reason) for name in wrong])


def check_apart(library: Path, out: Path) -> None:
    """Check that a library is not copied into itself.

    Raises:
        AdapterError: it is (BS616).
    """
    if library.resolve() in out.resolve().parents:
        reason = f"it lies in the library `{library}`"
        raise AdapterError(codes.CANNOT_WRITE(path=out, reason=reason))


def _copy_others(folder: Path, new: Path, *replaced: str) -> None:
    """Copy the files of a folder that the library which replaces it does not have."""
    if folder.exists():
        theirs = shutil.ignore_patterns(TENSORS, CONFIG, MEMBERS, *map(glob.escape, replaced))
        shutil.copytree(folder, new, symlinks=True, ignore=theirs, dirs_exist_ok=True)


def _add_members(
    folder: Path, adapters: Mapping[str, Mapping[str, torch.Tensor]], library: StoredAdapter
) -> tuple[Problem, ...]:
    """Write adapters into the folder of a library, of which ``library`` is one, or has what is common."""
    from bishare_dsl.folder.stored import pack

    path = place_of(library.folder)[0] / CONFIG
    config = library.config
    plan = library.plan
    common = common_keys(plan, alone=config.alone)
    shared = library.common
    contents: dict[str, bytes] = {}
    problems: list[Problem] = []
    for name, tensors in adapters.items():
        packed = pack(
            plan,
            tensors,
            config.spec,
            seed=config.seed,
            dtype=config.rounded,
            format=config.format,
        )
        problems += packed.warnings
        own = {
            key: value for key, value in packed.tensors.items() if attribute_in(key) not in common
        }
        contents[name] = _file_of(own)
        # As it will be read.
        check_entries(path, plan, config, shared | entries_in(contents[name]))
    digests = {name: digest_of(entries_in(content)) for name, content in contents.items()}
    present = config.adapters or {}
    for name, content in contents.items():
        if name not in present:  # No config names it yet.
            replace_file(folder / own_file(name), content)
    digests = {**present, **digests}
    for name in present.keys() & contents.keys():
        present = {**present, name: digests[name]}
        changed = config.model_copy(update={"adapters": present})
        _put_part(folder, own_file(name), contents[name], changed)
    config = config.model_copy(update={"adapters": digests})
    replace_file(folder / CONFIG, config.text().encode())
    write_card(folder, plan, config)
    return _first_of_each(problems)


def _first_of_each(problems: Sequence[Problem]) -> tuple[Problem, ...]:
    """Return the first problem of each code."""
    return tuple({problem.code: problem for problem in reversed(problems)}.values())


def _content_of(
    values: Mapping[str, torch.Tensor], config: AdapterConfig
) -> tuple[bytes, AdapterConfig]:
    """Return the bytes of the tensor file, and the config with its digest."""
    content = _file_of(values)
    return content, config.model_copy(update={"tensors": digest_of(entries_in(content))})


def _file_of(values: Mapping[str, torch.Tensor]) -> bytes:
    """Return the bytes of a tensor file."""
    from safetensors.torch import save

    return save(dict(values), {"format": "pt"})


def _next_config(folder: Path, digest: str) -> Path:
    """Return the temporary path of a new config, which contains the tensors' digest."""
    return folder / f".{CONFIG}.{digest[:8]}.new"


_BESIDE = frozenset({Kind.OTHER, Kind.RUN, Kind.CHECKPOINT, Kind.LOG})
"""What stays beside the files of an adapter or a library."""


def _check_free(folder: Path) -> None:
    """Check that nothing of another kind is where an adapter is to be saved.

    Raises:
        AdapterError: something is (BS615).
    """
    card = folder / CARD
    if os.path.lexists(card) and not card.is_file():
        raise in_the_way(card)
    obstacle = obstacle_at(folder, {Kind.ADAPTER, *_BESIDE})
    if obstacle is not None:
        raise in_the_way(obstacle.path)


def _check_free_for_library(folder: Path) -> None:
    """As `_check_free`, for a library."""
    obstacle = obstacle_at(folder, {Kind.LIBRARY, *_BESIDE})
    if obstacle is not None:
        raise in_the_way(obstacle.path)
    if os.path.lexists(folder / MEMBERS) and not names_in(folder):
        raise in_the_way(folder / MEMBERS)


def check_place(folder: Path, *, library: bool = False) -> Standing:
    """Check in advance that an adapter or a library can be saved in a folder, and return what is there.

    Raises:
        AdapterError: the folder has other contents (BS615), or the system refuses (BS616).
    """
    with writing(folder):
        if library:
            _check_free_for_library(folder)
        else:
            _check_free(folder)
        return check_writable(folder)


def in_the_way(path: Path) -> AdapterError:
    """Create the error for a file of another kind in the way (BS615)."""
    return AdapterError(codes.FOREIGN_FILE(path=path, help="choose another folder"))


# Reading ------------------------------------------------------------------------------------------------


def place_of(folder: str | os.PathLike[str]) -> tuple[Path, str | None]:
    """Split ``FOLDER#NAME`` into the folder and the name of an adapter in its library.

    A folder whose own name contains ``#`` takes precedence.
    """
    text = os.fspath(folder)
    library, sign, name = text.rpartition("#")
    named = sign and not os.path.exists(text)  # noqa: PTH110 - a name too long does not exist
    return (Path(library), name) if named else (Path(text), None)


def names_in(folder: str | os.PathLike[str]) -> tuple[str, ...]:
    """Return the names of the adapters of a library; empty if a folder is not a library."""
    path = Path(folder)
    return tuple(_config_of(path, CONFIG).adapters or ()) if is_ours(path) else ()


def read_adapter(folder: str | os.PathLike[str], *, by_peft: bool = False) -> StoredAdapter:
    """Read and check an adapter folder; each file is read once, so the checked bytes are those used.

    Args:
        folder: of an adapter; ``FOLDER#NAME`` selects an adapter of a library.
        by_peft: whether the caller uses PEFT to load the modules saved with the adapter.

    Raises:
        AdapterError: BS601 to BS612, BS619, BS661, BS695; lists all problems with the tensors.
        SpecError: a package's transform cannot be used (BS214).
    """
    place, name = place_of(folder)
    config, entries = _read_files(place, name)
    return _checked(Path(folder), place / CONFIG, config, entries, by_peft=by_peft)


def read_members(library: str | os.PathLike[str], names: Iterable[str]) -> Iterator[StoredAdapter]:
    """Read and check adapters of a library by name, and what they share once. Errors as `read_adapter`."""
    place, (first, *others) = Path(library), names
    yield (read := read_adapter(f"{place}#{first}"))
    config = read.config
    common = read.common
    for name in others:
        [(file, digest)] = own_of(place, name, config.adapters or {}).items()
        with reading(place / file):
            own = entries_in(_content(place, file, _most(config)))
        if digest_of(own) != digest:  # Damaged, or written meanwhile.
            yield read_adapter(f"{place}#{name}")
            continue
        check_entries(place / CONFIG, read.plan, config, common | own)
        yield replace(read, folder=Path(f"{place}#{name}"), entries=common | own)


def _checked(
    folder: Path, path: Path, config: AdapterConfig, entries: Entries, *, by_peft: bool = False
) -> StoredAdapter:
    """Check the contents of an adapter's files; ``path`` is the config's, for errors. See `read_adapter`."""
    with reading(path):
        plan, config = check_plan(config, path)
    own, beside = split_entries(entries)
    check_entries(path, plan, config, own)
    check_beside(path, config, beside, by_peft=by_peft)
    return StoredAdapter(folder, config, plan, own, beside)


def is_peft(folder: str | os.PathLike[str]) -> bool:
    """Tell whether a folder has an adapter of another PEFT method; False if it cannot be read."""
    return _type_in(Path(folder)) not in (None, "", PEFT_TYPE)


def is_ours(folder: Path) -> bool:
    """Tell whether a folder has a bishare adapter, possibly damaged; False if it cannot be read."""
    return _type_in(folder) in (PEFT_TYPE, "")


def _type_in(folder: Path) -> Any:
    """Return the method in a folder's config, ``""`` if unknown, or None without a config."""
    if not os.path.lexists(folder / CONFIG):
        return None
    try:
        fields = parse_json(read_file(folder, CONFIG, MAX_CONFIG))
    except (OSError, ValueError):
        return ""
    return fields.get("peft_type", "") if isinstance(fields, dict) else ""


def _read_files(folder: Path, name: str | None) -> tuple[AdapterConfig, Entries]:
    """Read the matching config and tensor files of an adapter, or of its library."""
    before = None
    while True:
        config = _config_of(folder, CONFIG)
        wanted = {TENSORS: config.tensors, **own_of(folder, name, config.adapters or {})}
        read_entries = Entries()
        wrong = []
        for file in wanted:
            content = _content(folder, file, _most(config))
            with reading(folder / file):
                entries = entries_in(content)
                if not read_entries.keys().isdisjoint(entries):
                    raise ValueError("a tensor of it is in another file too")
                read_entries |= entries
            if (digest := digest_of(split_entries(entries)[0])) != wanted[file]:
                wrong.append(folder / file)
                later = _next_config(folder, digest)  # A killed save may have left it there.
                try:
                    return _config_of(folder, later.name), read_entries
                except AdapterError:
                    if later.is_file():
                        raise
        if not wrong:
            return config, read_entries
        if before == config:
            reason = "its bytes differ from those that were saved, or it is of another save"
            raise AdapterError(codes.CHANGED_FILE(path=wrong[0], reason=reason))
        before = config  # Try again: an adapter may have been saved in the meantime.


def _config_of(folder: Path, file: str) -> AdapterConfig:
    try:
        fields = parse_json(_content(folder, file))
        if isinstance(fields, dict) and fields.get("peft_type", PEFT_TYPE) != PEFT_TYPE:
            raise AdapterError(_not_an_adapter(folder))
        return AdapterConfig.of(fields, folder)
    except ValueError as error:
        raise broken_config(folder / file, error) from error


def _most(config: AdapterConfig) -> int:
    """Return the largest size in bytes that a tensor file may have."""
    return 8 * most_parameters(config.base) + MAX_CONFIG


def _not_an_adapter(folder: Path) -> Problem:
    if not folder.is_dir():
        own = f"{MEMBERS}/{glob.escape(folder.stem)}.safetensors"
        above = folder.parent
        for file in (*above.glob(own), *above.glob(f"*/{own}"), *above.parent.glob(own)):
            help = f"did you mean `{file.parents[1]}#{folder.stem}`?"
            return codes.NO_SUCH_FOLDER(folder=folder, help=help)
        near = near_path(str(folder), lambda place: Path(place, CONFIG).is_file())
        said = advise("file", folder.suffix) if folder.is_file() else None
        return codes.NO_SUCH_FOLDER(folder=folder, help=said or near)
    if is_peft(folder):
        return codes.PEFT_ADAPTER(folder=folder)
    return codes.NOT_AN_ADAPTER(folder=folder)


def _content(folder: Path, name: str, limit: int = MAX_CONFIG) -> bytes:
    with reading(folder / name):
        try:
            return read_file(folder, name, limit)
        except (FileNotFoundError, NotADirectoryError):
            missing = codes.MISSING_FILE(folder=folder, file=name)
            raise AdapterError(_not_an_adapter(folder) if name == CONFIG else missing) from None


@contextmanager
def writing(folder: Path) -> Iterator[None]:
    """Convert errors of the system while a folder is written (BS616)."""
    from safetensors import SafetensorError

    try:
        yield
    except (OSError, SafetensorError) as error:
        reason = getattr(error, "strerror", None) or one_line(error)
        if isinstance(error, shutil.Error):  # Of `copytree`: one for each file.
            [(_, _, reason), *_] = error.args[0]
        path = getattr(error, "filename", None) or folder
        raise AdapterError(codes.CANNOT_WRITE(path=path, reason=reason)) from error
