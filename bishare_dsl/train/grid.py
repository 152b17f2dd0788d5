"""The cells of a grid of specs, learning rates and seeds, and what their folders have.

Each cell is an ordinary run. One is done if its ``run.json`` has results, and goes on if it has a checkpoint.
More specs, learning rates or seeds are more cells.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Any

from bishare_dsl.compiler import ResolvedSpec, make_plan
from bishare_dsl.diagnostics.codes import train as codes
from bishare_dsl.models import architecture_of
from bishare_dsl.reading import parse_json
from bishare_dsl.spec import Spec
from bishare_dsl.train.errors import TrainError, translate_refusals
from bishare_dsl.train.reporter import Reporter
from bishare_dsl.train.request import RECORD, Request, make_request


@dataclass(frozen=True)
class Design:
    """A spec with values of its params, to train at each learning rate and seed.

    Attributes:
        spec: as in a `Request`.
        params: the given values of its params.
    """

    spec: Spec | str
    params: Mapping[str, int | float | str]


@dataclass(frozen=True)
class Draft:
    """A cell whose arguments are checked, with the folder of the grid as ``output_dir``."""

    design: Design
    request: Request


class State(Enum):
    """What the folder of a cell has."""

    NEW = "new"
    INTERRUPTED = "to go on"
    DONE = "done"
    DIVERGED = "diverged"


@dataclass(frozen=True)
class Cell:
    """One run of a grid.

    Attributes:
        request: its arguments; for an interrupted one those that resume it.
        state: what its folder has.
    """

    request: Request
    state: State

    @property
    def folder(self) -> Path:
        """The folder of the run."""
        return self.request.output_dir


def draft_cells(
    given: Mapping[str, Any],
    config: str | None,
    designs: Sequence[Design],
    rates: Sequence[Any],
    seeds: Sequence[Any],
) -> list[Draft]:
    """Return the cells of a grid, without a look at their folders. Seeds are the outer loop.

    An interrupted grid has then all specs with the first seeds.

    Args:
        given: the arguments of all cells; ``output_dir`` is the folder of the grid.
        config: a file of arguments.
        designs: the specs.
        rates: learning rates, as words or numbers.
        seeds: seeds, as words or numbers.

    Raises:
        TrainError: an argument is wrong (BS730 to BS736), or there are several tasks (BS732).
    """
    drafts = list[Draft]()
    for seed in seeds:
        for design in designs:
            for rate in rates:
                own = {"spec": design.spec, "learning_rate": rate, "seed": seed}
                request = make_request({**given, **own}, config)
                if request.several:
                    reason = "several specs, learning rates or seeds are for one task"
                    help = "name one file as `--data`, or train one adapter on all of them by `--together`"
                    raise TrainError(codes.BAD_COMBINATION(reason=reason, help=help))
                # A config may have params of another spec.
                request = request.model_copy(update={"params": dict(design.params)})
                drafts.append(Draft(design, request))
    return drafts


def plan_grid(drafts: Sequence[Draft], reporter: Reporter) -> list[Cell]:
    """Return the cells of a grid with the state of their folders. Warnings on specs go to ``reporter``.

    Raises:
        BishareError: a spec does not fit the model; two specs have one name (BS732); the folder of the grid
            has a run, or that of a cell has a run of other arguments (BS740).
        FileNotFoundError: there is no such spec.
    """
    from bishare_dsl.train.folder import check_free

    grid = drafts[0].request.output_dir
    with translate_refusals(grid):
        check_free(grid)
    base = architecture_of(drafts[0].request.model)
    plans: dict[int, ResolvedSpec] = {}
    owners: dict[str, Design] = {}
    cells = list[Cell]()
    for draft in drafts:
        design = draft.design
        if id(design) not in plans:
            plans[id(design)] = make_plan(design.spec, base, design.params)
            for problem in plans[id(design)].problems:
                reporter.report(problem, plans[id(design)].where)
        plan = plans[id(design)].plan
        name = name_of(plan.spec, draft.request)
        if name not in owners:
            owners[name] = design
            place = draft.request.model_copy(update={"output_dir": grid / name})
            cells.append(_read_cell(place, plan.digest))
        elif owners[name] is not design:
            reason = f"two specs are called `{plan.spec}`, and have equal params"
            help = "give one of them another name in its first line"
            raise TrainError(codes.BAD_COMBINATION(reason=reason, help=help))
    return cells


def name_of(spec: str, request: Request) -> str:
    """Return the name of a cell's folder, such as ``lora,r=2,learning_rate=0.004,seed=1``.

    It has the learning rate and the seed also where only one is given: more of them rename nothing.
    """
    names = [spec]
    axes = {name: request.arguments[name] for name in ("learning_rate", "seed")}
    for name, value in {**request.params, **axes}.items():
        names.append(f"{name}={_shown(value)}")
    return ",".join(names)


def _shown(value: int | float | str) -> str:
    """Return the shortest text of a value that is read as the same value."""
    short = f"{value:g}" if isinstance(value, float) else str(value)
    return short if not isinstance(value, float) or float(short) == value else repr(value)


def _read_cell(request: Request, digest: str) -> Cell:
    """Return a cell with the state of its folder.

    Args:
        request: the arguments of a new run.
        digest: of the plan.

    Raises:
        TrainError: the folder has a run of other arguments (BS740), or no checkpoint is whole (BS742).
    """
    from bishare_dsl.train.folder import RUN_FILE, SEAL, checkpoints, read_run

    folder = request.output_dir
    if not (folder / RUN_FILE).is_file():
        return Cell(request, State.NEW)
    with translate_refusals(folder):
        run = read_run(folder)
    record = run.get(RECORD, {})
    if others := _differences(run, request, digest):
        why = f"its {', its '.join(others)}"
        help = "give another `--output_dir`, or move the folder away"
        raise TrainError(codes.RUN_EXISTS(folder=folder, why=why, help=help))
    if "results" in record:
        return Cell(request, State.DONE)
    if "diverged" in record:
        return Cell(request, State.DIVERGED)
    if any((checkpoint / SEAL).is_file() for checkpoint in checkpoints(folder)):
        # The model has the name of the command, and not its whole path: an adapter's config has it.
        resumed = make_request({"resume": folder, "model": request.model}, None)
        return Cell(resumed, State.INTERRUPTED)
    return Cell(request, State.NEW)


def _differences(run: Mapping[str, Any], request: Request, digest: str) -> list[str]:
    """Return in words how the arguments of the run in a folder differ from those of a request."""
    asked = parse_json(json.dumps(request.as_dict(None)))  # JSON has lists for tuples.
    others = list[str]()
    for name in sorted((run.keys() | asked.keys()) - {"spec", RECORD}):
        before = run.get(name)
        now = asked.get(name)
        if before != now:
            others.append(f"`{name}` is {json.dumps(before)}, and not {json.dumps(now)}")
    if run.get(RECORD, {}).get("plan", {}).get("digest") != digest:
        others.append("`spec` is another")
    return others
