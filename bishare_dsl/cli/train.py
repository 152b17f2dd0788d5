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
    from bishare_dsl.spec import Spec
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
    rest, files, specs = deque(words), [*given["data"]], list[str]()
    unknown = list[Problem]()
    while rest:
        word = rest.popleft()
        if not word.startswith("-") or word == "-":
            from bishare_dsl.train.data.load import ENDINGS

            # As a shell writes `--data *.jsonl`.
            (files if given["data"] and word.endswith(ENDINGS) else specs).append(word)
            continue
        from bishare_dsl.train.request import argument_types, is_flag, unknown_argument

        name, equals, value = word.lstrip("-").partition("=")
        name = name.replace("-", "_")
        if equals and name in argument_types():
            yield name, value
        elif is_flag(name):
            yield name, rest.popleft() if rest and rest[0].lower() in _BOOLEANS else "true"
        elif is_flag(name.removeprefix("no_")):
            yield name.removeprefix("no_"), "false"
        elif name not in argument_types():
            after = value if equals else value_in(rest[0] if rest else None)
            if not equals and after is not None:
                rest.popleft()
                while name.endswith("target_modules") and rest and value_in(rest[0]):
                    after += f", {rest.popleft()}"
            help = param_advice(words, name, after)
            unknown.append(unknown_argument(name, after, shown=word.partition("=")[0], help=help))
        elif rest:
            yield name, rest.popleft()
        else:
            raise click.BadOptionUsage(word, f"Option '{word}' requires an argument.")
    if unknown:
        raise CommandError(unknown)
    from bishare_dsl.train.data.load import ENDINGS

    for word in specs:
        if word.endswith(ENDINGS):
            raise click.UsageError(f"Got unexpected extra argument ({word})")
    yield "data", files or None
    yield "spec", specs


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
        report.quiet, report.as_json = True, False
    # TRL reports each run to its developers. Switch that off before any part of it is imported.
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    from bishare_dsl.models import resolve
    from bishare_dsl.train.request import make_request

    given |= dict(_arguments(words, given))
    grid = grid_words(given.pop("spec"), params, given)
    drafts: list[Draft] = []
    if grid.is_one_run and budget is not None:
        design = single_design(grid, given, config, budget, report)
        given["spec"] = design.spec if grid.specs else None
        given["params"] = dict(design.params) or None
        request = make_request(given, config)
    elif grid.is_one_run:
        given["spec"] = _spec(grid.specs[0] if grid.specs else None)
        given["params"] = {name: value for name, (value,) in params.items()} or None
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
        help = "the same command goes on from there; what is done is kept"
        if not drafts:
            retry = shlex.join(["bishare", "train", "--resume", str(stopped.folder)])
            help = f"`{retry}` goes on from there"
        report.stop(INTERRUPTED, f"error: {stopped}\n  = help: {help}")
        return
    if first and cells:
        show_cells([cell.folder for cell in cells], report)
    if first and result is not None:
        report.data(**result.as_dict())
        report.result(str(result))
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
