"""``bishare eval``: adapters and their base side by side, on lm_eval's tasks."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from bishare_dsl.cli import options
from bishare_dsl.cli.report import CommandError, Report
from bishare_dsl.diagnostics import BishareError, Problem
from bishare_dsl.diagnostics.codes import usage as codes

if TYPE_CHECKING:
    from bishare_dsl.evaluate.results import Evaluation

_SEEDS = ("random_seed", "numpy_random_seed", "torch_random_seed", "fewshot_random_seed")
_BATCH_SIZE = re.compile(r"[1-9]\d{0,8}|auto(:\d+(\.\d+)?)?")


def _batch_size(ctx: click.Context, parameter: click.Parameter, value: str) -> int | str:
    if not _BATCH_SIZE.fullmatch(value):
        raise click.BadParameter(f"`{value}` is neither a whole number, nor auto, nor auto:N")
    return int(value) if value.isdecimal() else value


def _seeds(ctx: click.Context, parameter: click.Parameter, value: str) -> dict[str, int | None]:
    """Read one seed for all four generators, or one for each; of three, the last is as in lm_eval."""
    try:
        seeds = [None if s.strip().lower() == "none" else int(s) for s in value.split(",")]
    except ValueError:
        seeds = []
    if len(seeds) not in (1, 3, 4):
        raise click.BadParameter(f"`{value}` is neither one number nor four, such as `1,2,3,4`")
    return dict(zip(_SEEDS, seeds * 4 if len(seeds) == 1 else [*seeds, 1234], strict=False))


def _gen_kwargs(
    ctx: click.Context, parameter: click.Parameter, value: str | None
) -> str | dict[str, Any] | None:
    if value is not None and value.lstrip().startswith("{"):
        import json

        try:
            return dict(json.loads(value))
        except ValueError as error:
            raise click.BadParameter(f"that is not JSON: {error}") from None
    if value is not None and not all("=" in part for part in value.split(",")):
        raise click.BadParameter(f"`{value}` is neither `name=value,name=value` nor a JSON object")
    return value


_PATH = click.Path(path_type=Path)
_COUNT = click.IntRange(min=1)
_LIMIT = click.FloatRange(min=0, min_open=True)


@click.command(
    "eval",
    epilog=options.examples(
        "bishare eval my-adapter --model ./my-checkpoint --tasks commonsense --base",
        "bishare eval lora ke ss --model ./my-checkpoint --tasks mmlu,gsm8k --batch_size 8 --json",
        "bishare eval my-adapter --model ./my-checkpoint --include_path my-tasks --tasks mine",
        "bishare eval --model ./my-checkpoint --tasks piqa --limit 20      # the base alone",
    ),
)
@click.argument("folders", nargs=-1, type=_PATH, metavar="[DIR]...")
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
    type=_PATH,
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
@click.option("--max_batch_size", type=_COUNT, metavar="N", help="For auto; by default 64.")
@click.option(
    "--limit",
    type=_LIMIT,
    metavar="N|FRACTION",
    help="The first N rows of each task, or a fraction of them below 1; to try things out.",
)
@click.option(
    "--apply_chat_template",
    "template",
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
    default="0,1234,1234,1234",
    callback=_seeds,
    metavar="N|N,N,N,N",
    help="For Python, numpy, torch and the examples; by default 0,1234,1234,1234.",
)
@click.option(
    "--output_path",
    type=_PATH,
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
    list_tasks: bool,
    template: str | None,
    seed: dict[str, Any],
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
    unwritten = settings["log_samples"] and settings["output_path"] is None
    no_turns = settings["fewshot_as_multiturn"] and template is None
    for is_wrong, what, help in (
        (model is None, "missing option `--model`", "such as `--model ./my-checkpoint`"),
        (not tasks, "missing option `--tasks`", "such as `--tasks boolq`; `--list-tasks` has all"),
        (unwritten, "`--log_samples` has nowhere to write", "give `--output_path DIR`"),
        (no_turns, "`--fewshot_as_multiturn` has no turns", "give `--apply_chat_template`"),
    ):
        if is_wrong:
            raise CommandError(codes.WRONG_USAGE(what=what, help=help))
    assert model is not None
    if report.quiet or not sys.stderr.isatty():
        from transformers.utils import logging

        logging.disable_progress_bar()
    from bishare_dsl.evaluate.run import evaluate

    def tell(found: Problem | str) -> None:
        report.note(found) if isinstance(found, str) else report.problem(found)

    finished: list[Evaluation] = []
    try:
        evaluate(
            model,
            folders,
            tasks=tasks,
            apply_chat_template=False if template is None else template or True,
            bars=False if report.quiet else None,
            tell=tell,
            note=report.note,
            done=finished.append,
            **seed,
            **settings,
        )
    except (KeyboardInterrupt, BishareError):
        report.partial = True
        raise
    finally:
        if finished:
            report.data(**finished[-1].as_data())
            report.result(str(finished[-1]))
    if settings["output_path"] is not None:
        report.note(f"written to {settings['output_path']}")


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
