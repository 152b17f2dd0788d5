"""The words of ``bishare train`` that make a grid: several specs, and values with commas between them."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bishare_dsl.cli.budget import Budget, check_names, meet
from bishare_dsl.cli.report import CommandError, Report
from bishare_dsl.diagnostics import SourceMap, SpecError
from bishare_dsl.diagnostics.codes.train import BAD_COMBINATION, MISSING_ARGUMENT, WRONG_VALUE

if TYPE_CHECKING:
    from bishare_dsl.cli.options import Value
    from bishare_dsl.spec import Spec
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


def draft_grid(
    words: GridWords,
    given: Mapping[str, Any],
    config: str | None,
    budget: Budget | None,
    report: Report,
) -> list[Draft]:
    """Return the cells that a command line names, with checked arguments.

    Raises:
        BishareError: an argument is wrong or missing, a spec cannot be read or does not meet the budget.
    """
    from bishare_dsl.train.grid import draft_cells
    from bishare_dsl.train.request import DEFAULTS

    file = _arguments_in(config)
    if given.get("resume") or file.get("resume"):
        reason = "several runs go on by their own command, and `resume` names one"
        raise CommandError(BAD_COMBINATION(reason=reason, help="leave `--resume` out"))
    axes: dict[str, Sequence[Any]] = {}
    for name, values in (("learning_rate", words.rates), ("seed", words.seeds)):
        axes[name] = values or [file.get(name, DEFAULTS[name])]
    return draft_cells(
        given,
        config,
        designs=_designs(words, given, file, budget, report),
        rates=axes["learning_rate"],
        seeds=axes["seed"],
    )


def single_design(
    words: GridWords, given: Mapping[str, Any], config: str | None, budget: Budget, report: Report
) -> Design:
    """Return the spec of a single run, with values of its params that meet a budget.

    Raises:
        BishareError: a run is resumed, the spec cannot be read, or it does not meet the budget.
    """
    file = _arguments_in(config)
    if given.get("resume") or file.get("resume"):
        reason = "a run that goes on has its params, and `match` chooses them"
        raise CommandError(BAD_COMBINATION(reason=reason, help="leave `--match` out"))
    (design,) = _designs(words, given, file, budget, report)
    return design


def _arguments_in(config: str | None) -> Mapping[str, Any]:
    from bishare_dsl.train.request import read_config

    return {} if config is None else read_config(Path(config))


@dataclass(frozen=True)
class _Choice:
    """A spec with values of its params, before a budget.

    Attributes:
        source: the spec as in a `Design`.
        spec: the spec.
        where: the locations of its parts.
        params: the given values.
    """

    source: Spec | str
    spec: Spec
    where: SourceMap | None
    params: dict[str, Value]


def _designs(
    words: GridWords,
    given: Mapping[str, Any],
    file: Mapping[str, Any],
    budget: Budget | None,
    report: Report,
) -> list[Design]:
    """Return each spec with each combination of the values of its params, and those that meet a budget."""
    from bishare_dsl.models import architecture_of
    from bishare_dsl.train.grid import Design

    choices = list(_choices(words, file, budget))
    if budget is None:
        return [Design(choice.source, choice.params) for choice in choices]
    check_names([(choice.spec, choice.where) for choice in choices], budget.free, words.params)
    model = given.get("model") or file.get("model")
    if model is None:
        raise CommandError(MISSING_ARGUMENT(name="model"))
    base = architecture_of(model)
    parameters = budget.parameters(base)
    designs = list[Design]()
    for choice in choices:
        match = meet(budget, parameters, choice.spec, choice.where, base, choice.params)
        if match.problem is not None:
            raise SpecError([match.problem], choice.where)
        [settings] = match.settings
        values = ", ".join(f"{name} = {value}" for name, value in settings.items())
        report.note(f"{choice.spec.name} meets {budget.match} with {values or 'its own values'}")
        designs.append(Design(choice.source, settings))
    return designs


def _choices(words: GridWords, file: Mapping[str, Any], budget: Budget | None) -> Iterator[_Choice]:
    """Yield each spec with each combination of the given values of its params."""
    from bishare_dsl.cli.reading import read_specs
    from bishare_dsl.compiler import read_spec
    from bishare_dsl.train.folder import is_adapter

    of_file = {name: (value,) for name, value in (file.get("params") or {}).items()}
    params = {**of_file, **words.params}
    names = words.specs
    if not names:
        text = file.get("spec")
        if text is None:
            raise CommandError(MISSING_ARGUMENT(name="spec"))
        names = [str(text)]
    for name in names:
        if "\n" in name or not is_adapter(name):
            continue
        reason = f"a grid trains specs, and `{name}` is an adapter"
        help = "train it further in one run for each learning rate or seed"
        if budget is not None:
            reason = f"`match` chooses params of a spec, and `{name}` is an adapter"
            help = "leave `--match` out: an adapter has its params"
        raise CommandError(BAD_COMBINATION(reason=reason, help=help))
    if "\n" in names[0]:  # The text of a spec in a run.json.
        spec, where = read_spec(names[0])
        spec.with_params({name: values[0] for name, values in params.items()})
        for values in product(*params.values()):
            yield _Choice(names[0], spec, where, dict(zip(params, values, strict=True)))
        return
    for name, (spec, where, own) in read_specs(names, params).items():
        for values in product(*own.values()):
            chosen = dict(zip(own, values, strict=True))
            yield _Choice(spec if name == "-" else name, spec, where, chosen)


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
