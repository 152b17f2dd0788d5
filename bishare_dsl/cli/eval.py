"""``bishare eval``: evaluate adapters and their base on lm_eval's tasks."""

from __future__ import annotations

import logging
import sys
from contextlib import redirect_stderr, redirect_stdout
from io import StringIO
from pathlib import Path
from typing import Any

import click

from bishare_dsl.cli import options
from bishare_dsl.cli.report import CommandError, Report
from bishare_dsl.diagnostics.codes.evaluate import NOT_NUMBERS
from bishare_dsl.diagnostics.codes.usage import WRONG_USAGE

_PATH = click.Path(path_type=Path)
_TASKS = click.Path(path_type=Path, exists=True, file_okay=False)
_LIMIT = click.FloatRange(min=0, min_open=True)


@click.command(
    "eval",
    epilog=options.examples(
        "bishare eval my-adapter --base --model ./my-checkpoint --tasks piqa,arc_easy,boolq",
        "bishare eval lora ke --model ./my-checkpoint --tasks gsm8k --batch_size auto --json",
        "bishare eval my-adapter --model ./my-checkpoint --include_path my-tasks --tasks mine",
        "bishare eval --model ./my-checkpoint --tasks ifeval --apply_chat_template --limit 20",
        "bishare eval library#acme --base --model ./my-checkpoint --data held-out.jsonl",
    ),
)
@options.folders("[DIR]...", required=False)
@options.model(weights=True)
@click.option("--tasks", metavar="NAMES", help="Tasks of lm_eval, separated by commas.")
@click.option(
    "--data",
    type=_PATH,
    metavar="FILE",
    help="Examples with `options`: how often is the correct one the likeliest?",
)
@click.option("--base", is_flag=True, help="Also evaluate the base, first.")
@click.option(
    "--include_path", type=_TASKS, metavar="DIR", help="Folder of task files; their code is run."
)
@click.option("--num_fewshot", type=int, metavar="N", help="Examples in each prompt.")
@click.option("--limit", type=_LIMIT, metavar="N", help="The first N examples; below 1 a fraction.")
@click.option("--batch_size", metavar="N|auto", help="Sequences at a time: 1, or 16 with --data.")
@click.option("--output_path", type=_PATH, metavar="DIR", help="Folder for lm_eval's files.")
@click.option("--log_samples", is_flag=True, help="Also write prompts and answers.")
@click.option("--apply_chat_template", is_flag=True, help="Put prompts into the chat template.")
@options.keywords
@options.dtype
@options.device
@click.pass_obj
def command(
    report: Report,
    /,
    folders: tuple[Path, ...],
    model: str,
    tasks: str | None,
    data: Path | None,
    base: bool,
    include_path: Path | None,
    batch_size: str | None,
    dtype: str | None,
    device: str | None,
    keywords: dict[str, Any],
    **settings: Any,
) -> None:
    """Evaluate adapters with lm-evaluation-harness, on a base that is loaded once.

    Options with underscores are lm_eval's; --set passes other arguments of its simple_evaluate(). Without DIR
    the base alone is evaluated; with --base it comes first. Adapters and tasks are checked before the
    model is loaded. If you interrupt the command, finished results are printed.

    With --data it evaluates your own examples, without lm_eval. Each has a prompt, options, and the correct
    option as completion.
    """
    if (tasks is None) is (data is None):
        raise CommandError(
            WRONG_USAGE(
                what="there is nothing to evaluate, or two things",
                help="give `--tasks` or `--data`",
            )
        )
    if data is not None:
        of_tasks = settings | keywords | {"include_path": include_path}
        if unfit := next((name for name, value in of_tasks.items() if value), None):
            raise CommandError(WRONG_USAGE(what=f"`{unfit}` goes with `--tasks`"))
        size = "16" if batch_size is None or batch_size.startswith("auto") else batch_size
        if not size.isdecimal() or not (batch := int(size)):
            raise CommandError(WRONG_USAGE(what=f"`--batch_size` cannot be `{size}`"))
        _choose(report, folders, model, data, base, dtype, device, batch)
        return
    assert tasks is not None
    batch_size = batch_size or "1"
    if settings["log_samples"] and settings["output_path"] is None:
        what = "`--log_samples` has nowhere to write"
        raise CommandError(WRONG_USAGE(what=what, help="give `--output_path DIR`"))
    from bishare_dsl.cli.candidates import adapted, load_base, read_adapters, with_base
    from bishare_dsl.evaluate.table import rows_of, table_of
    from bishare_dsl.evaluate.tasks import load_tasks
    from bishare_dsl.models.load import require_weights

    require_weights(model)
    models = with_base(read_adapters(folders, model, report), base=base)
    report.note("loading the tasks ...")
    manager, loaded = load_tasks([name.strip() for name in tasks.split(",")], include_path)
    from lm_eval.models.huggingface import HFLM

    from bishare_dsl.evaluate.measure import measure

    live, tokenizer = load_base(model, dtype, device, report)
    settings |= {"tasks": loaded, "task_manager": manager, "batch_size": batch_size} | keywords
    logging.disable(logging.WARNING)  # lm_eval warns if it gets a model.
    settings["model"] = HFLM(pretrained=live, tokenizer=tokenizer, batch_size=batch_size)
    logging.disable(logging.NOTSET)
    progress = StringIO() if report.quiet else sys.stderr
    results: dict[str, dict[str, Any]] = {}
    try:
        for label, adapter in models.items():
            report.note(f"evaluating {label} ({len(results) + 1} of {len(models)}) ...")
            # lm_eval names its files after this.
            args = {"pretrained": model} | ({"peft": str(adapter.folder)} if adapter else {})
            with (
                adapted(live, adapter, report),
                redirect_stdout(progress),
                redirect_stderr(progress),
            ):
                scores, broken = measure(label, model_args=args, **settings)
            if broken:
                report.problem(NOT_NUMBERS(count=broken, model=label))
            results[label] = scores
    finally:
        if results:
            report.partial = True
            rows = rows_of(results)
            report.data(model=model, models=list(results), limit=settings["limit"], rows=rows)
            report.tables(table_of(rows, results))


def _choose(
    report: Report,
    folders: tuple[Path, ...],
    model: str,
    data: Path,
    base: bool,
    dtype: str | None,
    device: str | None,
    batch: int,
) -> None:
    """Count how often each adapter prefers the right option of a row."""
    from bishare_dsl.cli.candidates import adapted, load_base, read_adapters, with_base
    from bishare_dsl.models.load import require_weights
    from bishare_dsl.show.table import Table
    from bishare_dsl.train.choices import choice_accuracy, encode_choices
    from bishare_dsl.train.data.batches import Collator
    from bishare_dsl.train.data.load import load_rows

    require_weights(model)
    models = with_base(read_adapters(folders, model, report), base=base)
    rows = load_rows(str(data))
    live, tokenizer = load_base(model, dtype, device, report)
    examples, collator = encode_choices(rows, tokenizer), Collator.of(tokenizer)
    correct: dict[str, float] = {}
    try:
        for label, adapter in models.items():
            report.note(f"evaluating {label} ({len(correct) + 1} of {len(models)}) ...")
            with adapted(live, adapter, report):
                correct[label] = choice_accuracy(live.eval(), examples, collator, batch)
    finally:
        if correct:
            report.partial = True
            report.data(model=model, data=str(data), rows=len(examples), accuracy=correct)
            table = [[label, len(examples), f"{right:.1%}"] for label, right in correct.items()]
            report.tables(Table(["model", "rows", "correct"], table))
