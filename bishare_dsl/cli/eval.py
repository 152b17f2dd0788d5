"""``bishare eval``: adapters and their base side by side, on lm_eval's tasks."""

from __future__ import annotations

import re
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from bishare_dsl.cli import options
from bishare_dsl.cli.report import CommandError, Report, coloured
from bishare_dsl.diagnostics.codes import usage as codes

if TYPE_CHECKING:
    from bishare_dsl.evaluate.results import Evaluation

_SEEDS = "0,1234,1234,1234"


def _batch_size(ctx: click.Context, parameter: click.Parameter, value: str) -> int | str:
    if re.fullmatch(r"auto(:\d+(\.\d+)?)?", value):
        return value
    if re.fullmatch(r"[1-9]\d{0,8}", value):
        return int(value)
    raise click.BadParameter(f"`{value}` is neither a whole number, nor auto, nor auto:N")


def _seed(ctx: click.Context, parameter: click.Parameter, value: str) -> tuple[int | None, ...]:
    """One seed for all four generators, or one for each; of three, the last is the default, as in lm_eval."""
    try:
        seeds = [None if s.strip().lower() == "none" else int(s) for s in value.split(",")]
    except ValueError:
        seeds = []
    if len(seeds) == 3:
        seeds.append(1234)
    if len(seeds) not in (1, 4):
        raise click.BadParameter(f"`{value}` is neither one number nor four, such as `{_SEEDS}`")
    return tuple(seeds * 4 if len(seeds) == 1 else seeds)


def _gen_kwargs(
    ctx: click.Context, parameter: click.Parameter, value: str | None
) -> str | dict[str, Any] | None:
    if value is None:
        return None
    if value.lstrip().startswith("{"):
        import json

        try:
            return dict(json.loads(value))
        except ValueError as error:
            raise click.BadParameter(f"that is no JSON: {error}") from None
    if not all("=" in part for part in value.split(",")):
        raise click.BadParameter(f"`{value}` is neither `name=value,name=value` nor a JSON object")
    return value


