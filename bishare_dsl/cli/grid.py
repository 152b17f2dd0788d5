"""The words of ``bishare train`` that make a grid: several specs, and values with commas between them."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bishare_dsl.cli.report import CommandError, Report
from bishare_dsl.diagnostics.codes.train import BAD_COMBINATION, MISSING_ARGUMENT, WRONG_VALUE

if TYPE_CHECKING:
    from bishare_dsl.cli.options import Value
    from bishare_dsl.train.grid import Design, Draft

_WHOLE_AND_FRACTION = re.compile(r"\d+,\d+([eE][+-]?\d+)?")
"""A number with a decimal comma: as two learning rates, the first is 0, or at least 1."""


@dataclass(frozen=True)
class GridWords:
    """The words of a command line that make a grid.

    Attributes:
        specs: names of specs; empty if the config has the spec.
        params: values for params, each of them several.
        rates: learning rates; None if it is not given.
        seeds: seeds; None if it is not given.
    """

    specs: Sequence[str]
    params: Mapping[str, tuple[Value, ...]]
    rates: Sequence[str] | None
    seeds: Sequence[str] | None

    @property
    def is_one_run(self) -> bool:
        """Whether they name a single run."""
        axes = [self.specs, *self.params.values(), self.rates or (), self.seeds or ()]
        return all(len(axis) < 2 for axis in axes)


def grid_words(
    specs: Sequence[str], params: Mapping[str, tuple[Value, ...]], given: Mapping[str, Any]
) -> GridWords:
    """Read the words of a grid.

    Raises:
        CommandError: learning rates that may be one with a decimal comma (BS731).
    """
    rates = given.get("learning_rate")
    if rates is not None and _WHOLE_AND_FRACTION.fullmatch(rates):
        first, second = rates.split(",")
        two = f"{float(first)},{float(second)}"
        reason = "it is one rate with a decimal comma, or two rates"
        help = f"write `{rates.replace(',', '.')}` for one rate, or `{two}` for two"
        problem = WRONG_VALUE(name="learning_rate", value=rates, reason=reason, help=help)
        raise CommandError(problem)
    return GridWords(
        specs=list(dict.fromkeys(specs)),
        params=params,
        rates=_parts(rates),
        seeds=_parts(given.get("seed")),
    )


def _parts(words: str | None) -> list[str] | None:
    if words is None:
        return None
    return list(dict.fromkeys(part.strip() for part in words.split(",")))


def draft_grid(words: GridWords, given: Mapping[str, Any], config: str | None) -> list[Draft]:
    """Return the cells that a command line names, with checked arguments.

    Raises:
        BishareError: an argument is wrong or missing, or a spec cannot be read.
    """
    from bishare_dsl.train.grid import draft_cells
    from bishare_dsl.train.request import DEFAULTS, read_config

    file = {} if config is None else read_config(Path(config))
    if given.get("resume") or file.get("resume"):
        reason = "several runs go on by their own command, and `resume` names one"
        raise CommandError(BAD_COMBINATION(reason=reason, help="leave `--resume` out"))
    axes: dict[str, Sequence[Any]] = {}
    for name, values in (("learning_rate", words.rates), ("seed", words.seeds)):
        axes[name] = values or [file.get(name, DEFAULTS[name])]
    return draft_cells(
        given,
        config,
        designs=[*_designs(words, file)],
        rates=axes["learning_rate"],
        seeds=axes["seed"],
    )


def _designs(words: GridWords, file: Mapping[str, Any]) -> Iterator[Design]:
    """Yield each spec with each combination of the values of its params."""
    from bishare_dsl.cli.reading import read_specs
    from bishare_dsl.compiler import read_spec
    from bishare_dsl.train.folder import is_adapter
    from bishare_dsl.train.grid import Design

    of_file = {name: (value,) for name, value in (file.get("params") or {}).items()}
    params = {**of_file, **words.params}
    names = words.specs
    if not names:
        text = file.get("spec")
        if text is None:
            raise CommandError(MISSING_ARGUMENT(name="spec"))
        names = [str(text)]
    for name in names:
        if "\n" not in name and is_adapter(name):
            reason = f"a grid trains specs, and `{name}` is an adapter"
            help = "train it further in one run for each learning rate or seed"
            raise CommandError(BAD_COMBINATION(reason=reason, help=help))
    if "\n" in names[0]:  # The text of a spec in a run.json.
        spec = read_spec(names[0])[0]
        spec.with_params({name: values[0] for name, values in params.items()})
        for values in product(*params.values()):
            yield Design(names[0], dict(zip(params, values, strict=True)))
        return
    for name, (spec, _, own) in read_specs(names, params).items():
        for values in product(*own.values()):
            chosen = dict(zip(own, values, strict=True))
            yield Design(spec if name == "-" else name, chosen)


def show_cells(folders: Sequence[Path], report: Report) -> None:
    """Show the results of the runs of a grid."""
    from bishare_dsl.show.table import Table
    from bishare_dsl.train.folder import read_run

    rows = list[list[object]]()
    runs = list[dict[str, Any]]()
    for folder in folders:
        record = read_run(folder)["record"]
        results = record.get("results", {})
        runs.append({"folder": str(folder), "results": results or None})
        losses = [results.get(name) for name in ("loss_last", "eval_loss")]
        cells = ["-" if loss is None else f"{loss:.4f}" for loss in losses]
        rows.append([folder.name, record["plan"]["parameters"], *cells])
    report.data(runs=runs)
    head = ["run", "parameters", "last loss", "held-out loss"]
    report.tables(Table(head, rows))
