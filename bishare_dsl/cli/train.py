"""``bishare train``: from a spec and rows to a trained adapter."""

from __future__ import annotations

import os
import shlex
import sys
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import redirect_stdout
from functools import partial
from typing import TYPE_CHECKING, Any

import click

from bishare_dsl.cli import options
from bishare_dsl.cli.budget import wanted
from bishare_dsl.cli.grid import draft_grid, grid_words, show_cells, single_design
from bishare_dsl.cli.report import INTERRUPTED, CommandError, Report, silence_libraries
from bishare_dsl.cli.unknown import param_advice, value_in
from bishare_dsl.diagnostics import Problem
from bishare_dsl.diagnostics.codes.train import NEEDS_PACKAGE

if TYPE_CHECKING:
    from bishare_dsl.cli.budget import Budget
    from bishare_dsl.cli.grid import GridWords
    from bishare_dsl.spec import Spec
    from bishare_dsl.train.errors import TrainingInterrupted
    from bishare_dsl.train.grid import Cell, Draft
    from bishare_dsl.train.result import TrainResult

_BOOLEANS = ("true", "false", "yes", "no", "1", "0")


def _arguments(words: Sequence[str], given: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """Read the words that are not options here: SPEC, files of ``--data``, and transformers' arguments.

    A switch may stand without a value: ``--bf16``, ``--bf16 false``, ``--no_bf16``.

    Args:
        words: of the command line.
        given: the options that are declared here.
    """
    rest = deque(words)
    files = [*given["data"]]
    specs: list[str] = []
    unknown: list[Problem] = []
    while rest:
        word = rest.popleft()
        if not word.startswith("-") or word == "-":
            from bishare_dsl.train.data.load import ENDINGS

            # As a shell writes `--data *.jsonl`.
            if given["data"] and word.endswith(ENDINGS):
                files.append(word)
            else:
                specs.append(word)
            continue
        from bishare_dsl.train.request import argument_types, is_flag, unknown_argument

        name, equals, value = word.lstrip("-").partition("=")
        name = name.replace("-", "_")
        if equals and name in argument_types():
            yield name, value
        elif is_flag(name):
            yield name, _take_boolean(rest)
        elif is_flag(name.removeprefix("no_")):
            yield name.removeprefix("no_"), "false"
        elif name not in argument_types():
            after = value if equals else _take_value(name, rest)
            help = param_advice(words, name, after)
            unknown.append(unknown_argument(name, after, shown=word.partition("=")[0], help=help))
        elif rest:
            yield name, rest.popleft()
        else:
            raise click.BadOptionUsage(word, f"Option '{word}' requires an argument.")
    if unknown:
        raise CommandError(unknown)
    _check_no_data(specs)
    yield "data", files or None
    yield "spec", specs


def _check_no_data(specs: Sequence[str]) -> None:
    """Refuse a file of rows that stands where a spec does."""
    from bishare_dsl.train.data.load import ENDINGS

    for word in specs:
        if word.endswith(ENDINGS):
            raise click.UsageError(f"Got unexpected extra argument ({word})")


def _take_boolean(rest: deque[str]) -> str:
    """Take the value of a switch from the words after it; a switch without a value is on."""
    if rest and rest[0].lower() in _BOOLEANS:
        return rest.popleft()
    return "true"


def _take_value(name: str, rest: deque[str]) -> str | None:
    """Take the value of an unknown option from the words after it: several for a list of modules."""
    value = value_in(rest[0] if rest else None)
    if value is None:
        return None
    rest.popleft()
    while name.endswith("target_modules") and rest and value_in(rest[0]):
        value += f", {rest.popleft()}"
    return value


_PLACES = {
    "output_dir": ("DIR", "The folder of the run."),
    "config": ("FILE", "YAML with any of these arguments, without dashes; flags win over it."),
    "resume": ("DIR", "Continue the run in a folder, or from one of its checkpoints."),
}


def _own_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add to a command the options of a run that are not transformers'."""
    from bishare_dsl.train.grouping import SCORES
    from bishare_dsl.train.request import Settings

    for name, field in reversed(Settings.model_fields.items()):
        if name == "data":
            for place, (metavar, about) in reversed(_PLACES.items()):
                command = click.option(f"--{place}", metavar=metavar, help=about)(command)
        # Neither type nor default: what is given is checked together with what a config says.
        kind: dict[str, Any] = {"is_flag": True, "default": None}
        about = str(field.description)
        if field.annotation is not bool:
            metavar, _, about = about.partition(": ")
            kind = {"metavar": metavar, "multiple": name == "data"}
        if name == "groups":  # Its value may be left out.
            kind |= {"is_flag": False, "flag_value": SCORES}
        command = click.option(f"--{name}", help=about, **kind)(command)
    return command


@click.command(
    "train",
    context_settings={
        "token_normalize_func": lambda name: name.replace("-", "_"),
        "ignore_unknown_options": True,
    },
    epilog=options.examples(
        "bishare train bishare_ke --model ./my-checkpoint --data rows.jsonl --output_dir ke",
        "bishare train my.share --config train.yaml --set r_inter=32 --eval_split 0.05 --bf16",
        "bishare train mine.share lora --config train.yaml --learning_rate 1e-3,4e-3 --seed 0,1,2",
        "bishare train bishare_ss lora --config train.yaml --match lora:r=2 --free r_local,r_intra,r_inter,r",
        "bishare train lora --model ./my-checkpoint --data tasks/*.jsonl --output_dir out",
        "bishare train library_core --model ./my-checkpoint --data customers/ --output_dir out",
        "bishare train library_core --model ./my-checkpoint --data customers/ --groups 3 --output_dir out",
        "bishare train --resume out --num_train_epochs 3",
        "torchrun --nproc_per_node 8 -m bishare_dsl.cli.main train lora --config train.yaml",
    ),
)
@click.argument("words", nargs=-1, type=click.UNPROCESSED, metavar="[SPEC...]")
@options.model(required=False, weights=True)
@options.many_values
@options.budget
@_own_options
@click.pass_obj
def command(
    report: Report,
    /,
    words: tuple[str, ...],
    params: dict[str, tuple[options.Value, ...]],
    config: str | None,
    match: str | None,
    free: tuple[str, ...],
    within: float | None,
    **given: Any,
) -> None:
    """Train an adapter. The defaults follow the Bi-Share paper: AdamW at 1e-4, 64 examples in a step, one
    epoch, and 100 steps of warm-up, at most a quarter of the run. Dropout and alpha come from the spec.

    SPEC is a spec, or an adapter to train further: its folder, or LIBRARY#NAME. Any argument of transformers'
    TrainingArguments is an option too, such as --learning_rate, --num_train_epochs,
    --per_device_train_batch_size, --bf16, --gradient_checkpointing, --report_to tensorboard.

    --output_dir gets the adapter, checkpoints to resume from, and all arguments in run.json. Ctrl-C saves a
    checkpoint and stops. Several files of --data are tasks that train in one run: each gets an adapter, in a
    folder of its name. Those of a library train for 80 steps at least, at 1e-2, and
    others for 60 at 2e-3. --groups trains one adapter for several tasks that are alike.

    Several SPEC, and values with commas for --set, --learning_rate and --seed, are a grid: each combination
    is a run in a folder of --output_dir, such as lora,r=2,learning_rate=0.004,seed=1. The same command again
    goes on, and more values are more runs.

    With --match, each spec gets the values of its --free params with which it trains as many parameters, as
    in `bishare plan`. run.json has them as if they were given by --set.
    """
    budget = wanted(match, free, within)
    first = int(os.environ.get("RANK", "0")) == 0
    if not first:
        report.quiet = True
        report.as_json = False
    # TRL reports each run to its developers. Switch that off before any part of it is imported.
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    from bishare_dsl.models import resolve
    from bishare_dsl.train.request import make_request

    given |= dict(_arguments(words, given))
    grid = grid_words(given.pop("spec"), params, given)
    drafts: list[Draft] = []
    if grid.is_one_run:
        given |= _single_run(grid, given, config, budget, report)
        request = make_request(given, config)
    else:
        drafts = draft_grid(grid, given, config, budget, report)
        request = drafts[0].request
    if isinstance(request.model, str):
        resolve(request.model)
    silence_libraries()
    try:
        import datasets

        from bishare_dsl.train.errors import TrainingInterrupted
        from bishare_dsl.train.grid import plan_grid
        from bishare_dsl.train.reporter import Reporter
        from bishare_dsl.train.run import run
        from bishare_dsl.train.run_grid import run_grid
    except ImportError as error:
        raise CommandError(NEEDS_PACKAGE(what="training", package=error.name)) from error
    datasets.disable_progress_bars()
    warn = partial(click.echo, err=True)
    reporter = Reporter(report.quiet, report.note, report.problem, warn)
    cells: list[Cell] = []
    result: TrainResult | None = None
    try:
        # The log of transformers goes to standard output, where results stand.
        with redirect_stdout(sys.stderr):
            if drafts:
                reporter = reporter.once()
                cells = plan_grid(drafts, reporter)
                run_grid(cells, reporter)
            else:
                result = run(request, reporter)
    except TrainingInterrupted as stopped:
        help = _how_to_go_on(stopped, is_grid=bool(drafts))
        report.stop(INTERRUPTED, f"error: {stopped}\n  = help: {help}")
        return
    if first and cells:
        show_cells([cell.folder for cell in cells], report)
    if first and result is not None:
        report.data(**result.as_dict())
        report.result(str(result))
    _leave_process_group()


def _single_run(
    grid: GridWords,
    given: Mapping[str, Any],
    config: str | None,
    budget: Budget | None,
    report: Report,
) -> dict[str, Any]:
    """Return the spec and the params of a command of one run."""
    if budget is not None:
        design = single_design(grid, given, config, budget, report)
        return {
            "spec": design.spec if grid.specs else None,
            "params": dict(design.params) or None,
        }
    return {
        "spec": _spec(grid.specs[0] if grid.specs else None),
        "params": {name: value for name, (value,) in grid.params.items()} or None,
    }


def _how_to_go_on(stopped: TrainingInterrupted, *, is_grid: bool) -> str:
    """Say which command goes on with training that was interrupted."""
    if is_grid:
        return "the same command goes on from there; what is done is kept"
    retry = shlex.join(["bishare", "train", "--resume", str(stopped.folder)])
    return f"`{retry}` goes on from there"


def _leave_process_group() -> None:
    """End this process's part in distributed training, if it has any."""
    from torch import distributed

    if distributed.is_available() and distributed.is_initialized():
        distributed.destroy_process_group()


def _spec(name: str | None) -> Spec | str | None:
    """Return what stands for SPEC: a text of standard input is read here, and a file is seen to be there."""
    from bishare_dsl.cli.reading import read_spec, read_text
    from bishare_dsl.train.folder import is_adapter

    if name == "-":
        return read_spec(name)[0]
    if name is not None and not is_adapter(name):
        read_text(name)
    return name