@click.command(
    "eval",
    epilog=options.examples(
        "bishare eval my-adapter --model ./my-checkpoint --tasks commonsense --base",
        "bishare eval lora ke ss --model ./my-checkpoint --tasks mmlu,gsm8k --batch_size 8 --json",
        "bishare eval my-adapter --model ./my-checkpoint --include_path my-tasks --tasks mine",
        "bishare eval --model ./my-checkpoint --tasks piqa --limit 20      # the base alone",
    ),
)
@click.argument("folders", nargs=-1, type=click.Path(path_type=Path), metavar="[DIR]...")
@options.model(required=False, weights=True)
@click.option(
    "--tasks",
    multiple=True,
    metavar="NAMES",
    help="Tasks, groups, tags and patterns of lm_eval, task files, and the names of --list-tasks; "
    "separated by commas.",
)
@click.option("--base", is_flag=True, help="Evaluate the base without an adapter too, first.")
@click.option("--list-tasks", is_flag=True, help="Print what names stand for several tasks; stop.")
@click.option(
    "--include_path",
    type=click.Path(path_type=Path),
    metavar="DIR",
    help="A folder of task files. Python that they name (!function) is run.",
)
@click.option(
    "--num_fewshot",
    type=click.IntRange(min=0),
    metavar="N",
    help="Examples in each prompt; by default what the group or the task says.",
)
@click.option(
    "--batch_size",
    default="1",
    callback=_batch_size,
    metavar="N|auto|auto:N",
    help="Sequences at a time; by default 1. auto tries which number fits.",
)
@click.option(
    "--max_batch_size",
    type=click.IntRange(min=1),
    metavar="N",
    help="The most that auto tries; by default 64.",
)
@click.option(
    "--limit",
    type=click.FloatRange(min=0, min_open=True),
    metavar="N|FRACTION",
    help="The first N rows of each task, or a fraction of them below 1; to try things out.",
)
@click.option(
    "--apply_chat_template",
    is_flag=False,
    flag_value="",
    metavar="[NAME]",
    help="Put prompts into the tokenizer's chat template; by name, if it has several.",
)
@click.option(
    "--fewshot_as_multiturn",
    is_flag=False,
    flag_value="true",
    type=bool,
    metavar="[BOOL]",
    help="Examples as turns of the conversation; by default with a chat template.",
)
@click.option("--system_instruction", metavar="TEXT", help="Put before every prompt.")
@click.option(
    "--gen_kwargs",
    callback=_gen_kwargs,
    metavar="NAME=VALUE,...",
    help="For tasks that generate, such as temperature=0.8,do_sample=true; or a JSON object.",
)
@click.option(
    "--seed",
    default=_SEEDS,
    callback=_seed,
    metavar="N|N,N,N,N",
    help=f"For Python, numpy, torch and the examples; by default {_SEEDS}.",
)
@click.option(
    "--output_path",
    type=click.Path(path_type=Path),
    metavar="PATH",
    help="Write lm_eval's result files there, each model's as soon as it is done.",
)
@click.option("--log_samples", is_flag=True, help="Write prompts and answers there too.")
@click.option(
    "--confirm_run_unsafe_code",
    is_flag=True,
    help="Allow tasks that execute what the model writes.",
)
@options.dtype
@options.device
@options.as_json
@options.quiet
@click.pass_obj
def command(
    report: Report,
    /,
    folders: tuple[Path, ...],
    model: str | None,
    tasks: tuple[str, ...],
    base: bool,
    list_tasks: bool,
    include_path: Path | None,
    num_fewshot: int | None,
    apply_chat_template: str | None,
    dtype: str | None,
    device: str | None,
    **settings: Any,
) -> None:
    """Evaluate adapters with lm-evaluation-harness, side by side on one base that is loaded once.

    Options with underscores are lm_eval's, with its meaning. Without DIR the base alone is evaluated; with
    --base it comes first. Tasks and adapters are checked, and the tasks' data fetched, before the model is
    loaded. When interrupted, what was finished is printed.
    """
    if list_tasks:
        _list(report)
        return
    for name, given in (("--model", model), ("--tasks", tasks)):
        if not given:
            raise CommandError(codes.WRONG_USAGE(what=f"missing option `{name}`"))
    assert model is not None
    if settings["log_samples"] and settings["output_path"] is None:
        raise CommandError(codes.WRONG_USAGE(what="`--log_samples` needs `--output_path`"))
    if settings["fewshot_as_multiturn"] and apply_chat_template is None:
        what = "`--fewshot_as_multiturn` needs `--apply_chat_template`"
        raise CommandError(codes.WRONG_USAGE(what=what))
    from bishare_dsl.evaluate.live import checked, loaded, made_into
    from bishare_dsl.evaluate.run import split
    from bishare_dsl.evaluate.settings import Settings

    templated = apply_chat_template is not None
    source, models, told = checked(model, folders, base=base, chat=templated)
    report.all(told)
    if (out := settings["output_path"]) is not None:
        (out.parent if out.suffix == ".json" else out).mkdir(parents=True, exist_ok=True)
    report.note("loading the tasks ...")
    from bishare_dsl.evaluate.tasks import load_tasks

    bars = sys.stderr.isatty() and not report.quiet
    suites = load_tasks(
        split(tasks),
        num_fewshot=num_fewshot,
        include_path=include_path,
        confirm_run_unsafe_code=settings["confirm_run_unsafe_code"],
        bars=bars,
    )
    report.note(f"loading {model} ...")
    from transformers.utils import logging

    from bishare_dsl.diagnostics import BishareError
    from bishare_dsl.evaluate.harness import Harness
    from bishare_dsl.evaluate.results import Evaluation

    if not bars:
        logging.disable_progress_bar()
    live, tokenizer = loaded(source, dtype=dtype, device=device, chat=templated)
    chat = apply_chat_template if apply_chat_template is None else apply_chat_template or True
    chosen = Settings(apply_chat_template=chat or False, **settings)
    results: dict[str, Any] = {}
    evaluation = Evaluation(model, results, chosen.limit)
    try:
        for number, candidate in enumerate(models, 1):
            report.note(f"evaluating {candidate.label} ({number} of {len(models)}) ...")
            started = time.monotonic()
            with _bar(bars) as tick:
                harness = Harness(suites, chosen, model, tick)
                with made_into(live, candidate) as notes:
                    results[candidate.label], problems = harness.evaluate(
                        live, tokenizer, candidate.label, candidate.folder
                    )
            report.all(problems)
            for said in (*notes, *(f"lm_eval: {said}" for said in harness.said)):
                report.note(said)
            report.note(f"{candidate.label} took {time.monotonic() - started:,.0f} s")
    except (KeyboardInterrupt, BishareError):
        report.partial = True
        _show(evaluation, report)
        raise
    _show(evaluation, report)
    if chosen.output_path is not None:
        report.note(f"written to {chosen.output_path}")


def _show(evaluation: Evaluation, report: Report) -> None:
    """Print what there is; nothing where nothing was finished."""
    if not evaluation.results:
        return
    import shutil

    report.data(**evaluation.as_data())
    width = shutil.get_terminal_size().columns if sys.stdout.isatty() else None
    report.result(evaluation.table(colour=coloured(sys.stdout), width=width), painted=True)


def _list(report: Report) -> None:
    from dataclasses import asdict

    from bishare_dsl.evaluate.groups import GROUPS

    report.data(groups={name: asdict(group) for name, group in GROUPS.items()})
    for name, group in GROUPS.items():
        shots = " and ".join(map(str, group.num_fewshot))
        mean = f"; and the mean of their {group.mean_of}" if group.mean_of else ""
        report.result(f"{name}: {group.about}")
        report.result(f"  {shots} shots: {', '.join(group.tasks)}{mean}")
    report.result("any other name is lm_eval's own; `lm-eval ls tasks` lists them")


@contextmanager
def _bar(shown: bool) -> Iterator[Any]:
    """A progress bar on standard error, and what to tell it (`bishare_dsl.evaluate.harness.Tick`)."""
    if not shown:
        yield lambda *_: None
        return
    from rich import progress
    from rich.console import Console

    columns = (
        progress.TextColumn("{task.description}"),
        progress.BarColumn(),
        progress.MofNCompleteColumn(),
        progress.TimeElapsedColumn(),
        progress.TimeRemainingColumn(),
    )
    with progress.Progress(
        *columns,
        console=Console(file=sys.stderr),
        transient=True,
        redirect_stdout=False,
        redirect_stderr=False,
    ) as bar:
        task = bar.add_task("", total=None)

        def tick(what: str, done: int, total: int) -> None:
            if done == 0:
                bar.reset(task, description=what, total=None)
            else:
                bar.update(task, completed=done, total=total)

        yield tick
