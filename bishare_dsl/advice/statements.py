"""Remedies for statements that are missing, repeated or misplaced."""

from __future__ import annotations

import re
from collections.abc import Iterator

from bishare_dsl.advice.question import Question, Remedy, listed
from bishare_dsl.diagnostics import Edit, Span
from bishare_dsl.language.facts import (
    Misplaced,
    Missing,
    MissingClause,
    NoHeader,
    NothingToReplace,
    NotReplaced,
    Repeated,
    ShareWithoutKeyword,
    UsedBefore,
)

# A clause that a share lacks, and what to write.
_CLAUSES = {
    "per": "`per module` shares nothing, `per layer` within a layer, `per model` everything",
    "A per": "`A` and `B` have a key each, or one `per` is for both",
    "B per": "`A` and `B` have a key each, or one `per` is for both",
    "rank": "write `rank` and a number",
}
# These bind less than `and`.
_LOOSE = re.compile(r",|\b(or|if|except)\b")


def no_header(fact: NoHeader, question: Question) -> Iterator[Remedy]:
    """Write a header."""
    yield Remedy("write `spec mine` first", (Edit(Span(fact.first, fact.first), "spec mine\n"),))


def misplaced(fact: Misplaced, question: Question) -> Iterator[Remedy]:
    """Move a statement up."""
    if fact.word == "use":
        help = "move it up, directly after `spec`"
    elif fact.word.startswith("spec "):
        help = f"move `{fact.word}` to the top"
    else:
        help = f"move `{fact.word}` above the first share, or to the share that it is meant for"
    yield Remedy(help, _moved(question, fact.statement, fact.before))


def _moved(question: Question, statement: Span, before: int) -> tuple[Edit, ...]:
    """Return the edits that move a statement to a new line at an offset."""
    text = question.text_of(statement)
    return (Edit(Span(before, before), f"{text}\n"), Edit(statement, "")) if text else ()


def _list_of(span: Span | None, word: str, question: Question) -> str:
    """Return the text of a statement after its word; empty without a span."""
    return "" if span is None else question.text_of(span).removeprefix(word).strip()


def repeated(fact: Repeated, question: Question) -> Iterator[Remedy]:
    """Join two statements, or leave one out."""
    first = _list_of(fact.first_list, fact.word, question)
    second = _list_of(fact.second_list, fact.word, question)
    joined = ""
    help = ""
    if fact.word == "where" and first and not _LOOSE.search(f"{first} {second}"):
        joined = f"where {first} and {second}"
        help = f"both hold by `{joined}`"
    elif fact.word != "where" and first and second and first != second:
        role = f"{fact.role} " if fact.role else ""
        joined = f"{role}{fact.word} {first}, {second}"
        help = f"both are `{joined}`"
    if joined:
        yield Remedy(help, (Edit(fact.first, joined), Edit(fact.second, "")))
    text = question.text_of(fact.first)
    again = question.text_of(fact.second)
    if text and text.split() == again.split():
        yield Remedy("leave one of the two out", (Edit(fact.second, ""),))
    if fact.word == "magnitude":
        yield Remedy("one statement has a `where` for all of its modules, or none for all targets")
    elif fact.word == "spec":
        yield Remedy("move it to another file, or join both: one `target`, a `where` in each share")
    elif fact.word == "per":
        yield Remedy(
            "a share has one key, and a tensor its own, as in `A per ...` or `gain_out per ...`"
        )


def missing(fact: Missing, question: Question) -> Iterator[Remedy]:
    """Say which statement a spec needs."""
    if fact is Missing.SHARE_OR_TRAIN:
        yield Remedy("leave `target` out, and what `train` names is all that trains")
    yield Remedy("a share reads `share NAME  per KEY  rank NUMBER`")


def missing_clause(fact: MissingClause, question: Question) -> Iterator[Remedy]:
    """Say which clause a share needs."""
    if fact.replaces:
        yield Remedy(
            "`replace share` gives a whole share; `replace param` and a name set one value"
        )
    if fact.bare:
        share = "a share reads `share NAME per KEY rank NUMBER`"
        yield Remedy(f"{share}; `magnitude` is a statement without it")
    yield Remedy(_CLAUSES[fact.clause])


def share_without_keyword(fact: ShareWithoutKeyword, question: Question) -> Iterator[Remedy]:
    """Write `share` before its name."""
    edit = Edit(Span(fact.start, fact.start), "share ")
    yield Remedy(f"did you mean `share {fact.name}`?", (edit,))


def used_before(fact: UsedBefore, question: Question) -> Iterator[Remedy]:
    """Move a declaration up, unless it reads itself."""
    word = fact.keyword
    if fact.replaces_let:
        yield Remedy("what replaces a `let` stands where that stood")
    if fact.reads_itself:
        yield Remedy(f"give the `{word}` a name that it does not read")
    elif fact.circle:
        yield Remedy(f"{listed(fact.circle, ' and ')} read each other")
    else:
        moved = _moved(question, fact.declaration, fact.statement)
        if moved:
            yield Remedy(f"move the `{word}` up", moved)
        yield Remedy(f"a `{word}` comes before what reads it, and hides a module of its name")


def not_replaced(fact: NotReplaced, question: Question) -> Iterator[Remedy]:
    """Write `replace` before a statement."""
    help = f"`replace {fact.keyword} {fact.name} ...` replaces it"
    yield Remedy(help, (Edit(Span(fact.start, fact.start), "replace "),))


def nothing_to_replace(fact: NothingToReplace, question: Question) -> Iterator[Remedy]:
    """Name the nearest statement of a used file, or leave `replace` out."""
    from bishare_dsl.diagnostics import near_names

    for name in near_names(fact.name, fact.valid)[:3]:
        yield question.instead(name)
    yield Remedy("leave `replace` out", (Edit(fact.replace, ""),))
    yield Remedy(f"there are {listed(sorted(fact.valid))}" if fact.valid else "leave `replace` out")
