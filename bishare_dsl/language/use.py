"""`use`: read a text with the files it uses, and join their statements.

Used statements count as if they were written in the file, with these differences:

- A name of a used file can be redeclared only with `replace`, and the new statement takes its position.
- Two used files must not disagree on a name unless the file replaces it, so the order of `use` has no
meaning.
- A file that is used twice, directly or indirectly, is read once.
- `target` and each default of the file override used ones.
- Params and lets that nothing refers to are dropped.

A spec may come from a stranger. So it can use only files below its folder and shipped specs, unless the user
allows more, and messages show no text of a file that is not a spec.
"""

from __future__ import annotations

import re
from dataclasses import field, replace
from os.path import realpath
from pathlib import Path
from typing import TypeAlias, cast

from lark import Tree

from bishare_dsl.diagnostics import Source, SourceMap, Span, SpecError
from bishare_dsl.diagnostics.codes import language as codes
from bishare_dsl.diagnostics.record import Record
from bishare_dsl.language.facts import NothingToReplace, NotReplaced
from bishare_dsl.language.grammar import DEFAULTS, SINGLE
from bishare_dsl.language.parse import MAX_BYTES, Problems, byte_count, decode
from bishare_dsl.language.structure import check_complete, check_order, names_used, parse_and_check
from bishare_dsl.language.syntax import Statement, Syntax, Words, first_token, span_of, unquoted
from bishare_dsl.resources import shipped_specs
from bishare_dsl.spec.facts import UnknownName

MAX_FILES = 64
"""How many files a spec may use, directly or indirectly."""

# How a spec begins: comments, then its header.
_HEADER = re.compile(r"(?:[ \t\f\n]|#[^\n]*\n)*spec\s")
_Key: TypeAlias = tuple[str, str]
_ByKey: TypeAlias = dict[_Key, list[Statement]]


class File(Record, frozen=False, eq=False):
    """A text, and the files it uses, each with its `use` statement."""

    source: Source
    syntax: Syntax
    uses: list[tuple[Statement, File]] = field(default_factory=list)


