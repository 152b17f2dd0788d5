"""Find missing, repeated and misplaced statements in a parsed file."""

from __future__ import annotations

import re
from bisect import bisect_left
from collections.abc import Collection, Iterable, Iterator, Mapping
from itertools import pairwise
from typing import cast

from lark import Token, Tree

from bishare_dsl.diagnostics import Edit, Problem, Remedy, Source, Span, advise
from bishare_dsl.diagnostics.codes import language as codes
from bishare_dsl.language.grammar import DEFAULTS, SINGLE
from bishare_dsl.language.parse import Problems, parse
from bishare_dsl.language.syntax import Statement, Syntax, Words, first_token, span_of, unquoted
from bishare_dsl.spec.expression import FUNCTIONS, arity_problem

# Rules whose parts begin with a name, and the noun for such a part in messages.
_NAMING = {"options": "option"} | {word: f"the {word} of" for word in ("init", "gain", "freeze")}
# Two of these statements can be joined into one with a list.
_LIST_STATEMENTS = ("target", "train", "per", "freeze", "init", "gain")
_ADVICE = {
    "per": "`per module` shares nothing, `per layer` within a layer, `per model` everything",
    **dict.fromkeys(("A per", "B per"), "`A` and `B` have a key each, or one `per` is for both"),
    "two per": "a share has one key, and a tensor its own, as in `A per ...` or `gain_out per ...`",
    "rank": "`rank` and a number",
    "bare": "a share reads `share NAME per KEY rank NUMBER`; `magnitude` is a statement without it",
    "replace": "`replace share` gives a whole share; `replace param` and a name set one value",
}


def parse_and_check(source: Source, problems: Problems) -> Syntax:
    """Parse a text and check its structure. Problems that do not depend on other files go to ``problems``."""
    syntax = parse(source, problems)
    broken = [problem.span.start for problem in problems.kept if problem.span]
    if not problems.full:
        problems.extend(_check_structure(syntax, broken, source))
    return syntax


def _check_structure(syntax: Syntax, broken: list[int], source: Source) -> Iterator[Problem]:
    """Find problems in the structure of a tree, except near the positions ``broken`` where reading failed."""
    statements, header = syntax.statements, syntax.header
    written = any(token.type == "SPEC" for token in syntax.tokens)
    begun = not broken or not statements or min(broken) > statements[0].start
    if (not written and statements and begun) or (
        statements and header and header is not statements[0]
    ):
        start = Span(syntax.first.start, syntax.first.start)
        named = _moved(syntax, header, statements[0]) if header else (Edit(start, "spec mine\n"),)
        help_line = f"move `spec {header.name}` to the top" if header else None
        yield codes.NO_HEADER(span=syntax.first, edits=named, help=help_line)
    words = [str(statement.keyword) for statement in statements]
    first_share = words.index("share") if "share" in words else len(words)
    uses_end = next((i for i, word in enumerate(words) if word not in ("spec", "use")), len(words))
    after = span_of(syntax.tokens[-1]).end + 1
    # A mistake further along a line may be one of its first statement.
    ends = [after]
    for statement, following in reversed([*pairwise(statements)]):
        apart = statement.keyword.line != following.keyword.line
        ends.append(following.start if apart else ends[-1])
    broken_lines = {source.position(place)[0] for place in broken}
    keys: list[tuple[str, Statement]] = []
    for i, (statement, word, end) in enumerate(zip(statements, words, ends[::-1], strict=False)):
        whole = not any(statement.start <= place < end for place in broken)
        whole = whole and statement.keyword.line not in broken_lines
        if word in DEFAULTS and i < first_share:
            keys.append((f"the default `{word}`", statement))
        elif word in DEFAULTS:
            help_line = f"move `{word}` above the first share, or to the share that it is meant for"
            place = span_of(statement.keyword)
            edits = _moved(syntax, statement, statements[first_share])
            yield codes.LATE_DEFAULT(span=place, word=word, help=help_line, edits=edits)
        elif word in SINGLE:
            if whole or i == 0 or statements[i - 1].keyword.line != statement.keyword.line:
                keys.append((f"`{word}`", statement))
            if word == "spec" and statement is not header:
                break  # Ignore repetitions after a second header.
        elif word == "use":
            keys.append((f"`use {statement.name}`", statement))
            if i > uses_end:
                edits = _moved(syntax, statement, statements[uses_end])
                yield codes.LATE_USE(span=statement.span, edits=edits)
        if word in ("share", "magnitude"):
            yield from _check_share(syntax, statement, whole)
        for tree in statement.trees():
            yield from _check_tree(syntax, tree)
    yield from check_order(statements, statements, syntax)
    yield from _twice(syntax, keys)


