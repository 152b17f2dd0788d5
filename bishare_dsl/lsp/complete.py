"""Complete keywords, which the parser knows, and names, which depend on the clause."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple, get_args

from lark import Token
from lsprotocol import types as lsp

from bishare_dsl.diagnostics import Source, Span
from bishare_dsl.language.grammar import END, spelled
from bishare_dsl.language.parse import Open, parse_open
from bishare_dsl.language.syntax import unquoted
from bishare_dsl.language.text import spelled_name
from bishare_dsl.lsp.document import Document
from bishare_dsl.lsp.hover import choices, field_of, name_of, option, transform_of
from bishare_dsl.lsp.names import Declaration, declarations, declaring_statements
from bishare_dsl.lsp.words import MEANINGS
from bishare_dsl.models.parts import PARTS
from bishare_dsl.models.presets import PRESETS
from bishare_dsl.resources import first_sentence, shipped_specs
from bishare_dsl.spec import ATTRIBUTES, Initial
from bishare_dsl.spec.expression import FUNCTIONS
from bishare_dsl.transforms import GAIN_OUT, GAIN_RANK, PLAIN, transform_names

Kind = lsp.CompletionItemKind
_MODEL = re.compile(r"[ \t]*#[ \t]*model:[ \t]*(\S*)")
_SELECTING = ("target", "let", "where", "train", "per")
_COUNTING = ("rank", "alpha", "scale", "dropout", "gain", "param")


class _Name(NamedTuple):
    """A completion. ``text`` replaces the unfinished word, in quotes if it has one; by default the label."""

    label: str
    kind: lsp.CompletionItemKind
    meaning: str | None = None
    text: str | None = None


def completions(document: Document, position: lsp.Position) -> list[lsp.CompletionItem]:
    """Return the completions at a position, names before keywords, many of which are possible anywhere."""
    offset = document.positions.offset(position) - document.source.start
    before = document.source.text[:offset]
    line = before.rpartition("\n")[2]
    if line.lstrip().startswith("#"):
        begun = _MODEL.fullmatch(line)
        presets = [_Name(name, Kind.Module, "A preset.", name) for name in PRESETS if begun]
        return _items(document, offset, begun[1] if begun else "", presets)
    written = _half_word(before)
    found = parse_open(Source(document.path, before[: len(before) - len(written)]))
    names = [*_names(document, found)] if {"NAME", "STRING"} & found.allowed else []
    if "PER" in found.allowed:
        names += (n for n in _roles(found, fixed=True) if n.label not in ("A", "B"))
    for kind in sorted(found.allowed - {END}) if not written.startswith('"') else ():
        word = spelled(kind)
        if word is not None and word.isalpha():
            names.append(_Name(word, Kind.Keyword, MEANINGS[word], word))
    return _items(document, offset, written, names)


def _items(
    document: Document, offset: int, written: str, names: Iterable[_Name]
) -> list[lsp.CompletionItem]:
    """Let names replace the unfinished word before an offset. Of equal labels the first one stays."""
    quoted = written.startswith('"')
    # Editors insert the closing quote.
    closed = quoted and document.source.text[offset : offset + 1] == '"'
    end = document.source.start + offset
    replaced = document.positions.range(Span(end - len(written), end + closed))
    items: dict[str, lsp.CompletionItem] = {}
    for name in names:
        text = spelled_name(name.label) if name.text is None else name.text
        text = f'"{text}"' if quoted and not text.startswith('"') else text
        about = name.meaning and lsp.MarkupContent(lsp.MarkupKind.Markdown, name.meaning)
        item = lsp.CompletionItem(
            name.label,
            kind=name.kind,
            documentation=about or None,
            sort_text=f"{len(items):04}",  # Otherwise editors sort alphabetically.
            filter_text=text,
            text_edit=lsp.TextEdit(replaced, text),
        )
        items.setdefault(name.label, item)
    return [*items.values()]


def _half_word(before: str) -> str:
    """Return the unfinished word or quoted text at the end of a text."""
    line = before.rpartition("\n")[2]
    if line.count('"') % 2:
        return line[line.rindex('"') :]
    match = re.search(r"\w*$", before)
    return match[0] if match else ""


def _names(document: Document, found: Open) -> Iterator[_Name]:
    """Yield the names that the last clause of a text allows at its end."""
    words = [word for word in found.words if word != "replace"]
    keyed = len(words) > 1 and words[1] == "per"
    clause = "per" if keyed else str(words[0]) if words else ""
    last = str(words[-1]) if words else ""
    counting = clause in _COUNTING
    if clause in ("param", "let") and "=" not in words:
        if found.words[0] == "replace":
            yield from _declared(document, found, clause)
    elif clause == "use":
        yield from _specs(document)
    elif clause == "via":
        yield from _options(document, found, words)
    elif clause in ("init", "freeze"):
        # The initial values of gains have no name in a spec.
        starts = [name for name in get_args(Initial) if name in MEANINGS and clause == "init"]
        yield from (_Name(name, Kind.EnumMember, MEANINGS[name]) for name in starts)
        yield from _roles(found, fixed=False)
    elif last in ("kind", "parent"):
        yield from _sites(document, last)
    elif last != "path" and (counting or clause in _SELECTING):
        if not counting or "match" in words:
            yield from _sites(document, "kind")
            yield from (_Name(name, Kind.Field, "A part of a block.") for name in PARTS)
        yield from _declared(document, found, *["param"] * counting)
        for kind, all_words in ((Kind.Property, ATTRIBUTES), (Kind.Function, FUNCTIONS)):
            yield from (_Name(name, kind, MEANINGS[name], name) for name in all_words)


def _declared(document: Document, found: Open, *kinds: str) -> Iterator[_Name]:
    """Yield the params or lets declared above, in this file and in used files."""
    above = declaring_statements(found.statements, *kinds)
    declared = [Declaration(part, document.source) for part in above]
    uses = any(part.keyword == "use" for part in found.statements)
    for _, used in document.file.uses if uses and document.file else ():
        declared += [first for first, *_ in declarations(used, *kinds).values()]
    for part, source in ((one.statement, one.source) for one in declared):
        kind = Kind.Constant if part.keyword == "param" else Kind.Variable
        said = source.text[part.start - source.start : part.end - source.start]
        yield _Name(part.name, kind, f"`{said}`")


def _sites(document: Document, attribute: str) -> Iterator[_Name]:
    if model := document.architecture:
        for name in dict.fromkeys(str(getattr(site, attribute)) for site in model.sites):
            yield _Name(name, Kind.Field, f"a {attribute} of {model.name}")


def _specs(document: Document) -> Iterator[_Name]:
    for name, path in shipped_specs().items():
        about = first_sentence(path.read_text(encoding="utf-8"))
        yield _Name(name, Kind.File, about, f'"{name}"')
    own = Path(document.path)
    for path in sorted(own.parent.glob("*.share")):
        if path.name != own.name:
            yield _Name(path.name, Kind.File, None, f'"{path.name}"')


def _options(document: Document, found: Open, words: list[Token]) -> Iterator[_Name]:
    """Yield the transforms, the options of one, or the values of an option."""
    if len(words) == 1:
        yield from (_Name(name, Kind.Class) for name in transform_names() if name != PLAIN)
    elif (kind := transform_of(words[1])) and words[-1] in ("(", ","):
        given = {str(a) for a, b in pairwise(words) if b == "="}
        for own, field in kind.model_fields.items():
            if (label := field.alias or own) not in given:
                yield _Name(label, Kind.Property, option(own, field), f"{label} = ")
    elif kind and words[-1] == "=":
        named = field_of(kind, unquoted(words[-2]))
        yield from (_Name(word, Kind.EnumMember) for word in (choices(named) if named else ()))
        yield from _declared(document, found, "param")


def _roles(found: Open, fixed: bool) -> Iterator[_Name]:
    """Yield the roles of the share's tensors and its transform's, if the `via` is above."""
    statement = found.statements[-1:]
    vias = (c for part in statement for c in part.clauses if c.keyword == "via")
    via = next((name_of(clause) for clause in vias), None)
    if via is None and found.words[:1] == ["via"]:
        via = found.words[1]
    kind = transform_of(via)
    for role in (*kind.pooled, *kind.owned, GAIN_RANK, GAIN_OUT) if kind else ():
        if fixed or kind is None or role not in kind.fixed:
            yield _Name(role, Kind.Field, None, role)
