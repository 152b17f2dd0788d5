"""Groups of tasks that the user names: by the folders of their files, or by a manifest.

All of it is decided before a model is loaded. Groups that a run finds are in `train.many.found`.
"""

from __future__ import annotations

import os
import re
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from bishare_dsl.diagnostics import Problem, nearest, one_line
from bishare_dsl.diagnostics.codes import train as codes
from bishare_dsl.train.data.load import ENDINGS
from bishare_dsl.train.errors import TrainError

BY_FOLDER = "by-folder"
"""Tasks whose files are in one folder are a group."""


SCORES = "scores"
"""Numbers of groups are only scored."""
MANIFESTS = (".json", ".yaml", ".yml")
"""The endings of a file with lists of tasks."""
NAME = re.compile(r"(?!checkpoint-)[A-Za-z0-9_][A-Za-z0-9_-]*")
"""The names that tasks, and groups, may have."""


def read_setting(value: Any) -> int | str:
    """Return the value of ``groups``: a number of groups, `BY_FOLDER`, `SCORES`, or the path of a manifest.

    Raises:
        ValueError: it is none of them.
    """
    text = str(value).strip()
    if text.isdecimal():
        if int(text) < 2:
            raise ValueError("there are two groups at least: leave it out to train each task alone")
        return int(text)
    if text in (BY_FOLDER, SCORES) or text.endswith(MANIFESTS):
        return text
    raise ValueError(
        "it is `by-folder`, a number, `scores`, or a file (.json, .yaml) with lists of tasks"
    )


def expand_folders(data: Any) -> Any:
    """Return the files of data whose groups are folders: a folder stands for the files of its folders.

    Args:
        data: as in `Settings.data`.

    Raises:
        TrainError: a folder of a group has no file of rows, files lie beside the folders of groups, or a
            task is in two groups (BS749).
    """
    words = [data] if isinstance(data, str | os.PathLike) else data
    if not isinstance(words, list | tuple) or not all(
        isinstance(word, str | os.PathLike) for word in words
    ):
        return data  # Files by name, or what the check of the arguments refuses.
    files = list[str]()
    for word in words:
        folder = Path(word).expanduser()
        files += _files_of_folders(folder) if folder.is_dir() else [os.fspath(word)]
    first = dict[str, str]()
    for file in files:
        name = Path(file).stem
        if name in first:
            reason = f"`{name}` is in two groups: `{first[name]}` and `{file}`"
            raise TrainError(codes.BAD_GROUPS(reason=reason, help=_ONE_GROUP))
        first[name] = file
    return files


_ONE_GROUP = "leave one of them out, or give one file another name"


def _files_of_folders(folder: Path) -> list[str]:
    """Return the files of rows in a folder, or in the folders of groups that it has."""
    own = _rows_in(folder)
    inner = [path for path in sorted(folder.iterdir()) if _is_group(path)]
    if not inner:
        if not own:
            raise _no_rows(folder)
        return own
    if own:
        reason = f"`{own[0]}` is in no group: it lies beside the folders of `{folder}`"
        help = "move it into one of these folders, or out of there"
        raise TrainError(codes.BAD_GROUPS(reason=reason, help=help))
    files = list[str]()
    for group in inner:
        deeper = [path for path in sorted(group.iterdir()) if _is_group(path)]
        if deeper:
            reason = f"`{deeper[0]}` is a folder in the folder of a group"
            help = f"move its files to `{group}`, or name `{group}` as `--data`"
            raise TrainError(codes.BAD_GROUPS(reason=reason, help=help))
        rows = _rows_in(group)
        if not rows:
            raise _no_rows(group)
        files += rows
    return files


def _is_group(path: Path) -> bool:
    return path.is_dir() and not path.name.startswith(".")


def _rows_in(folder: Path) -> list[str]:
    return [str(path) for path in sorted(folder.iterdir()) if path.suffix in ENDINGS]


def _no_rows(folder: Path) -> TrainError:
    reason = f"the group `{folder}` has no file of rows"
    help = f"put files ({', '.join(ENDINGS)}) there, or remove the folder"
    return TrainError(codes.BAD_GROUPS(reason=reason, help=help))


def named_groups(setting: str, tasks: Mapping[str, str]) -> dict[str, tuple[str, ...]]:
    """Return the tasks of each group that the user names.

    Args:
        setting: `BY_FOLDER`, or the path of a manifest.
        tasks: the file of each task, by its name.

    Raises:
        TrainError: the manifest cannot be read (BS734), or groups are not what they should be (BS749).
    """
    is_manifest = setting != BY_FOLDER
    groups = _by_manifest(Path(setting), tasks) if is_manifest else _by_folder(tasks)
    if len(groups) < 2:
        reason = f"there is one group, `{next(iter(groups), '')}`"
        help = "give tasks of two groups at least, or leave `--groups` out"
        raise TrainError(codes.BAD_GROUPS(reason=reason, help=help))
    return groups


