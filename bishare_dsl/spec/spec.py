"""The spec: which modules share which low-rank factors, at what rank, fitted how."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal, get_args

from pydantic import BeforeValidator, Field, ValidationError

from bishare_dsl.diagnostics import Loc, Problem, SpecError, nearest, raise_errors
from bishare_dsl.diagnostics.codes import spec as codes
from bishare_dsl.spec.evaluate import EvaluationError, Scope
from bishare_dsl.spec.expression import Expression, Node, Number, Range, Ref, Selection

Singular = Literal["svd", "svd_bottom", "svd_vectors", "svd_vectors_bottom", "svd_scaled"]
"""Starts that are read from the base's weights."""

SINGULAR: frozenset[str] = frozenset(get_args(Singular))

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
    Singular,
]
"""How a tensor starts; `bishare_dsl.adapter.initial` gives the distributions, and
`bishare_dsl.adapter.singular` what is read from the base. ``constant`` is what a gain starts as, ``choice``
what a transform draws indices by; a spec cannot ask for these by name."""


def _bare(value: Any) -> Any:
    """Leave a word by itself a word: a param above may be called so, or none."""
    return value.ref if isinstance(value, Ref) else value


class Param(Node):
    """``param r_local = 2``: a value that the command line or Python may replace.

    It may be computed from params above it, ``r // 2``; a word that one of them is called is its value.
    """

    name: str
    value: Annotated[Number | str | Expression, BeforeValidator(_bare)]


class Let(Node):
    """``let mlp = gate_proj, up_proj, down_proj``: a name for a selection."""

    name: str
    selection: Selection


class Arm(Node):
    """``q_proj, k_proj: 4`` of a rank match. A value is a word, a number or a range."""

    values: tuple[Range | Expression, ...]
    rank: Expression


class RankMatch(Node):
    """``rank match kind { q_proj, k_proj: 4; else: 2 }``: the first arm that fits gives the rank."""

    subject: Expression
    arms: tuple[Arm, ...]
    otherwise: Expression | None = None


class Via(Node):
    """``via KE(size = 256)``: the transform that fits a pooled factor to a site, and its options."""

    transform: str
    options: dict[str, Expression] = {}


MAGNITUDE = "magnitude"
"""The name of the statement, of the share that it is in a spec, and of that share's transform."""


class Settings(Node):
    """The settings of one share, or the defaults of a spec for all shares.

    ``scale`` defaults to ``alpha / rank`` where ``alpha`` is given, and to 1 where neither is. ``init`` says
    how tensors start, by role: ``init A kaiming_uniform, B zeros``.
    """

    alpha: Expression | None = None
    scale: Expression | None = None
    dropout: Expression | None = None
    init: dict[str, Expression] = {}


def _key(value: Any) -> Any:
    """Let Python code write ``per="layer"``; ``per="model"`` is the key that is the same everywhere."""
    return (() if value == "model" else (value,)) if isinstance(value, str) else value


Key = Annotated[tuple[Expression, ...], BeforeValidator(_key)]
"""Modules with equal values of these share; an empty key has one value, so that all do."""


class Gain(Node):
    """``gain rank init 0.1, out init 0``: learned diagonals of each module, and where they start.

    ``dW = diag(out) B diag(rank) A``, the diagonals of length ``rank`` and ``d_out``.
    """

    rank: Expression | None = None
    out: Expression | None = None


class Share(Settings):
    """One low-rank term: *where* it stands, *per* which key, at what *rank*, *via* which transform.

    One tensor for each distinct value of its key: that of ``keys`` for its role, such as ``B per module``;
    else ``per`` for what the transform pools, while each module has the rest for itself. ``freeze`` names
    tensors that keep their start, by role: ``A``, ``B``, or one of the transform's own. ``nonzero_start``
    is the word that lets a model start different from its base.
    """

    name: str
    per: Key | None = None
    keys: dict[str, Key] = {}
    rank: RankMatch | Expression
    where: Selection | None = None
    via: Via | None = None
    freeze: tuple[str, ...] = ()
    gain: Gain = Field(default_factory=Gain)
    nonzero_start: bool = False

    def key(self, role: str) -> Key:
        """Return the key by which the tensors of a role are pooled, where they are."""
        return self.keys.get(role, self.per or ())

    @property
    def is_magnitude(self) -> bool:
        """Whether it is the statement `magnitude`, which scales what a site gives."""
        return self.via is not None and self.via.transform == MAGNITUDE

    @property
    def placed_keys(self) -> dict[Loc, Key]:
        """Its keys, by their places in it."""
        keys: dict[Loc, Key] = {("keys", role): key for role, key in self.keys.items()}
        return keys if self.per is None else {("per",): self.per} | keys


def magnitude(
    per: Any,
    where: Selection | None = None,
    *,
    plain: bool = False,
    init: Mapping[str, Expression] | None = None,
    nonzero_start: bool = False,
) -> Share:
    """Make the statement ``magnitude per ...``, as one of a spec's `shares`.

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
    """A whole `.share` file. Pure data: it knows no text, no model and no tensor.

    ``train`` selects parameters of the base that are trained in full: norms, biases, heads, embeddings. It
    may stand by itself; with shares there is a ``target``.
    """

    name: str
    params: tuple[Param, ...] = ()
    lets: tuple[Let, ...] = ()
    target: Selection | None = None
    train: Selection | None = None
    defaults: Settings = Field(default_factory=Settings)
    shares: tuple[Share, ...] = ()

    @property
    def values(self) -> dict[str, int | float | str]:
        """The values of its params, by name."""
        return param_values(self)[0]

    def with_params(self, values: Mapping[str, int | float | str]) -> Spec:
        """Return the spec with other values for its params.

        Raises:
            SpecError: BS207 for a name that no param has, BS211 for neither a finite number nor a word.
        """
        known = [param.name for param in self.params]
        problems = [
            codes.UNKNOWN_PARAM_SET(
                name=name,
                spec=self.name,
                help=nearest(name, known)
                or f"declare it, `param {name} = 8` below `spec`, and use its name in place of a number",
            )
            for name in values
            if name not in known
        ]
        params: list[Param] = []
        for i, param in enumerate(self.params):
            value = values.get(param.name, param.value)
            try:
                params.append(Param(name=param.name, value=value))
            except ValidationError:
                what, why = f"param `{param.name}`", "it is a finite number or a word"
                loc = ("params", i, "value")
                help = f"such as `{param.name}={param.value}`"
                problems.append(
                    codes.BAD_NUMBER(what=what, value=value, why=why, loc=loc, help=help)
                )
        raise_errors(SpecError, problems)
        return self.model_copy(update={"params": tuple(params)})

    def settings(self, share: Share) -> Settings:
        """Return the settings of a share: its own, else the defaults of the spec, which are for terms."""
        if share.is_magnitude:
            return Settings(init=share.init)
        own = {name: getattr(share, name) for name in Settings.model_fields}
        own["init"] = self.defaults.init | share.init
        said = {name: value for name, value in own.items() if value is not None}
        return self.defaults.model_copy(update=said)


def param_values(spec: Spec) -> tuple[dict[str, int | float | str], list[Problem]]:
    """Work out what the params of a spec are worth, by name, and what is wrong with them.

    One that cannot be worked out is 1, so that nothing else is wrong for its sake.
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