class Reader:
    """Read a text and its used files, each once. All problems go to ``problems``."""

    def __init__(self, allow_use: bool) -> None:
        self.problems = Problems()
        self._allow_use = allow_use
        self._root = ""
        self._sources: list[Source] = []
        self._size = 0
        self._known: dict[str, File] = {}

    @property
    def where(self) -> SourceMap:
        return SourceMap(self._sources[0], used=tuple(self._sources[1:]))

    def read(self, text: str | bytes, name: str) -> File:
        """Read the text itself.

        Raises:
            SpecError: BS101 (not UTF-8), BS102 (too large).
        """
        source = decode(text, name)
        self._size = byte_count(text)
        self._root = realpath(Path(name).parent)
        file = self._file(source, {})
        kinds = {token.type for token in file.syntax.tokens}
        if "USE" not in kinds and not self.problems.count:
            self.problems.extend(check_complete(file.syntax, kinds))
        return file

    def _file(self, source: Source, above: dict[str, str]) -> File:
        """Read a file. ``above`` maps real paths to names for the chain of files that led here."""
        self._sources.append(source)
        file = File(source, parse_and_check(source, self.problems))
        if "\0" not in source.name:  # The name of a text need not be a path.
            above = {**above, realpath(source.name): source.name}
        for use in file.syntax.statements:
            if use.keyword == "use" and not self.problems.full:
                try:
                    file.uses.append((use, self._used(use, Path(source.name).parent, above)))
                except SpecError as error:
                    self.problems.extend(error.problems)
        return file

    def _used(self, use: Statement, folder: Path, above: dict[str, str]) -> File:
        """Read the file of a `use` statement.

        Raises:
            SpecError: the file is missing, must not be read, or is not a spec.
        """
        span = span_of(use.name_token)
        name = use.name
        left = MAX_BYTES - self._size
        try:
            path = self._find(use, folder)
            real = realpath(path)
            if real in above:
                chain = [*list(above.values())[list(above).index(real) :], above[real]]
                raise SpecError(codes.USE_CYCLE(chain=" uses ".join(chain), span=span))
            if real in self._known:
                return self._known[real]
            if len(self._sources) > MAX_FILES:
                raise SpecError(codes.TOO_MANY_USES(limit=MAX_FILES, span=span))
            with path.open("rb") as opened:
                content = opened.read(left + 1)
        except (OSError, ValueError) as error:  # ValueError: a NUL in the name
            why = getattr(error, "strerror", None) or error
            raise SpecError(codes.UNREADABLE(name=name, why=why, span=span)) from None
        if len(content) > left:
            raise SpecError(codes.TOO_LARGE(limit=MAX_BYTES, size=f"more with `{name}`", span=span))
        self._size += len(content)
        broken: SpecError | None = None
        try:
            source = decode(content, str(path), self._sources[-1].end + 1, span)
        except SpecError as error:
            source = cast(SourceMap, error.where).source
            broken = error
        if not _HEADER.match(source.text):
            raise SpecError(codes.NOT_A_SPEC(name=name, span=span))
        if broken:
            self._sources.append(source)
            raise broken
        self._known[real] = self._file(source, above)
        return self._known[real]

    def _find(self, use: Statement, folder: Path) -> Path:
        """Find a used file in the folder of the file that uses it, or among the shipped specs.

        Raises:
            SpecError: the file is missing, or outside of the allowed folders after following links.
        """
        name = use.name
        span = span_of(use.name_token)
        shipped = shipped_specs()
        path = folder / name
        real = Path(realpath(path))
        allowed = self._allow_use or real.is_relative_to(self._root)
        allowed = allowed or str(real) in map(realpath, shipped.values())
        if allowed and path.is_file():
            return path
        if shipped_path := shipped.get(name.removesuffix(".share")):
            return shipped_path
        if not allowed:
            raise SpecError(
                codes.OUTSIDE(
                    name=name,
                    span=span,
                )
            )
        beside = [path.name for path in folder.glob("*.share")]
        fact = UnknownName(name, "file", frozenset([*beside, *shipped]))
        raise SpecError(codes.NOT_FOUND(name=name, span=span, fact=fact))


