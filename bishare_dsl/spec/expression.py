"""Expressions: ranks, scales, options, keys and predicates.

A `Ref` is a bare name, whose meaning depends on its context: a param, an attribute of a site, a `let`, a
kind, or a plain word such as ``centre``.
"""

from __future__ import annotations

import re
from itertools import islice, product
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
"""Attributes of every site. ``module`` is the path, under a name that reads well after ``per``; ``layers`` is
the number of blocks of the tower; ``expert`` is the word `none` outside of experts; ``adapter`` distinguishes
the adapters of a library, and is `EACH_ADAPTER` in a plan."""

EACH_ADAPTER = "each adapter"
"""The value of ``adapter``: a plan describes one adapter, whichever of a library it is."""


Number = StrictInt | Annotated[StrictFloat, AllowInfNan(False)]
"""A finite number."""


class Node(BaseModel):
    """An immutable part of a spec that rejects unknown keys."""

    model_config = ConfigDict(frozen=True, extra="forbid", defer_build=True)


class Ref(Node):
    """A bare name."""

    ref: str


class Binary(Node):
    """Arithmetic: ``left op right``, with ``//``, ``%`` and ``**`` as in Python."""

    op: Literal["+", "-", "*", "/", "//", "%", "**"]
    left: Expression
    right: Expression


Function = Literal["abs", "floor", "largest", "max", "min", "sqrt"]
FUNCTIONS: tuple[Function, ...] = get_args(Function)
"""Functions of numbers. ``largest`` is the largest value at a module of the share."""

SPARSE: Literal["sparse"] = "sparse"
"""An initial value with an argument, which is written as a call."""


def arity_problem(function: str, count: int) -> str | None:
    """Return the problem with the number of arguments of a function, or None."""
    if function in ("min", "max"):
        return None if count > 1 else "takes two numbers or more"
    return None if count == 1 else "takes one number"


class Call(Node):
    """``sqrt(rank)``, ``min(rank, layers)``: a function of numbers; or the initial value ``sparse(0.1)``."""

    function: Function | Literal["sparse"]
    arguments: tuple[Expression, ...]

    @model_validator(mode="after")
    def _arity(self) -> Call:
        if why := arity_problem(self.function, len(self.arguments)):
            raise ValueError(f"`{self.function}` {why}")
        return self


class Range(Node):
    """The whole numbers from ``first`` to ``last``, both included: ``0..15``. An end may be missing: ``..7``,
    ``24..``."""

    first: Expression | None = None
    last: Expression | None = None


class If(Node):
    """``then if condition else otherwise``."""

    then: Expression
    condition: Expression
    otherwise: Expression


class Arm(Node):
    """``q_proj, k_proj: 4`` in a match. A value is a word, a number or a range."""

    values: tuple[Range | Expression, ...]
    result: Expression


class Cases(Node):
    """``match kind { q_proj, k_proj: 4; else: 2 }``: the first arm with a matching value decides.

    Only a rank may lack an ``else``.
    """

    subject: Expression
    arms: tuple[Arm, ...]
    otherwise: Expression | None = None


class Match(Node):
    """A text attribute that matches a glob: ``path "model.layers.*.mlp.*"``, ``parent mlp``.

    ``*`` matches any characters, including dots; ``?`` matches one.
    """

    attribute: Literal["path", "kind", "parent"]
    pattern: str

    @property
    def is_glob(self) -> bool:
        """Return whether the pattern has a wildcard."""
        return bool({*"*?"} & {*self.pattern})


def globs_of(regex: str) -> list[str]:
    """Translate a simple regular expression to globs. Return an empty list for others."""
    plain = re.sub(r"\\d[+*]?|\\w[+*]?|\.[*+]", "*", regex.strip("^$")).replace("\\.", ".")
    plain = plain if "(" in plain or "|" not in plain else f"({plain})"
    pieces = re.split(r"\((?:\?:)?([^()]*)\)", plain)  # Every second piece is a group.
    choices = [piece.split("|") if i % 2 else [piece] for i, piece in enumerate(pieces)]
    chosen = product(*choices) if len(pieces) < 6 else ()
    globs = ["".join(one) for one in islice(chosen, 8)]
    return [] if any({*"()[]{}+\\|^$"} & {*glob} for glob in globs) else globs


class Member(Node):
    """``value in {0, 4..7}``. A negative layer counts from the last one, -1."""

    value: Expression
    among: tuple[Range | Expression, ...]


class Compare(Node):
    """``left op right``. Compared with ``layer``, a negative number counts from the last layer, -1."""

    op: Literal["==", "!=", "<", "<=", ">", ">="]
    left: Expression
    right: Expression


class And(Node):
    """All parts are true."""

    all_of: tuple[Expression, ...]


class Or(Node):
    """At least one part is true."""

    any_of: tuple[Expression, ...]


class Not(Node):
    """The part is false."""

    negated: Expression


def _word(value: Any) -> Any:
    """Allow ``rank="r_local"`` in Python for ``rank=Ref(ref="r_local")``."""
    return Ref(ref=value) if isinstance(value, str) else value


# A named type, so that Pydantic builds one schema instead of one per field. `op` discriminates the two
# classes with the same fields: trying both would take exponential time for a chain.
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
        | If
        | Cases,
        BeforeValidator(_word),
    ],
)
"""Arithmetic or a predicate. A predicate can be a key, too (``per layer in 0..15``)."""


class Selection(Node):
    """Sites that match any of ``include`` and none of ``exclude``: a ``target``, ``where`` or ``let``."""

    include: tuple[Expression, ...]
    exclude: tuple[Expression, ...] = ()


def has_value(part: Expression) -> bool:
    """Return whether an expression is a value that differs between modules, and not a condition."""
    match part:
        case Cases() | Call():
            return True
        case Binary():
            return not joined_names(part)
        case If(then=then, otherwise=otherwise):
            return any(isinstance(x, int | float) or has_value(x) for x in (then, otherwise))
        case _:
            return False


def joined_names(part: Expression) -> list[str]:
    """Return the names of a list that was parsed as arithmetic, such as ``q_proj + v_proj``, if it is one."""
    match part:
        case Ref(ref=name):
            return [name]
        case Binary(left=left, right=right):
            after = joined_names(right)
            before = joined_names(left)
            if after and (before or left == 0):
                return [*before, *after]
    return []


Condition = Expression | Selection
"""A condition that is true or false for a site."""
