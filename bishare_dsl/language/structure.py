"""What is wrong with a file as a whole although each statement can be read: missing, twice, too late."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
from typing import cast

from lark import Token

from bishare_dsl.diagnostics import Edit, Problem, Source, Span, nearest
from bishare_dsl.diagnostics.codes import language as codes
from bishare_dsl.language.grammar import DEFAULTS
from bishare_dsl.language.parse import Problems, parse
from bishare_dsl.language.syntax import Statement, Syntax, Words, first_token, span_of, unquoted
from bishare_dsl.spec.expression import FUNCTIONS, arity_problem

# Rules whose parts begin with a name of their own, and what messages call such a part.
_NAMING = {"options": "option"} | {word: f"the {word} of" for word in ("init", "gain", "freeze")}
_FACTORS = "a share says `A per layer  B per module`, say, or one key for both: `per layer`"
_ADVICE = {
    "per": "`per module` shares nothing, `per layer` within a layer, `per model` everything",
    "A per": _FACTORS,
    "B per": _FACTORS,
    "rank": "such as `rank 8`",
}


def parse_and_check(source: Source, problems: Problems) -> Syntax:
    """Make the tree of a text; what is wrong with it, as far as that shows without other texts, goes to
    ``problems``."""
    syntax = parse(source, problems)
    broken = [problem.span.start for problem in problems.kept if problem.span]
    if not problems.full:
        problems.extend(_check_structure(syntax, broken))
    return syntax


def _check_structure(syntax: Syntax, broken: list[int]) -> Iterator[Problem]:
    """Find what is wrong with a tree; nothing is missed where reading failed, at the places ``broken``."""
    statements, header = syntax.statements, syntax.header
    written = any(token.type == "SPEC" for token in syntax.tokens)
    if (not written and statements) or (statements and header and header is not statements[0]):
        start = Span(syntax.first.start, syntax.first.start)
        named = () if header else (Edit(start, "spec mine\n"),)
        yield codes.NO_HEADER(span=syntax.first, edits=named)
    words = [str(statement.keyword) for statement in statements]
    first_share = words.index("share") if "share" in words else len(words)
    uses_end = next((i for i, word in enumerate(words) if word not in ("spec", "use")), len(words))
    behind = span_of(syntax.tokens[-1]).end + 1
    ends = [*(statement.start for statement in statements[1:]), behind]
    said: list[tuple[str, Span]] = []
    for i, (statement, word, end) in enumerate(zip(statements, words, ends, strict=False)):
        if word in DEFAULTS and i < first_share:
            said.append((f"the default `{word}`", statement.span))
        elif word in DEFAULTS:
            help_line = f"move `{word}` above the first share, or to the share that it is meant for"
            place, edits = (
                span_of(statement.keyword),
                _moved(syntax, statement, statements[first_share]),
            )
            yield codes.LATE_DEFAULT(span=place, word=word, help=help_line, edits=edits)
        elif word in ("spec", "target", "train"):
            said.append((f"`{word}`", span_of(statement.keyword)))
        elif word == "use":
            said.append((f"`use {statement.name}`", statement.span))
            if i > uses_end:
                edits = _moved(syntax, statement, statements[uses_end])
                yield codes.LATE_USE(span=statement.span, edits=edits)
        elif word == "share":
            whole = not any(statement.start <= place < end for place in broken)
            yield from _check_share(statement, whole)
        for tree in statement.trees():
            yield from _check_tree(tree)
    yield from check_order(statements, statements, syntax)
    yield from _twice(said)


def check_complete(syntax: Syntax, kinds: Collection[str]) -> Iterator[Problem]:
    """Find what a spec lacks with all that it uses, of which ``kinds`` are the tokens."""
    if not syntax.statements and "SPEC" not in kinds:
        return  # That this is not a spec is said.
    header = syntax.header
    name, place = (header.name, header.span) if header else ("?", syntax.first)
    alone = "TRAIN" in kinds and "SHARE" not in kinds  # It may stand by itself.
    if "TARGET" not in kinds and not alone:
        yield codes.NO_TARGET(span=place, spec=name, help="such as `target q_proj, v_proj`")
    if "SHARE" not in kinds and ("TARGET" in kinds or not alone):
        help_line = "such as `share lora  per module  rank 8`"
        if alone:
            help_line = "leave `target` out, and what `train` names is all that trains"
        yield codes.NO_SHARE(span=place, spec=name, help=help_line)


def _twice(said: Iterable[tuple[str, Span]]) -> Iterator[Problem]:
    """Find what is said a second time."""
    given: dict[str, Span] = {}
    for what, span in said:
        if what in given:
            yield codes.TWICE(span=span, what=what, also=given[what])
        given.setdefault(what, span)


def _check_share(share: Statement, whole: bool) -> Iterator[Problem]:
    said = [(_word(clause), clause.span) for clause in share.clauses]
    yield from _twice((f"`{word}` of share `{share.name}`", span) for word, span in said)
    words = [word for word, _ in said]
    # Which other tensors a transform pools is its own affair.
    factors = ["A per", "B per"] if {"A per", "B per"} & {*words} else []
    keyed = any(clause.keyword == "per" for clause in share.clauses)
    keys = [] if "per" in words else factors if keyed else ["per"]
    for word in [*keys, "rank"] if whole else ():
        if word not in words:
            help_line = _ADVICE[word]
            yield codes.NO_CLAUSE(span=share.head, share=share.name, clause=word, help=help_line)


def _word(clause: Statement) -> str:
    """Return the words that begin a clause."""
    role = f"{clause.role} " if clause.role else ""
    return "start nonzero" if clause.keyword == "start" else f"{role}{clause.keyword}"


def _check_tree(tree: Words) -> Iterator[Problem]:
    """Check what a tree names, or calls."""
    if what := _NAMING.get(tree.data):
        parts = tree.children
        yield from _twice((f"{what} `{unquoted(first_token(p))}`", span_of(p)) for p in parts)
    elif tree.data == "call":
        name, arguments = first_token(tree), cast(Words, tree.children[1])
        if name not in FUNCTIONS:
            why, help_line = "is not a function", nearest(name, FUNCTIONS)
            yield codes.BAD_CALL(span=span_of(name), name=name, why=why, help=help_line)
        elif problem := arity_problem(name, len(arguments.children)):
            yield codes.BAD_CALL(span=span_of(tree), name=name, why=problem)


def _moved(syntax: Syntax, statement: Statement, before: Statement) -> tuple[Edit, ...]:
    """Move a statement, on a line of its own, before another one."""
    inside = (t for t in syntax.tokens if statement.start <= span_of(t).start < statement.end)
    text = "".join(inside)
    return Edit(Span(before.start, before.start), f"{text}\n"), Edit(statement.span, "")


def check_order(
    statements: list[Statement], within: Iterable[Statement], syntax: Syntax | None = None
) -> Iterator[Problem]:
    """Find what of ``within`` uses a param or a let before it is declared, in the order of ``statements``;
    in the text of ``syntax`` it can be moved."""
    places = {part: i for i, part in enumerate(statements)}
    declared: dict[str, Statement] = {}
    for statement in statements:
        if statement.keyword in ("param", "let"):
            declared.setdefault(statement.name, statement)
    for statement in within:
        for use in names_used(statement):
            name = unquoted(use)
            meant = declared.get(name)
            if meant and places[meant] >= places[statement]:
                span, word = span_of(use), meant.keyword
                help_line = f"move the `{word}` up"
                if statement.replaces and statement.keyword == "let":
                    help_line = "what replaces a `let` stands where that stood"
                edits = (
                    _moved(syntax, meant, statement) if syntax and meant is not statement else ()
                )
                yield codes.USED_BEFORE(
                    span=span, name=name, keyword=word, help=help_line, edits=edits
                )


def names_used(statement: Statement) -> Iterator[Token]:
    """Find what a statement may refer to, in expressions and behind `freeze`: no names of options."""
    for tree in statement.trees():
        if tree.data in ("word", "freeze"):
            yield from cast(list[Token], tree.children)
