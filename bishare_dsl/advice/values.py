"""Remedies for values, settings and conditions that have another form than was meant."""

from __future__ import annotations

from collections.abc import Iterator

from bishare_dsl.advice.question import Question, Remedy, listed
from bishare_dsl.diagnostics import Edit, Span
from bishare_dsl.language.text import expression_text
from bishare_dsl.plan.facts import (
    ComparedPattern,
    JoinedTowers,
    KeylessRole,
    LetAsNumber,
    NeedsMatrix,
    NoMagnitude,
    NoProbability,
    Start,
    StartFault,
)
from bishare_dsl.spec.facts import (
    Difference,
    Fault,
    FractionOfLayers,
    NamedLikeModules,
    NamesWithSign,
    NotANumber,
    NotWhole,
    ReversedRange,
    WordsOrdered,
)

_FAULTS = {
    Fault.DIVIDES_BY_ZERO: "`max(..., 1)` is never 0",
    Fault.KEY_DIVIDES_BY_ZERO: "blocks in a row share by `layer //` and how many",
    Fault.OUT_OF_RANGE: "a number is 0, or between 1e-37 and 9e15 in size",
    Fault.ZERO_SCALE: "`rank 0` leaves a share out",
    Fault.ZERO_SCALE_AT_SITE: "`where` leaves modules out, and so does a rank of 0",
    Fault.NO_CONDITION: "a condition compares numbers by `==`, `<` or `in`",
    Fault.NO_CONDITION_IN_LET: "compare it by `==`; a number is a `param`",
    Fault.NO_MODULE: "write a number or a param; `where`, `per` and `match` tell modules apart",
    Fault.NO_SHARE: "`largest` can stand in `rank`, `scale` and `dropout` of a share",
    Fault.NEEDLESS_PART: "the other parts tell modules apart",
    Fault.ALWAYS_HOLDS: "write `and` where both must hold",
    Fault.NOT_OF_ONE_PART: "write `not (... or ...)` for several",
    Fault.TAKES_EITHER: "write `and` between conditions that must both hold, or else `or`",
}
_STARTS = {
    StartFault.TWO_ZEROS: "one of them alone starts at zero; a gain starts at a number, a factor at a word"
}
_MATRICES = {
    NeedsMatrix.EXPERT: "`where expert == none` leaves all experts out",
    NeedsMatrix.EMBEDDING: "`where layer != none` leaves out what is in no block",
}
_MAGNITUDES = {
    NoMagnitude.EXPERT: _MATRICES[NeedsMatrix.EXPERT],
    NoMagnitude.EMBEDDING: _MATRICES[NeedsMatrix.EMBEDDING],
    NoMagnitude.NOT_A_MATRIX: "`plain` leaves the lengths out: `magnitude per module plain`",
}


def fault(fact: Fault, question: Question) -> Iterator[Remedy]:
    """Say what to write in place of a value with a fault."""
    if fact is Fault.NEGATED_KEY:
        yield question.exactly(f" {question.written.lstrip('- ')}", "leave the hyphen out")
    elif fact is Fault.DOES_NOT_ROUND:
        text = question.written.replace("/", "//")
        yield question.exactly(text, f"`//` rounds down and makes groups: write `{text}`")
    elif fact is Fault.COUNTS_INSTEAD_OF_LAYER:
        help = "`layers` is how many there are, and `layer` which one"
        if question.in_key:
            yield question.exactly("layer", help)
        yield Remedy("layers count from 0, and the last is -1")
    else:
        yield Remedy(_FAULTS[fact])


def not_a_number(fact: NotANumber, question: Question) -> Iterator[Remedy]:
    """Leave out the quotes of a number."""
    if fact.word.isdecimal():
        yield question.exactly(fact.word, f"a number has no quotes: `{fact.word}`")


def names_with_sign(fact: NamesWithSign, question: Question) -> Iterator[Remedy]:
    """Write a list, or one name."""
    texts = [", ".join(fact.names), "_".join(fact.names)]
    if fact.names == ("all", "linear"):
        texts.append('kind "*"')
    for text in texts:
        yield question.exactly(text, f"write `{text}`")


