"""``bishare plan --budget … --solve …``: find the largest value of a param within a budget."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING

from bishare_dsl.cli.options import Value, read_values
from bishare_dsl.cli.reading import read_spec
from bishare_dsl.cli.report import CommandError, Report
from bishare_dsl.diagnostics import BishareError
from bishare_dsl.diagnostics.codes import usage as codes

if TYPE_CHECKING:
    from bishare_dsl.compiler import ResolvedSpec
    from bishare_dsl.models import Architecture


_PARAMETERS = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "b": 10**9}
_BYTES = {f"{unit}b": 1000**power for power, unit in enumerate("kmgt", 1)}
_BYTES |= {f"{unit}ib": 1024**power for power, unit in enumerate("kmgt", 1)}
_AMOUNT = re.compile(r"(?P<number>\d+(?:\.\d+)?)\s*(?P<unit>[A-Za-z]*)")
_FRACTION = re.compile(
    r"(?P<number>\d+(?:\.\d+)?)\s*(?P<percent>%?)\s*of\s+(?P<spec>\S.*?)(?P<set>(?:\s+\w+=\S+)*)"
)


def solve(
    file: str, model: str, params: Mapping[str, Value], budget: str, name: str, report: Report
) -> None:
    """Print the spec with the largest value of a param that the budget allows."""
    from bishare_dsl.compiler import make_plan
    from bishare_dsl.models import architecture_of
    from bishare_dsl.show.solve import LIMIT, largest

    if name in params:
        raise CommandError(codes.WRONG_USAGE(what=f"`{name}` is both set and to be solved for"))
    spec, where = read_spec(file)
    spec.with_params({name: 0})  # checks that the param exists
    values = [param.value for param in spec.params if param.name == name]
    if any(isinstance(value, str) and value != "auto" for value in values):
        raise CommandError(
            codes.WRONG_USAGE(what=f"param `{name}` is a word, and `--solve` looks for a number")
        )
    architecture = architecture_of(model)
    allowed = parameters(budget, architecture)

    def planned(value: int) -> ResolvedSpec:
        return make_plan(spec, architecture, {**params, name: value}, where)

    def count(value: int) -> int | None:
        try:
            return planned(value).plan.trainable
        except BishareError:
            return None

    make_plan(spec, architecture, params, where)  # reports problems that do not depend on the value
    best, after, grows = largest(count, allowed)
    why = None
    if not grows:
        why = f"the count does not grow with it throughout; `--set {name}=8,16,32` compares values"
    elif best is None:
        why = f"{after[0]:,} gives {after[1]:,}" if after else "no value fits"
    elif best[0] == LIMIT:
        why = f"every value that was tried, up to {LIMIT:,}, is within it"
    if best is None or why:
        raise CommandError(codes.NO_SOLUTION(param=name, budget=f"{allowed:,}", why=why))
    value, trainable = best
    resolved = planned(value)
    report.all(resolved.problems, where)
    text = resolved.text()
    report.data(
        param=name,
        value=value,
        trainable=trainable,
        budget=allowed,
        next=after and {"value": after[0], "trainable": after[1]},
        spec_text=text,
    )
    report.result(text.rstrip("\n"))
    beyond = f"; {after[0]:,} gives {after[1]:,}" if after else ""
    report.note(f"{name} = {value:,}: {trainable:,} of {allowed:,} trainable parameters{beyond}")


def parameters(budget: str, architecture: Architecture) -> int:
    """Convert a budget to a number of trainable parameters.

    Args:
        budget: ``3M``, ``12MiB``, ``44% of lora``, ``0.44 of lora r=8``.
        architecture: of the model.

    Raises:
        CommandError: the budget is not an amount (BS907).
        BishareError: the spec in the budget cannot be read or does not fit.
    """
    amount = budget.strip()
    if match := _FRACTION.fullmatch(amount):
        part = float(match["number"]) / (100 if match["percent"] else 1)
        spec, where = read_spec(match["spec"])
        from bishare_dsl.compiler import make_plan

        chosen = read_values(match["set"].split())
        return int(part * make_plan(spec, architecture, chosen, where).plan.trainable)
    match = _AMOUNT.fullmatch(amount)
    unit = match["unit"].lower() if match else ""
    if match and unit in _PARAMETERS:
        return int(float(match["number"]) * _PARAMETERS[unit])
    if (size := bytes_of(amount)) is not None:
        from bishare_dsl.show.rows import BYTES

        return size // BYTES
    raise CommandError(codes.BAD_BUDGET(given=budget))


def bytes_of(text: str) -> int | None:
    """Return the number of bytes in ``80GB`` or ``12MiB``, or None if the text is not a size."""
    match = _AMOUNT.fullmatch(text.strip())
    unit = _BYTES.get(match["unit"].lower()) if match else None
    return int(float(match["number"]) * unit) if match and unit else None
