"""Read a text or a file to a spec with the locations of its parts."""

from __future__ import annotations

from collections.abc import Sequence
from os import PathLike
from pathlib import Path

from bishare_dsl.diagnostics import Problem, SourceMap, SpecError
from bishare_dsl.diagnostics.codes.spec import OUTDENTED
from bishare_dsl.diagnostics.record import Record
from bishare_dsl.language.lower import lower
from bishare_dsl.language.parse import MAX_BYTES, Problems, decode
from bishare_dsl.language.structure import parse_and_check
from bishare_dsl.language.syntax import Syntax
from bishare_dsl.language.use import File, Joiner, Reader
from bishare_dsl.spec import Spec


def warn_of_outdented(spec: Spec, where: SourceMap | None) -> list[Problem]:
    """Warn of a setting of one share that looks like a default for all shares."""
    outdented = where.outdented if where and len(spec.shares) > 1 else ()
    return [
        OUTDENTED(word=loc[2], share=spec.shares[int(loc[1])].name, loc=loc) for loc in outdented
    ]


def parse_syntax(text: str | bytes, name: str = "<text>") -> Syntax:
    """Parse a text, either a whole spec or a file for `use`, without reading other files.

    Raises:
        SpecError: every problem of the text (BS1xx), with its position.
    """
    source = decode(text, name)
    problems = Problems()
    syntax = parse_and_check(source, problems)
    problems.raise_any(SourceMap(source))
    return syntax


def read(
    text: str | bytes, name: str = "<text>", *, allow_use: bool = False
) -> tuple[Spec, SourceMap]:
    """Read a text with its used files, and return the spec with the locations of its parts.

    ``name`` is the path of the text, for messages. Used files are searched in its folder, or in the
    current folder for a text that is not a file; files elsewhere require ``allow_use``. The meaning of
    the spec is not checked.

    Raises:
        SpecError: every problem of the text and of used files (BS1xx), with its position.
    """
    result = survey(text, name, allow_use=allow_use)
    if result.spec is None:
        raise SpecError(result.problems, result.where)
    return result.spec, result.where


class Survey(Record):
    """The result of reading a text: ``spec`` is None if there are problems.

    ``file`` has the trees of the text and of used files, or is None if there is no tree.
    """

    file: File | None
    where: SourceMap
    problems: Sequence[Problem]
    spec: Spec | None = None


def survey(text: str | bytes, name: str = "<text>", *, allow_use: bool = False) -> Survey:
    """Read a text like `read`, and return problems instead of raising them."""
    reader = Reader(allow_use)
    try:
        file = reader.read(text, name)
    except SpecError as error:
        return Survey(None, error.where or reader.where, error.problems)
    joiner = Joiner(reader.problems, reader.where)
    parts = None if reader.problems.count else joiner.whole(file)
    if parts is None or reader.problems.count:
        return Survey(file, reader.where, reader.problems.sorted())
    try:
        spec, where = lower(parts, reader.where)
    except SpecError as error:
        return Survey(file, reader.where, error.problems)
    return Survey(file, where, (), spec)


def read_file(path: str | PathLike[str], *, allow_use: bool = False) -> tuple[Spec, SourceMap]:
    """Read a file like `read`.

    Raises:
        SpecError: every problem of the text and of used files (BS1xx), with its position.
        OSError: the file cannot be read.
    """
    with Path(path).open("rb") as file:
        # One byte more than allowed shows that a file is too large.
        return read(file.read(MAX_BYTES + 1), str(path), allow_use=allow_use)


def parse_spec(text: str | bytes, name: str = "<text>", *, allow_use: bool = False) -> Spec:
    """Parse a text to a spec, see `read`.

    Raises:
        SpecError: every problem of the text and of used files (BS1xx), with its position.
    """
    return read(text, name, allow_use=allow_use)[0]
