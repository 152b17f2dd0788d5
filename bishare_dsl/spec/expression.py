"""Expressions, of which ranks, scales, options, keys and predicates are made.

Numbers stand for themselves. A `Ref` is a bare name; what it names depends on where it stands: a
param, an attribute of a site, a `let`, a kind, or a plain word such as ``centre``.
"""

from __future__ import annotations

import re
from itertools import product
from typing import Annotated, Any, Literal, get_args

from pydantic import (
    AllowInfNan,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    StrictFloat,
    StrictInt,
    model_validator,
)
from typing_extensions import TypeAliasType

ATTRIBUTES = (
    "module",
    "path",
    "layer",
    "layers",
    "kind",
    "parent",
    "tower",
    "expert",
    "in",
    "out",
    "adapter",
)
"""What every site has. ``module`` is its path under the name that reads well after ``per``; ``layers`` is the
number of blocks of its tower; ``expert`` is the word `none` where the site is not an expert's; ``adapter``
tells the adapters of a library apart, and is `EACH_ADAPTER` in each."""

EACH_ADAPTER = "each adapter"
"""What ``adapter`` is worth: a plan is that of one adapter, whichever of a library it is."""


Number = StrictInt | Annotated[StrictFloat, AllowInfNan(False)]
"""A number that can be written down: neither infinite nor not-a-number."""


class Node(BaseModel):
    """A part of a spec: immutable, and closed to keys it does not know."""

    model_config = ConfigDict(frozen=True, extra="forbid", defer_build=True)


class Ref(Node):
    """A bare name."""

    ref: str


class Binary(Node):
    """Arithmetic: ``left op right``. ``//`` and ``%`` are Python's."""

    op: Literal["+", "-", "*", "/", "//", "%"]
    left: Expression
    right: Expression


Function = Literal["abs", "floor", "max", "min", "sqrt"]
FUNCTIONS: tuple[Function, ...] = get_args(Function)


def arity_problem(function: str, count: int) -> str | None:
    """Say what is wrong with the number of arguments of a function, if anything."""
    if function in ("min", "max"):
        return None if count > 1 else "takes two numbers or more"
    return None if count == 1 else "takes one number"


class Call(Node):
    """``sqrt(rank)``, ``min(rank, layers)``: a function of numbers."""

    function: Function
    arguments: tuple[Expression, ...]

    @model_validator(mode="after")
    def _arity(self) -> Call:
        if why := arity_problem(self.function, len(self.arguments)):
            raise ValueError(f"`{self.function}` {why}")
        return self


class Range(Node):
    """The whole numbers ``first`` to ``last``, both included: ``0..15``. Without one of them, all up to the
    other or from it on: ``..7``, ``24..``."""

    first: Expression | None = None
    last: Expression | None = None


class If(Node):
    """``then if condition else otherwise``."""

    then: Expression
    condition: Expression
    otherwise: Expression


class Match(Node):
    """A text attribute that fits a glob: ``path "model.layers.*.mlp.*"``, ``parent mlp``.

    ``*`` stands for any characters, dots included; ``?`` for one.
    """

    attribute: Literal["path", "kind", "parent"]
    pattern: str

    @property
    def is_glob(self) -> bool:
        """Whether the pattern has a wildcard, and so may fit more than one name."""
        return bool({*"*?"} & {*self.pattern})


def globs_of(regex: str) -> list[str]:
    """Return the patterns of the language that fit what a simple regular expression does; none for others."""
    plain = re.sub(r"\\d[+*]?|\\w[+*]?|\.[*+]", "*", regex.strip("^$")).replace("\\.", ".")
    plain = plain if "(" in plain or "|" not in plain else f"({plain})"
    pieces = re.split(r"\((?:\?:)?([^()]*)\)", plain)  # Every second one is a group.
    choices = [piece.split("|") if i % 2 else [piece] for i, piece in enumerate(pieces)]
    globs = ["".join(chosen) for chosen in product(*choices)] if len(pieces) < 6 else []
    return [] if any({*"()[]{}+\\|^$"} & {*glob} for glob in globs) else globs[:8]


class Member(Node):
    """``value in {0, 4..7}``. A negative layer counts from the last one, -1."""

    value: Expression
    among: tuple[Range | Expression, ...]


class Compare(Node):
    """``left op right``. Beside ``layer``, a negative number counts from the last layer, -1."""

    op: Literal["==", "!=", "<", "<=", ">", ">="]
    left: Expression
    right: Expression


class And(Node):
    """Every one of them holds."""

    all_of: tuple[Expression, ...]


class Or(Node):
    """At least one of them holds."""

    any_of: tuple[Expression, ...]


class Not(Node):
    """It does not hold."""

    negated: Expression


def _word(value: Any) -> Any:
    """Let Python code write ``rank="r_local"`` for ``rank=Ref(ref="r_local")``."""
    return Ref(ref=value) if isinstance(value, str) else value


# A type with a name, so that Pydantic makes one schema of it, not one for each field. The two with the same
# fields are told apart by `op`: tried one after the other, a chain of them would take exponential time.
Expression = TypeAliasType(
    "Expression",
    Annotated[
        Number
        | Ref
        | Annotated[Binary | Compare, Field(discriminator="op")]
        | Call
        | Match
        | Member
        | And
        | Or
        | Not
        | If,
        BeforeValidator(_word),
    ],
)
"""Arithmetic and predicates alike: a predicate is a key too (``per layer in 0..15``)."""


class Selection(Node):
    """Sites: those that fit any of ``include`` and none of ``exclude``. One type for ``target``,
    ``where`` and ``let``, in the language and in Python."""

    include: tuple[Expression, ...]
    exclude: tuple[Expression, ...] = ()


Condition = Expression | Selection
"""What is true of a site or not."""
