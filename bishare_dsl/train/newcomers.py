"""Where a new task of a library starts, and whether it trains: decided before weights are loaded.

The default is the simplest of five registered rules that is at most one point short of the better of
`mixture` and `zero`, on average over twelve families of tasks (benchmarks/notes/2026-12-03-groups.md).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from bishare_dsl.diagnostics.codes import train as codes
from bishare_dsl.folder.files import names_in
from bishare_dsl.folder.groups import read_groups
from bishare_dsl.train.errors import TrainError
from bishare_dsl.train.folder import record_of
from bishare_dsl.train.request import Request
from bishare_dsl.train.tasks import Task

LEAST_MEMBERS = 3
"""A library with so many members has a record, and by default new tasks start from them."""
FEW_EXAMPLES = 16
"""With fewer examples a new task is by default a sum of members, which does not train."""


def decide_starts(request: Request, tasks: Sequence[Task]) -> list[Task]:
    """Return the tasks of a run with where each begins, and whether it trains."""
    if request.library is None:
        return list(tasks)
    if request.resume is not None:
        return _resumed(request, request.resume, tasks)
    has_members = len(names_in(request.library)) >= LEAST_MEMBERS
    has_groups = _has_groups(request)
    decided = list[Task]()
    for task in tasks:
        begins = request.start
        if begins is None and has_groups and not _asks_to_train(request):
            begins = "group"
        if begins is None:
            is_sum = has_members and len(task.examples) < FEW_EXAMPLES
            begins = "mixture" if is_sum else "zero"
        trains = begins == "zero" or request.start == "mixture" or _asks_for_steps(request)
        trains = trains and begins != "group"
        decided.append(replace(task, begins=begins, trains=trains))
    return decided


def _has_groups(request: Request) -> bool:
    """Return whether new tasks may take groups of the library.

    Raises:
        TrainError: they are to take groups, and there are none, or they are to train them (BS732).
    """
    has_groups = read_groups(Path(str(request.library))) is not None
    if request.start == "group":
        if not has_groups:
            reason = f"`{request.library}` has no groups"
            help = "leave `--start` out, or train a library with `--groups`"
            raise TrainError(codes.BAD_COMBINATION(reason=reason, help=help))
        if _asks_to_train(request):
            reason = "a new task takes a group as it is, and does not train it"
            help = "leave the number of steps or epochs out, or train with `--start zero`"
            raise TrainError(codes.BAD_COMBINATION(reason=reason, help=help))
    return has_groups


def _resumed(request: Request, checkpoint: Path, tasks: Sequence[Task]) -> list[Task]:
    """Return the tasks as the checkpoint has them: its library may have other members by now."""
    decided = list[Task]()
    for task, start in zip(tasks, starts_in(checkpoint, len(tasks)), strict=True):
        is_left = start is not None and request.start is None and not _asks_for_steps(request)
        decided.append(replace(task, start=start, trains=not is_left))
    return decided


def _asks_for_steps(request: Request) -> bool:
    """Return whether the user says how long to train."""
    return not {"max_steps", "num_train_epochs"}.isdisjoint(request.arguments)


def _asks_to_train(request: Request) -> bool:
    """Return whether the user says how long to train, and it is not for 0 steps."""
    return _asks_for_steps(request) and request.arguments.get("max_steps") != 0


def starts_in(checkpoint: Path, count: int) -> list[str | None]:
    """Return what a checkpoint records of the starts of its tasks.

    Raises:
        TrainError: 0.5 left a task untrained, which no checkpoint of later versions records so (BS732).
    """
    texts = list[str | None]()
    for start in record_of(checkpoint).get("starts", [None] * count):
        if isinstance(start, list):  # Of 0.5: with a number of steps.
            start, steps = start
            if steps is not None:
                reason = "bishare 0.5 left tasks of the checkpoint untrained (`--start auto`)"
                help = "start a new run with all arguments, in another `--output_dir`"
                raise TrainError(codes.BAD_COMBINATION(reason=reason, help=help))
        texts.append(start)
    return texts
