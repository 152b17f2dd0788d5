"""The spec: which modules share which low-rank factors, at which rank, through which transform."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal, get_args

from pydantic import BeforeValidator, Field, ValidationError

from bishare_dsl.diagnostics import Loc, Problem, SpecError, raise_errors
from bishare_dsl.diagnostics.codes import spec as codes
from bishare_dsl.spec.evaluate import EvaluationError, Scope
from bishare_dsl.spec.expression import Expression, Node, Number, Ref, Selection, has_value
from bishare_dsl.spec.facts import UnknownName

Singular = Literal["svd", "svd_bottom", "svd_vectors", "svd_vectors_bottom", "svd_scaled"]
"""Initial values that are computed from the base's weights."""

SINGULAR: frozenset[str] = frozenset(get_args(Singular))

Structured = Literal["orthogonal", "cosine", "hadamard", "sparse"]
"""Initial values with a structure, of which `bishare_dsl.initial.structured` has the equations."""

STRUCTURED: tuple[Structured, ...] = get_args(Structured)

Initial = Literal[
    "zeros",
    "ones",
    "normal",
    "uniform",
    "positive",
    "kaiming_uniform",
    "kaiming_normal",
    "constant",
    "choice",
    Structured,
    Singular,
]
"""Initial values of a tensor. `bishare_dsl.initial.values` has the distributions, and
`bishare_dsl.initial.singular` computes from the base. ``constant`` is for gains and ``choice`` for
indices; a spec cannot name these two."""


def _bare(value: Any) -> Any:
    """Keep a single word as a word, whether or not a param has its name."""
    return value.ref if isinstance(value, Ref) else value


Params = Mapping[str, int | float | str]
"""Values for params, by name."""


class Param(Node):
    """``param r_local = 2``: a value that the command line or Python can replace.

    It can be computed from params above it, ``r // 2``. A word with the name of such a param is that
    param's value.
    """

    name: str
    value: Annotated[Number | str | Expression, BeforeValidator(_bare)]


class Let(Node):
    """``let mlp = gate_proj, up_proj, down_proj``: a name for a selection.

    A selection of one expression with a value, such as a ``match`` or ``layer // 8``, names that value.
    """

    name: str
    selection: Selection

    @property
    def value(self) -> Expression | None:
        """The expression whose value it names; None if it selects modules."""
        if len(self.selection.include) != 1 or self.selection.exclude:
            return None
        (part,) = self.selection.include
        return part if has_value(part) else None


class Gate(Node):
    """``gate softmax``, ``gate top 2 of A x``: coefficients of a step that depend on the token.

    ``top`` is the number of matrices that a token uses, None for all. ``of`` is the input of the router.
    """

    top: Expression | None = None
    of: Literal["x", "A x"] = "x"


class Step(Node):
    """``Core(count = 4) gate softmax as name``: a transform with its options and its gate.

    The ``name`` is that of its private tensors.
    """

    transform: str
    options: dict[str, Expression] = {}
    gate: Gate | None = None
    name: str | None = None


class Via(Step):
    """``via KE(size = 256) then Core``: the transform that fits a pooled factor to a site, and later steps.

    Steps that make factors stand at A and at B, and the others between them.
    """

    then: tuple[Step, ...] = ()

    @property
    def placed_steps(self) -> dict[Loc, Step]:
        """The steps by their locations, relative to this."""
        steps: dict[Loc, Step] = {(): self}
        for i, step in enumerate(self.then):
            steps["then", i] = step
        return steps


class Places(Node):
    """``via A KE then Loadings, B SS, between Core``: a chain of steps for each place."""

    A: tuple[Step, ...] = ()
    B: tuple[Step, ...] = ()
    between: tuple[Step, ...] = ()

    @property
    def chains(self) -> dict[str, tuple[Step, ...]]:
        """The steps of each place."""
        return {"A": self.A, "B": self.B, "between": self.between}

    @property
    def placed_steps(self) -> dict[Loc, Step]:
        """The steps by their locations, relative to this."""
        steps: dict[Loc, Step] = {}
        for place, chain in self.chains.items():
            for i, step in enumerate(chain):
                steps[place, i] = step
        return steps


MAGNITUDE = "magnitude"
"""The name of the statement, of the share that it is in a spec, and of that share's transform."""


class Settings(Node):
    """The settings of one share, or the defaults of a spec for all shares.

    ``scale`` defaults to ``alpha / rank``, or to 1 without an ``alpha``. ``init`` maps roles to initial
    values: ``init A kaiming_uniform, B zeros``.
    """

    alpha: Expression | None = None
    scale: Expression | None = None
    dropout: Expression | None = None
    init: dict[str, Expression] = {}


def _key(value: Any) -> Any:
    """Allow ``per="layer"`` in Python. ``per="model"`` is the key with one value."""
    return (() if value == "model" else (value,)) if isinstance(value, str) else value


Key = Annotated[tuple[Expression, ...], BeforeValidator(_key)]
"""Modules with equal values share. An empty key has one value, so all modules share."""


class Reference(Node):
    """``B per layer is read.A``: the tensor of another pool, with a key's value, instead of one of the share.

    Without a ``share`` it is a tensor of the same share. The ``key`` defaults to the key of that pool.
    """

    role: str
    share: str | None = None
    key: Key | None = None


class Gain(Node):
    """``gain rank init 0.1, out init 0``: learned diagonals of each module, with their initial values.

    ``dW = diag(out) B diag(rank) A``, with diagonals of length ``rank`` and ``d_out``.
    """

    rank: Expression | None = None
    out: Expression | None = None


