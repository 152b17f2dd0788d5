"""The front door: from a text or a file to a spec and the places of its parts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from os import PathLike
from pathlib import Path

from bishare_dsl.diagnostics import Problem, SourceMap, SpecError
from bishare_dsl.diagnostics.codes.spec import OUTDENTED
from bishare_dsl.language.lower import lower
from bishare_dsl.language.parse import MAX_BYTES, Problems, decode
from bishare_dsl.language.structure import parse_and_check
from bishare_dsl.language.syntax import Syntax
from bishare_dsl.language.use import File, Joiner, Reader
from bishare_dsl.spec import Spec


def warn_of_outdented(spec: Spec, where: SourceMap | None) -> list[Problem]:
    """Warn of what a text says and may not mean: a setting of a share that looks like one of all shares."""
    outdented = where.outdented if where and len(spec.shares) > 1 else ()
    help_line = "for all shares it stands before the first one; for this one, indent it"
    return [
        OUTDENTED(word=loc[2], share=spec.shares[int(loc[1])].name, loc=loc, help=help_line)
        for loc in outdented
    ]


def parse_syntax(text: str | bytes, name: str = "<text>") -> Syntax:
    """Make the syntax tree of a text, be it a whole spec or one to be used by others. No other file is read.

    Raises:
        SpecError: every problem of the text (BS1xx), each with its place.
    """
    source = decode(text, name)
    problems = Problems()
    syntax = parse_and_check(source, problems)
    problems.raise_any(SourceMap(source))
    return syntax


def read(
    text: str | bytes, name: str = "<text>", *, allow_use: bool = False
) -> tuple[Spec, SourceMap]:
    """Read a text with all that it uses: the spec, and where each of its parts stands.

    ``name`` is what messages call the text: its path, for what it uses is looked for in the same folder;
    of a text that is not a file, in the current one. Files outside of that folder are used only with
    ``allow_use``. Whether the spec makes sense is not looked at here.

    Raises:
        SpecError: every problem of the text (BS1xx) and of those it uses, each with its place.
    """
    found = survey(text, name, allow_use=allow_use)
    if found.spec is None:
        raise SpecError(found.problems, found.where)
    return found.spec, found.where


@dataclass(frozen=True)
class Survey:
    """A text as far as it can be read: ``spec`` is None where there are problems.

    ``file`` is its tree with those of the files that it uses; None where not even a tree could be made.
    """

    file: File | None
    where: SourceMap
    problems: Sequence[Problem]
    spec: Spec | None = None


def survey(text: str | bytes, name: str = "<text>", *, allow_use: bool = False) -> Survey:
    """Read as `read` does, and keep what is wrong with the text instead of raising it."""
    reader = Reader(allow_use)
    try:
        file = reader.read(text, name)
    except SpecError as error:
        return Survey(None, error.where or reader.where, error.problems)
    parts = None if reader.problems.count else Joiner(reader.problems, reader.where).whole(file)
    if parts is None or reader.problems.count:
        return Survey(file, reader.where, reader.problems.sorted())
    try:
        spec, where = lower(parts, reader.where)
    except SpecError as error:
        return Survey(file, reader.where, error.problems)
    return Survey(file, where, (), spec)


def read_file(path: str | PathLike[str], *, allow_use: bool = False) -> tuple[Spec, SourceMap]:
    """Do what `read` does with a file.

    Raises:
        SpecError: every problem of the text (BS1xx) and of those it uses, each with its place.
        OSError: the file cannot be read.
    """
    with Path(path).open("rb") as file:
        # One byte more than is allowed is enough to know that a file is too large.
        return read(file.read(MAX_BYTES + 1), str(path), allow_use=allow_use)


def parse_spec(text: str | bytes, name: str = "<text>", *, allow_use: bool = False) -> Spec:
    """Return the spec that a text says; see `read`.

    Raises:
        SpecError: every problem of the text (BS1xx) and of those it uses, each with its place.
    """
    return read(text, name, allow_use=allow_use)[0]
