"""Facts about specs that do not fit a model, or whose settings are wrong. See `spec/facts.py`."""

from __future__ import annotations

from enum import Enum, auto
from typing import Any, Literal

from bishare_dsl import spec as m
from bishare_dsl.diagnostics.record import Record


class UnknownPattern(Record):
    """A pattern that no module's attribute matches, and the values of that attribute."""

    attribute: str
    pattern: str
    values: frozenset[str]


class UnknownValue(Record):
    """A value that an expression never has, and those that it has."""

    subject: m.Expression
    value: str
    values: frozenset[str]


class ComparedPattern(Record):
    """An attribute that is compared with a pattern, which is true or false."""

    attribute: str
    op: str
    pattern: str


class WithoutValue(Record):
    """A module at which a condition has no value, for it has no ``attribute``."""

    attribute: Literal["layer", "expert"]
    path: str


class NothingSelected(Record):
    """A selection of nothing. ``outside`` says that it selects modules that the target does not."""

    selection: m.Selection
    outside: bool = False


class UnequalPool(Record):
    """A pool whose modules cannot share a tensor, since their ranks or widths differ.

    ``share`` is its number. ``constant`` says that the key has one value.
    """

    share: int
    role: str
    differs: Literal["rank", "width"]
    constant: bool = False


class UnknownRole(Record):
    """A tensor that a share does not have, and those that its clause may name."""

    role: str
    valid: tuple[str, ...]


class UnknownOption(Record):
    """An option that a transform does not have."""

    transform: str
    option: str
    valid: tuple[str, ...]


class BadOption(Record):
    """A value that an option of a transform cannot have."""

    transform: str
    option: str
    value: Any


class BadGate(Record):
    """A gate that a step cannot have."""

    transform: str


class NoProbability(Record):
    """A dropout that is no probability."""

    value: float


class LetAsNumber(Record):
    """A `let` where a number is needed."""

    name: str


class JoinedTowers(Record):
    """A key that joins the layers of one number in several towers."""


class KeylessRole(Record):
    """A tensor without a key, in a share without a key for all."""

    role: str


class OtherReference(Record):
    """A reference to a tensor that is itself another: that of a ``role``, of the same share if it is None."""

    share: str | None
    role: str


class ShareWithoutRole(Record):
    """A reference that names a share, and none of its tensors."""

    share: str


class NoPool(Record):
    """A reference that finds no tensor at some modules.

    ``share`` is the number of the share. ``fitting`` has the first and the last of the layers that alone have
    a tensor, or is None if layers do not tell them apart.
    """

    share: int
    fitting: tuple[int, int] | None


class StartFault(Enum):
    """What is wrong with the initial values of a share."""

    TWO_ZEROS = auto()
    FROZEN_ZERO = auto()
    NO_ZERO = auto()


class Start(Record):
    """A wrong start of a share, with the roles that are trained and those that are not."""

    fault: StartFault
    trained: tuple[str, ...]
    frozen: tuple[str, ...]


class NeedsMatrix(Enum):
    """Where an update has to be a matrix."""

    EXPERT = auto()
    EMBEDDING = auto()


class NoMagnitude(Enum):
    """Why a magnitude cannot scale a module."""

    EXPERT = auto()
    EMBEDDING = auto()
    NOT_A_MATRIX = auto()
