"""Resolve ``--tasks`` to lm_eval's tasks, and load their data before any model."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bishare_dsl.diagnostics import EvaluateError, Problem, nearest, one_line, raise_errors
from bishare_dsl.diagnostics.codes import evaluate as codes
from bishare_dsl.diagnostics.codes.train import NEEDS_PACKAGE

if TYPE_CHECKING:
    from lm_eval.tasks import TaskManager


def load_tasks(
    names: Sequence[str], include_path: Path | None = None
) -> tuple[TaskManager, list[Any]]:
    """Find tasks of lm_eval and load them with their data.

    Args:
        names: names of tasks, groups and tags, patterns for these, or paths of task files.
        include_path: a folder of task files. A ``!function`` in one of them names Python that lm_eval runs.

    Returns:
        The task manager, and the tasks and groups.

    Raises:
        EvaluateError: lm_eval is not installed (BS735), names are unknown (BS802), or tasks cannot be loaded
            (BS803).
    """
    if importlib.util.find_spec("lm_eval") is None:
        remedy = "pip install 'bishare[eval]'"
        raise EvaluateError(NEEDS_PACKAGE(what="evaluating", package="lm_eval", help=remedy))
    from lm_eval.tasks import TaskManager

    manager = TaskManager(include_path=include_path, include_defaults=False)
    if not all(name in manager.all_subtasks or Path(name).is_file() for name in names):
        # This searches lm_eval's 14,000 task files, which takes seconds.
        manager = TaskManager(include_path=include_path)
    wanted: list[str] = []
    problems: list[Problem] = []
    for name in names:
        matches = [name] if Path(name).is_file() else manager.match_tasks([name])
        wanted += matches
        if not matches:
            problems.append(
                codes.UNKNOWN_TASK(name=name, help=nearest(name, manager.all_tasks, few=0))
            )
    raise_errors(EvaluateError, problems)
    items: list[Any] = []
    for name in dict.fromkeys(wanted):
        try:
            loaded = manager.load([name])
        except Exception as error:  # noqa: BLE001 - task files and data may raise anything
            problems.append(codes.TASK_NOT_LOADED(name=name, reason=one_line(error)))
        else:
            group = loaded["groups"].get(name)
            items += loaded["tasks"].values() if group is None else [group]
    raise_errors(EvaluateError, problems)
    return manager, items
