"""Complete keywords, which the parser knows, and names, which depend on the clause."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import get_args

from lsprotocol import types as lsp

from bishare_dsl.diagnostics import Source, Span, SpecError
from bishare_dsl.language.grammar import END, spelled
from bishare_dsl.language.parse import Open, parse_open
from bishare_dsl.language.syntax import unquoted
from bishare_dsl.language.text import spelled_name
from bishare_dsl.language.use import File
from bishare_dsl.lsp.document import Document
from bishare_dsl.lsp.hover import choices, field_of, name_of, option
from bishare_dsl.lsp.names import Declaration, declarations, declaring_statements
from bishare_dsl.lsp.words import MEANINGS
from bishare_dsl.models.parts import PARTS, parts
from bishare_dsl.models.presets import PRESETS
from bishare_dsl.resources import first_sentence, shipped_specs
from bishare_dsl.spec import ATTRIBUTES, Initial
from bishare_dsl.spec.expression import FUNCTIONS
from bishare_dsl.transforms import GAIN_OUT, GAIN_RANK, PLAIN, transform_kind, transform_names

Kind = lsp.CompletionItemKind
Items = Iterator[lsp.CompletionItem]
_MODEL = re.compile(r"[ \t]*#[ \t]*model:[ \t]*(\S*)")


def completions(document: Document, position: lsp.Position) -> list[lsp.CompletionItem]:
    """Return the completions at a position."""
    offset = document.positions.offset(position) - document.source.start
    before = document.source.text[:offset]
    line = before.rpartition("\n")[2]
    if line.lstrip().startswith("#"):
        begun = _MODEL.fullmatch(line)
        presets = PRESETS if begun else ()
        items = [_item(name, Kind.Module, "A preset.", insert=name) for name in presets]
        return _written_over(document, offset, begun[1] if begun else "", items)
    written = _half_word(before)
    parsed = parse_open(Source(document.path, before[: len(before) - len(written)]))
    names = _Names(document, parsed)
    # Names come before keywords, many of which are possible anywhere.
    items = [*names.items()] if {"NAME", "STRING"} & parsed.allowed else []
    if "PER" in parsed.allowed:
        items += (item for item in names.roles() if item.label not in ("A", "B"))
    items += () if written.startswith('"') else _keywords(parsed)
    offered = {item.label: item for item in reversed(items)}
    ordered = [*dict.fromkeys(item.label for item in items)]
    for rank, label in enumerate(ordered):
        offered[label].sort_text = f"{rank:04}"  # Otherwise editors sort alphabetically.
    return _written_over(document, offset, written, [offered[label] for label in ordered])


def _written_over(
    document: Document, offset: int, written: str, items: Iterable[lsp.CompletionItem]
) -> list[lsp.CompletionItem]:
    """Let completions replace the unfinished word before an offset."""
    quoted = written.startswith('"')
    # Editors insert the closing quote.
    closed = quoted and document.source.text[offset : offset + 1] == '"'
    end = document.source.start + offset
    replaced = document.positions.range(Span(end - len(written), end + closed))
    return [_at(item, replaced, quoted) for item in items]


def _at(item: lsp.CompletionItem, replaced: lsp.Range, quoted: bool) -> lsp.CompletionItem:
    """Let a completion replace a range."""
    text = item.insert_text or item.label
    if quoted and not text.startswith('"'):
        text = f'"{text}"'
    item.text_edit = lsp.TextEdit(replaced, text)
    item.filter_text, item.insert_text = text, None
    return item


def _half_word(before: str) -> str:
    """Return the unfinished word or quoted text at the end of a text."""
    start = len(before)
    line = before.rpartition("\n")[2]
    if line.count('"') % 2:
        return line[line.rindex('"') :]
    while start and (before[start - 1].isalnum() or before[start - 1] == "_"):
        start -= 1
    return before[start:]


def _keywords(parsed: Open) -> Items:
    for kind in sorted(parsed.allowed - {END}):
        word = spelled(kind)
        if word is not None and word.isalpha():
            yield _item(word, Kind.Keyword, MEANINGS[word])


def _item(
    label: str, kind: lsp.CompletionItemKind, meaning: str | None = None, insert: str | None = None
) -> lsp.CompletionItem:
    content = meaning and lsp.MarkupContent(lsp.MarkupKind.Markdown, meaning)
    text = spelled_name(label) if insert is None and kind != Kind.Keyword else insert
    return lsp.CompletionItem(
        label=label,
        kind=kind,
        documentation=content or None,
        insert_text=text if text != label else None,
    )


class _Names:
    """The names that the last clause of a text allows at its end."""

    def __init__(self, document: Document, found: Open) -> None:
        self.document, self.found = document, found
        words = [word for word in found.words if word != "replace"]
        keyed = len(words) > 1 and words[1] == "per"
        self.clause = "per" if keyed else str(words[0]) if words else ""
        self.last = words[-1] if words else None
        self.words = words

    def items(self) -> Items:
        """Return the names as completions."""
        places: dict[str, Callable[[], Items]] = {
            "use": self._specs,
            "via": self._transforms,
            "init": self._starts,
            "freeze": self.roles,
            **dict.fromkeys(("target", "let", "where", "train"), self._conditions),
            "per": self._keys,
            "rank": self._ranks,
            **dict.fromkeys(("alpha", "scale", "dropout", "gain"), self._numbers),
            "param": self._numbers,
        }
        if self.clause in ("param", "let", "replace") and len(self.words) == 1:
            yield from self._replaceable()
        elif self.clause in places:
            yield from places[self.clause]()

    def _declared(self, *kinds: str) -> Items:
        """Yield the params or lets declared above, in this file and in used files."""
        source = self.document.source
        above = [
            Declaration(part, source)
            for part in declaring_statements(self.found.statements, *kinds)
        ]
        for used in self._used():
            above += [found[0] for found in declarations(used, *kinds).values()]
        for declared in above:
            part, start = declared.statement, declared.source.start
            kind = Kind.Constant if part.keyword == "param" else Kind.Variable
            said = declared.source.text[part.start - start : part.end - start]
            yield _item(part.name, kind, f"`{said}`")

    def _used(self) -> list[File]:
        """Return the used files."""
        uses = any(part.keyword == "use" for part in self.found.statements)
        file = self.document.file if uses else None
        return [used for _, used in file.uses] if file else []

    def _replaceable(self) -> Items:
        """Yield the names of used files that `replace` can replace."""
        if self.found.words[0] == "replace":
            for used in self._used():
                for name in declarations(used, self.clause):
                    yield _item(name, Kind.Constant)

    def _sites(self, attribute: str) -> Items:
        model = self.document.architecture
        for name in (
            dict.fromkeys(getattr(site, attribute) for site in model.sites) if model else ()
        ):
            yield _item(name, Kind.Field, f"a {attribute} of {model.name}" if model else None)

    def _conditions(self) -> Items:
        if self.clause == "let" and "=" not in self.words:
            return
        if self.last in ("kind", "parent"):
            yield from self._sites(str(self.last))
        elif self.last == "path":
            return
        else:
            yield from self._sites("kind")
            yield from self._parts()
            yield from self._declared()
            yield from self._attributes()
            yield from self._functions()

    def _parts(self) -> Items:
        """Yield the names of parts, each with its kinds in the model."""
        model = self.document.architecture
        for name in PARTS:
            played = dict.fromkeys(s.kind for s in model.sites if name in parts(s)) if model else {}
            kinds = ", ".join(f"`{kind}`" for kind in played)
            said = (
                f"In {model.name}: {kinds or 'none'}." if model else "Of whatever name in a model."
            )
            yield _item(name, Kind.Field, said)

    def _attributes(self) -> Items:
        for name in ATTRIBUTES:
            yield _item(name, Kind.Property, MEANINGS[name], insert=name)

    def _functions(self) -> Items:
        for name in FUNCTIONS:
            yield _item(name, Kind.Function, MEANINGS[name], insert=name)

    def _keys(self) -> Items:
        yield from self._attributes()
        yield from self._declared()
        yield from self._sites("kind")
        yield from self._parts()
        yield from self._functions()

    def _ranks(self) -> Items:
        yield from self._declared("param")
        yield from self._attributes()
        yield from self._functions()
        if "match" in self.words:
            yield from self._sites("kind")

    def _numbers(self) -> Items:
        if self.clause != "param" or "=" in self.words:
            yield from self._declared("param")
            yield from self._functions()

    def _starts(self) -> Items:
        for name in get_args(Initial):
            if name in MEANINGS:  # The initial values of gains have no name in a spec.
                yield _item(name, Kind.EnumMember, MEANINGS[name])
        yield from self._declared("param")
        yield from self.roles()

    def _specs(self) -> Items:
        for name, path in shipped_specs().items():
            text = path.read_text(encoding="utf-8")
            yield _item(name, Kind.File, first_sentence(text), insert=f'"{name}"')
        own = Path(self.document.path)
        for path in sorted(own.parent.glob("*.share")):
            if path.name != own.name:
                yield _item(path.name, Kind.File, insert=f'"{path.name}"')

    def _transforms(self) -> Items:
        if len(self.words) == 1:
            for name in transform_names():
                if name != PLAIN:
                    yield _item(name, Kind.Class, _title(name))
            return
        try:
            kind = transform_kind(unquoted(self.words[1]))
        except (KeyError, SpecError):
            return
        if self.last in ("(", ","):
            given = {str(a) for a, b in zip(self.words, self.words[1:], strict=False) if b == "="}
            for own, field in kind.model_fields.items():
                label = field.alias or own
                if label not in given:
                    yield _item(label, Kind.Property, option(own, field), insert=f"{label} = ")
        elif len(self.words) > 2:
            signs = [i for i, word in enumerate(self.words) if word == "="]
            written = unquoted(self.words[signs[-1] - 1]) if signs else ""
            found = field_of(kind, written)
            for word in choices(found) if found and self.last == "=" else ():
                yield _item(word, Kind.EnumMember)
            yield from self._declared("param")

    def roles(self) -> Items:
        """Yield the roles of the share's tensors, including its transform's if the `via` is above."""
        share = self.found.statements[-1] if self.found.statements else None
        via = next((c for c in share.clauses if c.keyword == "via"), None) if share else None
        named = self.words[1] if self.clause == "via" and len(self.words) > 1 else None
        named = name_of(via) if via else named
        try:
            kind = transform_kind(unquoted(named) if named else PLAIN)
        except (KeyError, SpecError):
            return
        fixed = kind.fixed if self.clause in ("init", "freeze") else ()
        for role in (*kind.pooled, *kind.owned, GAIN_RANK, GAIN_OUT):
            if role not in fixed:
                yield _item(role, Kind.Field, insert=role)


def _title(name: str) -> str | None:
    try:
        return transform_kind(name).title
    except SpecError:
        return None