def check_complete(syntax: Syntax, kinds: Collection[str]) -> Iterator[Problem]:
    """Find what a spec lacks. ``kinds`` are the token kinds of its statements, including used files."""
    if not syntax.statements and "SPEC" not in kinds:
        return  # Another problem reports that this is not a spec.
    header = syntax.header
    name, place = (header.name, header.span) if header else ("?", syntax.first)
    adapts = not {"SHARE", "MAGNITUDE"}.isdisjoint(kinds)
    alone = "TRAIN" in kinds and not adapts  # `train` needs no share.
    if "TARGET" not in kinds and not alone:
        yield codes.NO_TARGET(span=place, spec=name, help="`target` and the names of modules")
    if not adapts and ("TARGET" in kinds or not alone):
        help_line = "a share reads `share NAME  per KEY  rank NUMBER`"
        if alone:
            help_line = "leave `target` out, and what `train` names is all that trains"
        yield codes.NO_SHARE(span=place, spec=name, help=help_line)


def _twice(syntax: Syntax, said: Iterable[tuple[str, Statement | Words]]) -> Iterator[Problem]:
    """Find repeated statements, and suggest the union of lists."""
    first_of: dict[str, Statement | Words] = {}
    for what, part in said:
        if (first := first_of.setdefault(what, part)) is not part:
            help: str | None = None
            edits: tuple[Edit, ...] = ()
            if isinstance(first, Statement) and isinstance(part, Statement):
                help, edits = _union(syntax, first, part)
            also = _span(first)
            yield codes.TWICE(span=_span(part), what=what, also=also, help=help, edits=edits)


def _span(part: Statement | Words) -> Span:
    if isinstance(part, Statement):
        return span_of(part.keyword) if part.keyword in SINGLE else part.span
    return span_of(part)


def _union(
    syntax: Syntax, first: Statement, second: Statement
) -> tuple[str | None, tuple[Edit, ...]]:
    """Join two statements with one keyword, if it takes a list."""
    word = first.keyword
    if word == "where":
        spans = [Span(span_of(part.words).start, part.end) for part in (first, second)]
        texts = [_text_of(syntax, span).removeprefix("where").strip() for span in spans]
        # These bind less than `and`.
        if not any(re.search(r",|\b(or|if|except)\b", text) for text in texts):
            joined = f"where {texts[0]} and {texts[1]}"
            return f"both hold by `{joined}`", (Edit(first.span, joined), Edit(second.span, ""))
    if word == "magnitude":
        return "one statement has a `where` for all of its modules, or none for all targets", ()
    if word == "spec":
        return "move it to another file, or join both: one `target`, a `where` in each share", ()
    if word not in _LIST_STATEMENTS or any(
        t.data == "exclude" for p in (first, second) for t in p.trees()
    ):
        return None, ()
    listed, more = (_listed(syntax, part) for part in (first, second))
    if not listed or not more or listed == more:  # `per model` lists nothing.
        return _ADVICE.get(f"two {word}"), ()
    role = _text_of(syntax, span_of(first.name_token)) + " " if first.role else ""
    joined = f"{role}{word} {listed}, {more}"
    return f"both are `{joined}`", (Edit(first.span, joined), Edit(second.span, ""))


def _listed(syntax: Syntax, part: Statement) -> str:
    """Return the text of a statement's list, after its keyword."""
    items = part.words.children[1 if part.role else 0 :]
    if any(isinstance(item, Tree) and item.data == "model" for item in items):
        return ""
    return _text_of(syntax, Span(span_of(items[0]).start, part.end))


def _check_share(syntax: Syntax, share: Statement, whole: bool) -> Iterator[Problem]:
    named_clauses = [(_word(clause), clause) for clause in share.clauses]
    words = [word for word, _ in named_clauses]
    roles = [clause for clause in share.clauses if clause.role]
    lines = [c.role for c in roles if c.name_token.column == 1 or c.role not in ("A", "B")]
    repeated = [_word(clause) for clause in share.clauses if not clause.role]
    if lines and len(repeated) > len({*repeated}):
        # A statement without its keyword is parsed as a key of a tensor.
        part = next(c for c in share.clauses if c.role == lines[0])
        span, help = span_of(part.name_token), f"did you mean `share {part.role}`?"
        edits, found = (Edit(Span(span.start, span.start), "share "),), f"`{part.role}`"
        yield codes.UNEXPECTED(span=span, expected="`share`", found=found, help=help, edits=edits)
        return
    what = f"of share `{share.name}`"
    if whole:
        yield from _twice(syntax, [(f"`{word}` {what}", clause) for word, clause in named_clauses])
    # A transform decides which other tensors it pools.
    factors = ["A per", "B per"] if {"A per", "B per"} & {*words} else []
    keyed = any(clause.keyword == "per" for clause in share.clauses)
    keys = [] if "per" in words else factors if keyed else ["per"]
    for word in [*keys, *(["rank"] if share.keyword == "share" else [])] if whole else ():
        if word not in words:
            named = what.removeprefix("of ") if share.keyword == "share" else f"`{share.keyword}`"
            help = _ADVICE["replace" if share.replaces else word if share.clauses else "bare"]
            yield codes.NO_CLAUSE(span=share.head, share=named, clause=word, help=help)


