"""Show and write a comparison of runs: tables, and a plot."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Mapping, Sequence
from importlib.util import find_spec
from statistics import fmean
from typing import Any

from bishare_dsl.diagnostics import BishareError
from bishare_dsl.diagnostics.codes.train import NEEDS_PACKAGE
from bishare_dsl.show.table import Table, write_tables
from bishare_dsl.train.comparison import Comparison, Estimate, by_rate
from bishare_dsl.train.finished import FinishedRun

PLOTS = (".svg", ".pdf", ".png")
"""The endings of plots, which matplotlib draws."""


def table_of(comparison: Comparison) -> Table:
    """Return the table of specs."""
    rows = list[list[object]]()
    for row in comparison.rows:
        mark = "*" if row.is_edge else ""
        difference = None if row.difference is None else _text(row.difference, "+.2f")
        score = _text(row.score, ".2f")
        rows.append(
            [row.spec, row.parameters, f"{row.rate:g}{mark}", len(row.seeds), score, difference]
        )
    first = comparison.rows[0].spec
    head = ["spec", "parameters", "learning rate", "seeds", comparison.measure, f"beside {first}"]
    return Table(head, rows)


def _text(estimate: Estimate, form: str) -> str:
    mean = f"{estimate.mean:{form}}"
    return mean if estimate.half is None else f"{mean} ± {estimate.half:.2f}"


def check_plot() -> None:
    """Check that matplotlib is installed.

    Raises:
        BishareError: it is not (BS735).
    """
    if find_spec("matplotlib") is None:
        help = "run `pip install 'bishare[plot]'`"
        raise BishareError(NEEDS_PACKAGE(what="a plot", package="matplotlib", help=help))


def content_of(comparison: Comparison, ending: str) -> bytes:
    """Return the content of a file with this ending: one of `ENDINGS`."""
    return ENDINGS[ending](comparison)


_MARK = "written by bishare inspect"

BEGINNINGS: Mapping[str, bytes] = {
    ".csv": b"folder,spec,parameters,rate,seed",
    ".md": _MARK.encode(),
    ".tex": _MARK.encode(),
    ".svg": b"<svg",
    ".pdf": b"%PDF-",
    ".png": b"\x89PNG",
}
"""What stands at the beginning of a file with each ending, so that no other file is replaced."""


def _csv(comparison: Comparison) -> bytes:
    """Return one line for each run that is compared."""
    text = io.StringIO()
    rows = [run.as_dict() for run in comparison.runs]
    writer = csv.DictWriter(text, [*rows[0]], lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue().encode()


def _markdown(comparison: Comparison) -> bytes:
    parts: list[str | Table] = [table_of(comparison), *comparison.notes]
    return f"<!-- {_MARK} -->\n\n{write_tables(parts, markdown=True)}\n".encode()


_LATEX = str.maketrans({
    "\\": r"\textbackslash{}", "{": r"\{", "}": r"\}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}",
    **{character: f"\\{character}" for character in "_%&#$"},
    "±": r"$\pm$",
})  # fmt: skip


def _latex(comparison: Comparison) -> bytes:
    """Return a table for the package booktabs, with its notes as comments."""
    table = table_of(comparison)
    columns = "".join("l" if number in table.left else "r" for number in range(len(table.head)))
    lines = [f"% {note}" for note in (_MARK, *comparison.notes)]
    lines += [rf"\begin{{tabular}}{{{columns}}}", r"\toprule", _latex_row(table.head), r"\midrule"]
    lines += [_latex_row(row) for row in table.cells]
    lines += [r"\bottomrule", r"\end{tabular}", ""]
    return "\n".join(lines).encode()


def _latex_row(cells: Sequence[str]) -> str:
    texts = []
    for number, cell in enumerate(cells):
        text = cell.translate(_LATEX)
        is_negative = number > 0 and cell[:1] == "-" and len(cell) > 1
        texts.append(f"$-${text[1:]}" if is_negative else text)
    return " & ".join(texts) + r" \\"


def _plot(comparison: Comparison, ending: str) -> bytes:
    """Draw scores by learning rate, a dot for each seed, and the training losses at the chosen rates."""
    check_plot()
    import matplotlib
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 3.4), layout="constrained")
    FigureCanvasAgg(figure)
    scores, curves = figure.subplots(1, 2)
    for row in comparison.rows:
        rates = by_rate(comparison.runs)[row.spec]
        points = _points(rates)
        means = {rate: fmean(values) for rate, values in points.items()}
        label = f"{row.spec} ({row.parameters:,})"
        (line,) = scores.plot([*means], [*means.values()], label=label)
        for rate, values in points.items():
            scores.plot([rate] * len(values), values, ".", color=line.get_color())
        losses = _mean_losses(rates[row.rate])
        curves.plot([*losses], [*losses.values()], color=line.get_color())
    half = "the judging half of the held-out rows"
    scores.set(xscale="log", xlabel="learning rate", ylabel=f"{comparison.measure}\n{half}")
    curves.set(xlabel="step", ylabel="training loss, mean over seeds")
    figure.legend(loc="outside right upper", fontsize=8)
    content = io.BytesIO()
    with matplotlib.rc_context({"svg.hashsalt": "bishare"}):
        figure.savefig(content, format=ending[1:], dpi=200, metadata=_UNDATED.get(ending))
    return content.getvalue()


_UNDATED: Mapping[str, Any] = {".svg": {"Date": None}, ".pdf": {"CreationDate": None}}
"""Without a date, and with one salt for its names, equal runs have equal files."""


def _points(rates: Mapping[float, Sequence[FinishedRun]]) -> dict[float, list[float]]:
    """Return the scores of all seeds by learning rate."""
    points = dict[float, list[float]]()
    for rate in sorted(rates):
        values = [run.judging for run in rates[rate] if run.judging is not None]
        if values:
            points[rate] = values
    return points


def _mean_losses(runs: Sequence[FinishedRun]) -> dict[int, float]:
    """Return the mean of the logged losses over runs, at the steps that all of them have logged."""
    logs = [run.losses() for run in runs if run.diverged is None]
    if not logs:
        return {}
    steps = set(logs[0]).intersection(*logs[1:])
    return {step: fmean(log[step] for log in logs) for step in sorted(steps)}


def _draws(ending: str) -> Callable[[Comparison], bytes]:
    return lambda comparison: _plot(comparison, ending)


ENDINGS: Mapping[str, Callable[[Comparison], bytes]] = {
    ".csv": _csv,
    ".md": _markdown,
    ".tex": _latex,
    **{ending: _draws(ending) for ending in PLOTS},
}
"""What makes the content of a file, by its ending."""
