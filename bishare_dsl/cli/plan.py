"""``bishare plan``: show what specs share and cost on models."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from itertools import product
from typing import TYPE_CHECKING, Any

import click

from bishare_dsl.cli import options
from bishare_dsl.cli.reading import plan_of, read_specs
from bishare_dsl.cli.report import Report
from bishare_dsl.diagnostics import BishareError, Problem

if TYPE_CHECKING:
    from bishare_dsl.show.table import Table

_BYTES = {f"{unit}b": 1000**power for power, unit in enumerate("kmgt", 1)}
_BYTES |= {f"{unit}ib": 1024**power for power, unit in enumerate("kmgt", 1)}

SORTS = ("spec", "model", "parameters", "rank", "percent")


@click.command(
    "plan",
    epilog=options.examples(
        "bishare plan my.share --model llama-7b",
        "bishare plan bishare_ke --model ./my-checkpoint --set r_inter=32 --set size=128",
        "bishare plan bishare_ke --model llama-7b --json | jq .trainable",
        "bishare plan lora bishare_ke -m llama-7b -m qwen2.5-7b --set r=4,8,16 --sort percent",
        "bishare plan bishare_ke -m llama-7b --adapters 200 --memory 80GB",
    ),
)
@options.specs
@options.model(many=True)
@options.many_values
@click.option(
    "--sort", type=click.Choice(SORTS), help="Sort the rows of a comparison, smallest first."
)
@click.option(
    "--adapters",
    type=click.IntRange(min=1),
    metavar="N",
    help="Show the cost of N adapters: on disk, in memory, in an engine's slots.",
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
    sort: str | None,
    adapters: int | None,
    memory: str | None,
) -> None:
    """Show what a spec shares and costs on a model: pools, ranks, parameters, bytes.

    FILE is a .share file, the name of a spec that ships with bishare, or - for standard input. The model's
    weights are not read.

    With several specs, models or values of a param, one table compares all combinations. A param is set
    in the specs that have it.

    With --adapters the result is the cost of many adapters at 16, 8 and 4 bits: separate, as a library, as
    LoRA r=8, and as the LoRA whose rank comes nearest in bytes.
    """
    single = len(files) == len(models) == 1 and all(len(values) == 1 for values in params.values())
    if memory is not None and adapters is None:
        raise click.UsageError("--memory goes with --adapters")
    if adapters is not None:
        if not single or sort is not None:
            raise click.UsageError(
                "--adapters takes one spec, one model and one value of each param"
            )
        _cost(files[0], models[0], _single(params), adapters, memory, report)
    elif single and sort is None:
        from bishare_dsl.cli import summary

        plan = plan_of(files[0], models[0], _single(params), report).plan
        report.data(**summary.as_data(plan))
        report.tables(*summary.as_parts(plan))
    else:
        _compare(files, models, params, sort, report)


def _bytes_of(text: str) -> int | None:
    """Return the number of bytes in ``80GB`` or ``12MiB``, or None if the text is not a size."""
    match = re.fullmatch(r"(\d{1,18}(?:\.\d+)?)\s*([A-Za-z]+)", text.strip())
    unit = _BYTES.get(match[2].lower()) if match else None
    return int(float(match[1]) * unit) if match and unit else None


def _cost(
    file: str,
    model: str,
    params: dict[str, options.Value],
    adapters: int,
    memory: str | None,
    report: Report,
) -> None:
    """Show what many adapters of a spec cost."""
    from bishare_dsl.show import cost

    plan = plan_of(file, model, params, report).plan
    base = 2 * plan.base.parameters
    free = None
    if memory is not None:
        if (size := _bytes_of(memory)) is None:
            raise click.UsageError(f"`--memory {memory}` is not a size: write `--memory 80GB`")
        free = size - base

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
    where = f"; fit: together with it in {memory}" if memory is not None else ""
    report.tables(
        f"{plan.spec} on {plan.base.name}: {adapters:,} adapter{'s' * (adapters > 1)}; "
        f"the base takes {cost.size(base)} at 16 bits{where}",
        cost.table(rows, adapters, free),
        "each, once: numbers of one adapter, and numbers that all share. disk: their files, with scales at 8 "
        "and 4 bits. slots: an engine's memory in compact mode, and host memory while they wait; "
        "plain LoRA: in slots of vLLM's own LoRA.",
    )


def _single(params: Mapping[str, tuple[options.Value, ...]]) -> dict[str, options.Value]:
    return {name: value for name, (value,) in params.items()}


def _compare(
    files: tuple[str, ...],
    models: tuple[str, ...],
    params: Mapping[str, tuple[options.Value, ...]],
    sort: str | None,
    report: Report,
) -> None:
    """Show one table of all combinations, and report combinations that do not fit."""
    rows = list(_combined(files, models, params, report))
    if sort is not None:
        # Rows without this figure come last.
        rows.sort(key=lambda row: ((key := _key(row, sort)) is None, 0 if key is None else key))
    report.data(rows=rows)
    report.tables(_table(rows))


def _combined(
    files: tuple[str, ...],
    models: tuple[str, ...],
    params: Mapping[str, tuple[options.Value, ...]],
    report: Report,
) -> Iterator[dict[str, Any]]:
    from bishare_dsl.compiler import make_plan
    from bishare_dsl.models import architecture_of
    from bishare_dsl.show.compare import figures

    architectures = {model: architecture_of(model) for model in models}
    reported: set[tuple[str, Problem]] = set()
    for file, (spec, where, params_of_spec) in read_specs(files, params).items():
        for model, architecture in architectures.items():
            for values in product(*params_of_spec.values()):
                chosen = dict(zip(params_of_spec, values, strict=True))
                row: dict[str, Any] = {"file": file, "spec": spec.name, "model": model}
                row |= {"set": chosen, "error": None}
                try:
                    resolved = make_plan(spec, architecture, chosen, where)
                    problems = resolved.problems
                    row |= asdict(figures(resolved.plan))
                except BishareError as error:
                    problems = error.problems
                    row["error"] = next(p.code for p in problems if p.severity == "error")
                new = [problem for problem in problems if (file, problem) not in reported]
                reported.update((file, problem) for problem in new)
                report.all(new, where)
                yield row


def _key(row: dict[str, Any], sort: str) -> Any:
    if sort in ("spec", "model"):
        return row["file" if sort == "spec" else "model"]
    name = {"parameters": "trainable", "rank": "effective_rank", "percent": "of_lora"}[sort]
    return row.get(name)


def _table(rows: list[dict[str, Any]]) -> Table:
    from bishare_dsl.show.rows import mib, span
    from bishare_dsl.show.table import Table

    settings = list(dict.fromkeys(name for row in rows for name in row["set"]))
    head = ["spec", "model", *settings]
    head += ["parameters", "MiB, 32 bits", "effective rank", "of LoRA r=8"]
    lines = []
    for row in rows:
        line = [row["file"], row["model"], *(str(row["set"].get(name, "")) for name in settings)]
        if row["error"]:
            line += [row["error"], "", "", ""]
        else:
            line += [row["trainable"], mib(row["bytes"]), span(row["effective_rank"])]
            line += ["-" if row["of_lora"] is None else f"{row['of_lora']:.2%}"]
        lines.append(line)
    return Table(head, lines, left={0, 1})
