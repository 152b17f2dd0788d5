"""``bishare plan``: show what specs share and cost on models."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from bishare_dsl.cli import options
from bishare_dsl.cli.adapters import plan_of_any
from bishare_dsl.cli.reading import read_specs
from bishare_dsl.cli.report import Report
from bishare_dsl.diagnostics import BishareError, Problem

if TYPE_CHECKING:
    from bishare_dsl.plan import Plan
    from bishare_dsl.show.table import Table


@click.command(
    "plan",
    epilog=options.examples(
        "bishare plan my.share --model llama-7b",
        "bishare plan bishare_ke --model ./my-checkpoint --set r_inter=32 --set size=128",
        "bishare plan bishare_ke --model llama-7b --json | jq .trainable",
        "bishare plan lora bishare_ke -m llama-7b -m qwen2.5-7b --set r=4,8,16",
        "bishare plan out/library#acme",
        "bishare plan bishare_ke -m llama-7b --adapters 200 --memory 80GB",
        "bishare plan --adapters loras -m ./my-checkpoint",
    ),
)
@options.spec("files", "[FILE...]", nargs=-1)
@options.model(required=False, many=True)
@options.many_values
@click.option(
    "--adapters",
    metavar="N|DIR",
    help="Show the cost of N adapters, or of those in a folder: on disk, in memory, in an engine's slots.",
)
@click.option(
    "--memory",
    metavar="SIZE",
    help="Memory of the device, such as 80GB, to count the adapters that fit with the base; with --adapters.",
)
@click.pass_obj
def command(
    report: Report,
    files: tuple[str, ...],
    models: tuple[str, ...],
    params: dict[str, tuple[options.Value, ...]],
    adapters: str | None,
    memory: str | None,
) -> None:
    """Show what a spec shares and costs on a model: pools, ranks, parameters, bytes.

    FILE is a .share file, the name of a shipped spec, - for standard input, or the folder of an adapter
    (FOLDER#NAME in a library), which names its model. The model's weights are not read.

    With several specs, models or values of a param, one table compares all combinations. A param is set
    in the specs that have it.

    With --adapters the result is the cost of many adapters at 16, 8 and 4 bits: separate, as a library, as
    LoRA r=8, and as the LoRA whose rank comes nearest in bytes. A count says nothing of quality.
    """
    if memory is not None and memory.isdecimal():
        raise click.UsageError(f"`{memory}` has no unit: write `--memory {memory}GB`")
    if memory is not None and adapters is None:
        raise click.UsageError("--memory goes with --adapters")
    files, count = (files, 1) if adapters is None else _counted(files, adapters)
    if not files or len(models) > 1 or len(files) > 1 or any(len(v) > 1 for v in params.values()):
        if adapters is not None or not files:
            raise click.UsageError("give a spec; --adapters takes one, and one model")
        _compare(files, models, params, report)
        return
    chosen = {name: value for name, (value,) in params.items()}
    planned = plan_of_any(files[0], models[0] if models else None, chosen, report)
    if adapters is not None:
        _cost(planned.plan, count, memory, report)
        return
    from bishare_dsl.cli import summary

    if report.as_json:
        report.data(**summary.as_data(planned.plan, planned.spec))
        return
    report.tables(*summary.as_parts(planned.plan, planned.spec))


def _counted(files: tuple[str, ...], adapters: str) -> tuple[tuple[str, ...], int]:
    """Return what to plan, and the number of adapters: as given, or those in a folder."""
    if adapters.isdecimal() and int(adapters):
        return files, int(adapters)
    if not Path(adapters).is_dir():
        raise click.UsageError(f"`{adapters}` is neither a folder nor a number in digits")
    from bishare_dsl.cli.adapters import adapters_in

    found = [str(adapter) for adapter in adapters_in(Path(adapters))]
    return files or (found[0],), len(found)


def _cost(plan: Plan, adapters: int, memory: str | None, report: Report) -> None:
    """Show what many adapters of a spec cost."""
    from pydantic import ByteSize, TypeAdapter

    from bishare_dsl.show import cost

    base = 2 * plan.base.parameters
    free = None
    if memory is not None:
        try:
            free = TypeAdapter(ByteSize).validate_python(memory) - base
        except (ValueError, OverflowError):
            raise click.UsageError(f"`{memory}` is no size: write `--memory 80GB`") from None

    rows = cost.costs(plan)
    report.data(
        spec=plan.spec,
        params=plan.params,
        model=plan.base.name,
        adapters=adapters,
        base_bytes=base,
        memory_left=free,
        ways=[row.data(adapters, free) for row in rows],
    )
    fit = f"fit: how many, with the base, in {memory}\n" if memory is not None else ""
    if free is not None and free < 0:
        fit = f"fit: none, for the base alone takes more than {memory}\n"
    report.tables(
        f"{plan.spec} on {plan.base.name}: {adapters:,} adapter{'s' * (adapters > 1)}; "
        f"the base takes {cost.size(base)} at 16 bits",
        cost.table(rows, adapters, free),
        f"{fit}files: their size in bfloat16. slots: in an engine, in compact mode.\n"
        "No column tells what a smaller way loses: train it, compare with the last row.",
    )


def _compare(
    files: tuple[str, ...],
    models: tuple[str, ...],
    params: Mapping[str, tuple[options.Value, ...]],
    report: Report,
) -> None:
    """Show one table of all combinations, and report combinations that do not fit."""
    from bishare_dsl.compiler import make_plan
    from bishare_dsl.models import architecture_of
    from bishare_dsl.show.compare import figures

    if not models:
        raise click.UsageError("missing option '--model', such as --model llama-7b")
    specs = read_specs(files, params)
    architectures = {model: architecture_of(model) for model in models}
    rows: list[dict[str, Any]] = []
    reported: set[tuple[str, Problem]] = set()
    for (file, (spec, where, own)), model in product(specs.items(), models):
        for values in product(*own.values()):
            chosen = dict(zip(own, values, strict=True))
            row = {"file": file, "spec": spec.name, "model": model, "set": chosen, "error": None}
            try:
                resolved = make_plan(spec, architectures[model], chosen, where)
                problems = resolved.problems
                row |= figures(resolved.plan)
            except BishareError as error:
                problems = error.problems
                row["error"] = next(p.code for p in problems if p.severity == "error")
            report.all([p for p in problems if (file, p) not in reported], where)
            reported.update((file, problem) for problem in problems)
            rows.append(row)
    report.data(rows=rows)
    report.tables(_table(rows))


def _table(rows: list[dict[str, Any]]) -> Table:
    from bishare_dsl.show.rows import mib, span
    from bishare_dsl.show.table import Table

    settings = list(dict.fromkeys(name for row in rows for name in row["set"]))
    numbers = ["parameters", "MiB, 32 bits", "maximum rank", "of LoRA r=8"]
    lines = list[list[object]]()
    for row in rows:
        of = "-" if row.get("of_lora") is None else f"{row['of_lora']:.2%}"
        found = [row["error"], "", "", ""]
        if not row["error"]:
            found = [row["trainable"], mib(row["bytes"]), span(row["maximum_rank"]), of]
        values = [str(row["set"].get(name, "")) for name in settings]
        lines.append([row["file"], row["model"], *values, *found])
    return Table(["spec", "model", *settings, *numbers], lines, left={0, 1})
