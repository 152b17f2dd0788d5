"""From words after ``--tasks`` to lm_eval's tasks, loaded with their data before any model is."""

from __future__ import annotations

import importlib.util
import logging
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bishare_dsl.diagnostics import Problem, nearest, one_line
from bishare_dsl.diagnostics.codes import evaluate as codes
from bishare_dsl.evaluate.errors import EvaluateError
from bishare_dsl.evaluate.groups import GROUPS, TaskGroup, Wanted, expand
from bishare_dsl.evaluate.quiet import download_bars, lm_eval_logs

_SECONDS = 5.0
_OFFLINE = (
    "the Hugging Face Hub cannot be reached; data sets that are in its cache (`HF_HOME`) work, and task "
    "files with local data (`--include_path`)"
)
_LISTS = "`bishare eval --list-tasks` and `lm-eval ls tasks` list them"


@dataclass(frozen=True)
class Run:
    """What lm_eval evaluates in one go: its tasks and groups, with one number of shots.

    ``num_fewshot`` is None where each task's own is meant. ``tasks`` are the single ones, those inside
    groups included.
    """

    num_fewshot: int | None
    names: tuple[str, ...]
    items: tuple[Any, ...]
    tasks: tuple[Any, ...]


@dataclass(frozen=True)
class LoadedTasks:
    """Everything that was asked for, ready to be evaluated on any number of models."""

    manager: Any
    runs: tuple[Run, ...]


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
        EvaluateError: lm_eval is not installed (BS801); every name that is unknown (BS802), else every
            task that cannot be loaded (BS803, BS808); the folder has no tasks (BS804).
    """
    if importlib.util.find_spec("lm_eval") is None:
        raise EvaluateError(
            codes.NOT_INSTALLED(package="lm_eval", help="pip install 'bishare[eval]'")
        )
    own, skipped = _own_tasks(Path(include_path)) if include_path is not None else (None, ())
    wanted = expand(names, num_fewshot, own.all_tasks if own is not None else ())
    asked = {name for items in wanted.values() for name in items}
    manager = own
    # Looking through lm_eval's own 14,000 task files takes seconds, and is needless for local tasks. (A
    # group is looked up among all, for its tasks may be lm_eval's.)
    if own is None or not asked <= {*own.all_subtasks, *own.all_tags, *filter(_is_file, asked)}:
        from lm_eval.tasks import TaskManager

        with lm_eval_logs():
            manager = TaskManager(include_path=None if include_path is None else str(include_path))
    assert manager is not None
    wanted = _matched(wanted, manager, skipped)
    problems: list[Problem] = []
    with lm_eval_logs(), download_bars(bars), _hub_or_cache(wanted, manager) as unreachable:
        help = _OFFLINE if unreachable else None
        runs = [_load(shots, items, manager, problems, help) for shots, items in wanted.items()]
    problems += _refused(runs, confirm_run_unsafe_code)
    if problems:
        raise EvaluateError(dict.fromkeys(problems))
    return LoadedTasks(manager, tuple(runs))


def _own_tasks(folder: Path) -> tuple[Any, tuple[str, ...]]:
    """What a folder defines, and what lm_eval says of files that it skips."""
    if not folder.is_dir():
        reason = "it is a file" if folder.is_file() else "there is no such folder"
        raise EvaluateError(codes.NO_TASK_FILES(path=folder, reason=reason))
    from lm_eval.tasks import TaskManager

    skipped: list[str] = []

    class Skips(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            if str(record.msg).startswith("Skip"):
                skipped.append(" ".join(record.getMessage().removeprefix("Skip ").split()))

    with lm_eval_logs(logging.DEBUG, Skips()):
        manager = TaskManager(include_path=str(folder), include_defaults=False)
    if not manager.all_tasks:
        reason = "no .yaml file in it describes one"
        help = f"skipped: {skipped[0]}" if skipped else None
        raise EvaluateError(codes.NO_TASK_FILES(path=folder, reason=reason, help=help))
    return manager, tuple(skipped)


def _matched(wanted: Wanted, manager: Any, skipped: tuple[str, ...]) -> Wanted:
    """The same with patterns replaced by what they match, and files by absolute paths."""
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
                close = nearest(name, [*GROUPS, *manager.all_tasks])
                help = [close] if close else []
                help += [f"lm_eval skipped {skipped[0]}"] if skipped else []
                problems.append(codes.UNKNOWN_TASK(name=name, help="; ".join(help) or _LISTS))
    if problems:
        raise EvaluateError(dict.fromkeys(problems))
    return matched


def _load(
    shots: int | None,
    wanted: dict[str, TaskGroup | None],
    manager: Any,
    problems: list[Problem],
    help: str | None,
) -> Run:
    items: list[Any] = []
    tasks: dict[str, Any] = {}
    for name, group in wanted.items():
        found: list[Any] = []
        for task in (name,) if group is None else group.tasks:
            try:
                loaded = manager.load([task])
            except Exception as error:  # noqa: BLE001 - task files and data raise what they like
                problems.append(codes.TASK_NOT_LOADED(name=task, reason=one_line(error), help=help))
                continue
            tasks |= loaded["tasks"]
            found += (
                [loaded["groups"][task]] if task in loaded["groups"] else loaded["tasks"].values()
            )
        items += found if group is None else [_mean(name, group, found)]
    if not problems:
        try:
            manager.load(items)  # They must not overlap.
        except ValueError as error:
            problems.append(codes.TASK_NOT_LOADED(name=", ".join(wanted), reason=one_line(error)))
    return Run(shots, tuple(wanted), tuple(items), tuple(tasks.values()))


def _mean(name: str, group: TaskGroup, tasks: Iterable[Any]) -> Any:
    """A group of lm_eval's whose figure is the mean of its tasks'."""
    from lm_eval.api.group import Group
    from lm_eval.config.group import AggMetricConfig

    metrics = [AggMetricConfig(metric=group.mean_of, weight_by_size=False)]
    made = Group(name=name, aggregate_metric_list=metrics)
    for task in tasks:
        made.add(task)
    return made


def _refused(runs: Iterable[Run], confirmed: bool) -> Iterator[Problem]:
    for task in (task for run in runs for task in run.tasks):
        if getattr(task, "MULTIMODAL", False):
            reason = "it asks about pictures or sound"
            yield codes.TASK_NOT_LOADED(name=task.task_name, reason=reason)
        if getattr(task, "UNSAFE_CODE", False) and not confirmed:
            yield codes.UNSAFE_TASK(
                name=task.task_name, help="lm_eval's `--confirm_run_unsafe_code` allows it"
            )


@contextmanager
def _hub_or_cache(wanted: Wanted, manager: Any) -> Iterator[bool]:
    """Inside, data come from the Hub where it answers, and else from the cache at once.

    Left to itself, each data set that is not in the cache is asked for six times over 23 seconds. Yields
    whether the Hub is needed and does not answer.
    """
    import datasets
    from huggingface_hub import constants

    needed = any(
        _on_the_hub(manager.task_index.get(name)) for items in wanted.values() for name in items
    )
    if not needed or _hub_answers():
        yield False
        return
    before = constants.HF_HUB_OFFLINE, datasets.config.HF_HUB_OFFLINE
    constants.HF_HUB_OFFLINE = datasets.config.HF_HUB_OFFLINE = True
    try:
        yield True
    finally:
        constants.HF_HUB_OFFLINE, datasets.config.HF_HUB_OFFLINE = before


def _hub_answers() -> bool:
    from huggingface_hub import get_session
    from huggingface_hub.constants import ENDPOINT, is_offline_mode

    if is_offline_mode():
        return False
    try:
        get_session().head(ENDPOINT, timeout=_SECONDS)
    except Exception:  # noqa: BLE001 - each transport has exceptions of its own
        return False
    return True


def _on_the_hub(entry: Any) -> bool:
    """Whether a task may have its data on the Hub; the data of a group's tasks are not looked at."""
    config = getattr(entry, "cfg", None)
    if not config or "class" in config or not isinstance(config.get("task"), str):
        return True
    path = config.get("dataset_path")
    return isinstance(path, str) and "/" in path and not Path(path).exists()


def _is_file(name: str) -> bool:
    return name.endswith((".yaml", ".yml")) and Path(name).is_file()