def _by_folder(tasks: Mapping[str, str]) -> dict[str, tuple[str, ...]]:
    """Return the tasks of each folder, by its name."""
    folders = dict[str, Path]()
    members = dict[str, list[str]]()
    for name, file in tasks.items():
        path = Path(file).expanduser().absolute()
        if not path.is_file():
            reason = f"`{name}` is in no folder: `{file}` is no file"
            help = "name files or folders as `--data`, or write the groups into a manifest"
            raise TrainError(codes.BAD_GROUPS(reason=reason, help=help))
        group = path.parent.name
        _check_name(group, f"the folder `{path.parent}`", "rename the folder")
        if folders.setdefault(group, path.parent) != path.parent:
            reason = f"two folders are called `{group}`: `{folders[group]}` and `{path.parent}`"
            raise TrainError(codes.BAD_GROUPS(reason=reason, help="rename one of them"))
        members.setdefault(group, []).append(name)
    return {group: tuple(names) for group, names in members.items()}


def _by_manifest(path: Path, tasks: Mapping[str, str]) -> dict[str, tuple[str, ...]]:
    """Return the tasks of each group as a file lists them."""
    listed = _read_manifest(path.expanduser())
    group_of = dict[str, str]()
    for group, names in listed.items():
        _check_name(group, f"`{path}`", "give the group another name")
        if not names:
            reason = f"the group `{group}` of `{path}` has no task, and so no rows"
            raise TrainError(
                codes.BAD_GROUPS(reason=reason, help="list a task, or remove the group")
            )
        for name in names:
            if name not in tasks:
                reason = f"`{path}` lists `{name}` in `{group}`, and `--data` has no such task"
                help = nearest(name, tasks) or "a task has the name of its file, without the ending"
                raise TrainError(codes.BAD_GROUPS(reason=reason, help=help))
            if name in group_of:
                where = f"`{group_of[name]}` and `{group}`"
                if group_of[name] == group:
                    where = f"`{group}` twice"
                reason = f"`{name}` is in two groups of `{path}`: {where}"
                raise TrainError(codes.BAD_GROUPS(reason=reason, help="list each task once"))
            group_of[name] = group
    left = [name for name in tasks if name not in group_of]
    if left:
        reason = f"`{path}` lists {_names(left)} in no group"
        help = "list each task in one group, or leave its file out of `--data`"
        raise TrainError(codes.BAD_GROUPS(reason=reason, help=help))
    return listed


def _read_manifest(path: Path) -> dict[str, tuple[str, ...]]:
    """Read a file with lists of tasks by group.

    Raises:
        TrainError: it cannot be read, or has something else (BS734).
    """
    import yaml

    help = "write lists of tasks by group, such as `support: [acme, globex]`"
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))  # JSON is YAML.
    except (OSError, yaml.YAMLError, ValueError, RecursionError) as error:
        problem = codes.BAD_CONFIG(path=path, reason=one_line(error), help=help)
        raise TrainError(problem) from error
    if not isinstance(content, Mapping):
        raise _not_lists(path, "it has no groups by name", help)
    listed = dict[str, tuple[str, ...]]()
    for group, names in content.items():
        is_list = isinstance(names, Sequence) and not isinstance(names, str)
        if not is_list or not all(isinstance(name, str | int) for name in names):
            raise _not_lists(path, f"`{group}` is no list of tasks", help)
        listed[str(group)] = tuple(str(name) for name in names)
    return listed


def _not_lists(path: Path, reason: str, help: str) -> TrainError:
    return TrainError(codes.BAD_CONFIG(path=path, reason=reason, help=help))


def _check_name(group: str, place: str, help: str) -> None:
    """Check that an adapter may have the name of a group."""
    if not NAME.fullmatch(group):
        reason = f"{place} names a group `{group}`: letters, digits, `_` and `-` are allowed"
        raise TrainError(codes.BAD_GROUPS(reason=reason, help=help))


def _names(names: Collection[str], most: int = 5) -> str:
    shown = ", ".join(f"`{name}`" for name in list(names)[:most])
    return shown if len(names) <= most else f"{shown} and {len(names) - most} more"


def setting_problem(
    groups: int | str, tasks: Collection[str], others: Sequence[str]
) -> Problem | None:
    """Return why tasks cannot be grouped so, before any file is read; None if nothing is wrong.

    Args:
        groups: the setting.
        tasks: their names.
        others: the names of arguments that are given, and exclude groups.
    """
    if others:
        reason = f"`groups` are for the tasks of a new library, and `{others[0]}` is given"
        return codes.BAD_COMBINATION(reason=reason, help=f"leave `--groups` or `--{others[0]}` out")
    if len(tasks) < 2:
        reason = f"`--data` gives one task, `{next(iter(tasks), '')}`"
        help = "name a folder that exists, or the files of several tasks, as `--data`"
        return codes.BAD_GROUPS(reason=reason, help=help)
    if isinstance(groups, int) and groups > len(tasks):
        reason = f"{groups} groups cannot be made of {len(tasks)} tasks"
        help = f"give a number from 2 to {len(tasks)}, or more tasks"
        return codes.BAD_GROUPS(reason=reason, help=help)
    return None
