"""Complete the words that the grammar expects, and the names of the model and of the spec."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from lsprotocol import types as lsp

from bishare_dsl.diagnostics import Source, Span
from bishare_dsl.language.grammar import END, spelled
from bishare_dsl.language.parse import Open, parse_open
from bishare_dsl.language.text import spelled_name
from bishare_dsl.lsp.document import Document
from bishare_dsl.lsp.words import MEANINGS
from bishare_dsl.models.parts import PARTS
from bishare_dsl.spec import ATTRIBUTES
from bishare_dsl.spec.expression import FUNCTIONS
from bishare_dsl.transforms import PLAIN, transform_names

Kind = lsp.CompletionItemKind
_SELECTING = ("target", "let", "where", "train", "per")
"""Clauses that select modules, or group them by a key."""
_COUNTING = ("rank", "alpha", "scale", "dropout", "gain", "param")
"""Clauses with a number for each module."""


@dataclass(frozen=True)
class _Name:
    """A completion. A name that is no word of the language is written in quotes if it needs some."""

    label: str
    kind: lsp.CompletionItemKind
    is_word: bool = False


def completions(document: Document, position: lsp.Position) -> list[lsp.CompletionItem]:
    """Return the completions at a position, names before keywords, many of which are possible anywhere."""
    offset = document.positions.offset(position) - document.source.start
    before = document.source.text[:offset]
    line = before.rpartition("\n")[2]
    if line.lstrip().startswith("#"):
        return []
    unfinished = _unfinished_word(before)
    text = before[: len(before) - len(unfinished)]
    opened = parse_open(Source(document.path, text))
    names: list[_Name] = []
    if "NAME" in opened.allowed or "STRING" in opened.allowed:
        names += _names(document, opened)
    if not unfinished.startswith('"'):
        names += _keywords(opened)
    return _items(document, offset, unfinished, names)


def _unfinished_word(before: str) -> str:
    """Return the unfinished word or quoted text at the end of a text."""
    line = before.rpartition("\n")[2]
    if line.count('"') % 2:
        return line[line.rindex('"') :]
    match = re.search(r"\w*$", before)
    return match[0] if match else ""


def _keywords(opened: Open) -> Iterator[_Name]:
    """Yield the keywords that the grammar allows at the end of a text."""
    for kind in sorted(opened.allowed - {END}):
        word = spelled(kind)
        if word is not None and word.isalpha():
            yield _Name(word, Kind.Keyword, is_word=True)


def _names(document: Document, opened: Open) -> Iterator[_Name]:
    """Yield the names that the last clause of a text allows at its end."""
    words = [str(word) for word in opened.words]
    if not words:
        return
    clause = "per" if words[1:2] == ["per"] else words[0]
    counts = clause in _COUNTING
    if clause == "via" and words[-1] in ("via", "then", "between", "A", "B"):
        for name in transform_names():
            if name != PLAIN:
                yield _Name(name, Kind.Class)
    elif words[-1] in ("kind", "parent"):
        yield from _model_names(document, words[-1])
    elif counts or clause in _SELECTING:
        # A clause with a number selects modules only in `match`.
        if not counts or "match" in words:
            yield from _model_names(document, "kind")
            for part in PARTS:
                yield _Name(part, Kind.Field)
        yield from _declared(opened, params_only=counts)
        for attribute in ATTRIBUTES:
            yield _Name(attribute, Kind.Property, is_word=True)
        for function in FUNCTIONS:
            yield _Name(function, Kind.Function, is_word=True)


def _model_names(document: Document, attribute: str) -> Iterator[_Name]:
    """Yield the kinds or parents of the model's modules, in its order."""
    model = document.architecture
    if model is None:
        return
    for name in dict.fromkeys(str(getattr(site, attribute)) for site in model.sites):
        yield _Name(name, Kind.Field)


def _declared(opened: Open, *, params_only: bool) -> Iterator[_Name]:
    """Yield the params and lets that are declared above."""
    for statement in opened.statements:
        if statement.keyword == "param":
            yield _Name(statement.name, Kind.Constant)
        elif statement.keyword == "let" and not params_only:
            yield _Name(statement.name, Kind.Variable)


def _items(
    document: Document, offset: int, unfinished: str, names: Iterable[_Name]
) -> list[lsp.CompletionItem]:
    """Let names replace the unfinished word before an offset. Of equal labels the first one stays."""
    quoted = unfinished.startswith('"')
    # Editors insert the closing quote.
    closed = quoted and document.source.text[offset : offset + 1] == '"'
    end = document.source.start + offset
    replaced = document.positions.range(Span(end - len(unfinished), end + closed))
    items: dict[str, lsp.CompletionItem] = {}
    for name in names:
        text = name.label if name.is_word else spelled_name(name.label)
        if quoted and not text.startswith('"'):
            text = f'"{text}"'
        item = lsp.CompletionItem(
            name.label,
            kind=name.kind,
            detail=MEANINGS.get(name.label) if name.is_word else None,
            sort_text=f"{len(items):04}",  # Otherwise editors sort alphabetically.
            filter_text=text,
            text_edit=lsp.TextEdit(replaced, text),
        )
        items.setdefault(name.label, item)
    return list(items.values())
