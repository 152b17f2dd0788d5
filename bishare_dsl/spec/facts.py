"""Facts about wrong specs: what a problem's code and message do not say. `bishare_dsl.advice` reads them.

A fact has no words for people. `language/facts.py` and `plan/facts.py` have those of other stages.
"""

from __future__ import annotations

from enum import Enum, auto
from typing import Literal

from bishare_dsl.diagnostics.record import Record
from bishare_dsl.spec.expression import Expression

Naming = Literal[
    "file", "function", "init", "key", "kind", "name", "number", "param", "rank", "replaced",
    "share", "train", "transform",
]  # fmt: skip
"""What a name stands for where it was found."""


class UnknownName(Record):
    """A name that means nothing where it stands, and those that do."""

    name: str
    place: Naming
    valid: frozenset[str]


class NotANumber(Record):
    """A word where a number is needed."""

    word: str


class NamesWithSign(Record):
    """Names that are joined by the sign of an operation, as in ``q_proj + v_proj``."""

    names: tuple[str, ...]


class WordsOrdered(Record):
    """Words that are compared by an order."""

    op: str


class FractionOfLayers(Record):
    """A layer that is compared with a fraction."""

    fraction: float


class Difference(Record):
    """Two numbers with a minus between, where a range of layers was meant."""

    first: int
    last: int
    compared: bool


class ReversedRange(Record):
    """A range that ends before it begins."""

    first: float
    last: float


class NotWhole(Record):
    """A rank that is computed, and no whole number."""

    rank: Expression


class NamedLikeModules(Record):
    """A share with the name of modules, which it does not select."""

    name: str


class Fault(Enum):
    """What is wrong with a value, where the code has several causes."""

    DIVIDES_BY_ZERO = auto()
    KEY_DIVIDES_BY_ZERO = auto()
    OUT_OF_RANGE = auto()
    ZERO_SCALE = auto()
    ZERO_SCALE_AT_SITE = auto()
    NO_CONDITION = auto()
    NO_CONDITION_IN_LET = auto()
    NO_MODULE = auto()
    NO_SHARE = auto()
    DOES_NOT_ROUND = auto()
    NEGATED_KEY = auto()
    COUNTS_INSTEAD_OF_LAYER = auto()
    NEEDLESS_PART = auto()
    ALWAYS_HOLDS = auto()
    NOT_OF_ONE_PART = auto()
    TAKES_EITHER = auto()
