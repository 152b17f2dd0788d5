"""The outline of a spec: its statements, and the clauses of its shares."""

from __future__ import annotations

from lsprotocol import types as lsp

from bishare_dsl.diagnostics import Span
from bishare_dsl.language.syntax import Statement, span_of
from bishare_dsl.lsp.document import Document

_KINDS = {
    "spec": lsp.SymbolKind.Module,
    "use": lsp.SymbolKind.File,
    "param": lsp.SymbolKind.Constant,
    "let": lsp.SymbolKind.Variable,
    "share": lsp.SymbolKind.Class,
}


def outline(document: Document) -> list[lsp.DocumentSymbol]:
    """Return the statements of a document."""
    return [
        _symbol(document, part) for part in (document.syntax.statements if document.syntax else ())
    ]


def _symbol(document: Document, part: Statement) -> lsp.DocumentSymbol:
    start = document.source.start
    text = " ".join(document.source.text[part.start - start : part.end - start].split())
    named = part.keyword in _KINDS
    word = part.role or part.keyword
    place = span_of(part.name_token) if named else Span(part.start, part.start + len(word))
    return lsp.DocumentSymbol(
        name=part.name if named else word,
        kind=_KINDS.get(part.keyword, lsp.SymbolKind.Property),
        range=document.positions.range(part.span),
        selection_range=document.positions.range(place),
        detail=text if len(text) <= 80 else f"{text[:77]}...",
        children=[_symbol(document, clause) for clause in part.clauses],
    )
