"""The names that a spec declares, and where they are used: params and lets, also of files that it uses."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from lark import Token

from bishare_dsl.diagnostics import Source, Span
from bishare_dsl.language.structure import names_used
from bishare_dsl.language.syntax import Statement, span_of, unquoted
from bishare_dsl.language.use import File
from bishare_dsl.lsp.document import Document

DECLARING = ("param", "let")


@dataclass(frozen=True)
class Declaration:
    """A `param` or `let`, and the text that declares it."""

    statement: Statement
    source: Source

    @property
    def place(self) -> Span:
        """Where its name stands."""
        return span_of(self.statement.name_token)


def files_of(file: File) -> Iterator[File]:
    """Yield a file and all that it uses, itself or through others, each once."""
    seen: set[int] = set()
    waiting = [file]
    while waiting:
        one = waiting.pop(0)
        if id(one) not in seen:
            seen.add(id(one))
            yield one
            waiting += [used for _, used in one.uses]


def declarations(file: File, *kinds: str) -> dict[str, list[Declaration]]:
    """Find what a file and those that it uses declare, by name; its own come first."""
    found: dict[str, list[Declaration]] = {}
    for one in files_of(file):
        for statement in declaring_statements(one.syntax.statements, *kinds):
            found.setdefault(statement.name, []).append(Declaration(statement, one.source))
    return found


def declaring_statements(statements: Iterable[Statement], *kinds: str) -> Iterator[Statement]:
    """Return the statements that declare names, or those of some keywords."""
    return (part for part in statements if part.keyword in (kinds or DECLARING))


def tokens_named(file: File, names: Iterable[str]) -> Iterator[Token]:
    """Find where one file, without those that it uses, declares these names or refers to them."""
    wanted = set(names)
    for statement in file.syntax.statements:
        declared = [statement.name_token] if statement.keyword in DECLARING else []
        for token in (*declared, *names_used(statement)):
            if unquoted(token) in wanted:
                yield token


def name_at(document: Document, offset: int) -> tuple[Token, list[Declaration]] | None:
    """Find the param or let that is named at a character, and its declarations."""
    if document.file is None:
        return None
    known = declarations(document.file)
    for token in tokens_named(document.file, known):
        span = span_of(token)
        if span.start <= offset <= span.end:
            return token, known[unquoted(token)]
    return None