class Joiner:
    """Join the statements of a file and its used files. Conflicts go to ``problems``."""

    def __init__(self, problems: Problems, where: SourceMap) -> None:
        self.problems = problems
        self.where = where
        self._joined: dict[File, list[Statement]] = {}

    def whole(self, file: File) -> list[Statement]:
        """List all statements of the spec of ``file``, beginning with its header."""
        header, *own = file.syntax.statements
        parts = self._of(file)
        if file.uses:
            parts = _needed(parts, set(own))
            kinds = {part.keyword.upper() for part in parts}
            self.problems.extend(check_complete(file.syntax, kinds))
        return [header, *parts]

    def _of(self, file: File) -> list[Statement]:
        """List the statements of a file, with used statements first and without header and `use`."""
        if file not in self._joined:
            own = [part for part in file.syntax.statements if part.keyword not in ("spec", "use")]
            settled = {_key(part) for part in own if part.replaces or _decides(part)}
            self._joined[file] = self._join(own, self._used(file, settled))
            lets = [part for part in self._joined[file] if part.keyword == "let"]
            replacing = [part for part in own if part.replaces and part in lets]
            self.problems.extend(check_order(lets, replacing))
            self._check_meaning(file, self._joined[file])
        return self._joined[file]

    def _used(self, file: File, settled: set[_Key]) -> _ByKey:
        """Collect the statements of used files. ``settled`` are the keys that the file decides."""
        used: _ByKey = {}
        bringing: dict[_Key, Statement] = {}
        for use, other in file.uses:
            for part in self._of(other):
                key = _key(part)
                if bringing.setdefault(key, use) is use:
                    used.setdefault(key, []).append(part)
                elif part not in used[key] and key not in settled:
                    problem = codes.USES_DISAGREE(
                        what=_what(part),
                        one=self.where.place(used[key][0].span),
                        two=self.where.place(part.span),
                        span=span_of(use.name_token),
                    )
                    self.problems(problem)
        return used

    def _join(self, own: list[Statement], used: _ByKey) -> list[Statement]:
        """Add a file's statements after used statements, or replace these."""
        overridden = {_key(part) for part in own if _overrides(part)}
        parts = [part for key, same in used.items() if key not in overridden for part in same]
        for part in own:
            inherited = used.get(_key(part), [])
            if _overrides(part):
                parts.append(_with_used_inits(part, inherited))
                continue
            what = _what(part)
            span = part.head
            if not part.replaces:
                parts.append(part)
                if inherited:
                    place = self.where.place(inherited[0].span)
                    fact = NotReplaced(str(part.keyword), part.name, span.start)
                    self.problems(codes.NOT_REPLACED(what=what, place=place, span=span, fact=fact))
            elif not inherited:
                names = frozenset(key[1] for key in used if key[0] == part.keyword)
                word = Span(part.start, span_of(part.keyword).start)
                lacking = NothingToReplace(part.name, word, names)
                name_span = span_of(part.name_token)
                self.problems(codes.NOTHING_TO_REPLACE(what=what, span=name_span, fact=lacking))
            elif inherited[0] not in parts:
                self.problems(codes.TWICE(what=f"what replaces {what}", span=span))
            else:
                parts[parts.index(inherited[0])] = part
        return parts

    def _check_meaning(self, file: File, parts: list[Statement]) -> None:
        """Check that no name of a used file would refer to a param or let of another file."""
        present = set(parts)
        declared = _declared(parts)
        for _, other in file.uses:
            own_names = _declared(self._joined[other])
            new = {name: part for name, part in declared.items() if name not in own_names}
            if not new:
                continue
            kept = [part for part in self._joined[other] if part in present]
            for name in (name for part in kept for name in names_used(part)):
                meant = new.pop(unquoted(name), None)
                if meant is not None:
                    place = self.where.place(span_of(name))
                    self.problems(
                        codes.OTHER_MEANING(what=_what(meant), place=place, span=meant.head)
                    )


def _key(part: Statement) -> _Key:
    """Return the key under which a statement is unique: a name, the target, or a default."""
    return part.keyword, "" if _overrides(part) else part.name


def _what(part: Statement) -> str:
    if part.keyword in DEFAULTS:
        return f"default `{part.keyword}`"
    if part.keyword in SINGLE:
        return f"`{part.keyword}`"
    return f"{part.keyword} `{part.name}`"


def _overrides(part: Statement) -> bool:
    """Return whether a statement overrides a used one without `replace`."""
    return part.keyword in SINGLE or part.keyword in DEFAULTS


def _decides(part: Statement) -> bool:
    """Return whether a statement overrides a used one completely, unlike an `init` of one factor."""
    return _overrides(part) and (part.keyword != "init" or len(part.words.children) > 1)


def _declared(parts: list[Statement]) -> dict[str, Statement]:
    return {part.name: part for part in parts if part.keyword in ("param", "let")}


def _with_used_inits(own: Statement, inherited: list[Statement]) -> Statement:
    """Complete an `init` with used initial values of other factors."""
    if own.keyword != "init" or not inherited:
        return own
    pairs = [cast(Words, pair) for part in (own, *inherited) for pair in part.words.children]
    first = {unquoted(first_token(pair)): pair for pair in reversed(pairs)}
    return replace(own, words=Tree("init", [*first.values()], own.words.meta))


def _needed(parts: list[Statement], own: set[Statement]) -> list[Statement]:
    """Drop used params and lets that nothing refers to."""
    names: set[str] = set()
    needed: set[Statement] = set()
    places = {"param": 0, "let": 1}
    ordered = sorted(parts, key=lambda part: places.get(part.keyword, 2))
    for part in reversed(ordered):  # What refers to a part follows it, so it was seen already.
        if part in own or part.keyword not in places or part.name in names:
            needed.add(part)
            names.update(unquoted(name) for name in names_used(part))
    return [part for part in parts if part in needed]