class Share(Settings):
    """One low-rank term: *where* it applies, *per* which key, at which *rank*, *via* which transform.

    There is one tensor for each distinct value of its key: the key in ``keys`` for its role, such as
    ``B per module``, or else ``per`` for tensors that the transform pools. All other tensors are private to a
    module. ``freeze`` lists the roles of tensors that keep their initial values. ``nonzero_start``
    allows a model to start different from its base. ``references`` maps roles to tensors of other pools.
    """

    name: str
    per: Key | None = None
    keys: dict[str, Key] = {}
    rank: Expression
    where: Selection | None = None
    references: dict[str, Reference] = {}
    via: Via | Places | None = None
    freeze: tuple[str, ...] = ()
    gain: Gain = Field(default_factory=Gain.model_construct)
    nonzero_start: bool = False

    def key(self, role: str) -> Key:
        """Return the key that groups the tensors of a role, if they are pooled."""
        return self.keys.get(role, self.per or ())

    @property
    def is_magnitude(self) -> bool:
        """Whether it is a `magnitude` statement, which scales a site's output."""
        return isinstance(self.via, Via) and self.via.transform == MAGNITUDE

    @property
    def steps(self) -> dict[Loc, Step]:
        """The steps of ``via`` by their locations in the share."""
        if self.via is None:
            return {}
        return {("via", *loc): step for loc, step in self.via.placed_steps.items()}

    @property
    def placed_keys(self) -> dict[Loc, Key]:
        """The keys of the share, by their locations in it."""
        keys: dict[Loc, Key] = {("keys", role): key for role, key in self.keys.items()}
        for role, reference in self.references.items():
            if reference.key is not None:
                keys["references", role, "key"] = reference.key
        return keys if self.per is None else {("per",): self.per} | keys


def magnitude(
    per: Any,
    where: Selection | None = None,
    *,
    plain: bool = False,
    init: Mapping[str, Expression] | None = None,
    nonzero_start: bool = False,
) -> Share:
    """Create the statement ``magnitude per ...`` as a member of a spec's `shares`.

    Args:
        per: the key, as that of a `Share`.
        where: the targets whose output is scaled; None for all.
        plain: whether to leave the norms out: then the scale is ``1 + mu``.
        init: how the tensor ``mu`` starts, such as ``{"mu": Ref(ref="normal")}``.
        nonzero_start: whether the model may start different from its base.
    """
    options: dict[str, Expression] = {"plain": 1} if plain else {}
    via = Via(transform=MAGNITUDE, options=options)
    fields = {"per": per, "where": where, "init": init or {}, "nonzero_start": nonzero_start}
    return Share(name=MAGNITUDE, rank=1, via=via, **fields)


class Spec(Node):
    """A whole `.share` file as data, without text, model or tensors.

    ``train`` selects parameters of the base that are trained in full: norms, biases, heads, embeddings.
    Shares require a ``target``; ``train`` alone does not.
    """

    name: str
    params: tuple[Param, ...] = ()
    lets: tuple[Let, ...] = ()
    target: Selection | None = None
    train: Selection | None = None
    defaults: Settings = Field(default_factory=Settings.model_construct)
    shares: tuple[Share, ...] = ()

    @property
    def values(self) -> dict[str, int | float | str]:
        """The values of the params, by name."""
        return param_values(self)[0]

    def with_params(self, values: Params) -> Spec:
        """Return the spec with other values for its params.

        Raises:
            SpecError: BS207 for an unknown name, BS211 for a value that is neither a finite number nor a
            word.
        """
        names = [param.name for param in self.params]
        problems: list[Problem] = []
        for name in values:
            if name not in names:
                fact = UnknownName(name, "param", frozenset(names))
                problems.append(codes.UNKNOWN_PARAM_SET(name=name, spec=self.name, fact=fact))
        params = [*self.params]
        for i, param in enumerate(self.params):
            if (value := values.get(param.name, param.value)) is param.value:
                continue
            try:
                params[i] = Param(name=param.name, value=value)
            except ValidationError:
                problem = codes.BAD_NUMBER(
                    what=f"param `{param.name}`",
                    value=value,
                    why="it is a finite number or a word",
                    loc=("params", i, "value"),
                )
                problems.append(problem)
        raise_errors(SpecError, problems)
        return self.model_copy(update={"params": tuple(params)})

    def settings(self, share: Share) -> Settings:
        """Return the settings of a share, completed by the spec's defaults for terms."""
        if share.is_magnitude:
            return Settings(init=share.init)
        own = {name: getattr(share, name) for name in Settings.model_fields}
        own["init"] = self.defaults.init | share.init
        return self.defaults.model_copy(update={n: v for n, v in own.items() if v is not None})


def param_values(spec: Spec) -> tuple[dict[str, int | float | str], list[Problem]]:
    """Compute the values of a spec's params by name, and their problems.

    A param without a value gets 1, so that it causes no further problems.
    """
    values: dict[str, int | float | str] = {}
    problems: list[Problem] = []
    for i, param in enumerate(spec.params):
        value = param.value
        if isinstance(value, str):
            values[param.name] = values.get(value, value)
            continue
        try:
            values[param.name] = Scope(values).number(value, ("params", i, "value"))
        except EvaluationError as error:
            values[param.name] = 1
            problems.append(error.problem)
    return values, problems
