"""From words after ``--tasks`` to lm_eval's tasks, loaded with their data before any model is."""

from __future__ import annotations

import importlib.util
import logging
import os
from collections.abc import Iterable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bishare_dsl.diagnostics import Problem, nearest, one_line
from bishare_dsl.diagnostics.codes import evaluate as codes
from bishare_dsl.diagnostics.codes.train import NEEDS_PACKAGE
from bishare_dsl.evaluate.errors import EvaluateError
from bishare_dsl.evaluate.groups import GROUPS, TaskGroup, Wanted, expand
from bishare_dsl.evaluate.logs import capture_logs
from bishare_dsl.hub import hub_or_cache

_OFFLINE = (
    "the Hugging Face Hub cannot be reached; data sets that are in its cache (`HF_HOME`) work, and task "
    "files with local data (`--include_path`)"
)
_LISTS = "`bishare eval --list-tasks` and `lm-eval ls tasks` list them"


@dataclass(frozen=True)
class LoadedTasks:
    """All that was asked for, ready for any number of models.

    ``runs`` holds what lm_eval evaluates in one go: a number of shots (None: each task's own), and its
    tasks and groups.
    """

    manager: Any
    runs: tuple[tuple[int | None, list[Any]], ...]


def load_tasks(
    names: Iterable[str],
    *,
    num_fewshot: int | None = None,
    include_path: str | os.PathLike[str] | None = None,
    confirm_run_unsafe_code: bool = False,
    bars: bool = False,
) -> LoadedTasks:
    """Find tasks and load them with their data.

    Args:
        names: of tasks, groups and tags of lm_eval, patterns of these, paths of task files, or names of
            `GROUPS`.
        num_fewshot: for every task, in place of what a group or a task says.
        include_path: a folder of task files. A ``!function`` in one of them names Python that lm_eval runs.
        confirm_run_unsafe_code: allow tasks that execute what the model writes.
        bars: show the progress of downloads on standard error.

    Raises:
        EvaluateError: lm_eval is not installed (BS735); every name that is unknown (BS802), else every
            task that cannot be loaded (BS803, BS808); the folder has no tasks (BS804).
    """
    if importlib.util.find_spec("lm_eval") is None:
        remedy = "pip install 'bishare[eval]'"
        raise EvaluateError(NEEDS_PACKAGE(what="evaluating", package="lm_eval", help=remedy))
    own, skipped = (None, None) if include_path is None else _own_tasks(Path(include_path))
    wanted = expand(names, num_fewshot, own.all_tasks if own is not None else ())
    local = own is not None and _knows(own, wanted)
    manager = own if local else _all_tasks(include_path)
    wanted = _matched(wanted, manager, skipped)
    problems: list[Problem] = []
    hub = nullcontext() if local else hub_or_cache()
    with capture_logs([], bars=bars), hub as unreachable:
        help = _OFFLINE if unreachable else None
        runs = [(shots, _load(items, manager, problems, help)) for shots, items in wanted.items()]
    problems = problems or list(_refused(manager, runs, confirm_run_unsafe_code))
    if problems:
        raise EvaluateError(dict.fromkeys(problems))
    return LoadedTasks(manager, tuple(runs))


def _own_tasks(folder: Path) -> tuple[Any, str | None]:
    """Read what a folder defines, and what lm_eval says of a file that it skips."""
    if not folder.is_dir():
        reason = "it is a file" if folder.is_file() else "there is no such folder"
        raise EvaluateError(codes.NO_TASK_FILES(path=folder, reason=reason))
    from lm_eval.tasks import TaskManager

    said: list[str] = []
    with capture_logs(said, level=logging.DEBUG):
        manager = TaskManager(include_path=str(folder), include_defaults=False)
    skips = (line.removeprefix("Skip ") for line in said if line.startswith("Skip "))
    skipped = next((f"lm_eval skipped {line}" for line in skips), None)
    if not manager.all_tasks:
        reason = "no .yaml file in it describes one"
        raise EvaluateError(codes.NO_TASK_FILES(path=folder, reason=reason, help=skipped))
    return manager, skipped