def words_ordered(fact: WordsOrdered, question: Question) -> Iterator[Remedy]:
    """Compare words by what they can be compared by."""
    if question.written.count(fact.op) == 1:
        for op in ("==", "!="):
            help = f"compare words by `{op}`"
            yield question.exactly(question.written.replace(fact.op, op), help)
    yield Remedy("compare words by `==`, `!=` and `in`")


def fraction_of_layers(fact: FractionOfLayers, question: Question) -> Iterator[Remedy]:
    """Write a fraction as a number of layers."""
    text = f"{fact.fraction} * layers"
    yield question.exactly(text, f"write `{text}`")


def difference(fact: Difference, question: Question) -> Iterator[Remedy]:
    """Write a range in place of a difference."""
    text = f"{fact.first}..{fact.last}"
    if not fact.compared:
        yield question.exactly(text, f"a range has two dots: `{text}`")
        return
    comparison = question.span_of(question.loc[:-1])
    help = f"a range has two dots: `layer in {text}`"
    if comparison is not None:
        yield Remedy(help, (Edit(comparison, f"layer in {text}"),))
    yield Remedy(help)


def reversed_range(fact: ReversedRange, question: Question) -> Iterator[Remedy]:
    """Exchange the ends of a range."""
    if (fact.first < 0) != (fact.last < 0):
        yield Remedy("negative layers count from the end: -1 is the last one, and 0 the first")
        return
    text = f"{fact.last}..{fact.first}"
    yield question.exactly(text, f"did you mean `{text}`?")
    yield Remedy(f"the smaller number stands first, as in `{text}`")


def not_whole(fact: NotWhole, question: Question) -> Iterator[Remedy]:
    """Round a rank down."""
    text = f"floor({expression_text(fact.rank)})"
    yield question.exactly(text, f"write `{text}`")


def compared_pattern(fact: ComparedPattern, question: Question) -> Iterator[Remedy]:
    """Compare an attribute with a name instead of a pattern."""
    text = f"{fact.attribute} {fact.op} {fact.pattern}"
    yield question.exactly(text, f"write `{text}`")


def no_probability(fact: NoProbability, question: Question) -> Iterator[Remedy]:
    """Write a percentage as a fraction."""
    if 1 < fact.value < 100:
        text = f"{fact.value / 100:g}"
        yield question.exactly(text, f"write `{text}`")


def let_as_number(fact: LetAsNumber, question: Question) -> Iterator[Remedy]:
    """Say what a number is."""
    yield Remedy(f"a `let` is not a number: `param {fact.name} = 8` is one")


def joined_towers(fact: JoinedTowers, question: Question) -> Iterator[Remedy]:
    """Tell the towers apart."""
    yield question.exactly("tower, layer", "`per tower, layer` is each block of the model")


def keyless_role(fact: KeylessRole, question: Question) -> Iterator[Remedy]:
    """Say how a tensor gets a key."""
    yield Remedy(f"`{fact.role} per` and a key, or `per` and a key for all that have no other")


def start(fact: Start, question: Question) -> Iterator[Remedy]:
    """Say which tensors may start at zero."""
    trained = listed(fact.trained) or "none"
    if fact.fault is StartFault.FROZEN_ZERO:
        yield Remedy(f"frozen are {listed(fact.frozen)}; trained are {trained}")
    elif fact.fault is StartFault.NO_ZERO:
        zero = f"one of {trained} or a new `gain out` starts at zero"
        yield Remedy(f"{zero}, or `start nonzero` allows another start")
    else:
        yield Remedy(_STARTS[fact.fault])


def named_like_modules(fact: NamedLikeModules, question: Question) -> Iterator[Remedy]:
    """Select the modules that a share is named after."""
    if question.span is not None and question.written:
        end = Span(question.span.end, question.span.end)
        help = f"`where {fact.name}` selects these modules; or give the share another name"
        yield Remedy(help, (Edit(end, f" where {fact.name}"),))
    yield Remedy(f"`where {fact.name}` selects these modules; or give the share another name")


def needs_matrix(fact: NeedsMatrix, question: Question) -> Iterator[Remedy]:
    """Leave out modules that only a matrix can adapt."""
    yield Remedy(_MATRICES[fact])


def no_magnitude(fact: NoMagnitude, question: Question) -> Iterator[Remedy]:
    """Leave out modules that a magnitude cannot scale."""
    yield Remedy(_MAGNITUDES[fact])
