"""The front door: from a text or a file to a spec and the places of its parts."""

from __future__ import annotations

from os import PathLike
from pathlib import Path

from bishare_dsl.diagnostics import SourceMap, SpecError
from bishare_dsl.language.lower import lower
from bishare_dsl.language.parse import MAX_BYTES, Problems, decode, parse
from bishare_dsl.language.structure import check_structure
from bishare_dsl.language.syntax import Syntax
from bishare_dsl.spec import Spec


def parse_syntax(text: str | bytes, name: str = "<text>") -> Syntax:
    """The syntax tree of a text.

    Raises:
        SpecError: every problem of the text (BS1xx), each with its place.
    """
    return _syntax(text, name)[0]


def read(text: str | bytes, name: str = "<text>") -> tuple[Spec, SourceMap]:
    """The spec that a text says, and where in the text each of its parts stands.

    ``name`` is what messages call the text. Whether the spec makes sense is not looked at here.

    Raises:
        SpecError: every problem of the text (BS1xx), each with its place.
    """
    syntax, where = _syntax(text, name)
    return lower(syntax, where.source)


def read_file(path: str | PathLike[str]) -> tuple[Spec, SourceMap]:
    """`read` of a file.

    Raises:
        SpecError: every problem of the text (BS1xx), each with its place.
        OSError: the file cannot be read.
    """
    with Path(path).open("rb") as file:
        # One byte more than is allowed is enough to know that a file is too large.
        return read(file.read(MAX_BYTES + 1), str(path))


def parse_spec(text: str | bytes, name: str = "<text>") -> Spec:
    """The spec that a text says.

    Raises:
        SpecError: every problem of the text (BS1xx), each with its place.
    """
    return read(text, name)[0]


def _syntax(text: str | bytes, name: str) -> tuple[Syntax, SourceMap]:
    source = decode(text, name)
    problems = Problems()
    syntax = parse(source, problems)
    broken = [problem.span.start for problem in problems.kept if problem.span]
    if not problems.full:
        for problem in check_structure(syntax, broken):
            problems(problem)
    where = SourceMap(source)
    if problems.count:
        raise SpecError(problems.sorted(), where)
    return syntax, where