def _knows(own: Any, wanted: Wanted) -> bool:
    """Tell whether all that is wanted is in a folder; the tasks of a group there may be lm_eval's."""
    asked = {name for items in wanted.values() for name in items if not _is_file(name)}
    return asked <= {*own.all_subtasks, *own.all_tags}


def _all_tasks(include_path: str | os.PathLike[str] | None) -> Any:
    """Look through lm_eval's own 14,000 task files too, which takes seconds."""
    from lm_eval.tasks import TaskManager

    with capture_logs([]):
        return TaskManager(include_path=None if include_path is None else str(include_path))


def _matched(wanted: Wanted, manager: Any, skipped: str | None) -> Wanted:
    """Replace patterns by what they match, and files by absolute paths."""
    matched: Wanted = {}
    problems = []
    for shots, items in wanted.items():
        here = matched.setdefault(shots, {})
        for name, group in items.items():
            if group is not None:
                here[name] = group
            elif _is_file(name):
                here[str(Path(name).absolute())] = None
            elif found := manager.match_tasks([name]):
                here |= dict.fromkeys(found)
            else:
                help = filter(None, (nearest(name, [*GROUPS, *manager.all_tasks]), skipped))
                problems.append(codes.UNKNOWN_TASK(name=name, help="; ".join(help) or _LISTS))
    if problems:
        raise EvaluateError(dict.fromkeys(problems))
    return matched


def _load(
    wanted: dict[str, TaskGroup | None], manager: Any, problems: list[Problem], help: str | None
) -> list[Any]:
    """Load tasks and groups, each for itself, so that every one that fails is told."""
    items: list[Any] = []
    for name, group in wanted.items():
        found: list[Any] = []
        for task in (name,) if group is None else group.tasks:
            try:
                loaded = manager.load([task])
            except Exception as error:  # noqa: BLE001 - task files and data raise what they like
                problems.append(codes.TASK_NOT_LOADED(name=task, reason=one_line(error), help=help))
            else:
                top = loaded.get("groups", {}).get(task)
                found += loaded["tasks"].values() if top is None else [top]
        items += found if group is None else [_mean(name, group, found)]
    return items


def _mean(name: str, group: TaskGroup, tasks: Iterable[Any]) -> Any:
    """Make a group of lm_eval's whose figure is the mean of its tasks'."""
    from lm_eval.api.group import Group
    from lm_eval.config.group import AggMetricConfig

    metrics = [AggMetricConfig(metric=group.mean_of, weight_by_size=False)]
    made = Group(name=name, aggregate_metric_list=metrics)
    for task in tasks:
        made.add(task)
    return made


def _refused(
    manager: Any, runs: Iterable[tuple[int | None, list[Any]]], confirmed: bool
) -> Iterator[Problem]:
    """Find what lm_eval would refuse when the model is there: tasks twice, other media, unsafe code."""
    for _, items in runs:
        try:
            tasks = manager.load(items)["tasks"].values()
        except ValueError as error:
            names = ", ".join(getattr(item, "task_name", None) or item.name for item in items)
            yield codes.TASK_NOT_LOADED(name=names, reason=one_line(error))
            continue
        for task in tasks:
            if getattr(task, "MULTIMODAL", False):
                reason = "it asks about pictures or sound"
                yield codes.TASK_NOT_LOADED(name=task.task_name, reason=reason)
            if getattr(task, "UNSAFE_CODE", False) and not confirmed:
                help = "lm_eval's `--confirm_run_unsafe_code` allows it"
                yield codes.UNSAFE_TASK(name=task.task_name, help=help)


def _is_file(name: str) -> bool:
    return name.endswith((".yaml", ".yml")) and Path(name).is_file()
