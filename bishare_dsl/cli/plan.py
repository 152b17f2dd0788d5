"""``bishare plan``: show what specs share and cost on models."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from bishare_dsl.cli import options
from bishare_dsl.cli.adapters import plan_of_any
from bishare_dsl.cli.budget import Budget, check_names, meet, wanted
from bishare_dsl.cli.reading import read_specs
from bishare_dsl.cli.report import Report
from bishare_dsl.diagnostics import BishareError, Problem, SourceMap

if TYPE_CHECKING:
    from bishare_dsl.models import Architecture
    from bishare_dsl.plan import Plan
    from bishare_dsl.show.table import Table
    from bishare_dsl.spec import Spec


@click.command(
    "plan",
    epilog=options.examples(
        "bishare plan my.share --model llama-7b",
        "bishare plan bishare_ke --model ./my-checkpoint --set r_inter=32 --set size=128",
        "bishare plan bishare_ke --model llama-7b --json | jq .trainable",
        "bishare plan lora bishare_ke -m llama-7b -m qwen2.5-7b --set r=4,8,16",
        "bishare plan bishare_ss lora -m llama-7b --match lora:r=2 --free r_local,r_intra,r_inter,r",
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
@options.budget
@click.pass_obj
def command(
    report: Report,
    files: tuple[str, ...],
    models: tuple[str, ...],
    params: dict[str, tuple[options.Value, ...]],
    adapters: str | None,
    memory: str | None,
    match: str | None,
    free: tuple[str, ...],
    within: float | None,
) -> None:
    """Show what a spec shares and costs on a model: pools, ranks, parameters, bytes.

    FILE is a .share file, the name of a shipped spec, - for standard input, or the folder of an adapter
    (FOLDER#NAME in a library), which names its model. The model's weights are not read.

    With several specs, models or values of a param, one table compares all combinations. A param is set
    in the specs that have it.

    With --match, each spec gets the values of its --free params with which it trains as many parameters. Of
    the values within 1% of that number, those that keep the proportions of the spec's own values win.

    With --adapters the result is the cost of many adapters at 16, 8 and 4 bits: separate, as a library, as
    LoRA r=8, and as the LoRA whose rank comes nearest in bytes. A count says nothing of quality.
    """
    _check_memory(memory, adapters)
    budget = wanted(match, free, within)
    if adapters is None:
        count = 1
    else:
        files, count = _counted(files, adapters)
    if budget is not None or _are_several(files, models, params):
        if not files or adapters is not None:
            raise click.UsageError("give a spec; --adapters takes one, and one model")
        _compare(files, models, params, budget, report)
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


def _check_memory(memory: str | None, adapters: str | None) -> None:
    """Refuse a memory without a unit, or without adapters to count."""
    if memory is None:
        return
    if memory.isdecimal():
        raise click.UsageError(f"`{memory}` has no unit: write `--memory {memory}GB`")
    if adapters is None:
        raise click.UsageError("--memory goes with --adapters")


def _are_several(
    files: tuple[str, ...],
    models: tuple[str, ...],
    params: Mapping[str, tuple[options.Value, ...]],
) -> bool:
    """Return whether there is not one spec with one value of each param on one model."""
    several_values = any(len(values) > 1 for values in params.values())
    return len(files) != 1 or len(models) > 1 or several_values


def _counted(files: tuple[str, ...], adapters: str) -> tuple[tuple[str, ...], int]:
    """Return what to plan, and the number of adapters: as given, or those in a folder."""
    if adapters.isdecimal() and int(adapters):
        return files, int(adapters)
    if not Path(adapters).is_dir():
        raise click.UsageError(f"`{adapters}` is neither a folder nor a number in digits")
    from bishare_dsl.cli.adapters import adapters_in

    folders = [str(adapter) for adapter in adapters_in(Path(adapters))]
    return files or (folders[0],), len(folders)


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
    counted = "1 adapter" if adapters == 1 else f"{adapters:,} adapters"
    report.tables(
        f"{plan.spec} on {plan.base.name}: {counted}; the base takes {cost.size(base)} at 16 bits",
        cost.table(rows, adapters, free),
        f"{fit}files: their size in bfloat16. slots: in an engine, in compact mode.\n"
        "No column tells what a smaller way loses: train it, compare with the last row.",
    )


def _compare(
    files: tuple[str, ...],
    models: tuple[str, ...],
    params: Mapping[str, tuple[options.Value, ...]],
    budget: Budget | None,
    report: Report,
) -> None:
    """Show one table of all combinations, and report combinations that do not fit."""
    from bishare_dsl.models import architecture_of

    if not models:
        raise click.UsageError("missing option '--model', such as --model llama-7b")
    specs = read_specs(files, params)
    if budget is not None:
        check_names([(spec, where) for spec, where, _ in specs.values()], budget.free, params)
    architectures = {model: architecture_of(model) for model in models}
    parameters = {}
    if budget is not None:
        parameters = {model: budget.parameters(base) for model, base in architectures.items()}
    rows: list[dict[str, Any]] = []
    reported: set[tuple[str, Problem]] = set()
    for (file, (spec, where, own)), model in product(specs.items(), models):
        for values in product(*own.values()):
            combination = _Combination(
                spec, where, architectures[model], dict(zip(own, values, strict=True))
            )
            of_combination, problems = combination.rows(budget, parameters.get(model, 0))
            report.all([p for p in problems if (file, p) not in reported], where)
            reported.update((file, problem) for problem in problems)
            names = {"file": file, "spec": spec.name, "model": model}
            rows += [{**names, **row} for row in of_combination]
    report.data(rows=rows)
    report.tables(_table(rows, budget), _LORA_LINE)


_LORA_LINE = "of LoRA r=8: relative to LoRA of rank 8 on the modules that each spec adapts"


@dataclass(frozen=True)
class _Combination:
    """A spec on a model with values of its params."""

    spec: Spec
    where: SourceMap
    base: Architecture
    chosen: dict[str, options.Value]

    def rows(
        self, budget: Budget | None, parameters: int
    ) -> tuple[list[dict[str, Any]], list[Problem]]:
        """Return its row, or its rows next to a budget that it does not meet, and all problems."""
        if budget is None:
            row, problems = self._row(self.chosen, None)
            return [row], problems
        try:
            match = meet(budget, parameters, self.spec, self.where, self.base, self.chosen)
        except BishareError as error:
            return [self._refused(self.chosen, error)], [*error.problems]
        rows = []
        problems = [] if match.problem is None else [match.problem]
        for settings in match.settings:
            row, of_row = self._row(settings, parameters)
            rows.append(row)
            problems += of_row
        return rows, problems

    def _row(
        self, chosen: dict[str, options.Value], parameters: int | None
    ) -> tuple[dict[str, Any], list[Problem]]:
        from bishare_dsl.compiler import make_plan
        from bishare_dsl.show.compare import figures

        try:
            resolved = make_plan(self.spec, self.base, chosen, self.where)
        except BishareError as error:
            return self._refused(chosen, error), [*error.problems]
        row = {"set": chosen, "error": None, **figures(resolved.plan)}
        if parameters is not None:
            row["of_match"] = resolved.plan.trainable / parameters
        return row, [*resolved.problems]

    def _refused(self, chosen: dict[str, options.Value], error: BishareError) -> dict[str, Any]:
        code = next(p.code for p in error.problems if p.severity == "error")
        return {"set": chosen, "error": code}


def _table(rows: list[dict[str, Any]], budget: Budget | None) -> Table:
    from bishare_dsl.show.rows import mib, span
    from bishare_dsl.show.table import Table

    settings = list(dict.fromkeys(name for row in rows for name in row["set"]))
    numbers = ["parameters", "MiB, 32 bits", "maximum rank", "scale", "of LoRA r=8"]
    if budget is not None:
        numbers.append(f"of {budget.match}")
    lines = list[list[object]]()
    for row in rows:
        cells: list[object] = [row["file"], row["model"]]
        cells += [str(row["set"].get(name, "")) for name in settings]
        if row["error"]:
            cells.append(row["error"])
            cells += [""] * (len(numbers) - 1)
        else:
            cells += [row["trainable"], mib(row["bytes"]), span(row["maximum_rank"])]
            cells += [_scales(row["scale"]), _percent(row["of_lora"])]
        if budget is not None and not row["error"]:
            cells.append(_percent(row["of_match"]))
        lines.append(cells)
    return Table(["spec", "model", *settings, *numbers], lines, left={0, 1})


def _scales(ends: tuple[float, float] | None) -> str:
    """Write the smallest and the largest scale, or one if they are equal."""
    if ends is None:
        return "-"
    return "-".join(f"{end:.4g}" for end in dict.fromkeys(ends))


def _percent(fraction: float | None) -> str:
    return "-" if fraction is None else f"{fraction:.2%}"
