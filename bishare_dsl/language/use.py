"""`use`: a text is read together with the files that it uses, and all become the statements of one.

What `use` brings in stands there as if it were written in the file, with these differences. A name of the
used file is declared anew only with `replace`, and what replaces it stands where it stood. Two used files
may not disagree on a name, unless the file that uses them replaces it, so that the order of `use` means
nothing; a file that is used along two ways is one file. `target`, and each default, of the file itself
goes before a used one, as a share's own setting goes before a default. Params and lets that nothing
refers to are not brought in.

A spec may come from a stranger. So it reaches the files below its own folder and the specs that ship, unless
the user allows more, and of a file that is not a spec no word is shown.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field, replace
from os.path import realpath
from pathlib import Path
from typing import TypeAlias, cast

from lark import Tree

from bishare_dsl.diagnostics import Problem, Source, SourceMap, SpecError, nearest
from bishare_dsl.diagnostics.codes import language as codes
from bishare_dsl.language.grammar import DEFAULTS
from bishare_dsl.language.parse import MAX_BYTES, Problems, decode
from bishare_dsl.language.structure import check_complete, names_used, parse_and_check
from bishare_dsl.language.syntax import Statement, Syntax, Words, span_of, unquoted
from bishare_dsl.resources import shipped_specs

MAX_DEPTH = 16
"""How long a chain of uses may be: this file uses that, which uses another."""
MAX_FILES = 64
"""How many files a spec may use, through others or not."""

_ALLOW = (
    "`--allow-use` of `check`, `plan`, `compile` and `diff`, in Python `allow_use=True` of `parse_spec`, "
    "lets a spec use any file"
)
# How a spec begins: comments, then its header.
_HEADER = re.compile(r"(?:[ \t\f\n]|#[^\n]*\n)*spec\s")
_Key: TypeAlias = tuple[str, str]


@dataclass(slots=True, eq=False)
class File:
    """A text, and those that it uses, each with the statement that says so."""

    source: Source
    syntax: Syntax
    uses: list[tuple[Statement, File]] = field(default_factory=list)


class Reader:
    """Reads a text and all that it uses, each once; problems of all of them go to ``problems``."""

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
        self._size = len(text)
        self._root = realpath(Path(name).parent)
        file = self._file(source, {})
        if not any(token.type == "USE" for token in file.syntax.tokens):
            for problem in check_complete(file.syntax):
                self.problems(problem)
        return file

    def _file(self, source: Source, above: dict[str, str]) -> File:
        """Read a file; ``above`` names those whose uses led here, the first one first, by real paths."""
        self._sources.append(source)
        file = File(source, parse_and_check(source, self.problems))
        for use in file.syntax.statements:
            if use.keyword == "use" and not self.problems.full:
                used = self._used(use, source, {**above, realpath(source.name): source.name})
                file.uses += [(use, used)] if used else []
        return file

    def _may_use(self, path: Path) -> bool:
        """Tell whether a spec reaches a path, links followed."""
        real = Path(realpath(path))
        return (
            self._allow_use
            or real.is_relative_to(self._root)
            or str(real) in map(realpath, shipped_specs().values())
        )

    def _used(self, use: Statement, source: Source, above: dict[str, str]) -> File | None:
        span, name = span_of(use.name_token), use.name
        folder = Path(source.name).parent
        try:
            path = folder / name
            allowed = self._may_use(path)
            # A file is looked for beside the one that uses it, then among the specs that ship.
            if not (allowed and path.is_file()):
                shipped = shipped_specs().get(name.removesuffix(".share"))
                if shipped is None and not allowed:
                    self.problems(codes.OUTSIDE(name=name, span=span, help=_ALLOW))
                    return None
                if shipped is None:
                    help_line = _nearest(folder, name)
                    self.problems(codes.NOT_FOUND(name=name, span=span, help=help_line))
                    return None
                path = shipped
            real = realpath(path)
            if real in above:
                chain = [*list(above.values())[list(above).index(real) :], above[real]]
                self.problems(codes.USE_CYCLE(chain=" uses ".join(chain), span=span))
                return None
            if real in self._known:
                return self._known[real]
            if len(above) > MAX_DEPTH or len(self._sources) > MAX_FILES:
                deep = len(above) > MAX_DEPTH
                limit = f"files {MAX_DEPTH} deep" if deep else f"{MAX_FILES} files"
                self.problems(codes.TOO_MANY_USES(limit=limit, span=span))
                return None
            left = MAX_BYTES - self._size
            with path.open("rb") as opened:
                content = opened.read(left + 1)
        except (OSError, ValueError) as error:  # ValueError: a NUL in the name
            why = getattr(error, "strerror", None) or error
            self.problems(codes.UNREADABLE(name=name, why=why, span=span))
            return None
        if len(content) > left:
            self.problems(codes.TOO_LARGE(limit=MAX_BYTES, size=f"more with `{name}`", span=span))
            return None
        self._size += len(content)
        start = self._sources[-1].start + len(self._sources[-1].text) + 1
        broken: tuple[Problem, ...] = ()
        try:
            text = decode(content, str(path), start, span)
        except SpecError as error:
            text, broken = cast(SourceMap, error.where).source, error.problems
        if not _HEADER.match(text.text):
            self.problems(codes.NOT_A_SPEC(name=name, span=span))
            return None
        if broken:
            self._sources.append(text)
            for problem in broken:
                self.problems(problem)
            return None
        self._known[real] = self._file(text, above)
        return self._known[real]


def _nearest(folder: Path, name: str) -> str | None:
    help_line = nearest(name, [*(path.name for path in folder.glob("*.share")), *shipped_specs()])
    return help_line or "a path starts at the folder of the file that says `use`"


class Joining:
    """Makes one list of the statements of a file and of all that it uses. What is in the way goes to
    ``problems``; the files are read without any."""

    def __init__(self, problems: Problems, where: SourceMap) -> None:
        self.problems, self.where = problems, where
        self._joined: dict[File, list[Statement]] = {}

    def whole(self, file: File) -> list[Statement]:
        """List all that makes the spec of ``file``, its header first."""
        header, *own = file.syntax.statements
        parts = self._of(file)
        if file.uses:
            parts = _needed(parts, set(own))
            written = {part.keyword for part in parts}
            if "target" not in written:
                self.problems(codes.NO_TARGET(span=header.span, spec=header.name))
            if "share" not in written:
                self.problems(codes.NO_SHARE(span=header.span, spec=header.name))
        return [header, *parts]

    def _of(self, file: File) -> list[Statement]:
        """List the parts of a file but its header and uses: used ones first, each in its place."""
        if file in self._joined:
            return self._joined[file]
        own = [part for part in file.syntax.statements if part.keyword not in ("spec", "use")]
        overridden = {_key(part) for part in own if _overrides(part)}
        replaced = {_key(part) for part in own if part.replaces}
        used = self._used(file, replaced | {_key(part) for part in own if _decides(part)})
        parts = [part for key, same in used.items() if key not in overridden for part in same]
        places = {part: i for i, part in enumerate(parts)}
        for part in own:
            inherited = used.get(_key(part), [])
            if part.keyword in DEFAULTS:
                parts.append(_with_used_inits(part, inherited))
            elif _overrides(part):
                parts.append(part)
            else:
                self._declare(part, inherited, parts, places)
        self._joined[file] = parts
        self._check_order(own, parts)
        self._check_meaning(file, parts)
        return parts

    def _used(self, file: File, settled: set[_Key]) -> dict[_Key, list[Statement]]:
        """Collect what the files that a file uses bring in. ``settled`` is what it says itself instead."""
        used: dict[_Key, list[Statement]] = {}
        bringing: dict[_Key, Statement] = {}
        seen: set[Statement] = set()
        for use, other in file.uses:
            for part in self._of(other):
                key = _key(part)
                if bringing.setdefault(key, use) is use:
                    used.setdefault(key, []).append(part)
                    seen.add(part)
                elif part not in seen and key not in settled:
                    one, two = (self.where.place(p.span) for p in (used[key][0], part))
                    how = "say" if _overrides(part) else "with `replace`, say"
                    self.problems(
                        codes.USES_DISAGREE(
                            what=_what(part),
                            one=one,
                            two=two,
                            span=span_of(use.name_token),
                            help=f"{how} here which it is",
                        )
                    )
        return used

    def _declare(
        self,
        part: Statement,
        inherited: list[Statement],
        parts: list[Statement],
        places: dict[Statement, int],
    ) -> None:
        span = part.head
        if not part.replaces:
            parts.append(part)
            if inherited:
                place = self.where.place(inherited[0].span)
                help_line = f"`replace {part.keyword} {part.name} ...` replaces it"
                self.problems(
                    codes.NOT_REPLACED(what=_what(part), place=place, span=span, help=help_line)
                )
        elif not inherited:
            self.problems(codes.NOTHING_TO_REPLACE(what=_what(part), span=span))
        elif parts[places[inherited[0]]] is not inherited[0]:
            self.problems(codes.TWICE(what=f"what replaces {_what(part)}", span=span))
        else:
            parts[places[inherited[0]]] = part

    def _check_order(self, own: list[Statement], parts: list[Statement]) -> None:
        """Check that a `let` that replaces another uses no later one."""
        lets = [part for part in parts if part.keyword == "let"]
        places = {_key(let)[1]: i for i, let in enumerate(lets)}
        for part in own:
            if part.replaces and part.keyword == "let":
                here = places.get(part.name, len(lets))  # None where there was nothing to replace.
                for name in names_used(part):
                    if places.get(unquoted(name), -1) >= here:
                        help_line = "what replaces a `let` stands where that stood"
                        problem = codes.USED_BEFORE(
                            name=unquoted(name), keyword="let", span=span_of(name), help=help_line
                        )
                        self.problems(problem)

    def _check_meaning(self, file: File, parts: list[Statement]) -> None:
        """Check that no name of a used file comes to mean a param or a let that it does not know."""
        present = set(parts)
        declared = _declared(parts)
        for _, other in file.uses:
            known = _declared(self._joined[other])
            new = {name: part for name, part in declared.items() if name not in known}
            for part in self._joined[other] if new else ():
                for name in names_used(part) if part in present else ():
                    if meant := new.pop(unquoted(name), None):
                        place = self.where.place(span_of(name))
                        self.problems(
                            codes.OTHER_MEANING(what=_what(meant), place=place, span=meant.head)
                        )


def _key(part: Statement) -> _Key:
    """Identify what there is one of: a name, the target, a default."""
    if part.keyword in DEFAULTS:
        return "default", part.keyword
    return part.keyword, "" if part.keyword == "target" else part.name


def _what(part: Statement) -> str:
    kind, name = _key(part)
    return f"{kind} `{name}`" if name else f"`{kind}`"


def _overrides(part: Statement) -> bool:
    """Tell whether a statement goes before the used one without saying so."""
    return part.keyword == "target" or part.keyword in DEFAULTS


def _decides(part: Statement) -> bool:
    """Tell whether nothing is left of the used one: an `init` of one factor leaves that of the other."""
    return _overrides(part) and (part.keyword != "init" or len(part.words.children) == 2)


def _declared(parts: list[Statement]) -> dict[str, Statement]:
    return {_key(part)[1]: part for part in parts if part.keyword in ("param", "let")}


def _with_used_inits(own: Statement, inherited: list[Statement]) -> Statement:
    """Complete an `init` with the used one of a factor of which it says nothing."""
    if own.keyword != "init" or not inherited:
        return own
    pairs = [cast(Words, pair) for part in (own, *inherited) for pair in part.words.children]
    first = {str(pair.children[0]): pair for pair in reversed(pairs)}
    return replace(own, words=Tree("init", [*first.values()], own.words.meta))


def _needed(parts: list[Statement], own: set[Statement]) -> list[Statement]:
    """Leave out the params and lets that are brought in and that nothing refers to."""
    words = {part: part.keyword for part in parts}
    others = [part for part in parts if words[part] not in ("let", "param")]
    lets = [part for part in reversed(parts) if words[part] == "let"]
    params = [part for part in reversed(parts) if words[part] == "param"]
    names: set[str] = set()
    kept: set[Statement] = set()
    # In an order in which all that may refer to a part comes before it.
    for part in (*others, *lets, *params):
        if part in own or words[part] not in ("let", "param") or _key(part)[1] in names:
            kept.add(part)
            names.update(unquoted(name) for name in names_used(part))
    return [part for part in parts if part in kept]
