"""What ``bishare plan --budget … --solve …`` does: the spec with the largest value that the budget allows."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from bishare_dsl.cli.budget import parameters
from bishare_dsl.cli.options import Value
from bishare_dsl.cli.reading import read_spec
from bishare_dsl.cli.report import CommandError, Report
from bishare_dsl.diagnostics import BishareError, Problem
from bishare_dsl.diagnostics.codes import usage as codes
from bishare_dsl.writing import replace_file

if TYPE_CHECKING:
    from bishare_dsl.compiler import Planned
    from bishare_dsl.show.solve import Solution


def solve(
    file: str,
    model: str,
    params: Mapping[str, Value],
    budget: str,
    name: str,
    out: Path | None,
    force: bool,
    report: Report,
) -> None:
    """Print, or write, the spec in which a param has the largest value that the budget allows."""
    from bishare_dsl.compiler import make_plan
    from bishare_dsl.models import architecture_of
    from bishare_dsl.show.solve import LIMIT, NoSolution, largest

    if name in params:
        raise CommandError(codes.WRONG_USAGE(what=f"`{name}` is both set and to be solved for"))
    if out is not None and out.exists() and not force:
        raise CommandError(codes.FILE_EXISTS(path=out))
    spec, where = read_spec(file)
    spec.with_params({name: 0})  # there is such a param
    if any(isinstance(param.value, str) for param in spec.params if param.name == name):
        raise CommandError(
            codes.WRONG_USAGE(what=f"param `{name}` is a word, and `--solve` looks for a number")
        )
    architecture = architecture_of(model)
    allowed = parameters(budget, architecture)

    def planned(value: int) -> Planned:
        return make_plan(spec, architecture, {**params, name: value}, where)

    def count(value: int) -> int | None:
        try:
            return planned(value).plan.trainable
        except BishareError:
            return None

    make_plan(spec, architecture, params, where)  # what is wrong with it whatever the value
    found = largest(count, allowed)
    if isinstance(found, NoSolution):
        raise CommandError(_no_solution(name, allowed, found.least))
    if found.value == LIMIT:
        why = f"and every value that was tried, up to {LIMIT:,}, is within it"
        raise CommandError(codes.NO_SOLUTION(param=name, budget=f"{allowed:,}", why=why))
    made = planned(found.value)
    report.all(made.problems, where)
    text = _text(made)
    report.data(
        param=name,
        value=found.value,
        trainable=found.count,
        budget=allowed,
        next=found.after and {"value": found.after[0], "trainable": found.after[1]},
        grows=found.grows,
        sure=found.sure,
        spec_text=text,
    )
    if out is None:
        report.result(text.rstrip("\n"))
    else:
        replace_file(out, text.encode())
        report.result(str(out))
    _tell(name, found, allowed, report)


def _text(made: Planned) -> str:
    """Write the text of a spec with other values for its params, its comments kept where that can be."""
    from bishare_dsl.language import format_text, read

    where = made.where
    if where is not None and not where.used:
        text = where.source.text
        spans = [
            (where.spans.get(("params", i, "value")), p) for i, p in enumerate(made.spec.params)
        ]
        for span, param in reversed(spans):
            if span is not None:
                text = f"{text[: span.start]}{param.value}{text[span.end :]}"
        try:
            if read(text, where.source.name)[0] == made.spec:
                return format_text(text)
        except BishareError:
            pass
    return made.text()


def _tell(name: str, found: Solution, allowed: int, report: Report) -> None:
    line = f"{name} = {found.value:,}: {found.count:,} of {allowed:,} trainable parameters"
    if found.after is not None:
        line += f"; {found.after[0]:,} gives {found.after[1]:,}"
    report.note(line)
    if not found.grows:
        tried = "all larger values were tried" if found.sure else "not all larger values were tried"
        report.note(f"the count does not grow with {name} throughout; {tried}")


def _no_solution(name: str, allowed: int, least: tuple[int, int] | None) -> Problem:
    why = "for no value fits" if least is None else f"{least[0]:,} gives {least[1]:,}"
    return codes.NO_SOLUTION(param=name, budget=f"{allowed:,}", why=why)