def _word(clause: Statement) -> str:
    """Return the first words of a clause."""
    role = f"{clause.role} " if clause.role else ""
    return "start nonzero" if clause.keyword == "start" else f"{role}{clause.keyword}"


def _check_tree(syntax: Syntax, tree: Words) -> Iterator[Problem]:
    """Check the names and function calls in a tree."""
    if what := _NAMING.get(tree.data):
        parts = cast(list[Words], tree.children)
        yield from _twice(syntax, [(f"{what} `{unquoted(first_token(p))}`", p) for p in parts])
    elif tree.data == "call":
        name, arguments = first_token(tree), cast(Words, tree.children[1])
        if name not in FUNCTIONS:
            why, help_line = "is not a function", advise("function", name, FUNCTIONS, few=0)
            help_line = help_line or f"functions are {', '.join(FUNCTIONS)}"
            yield codes.BAD_CALL(span=span_of(name), name=name, why=why, help=help_line)
        elif problem := arity_problem(name, len(arguments.children)):
            yield codes.BAD_CALL(span=span_of(tree), name=name, why=problem)


def _moved(syntax: Syntax, statement: Statement, before: Statement) -> tuple[Edit, ...]:
    """Return the edits that move a statement to a new line before another statement."""
    text = f"{_text_of(syntax, statement.span)}\n"
    return Edit(Span(before.start, before.start), text), Edit(statement.span, "")


def _text_of(syntax: Syntax, span: Span) -> str:
    first, last = (
        bisect_left(syntax.tokens, place, key=lambda token: span_of(token).start)
        for place in (span.start, span.end)
    )
    return "".join(syntax.tokens[first:last])


def check_order(
    statements: list[Statement], within: Iterable[Statement], syntax: Syntax | None = None
) -> Iterator[Problem]:
    """Find statements of ``within`` that use a param or let before its declaration in ``statements``.

    With ``syntax``, the problem has edits that move the declaration.
    """
    places = {part: i for i, part in enumerate(statements)}
    declared: dict[str, Statement] = {}
    circle: list[str] | None = None
    for statement in statements:
        if statement.keyword in ("param", "let"):
            declared.setdefault(statement.name, statement)
    for statement in within:
        for use in names_used(statement):
            name = unquoted(use)
            meant = declared.get(name)
            if meant and places[meant] >= places[statement]:
                span, word = span_of(use), meant.keyword
                help = f"a `{word}` comes before what reads it, and hides a module of its name"
                circle = _circle(declared) if circle is None else circle
                own = name in map(unquoted, names_used(meant))
                if own:
                    help = f"give the `{word}` a name that it does not read"
                elif name in circle and statement in map(declared.get, circle):
                    help = f"{' and '.join(f'`{one}`' for one in circle)} read each other"
                if statement.replaces and statement.keyword == "let":
                    help = "what replaces a `let` stands where that stood"
                moved = _moved(syntax, meant, statement) if syntax and not own else ()
                up = (Remedy(f"move the `{word}` up", moved),) if moved else ()
                yield codes.USED_BEFORE(span=span, name=name, keyword=word, help=help, remedies=up)


def _circle(declared: Mapping[str, Statement]) -> list[str]:
    """Return the names of some params or lets that read each other in a circle, or none."""
    from graphlib import CycleError, TopologicalSorter

    try:
        reads = {name: {*map(unquoted, names_used(part))} for name, part in declared.items()}
        TopologicalSorter(reads).prepare()
    except CycleError as error:
        return sorted(error.args[1][1:])
    return []


def names_used(statement: Statement) -> Iterator[Token]:
    """Yield the names in expressions and after `freeze`, which may refer to params and lets."""
    for tree in statement.trees():
        if tree.data in ("word", "freeze"):
            yield from cast(list[Token], tree.children)
