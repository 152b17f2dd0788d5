"""Verify many adapters on many servers: a row for each pair."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from torch import nn

from bishare_dsl.diagnostics import BishareError, Problem, as_json
from bishare_dsl.diagnostics.codes import verify as codes
from bishare_dsl.models.site import Architecture
from bishare_dsl.verify.contents import Contents, read_contents
from bishare_dsl.verify.judge import (
    APPLIED,
    OTHER_TENSORS,
    UNKNOWN,
    Asked,
    Bar,
    Verdict,
    ask,
    judge,
)
from bishare_dsl.verify.reference import WHOLE, Reference
from bishare_dsl.verify.server import Server, VerifyError

NOT_THERE, ANOTHER = "NOT THERE", "ANOTHER ADAPTER"
FITS, DOES_NOT_FIT = "fits", "does not fit"


@dataclass
class Row:
    """An adapter on a server, or its files alone if ``server`` is empty."""

    adapter: str
    server: str
    verdict: Verdict
    files: Contents
    problem: Problem | None = None

    @property
    def why(self) -> str:
        """The evidence, with the first problem of the files."""
        problems = [f"files: {problem.code} {problem.message}" for problem in self.files.problems]
        more = [f"and {len(problems) - 1} more"] if len(problems) > 1 else []
        return "; ".join(filter(None, [self.verdict.why, *problems[:1], *more]))

    def data(self) -> dict[str, Any]:
        """Return the row as JSON."""
        files: dict[str, Any] = {"modules": len(self.files.modules), "ranks": self.files.ranks}
        files["problems"] = [as_json(problem) for problem in self.files.problems]
        return {"adapter": self.adapter, "server": self.server, **asdict(self.verdict), **files}


def file_rows(contents: Mapping[str, Contents]) -> list[Row]:
    """Return the rows of adapters whose files alone are checked."""
    return [
        Row(name, "", Verdict(DOES_NOT_FIT if found.problems else FITS), found)
        for name, found in contents.items()
    ]


def problems_in(rows: Sequence[Row], model: str) -> Iterator[Problem]:
    """Return what is wrong with rows, as few problems. A fault decides the exit code, if there is one."""
    misfits = [
        r for r in rows if not r.server and any(p.severity == "error" for p in r.files.problems)
    ]
    if len(rows) > 1 and misfits:
        yield codes.FILES_DO_NOT_FIT(count=len(misfits), total=len(rows), model=model)
    unknown = [row for row in rows if row.verdict.word == UNKNOWN]
    faulty = [row for row in rows if row.server and row.verdict.word not in (APPLIED, UNKNOWN)]
    for some, code in ((faulty, codes.NOT_AS_TRAINED), (unknown, codes.CANNOT_JUDGE)):
        if some:
            names = [*dict.fromkeys(row.adapter for row in some)]
            more = [f"{len(names) - 5} more"] if len(names) > 5 else []
            words = " and ".join(dict.fromkeys(row.verdict.word for row in some))
            problem = code(name="', '".join(names[:5] + more), words=words)
            problem = rows[0].problem or problem if len(rows) == 1 else problem
            yield replace(problem, severity="warning") if some is unknown and faulty else problem


def read_all(
    places: Mapping[str, Path], model: nn.Module, base: Architecture, bar: Bar
) -> dict[str, Contents]:
    """Read the files of adapters. What cannot be read is a problem of its adapter.

    Args:
        places: the adapters' places, by name.
        model: the base, which may be on the meta device.
        base: its shapes.
        bar: shows progress.
    """
    read = ((name, _read(places[name], model, base)) for name in bar(places, "reading files"))
    return {name: replace(found, pairs={}) for name, found in read}


def _read(place: Path, model: nn.Module, base: Architecture) -> Contents:
    try:
        return read_contents(place, model, base)
    except BishareError as error:
        return Contents({}, error.problems)


def ask_all(
    servers: Iterable[Server], names: Sequence[str], base: str | None, bar: Bar
) -> dict[tuple[str, str], Asked | VerifyError]:
    """Query each server for each adapter; see `ask`."""
    asked: dict[tuple[str, str], Asked | VerifyError] = {}
    for server in servers:
        try:
            answers = ask(server, names, base, bar)
        except VerifyError as error:
            answers = dict.fromkeys(names, error)
        asked |= {(name, server.url): found for name, found in answers.items()}
    return asked


def judge_all(
    asked: Mapping[tuple[str, str], Asked | VerifyError],
    contents: Mapping[str, Contents],
    places: Mapping[str, Path],
    reference: Reference | None,
    base: Architecture,
    bar: Bar,
) -> list[Row]:
    """Judge each adapter on each server, and find which adapter answers under the name of another.

    Args:
        asked: the answers, by adapter and server.
        contents: the adapters' files; they are read again with the weights, one at a time.
        places: the adapters' places, by name.
        reference: the base in float32.
        base: its shapes.
        bar: shows progress.
    """
    rows: dict[tuple[str, str], Row] = {}
    nearest: dict[tuple[str, str], list[tuple[float, str]]] = {key: [] for key in asked}
    for name in bar(contents, "judging"):
        found = contents[name] if reference is None else _read(places[name], reference.model, base)
        expected = reference.expect(found.pairs) if reference and found.complete else None
        files = replace(found, pairs={})
        for key, answers in asked.items():
            if key[0] == name and isinstance(answers, VerifyError):
                word = NOT_THERE if answers.status in (400, 404) else UNKNOWN
                problem = answers.problems[0]
                rows[key] = Row(*key, Verdict(word, problem.message), files, problem)
            elif isinstance(answers, Asked) and key[0] == name:
                rows[key] = Row(*key, judge(answers, name, found, reference, expected), files)
            elif isinstance(answers, Asked) and reference is not None and expected is not None:
                off = reference.near(answers.adapter, answers.base, expected[WHOLE])
                nearest[key] += [] if off is None else [(off, name)]
    for key, others in nearest.items():
        verdict = rows[key].verdict
        same = ", ".join(f"`{name}`" for _, name in sorted(others))
        if same and verdict.word == OTHER_TENSORS:
            verdict.word, verdict.why = ANOTHER, f"'{key[0]}' answers as {same}"
        elif same and verdict.word == APPLIED:
            verdict.unseen.append(f"whether it is {same} instead, whose answers are as near")
    return [rows[key] for key in asked]
