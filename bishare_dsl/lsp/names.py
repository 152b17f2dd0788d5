"""Find declarations and uses of params and lets, including those in used files."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from bishare_dsl.diagnostics import Source
from bishare_dsl.language.structure import names_used
from bishare_dsl.language.syntax import Statement, span_of, unquoted
from bishare_dsl.language.use import File
from bishare_dsl.lsp.document import Document

DECLARING = ("param", "let")


@dataclass(frozen=True)
class Declaration:
    """A `param` or `let` statement, and its text."""

    statement: Statement
    source: Source


def files_of(file: File) -> Iterator[File]:
    """Yield a file and the files it uses, directly or indirectly, each once."""
    seen: set[int] = set()
    waiting = [file]
    while waiting:
        one = waiting.pop(0)
        if id(one) not in seen:
            seen.add(id(one))
            yield one
            waiting += [used for _, used in one.uses]


def declarations(file: File, *kinds: str) -> dict[str, list[Declaration]]:
    """Map names to their declarations in a file and its used files, starting with the file itself."""
    by_name: dict[str, list[Declaration]] = {}
    for one in files_of(file):
        for statement in declaring_statements(one.syntax.statements, *kinds):
            by_name.setdefault(statement.name, []).append(Declaration(statement, one.source))
    return by_name


def declaring_statements(statements: Iterable[Statement], *kinds: str) -> Iterator[Statement]:
    """Yield the statements that declare names, optionally with some keywords only."""
    return (part for part in statements if part.keyword in (kinds or DECLARING))


def name_at(document: Document, offset: int) -> list[Declaration] | None:
    """Return the declarations of the param or let that a character names."""
    declared = declarations(document.file) if document.file else {}
    for statement in document.syntax.statements if document.syntax else ():
        head = [statement.name_token] if statement.keyword in DECLARING else []
        for token in (*head, *names_used(statement)):
            span = span_of(token)
            if unquoted(token) in declared and span.start <= offset <= span.end:
                return declared[unquoted(token)]
    return None
