"""``sharing``: the plan in a folder, for readers without the spec; specified in `docs/format.md`.

bishare writes it to every folder, and compares it with the plan of the spec on loading. For a folder of
another program, which has no spec, it defines the plan.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from contextlib import suppress
from functools import lru_cache
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, FiniteFloat, PositiveInt, model_validator

from bishare_dsl.adapter.config import (
    FORMAT,
    PEFT_TYPE,
    RECORD,
    AdapterConfig,
    DrawnTensor,
    SignFingerprint,
    attribute_in,
    key_of,
    part_name,
    text_in,
    text_of,
)
from bishare_dsl.adapter.counter import distribution
from bishare_dsl.diagnostics import SpecError
from bishare_dsl.models.parts import parts
from bishare_dsl.models.site import MAX_SITES, Architecture, Parameter, Site
from bishare_dsl.plan import Plan, Tensor
from bishare_dsl.plan.bits import BITS
from bishare_dsl.plan.names import attribute, owner
from bishare_dsl.plan.plan import Pool, Term, Trained
from bishare_dsl.reading import parse_json
from bishare_dsl.spec.spec import MAGNITUDE, SINGULAR
from bishare_dsl.transforms import GAIN_OUT, GAIN_RANK, Transform, Width, check_term, load_transform
from bishare_dsl.transforms.registry import transform_names

FEATURES = (*BITS, "base", "drawn", "experts", "full", "library", "parts", "tied", "torch")
"""Values of ``needs`` other than transforms."""

UNNAMED = "its base"
"""The name of a base in messages, if the folder has none."""


# Writing ------------------------------------------------------------------------------------------------


def sharing_of(plan: Plan, config: AdapterConfig) -> str:
    """Return a plan as JSON text, with all defaults of the spec resolved."""
    listed = [tensor for tensor in plan.tensors if tensor.name not in config.of_base]
    place = {tensor.name: i for i, tensor in enumerate(listed)}
    entries = [_entry(plan, config, tensor) for tensor in listed]
    terms: dict[str, int] = {}
    modules, needs = [], set[str]()
    options: dict[tuple[str, int], dict[str, Any]] = {}
    for site in (site for site in plan.sites if plan.terms_of[site.path]):
        terms_here = []
        for term in plan.terms_of[site.path]:
            kind = (term.share, term.rank)  # With equal options.
            options[kind] = options.get(kind) or _options(term)
            text = text_of(
                {
                    "transform": term.transform,
                    "options": options[kind],
                    "rank": term.rank,
                    "scale": term.scale,
                    "roles": [*term.tensors],
                }
            )
            terms_here.append(
                [terms.setdefault(text, len(terms)), *map(place.get, term.tensors.values())]
            )
            needs.add(term.transform)
        module: dict[str, Any] = {"module": site.path, "shape": [site.d_out, site.d_in]}
        if all(term.linear for term in plan.terms_of[site.path]):
            module["rank"] = plan.rows(site.path)
        if site.tied:
            module["tied"] = [*site.tied]
        if site.expert is not None:
            module["expert"] = site.expert
        modules.append(module | {"terms": terms_here})
        needs |= {word for word, key in (("tied", "tied"), ("experts", "expert")) if key in module}
    full = [_full(t) | {"tensor": place[t.tensor]} for t in plan.trained if t.tensor in place]
    ways = (("draw", "drawn"), *((key, key) for key in ("base", "parts", *BITS)))
    needs |= {word for key, word in ways if any(key in entry for entry in entries)}
    needs |= {"torch"} if any("torch" in entry.get("draw", {}) for entry in entries) else set()
    needs |= {"full"} if full else set()
    needs |= {"tied"} if any("tied" in parameter for parameter in full) else set()
    needs |= {"library"} if config.adapters else set()
    stated = {"format": FORMAT, "needs": sorted(needs), "tensors": entries}
    stated |= {"terms": [json.loads(text) for text in terms], "modules": modules, "full": full}
    return text_of(stated)


def _entry(plan: Plan, config: AdapterConfig, tensor: Tensor) -> dict[str, Any]:
    entry: dict[str, Any] = {"shape": [*tensor.shape]}
    if (drawn := config.drawn.get(tensor.name)) is not None:
        how = distribution(tensor)
        return (
            entry
            | {
                "draw": {"torch": how} if drawn.generator == "torch" else how,
                "text": f"{config.seed}:{tensor.like or tensor.name}",
                "dtype": drawn.dtype,
            }
            | ({"sha256": drawn.sha256} if drawn.sha256 else {})
        )
    if (labels := config.compact.get(tensor.name)) is not None:
        keys = {p: key_of(plan, part_name(tensor.name, p)) for p in labels}
        return entry | (keys if "scales" in keys else {"parts": keys})
    if (marks := config.marks.get(tensor.name)) is not None:
        return entry | {"base": {tensor.init: tensor.amount}} | marks.model_dump(mode="json")
    return entry | {"key": key_of(plan, tensor.name)}


def _options(term: Term) -> dict[str, Any]:
    return load_transform(term.transform, term.options).model_dump(mode="json", by_alias=True)


def _full(trained: Trained) -> dict[str, Any]:
    tied = {"tied": [*trained.tied]} if trained.tied else {}
    return {"parameter": trained.parameter, "shape": [*trained.shape]} | tied


# Reading ------------------------------------------------------------------------------------------------


class _Closed(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


_DRAWS = ("constant", "uniform", "normal", "choice")
_Start = dict[
    Literal["svd", "svd_bottom", "svd_vectors", "svd_vectors_bottom", "svd_scaled"], float
]
_One = Field(min_length=1, max_length=1)
_Side = Annotated[int, Field(gt=0, lt=2**30)]


class Entry(_Closed):
    """A tensor: stored, in parts, quantised, random, or computed from the base's weights."""

    shape: tuple[_Side, _Side]
    key: str | None = None
    draw: Annotated[dict[str, Any], _One] | None = None
    text: str = ""
    dtype: Literal["float64", "float32", "bfloat16", "float16"] | None = None
    sha256: Annotated[str, Field(pattern="^([0-9a-f]{8,64})?$")] = ""
    base: Annotated[_Start, _One] | None = None
    signs: str = ""
    sums: tuple[FiniteFloat, FiniteFloat] = (0.0, 0.0)
    parts: dict[str, str] | None = None
    int8: str | None = None
    int4: str | None = None
    scales: str | None = None

    @property
    def keys(self) -> dict[str, str]:
        """The keys of its parts, by their labels; empty if it has none."""
        labels = ("int8", "int4", "scales")
        return self.parts or {n: key for n in labels if (key := getattr(self, n)) is not None}

    @model_validator(mode="after")
    def _one_way(self) -> Entry:
        ways = (self.key, self.draw, self.base, self.parts, self.int8, self.int4)
        if sum(way is not None for way in ways) != 1:
            raise ValueError(
                "a tensor has one of `key`, `draw`, `base`, `parts`, `int8` and `int4`"
            )
        if (self.int8 is None and self.int4 is None) != (self.scales is None):
            raise ValueError("a quantised tensor has `scales`")
        if self.draw is not None and (self.dtype is None or ":" not in self.text):
            raise ValueError("a drawn tensor has `dtype` and `text`, which is SEED:NAME")
        for kind, amount in _plain_draw(self.draw or {}):
            numbers = amount if kind == "uniform" and isinstance(amount, list) else [amount]
            kinds, most = ((int,), 256**2) if kind == "choice" else ((int, float), 3e38)
            if (
                kind not in _DRAWS
                or len(numbers) != 1 + (kind == "uniform")
                or any(type(n) not in kinds or not abs(n) <= most for n in numbers)
                or (kind == "choice" and amount < self.shape[0])
            ):
                raise ValueError(f"a draw cannot be {kind} {amount}")
        return self


def _plain_draw(draw: Mapping[str, Any]) -> list[tuple[str, Any]]:
    """Return the parameters of a random tensor, in a form common to all generators."""
    inner = draw.get("torch", draw)
    if not isinstance(inner, dict) or "torch" in inner:
        raise ValueError("`torch` has a draw")
    return [*inner.items()]


class Shape(_Closed):
    """A term without its tensors, which `Module` lists in the order of ``roles``."""

    transform: str
    options: dict[str, Any]
    rank: PositiveInt
    scale: FiniteFloat
    roles: tuple[str, ...]


class Module(_Closed):
    """The terms at a linear map, each with the index of its `Shape` and of its tensors."""

    module: str
    shape: tuple[_Side, _Side]
    rank: int | None = None
    tied: tuple[str, ...] = ()
    expert: int | None = None
    terms: tuple[tuple[Annotated[int, Field(ge=0)], ...], ...]


class Full(_Closed):
    """A parameter trained in full."""

    parameter: str
    shape: tuple[PositiveInt, ...]
    tied: tuple[str, ...] = ()
    tensor: Annotated[int, Field(ge=0)]


class Sharing(_Closed):
    """The contents of ``sharing``."""

    format: Literal[2]
    needs: tuple[str, ...]
    tensors: Annotated[tuple[Entry, ...], Field(max_length=4 * MAX_SITES)]
    terms: tuple[Shape, ...]
    modules: Annotated[tuple[Module, ...], Field(max_length=MAX_SITES)]
    full: tuple[Full, ...] = ()


@lru_cache(maxsize=16)
def read_sharing(text: str, seed: int = 0) -> Sharing:
    """Parse and check a folder's ``sharing``; cached, because many adapters may have the same text.

    Args:
        text: in format 2 or 1.
        seed: from the config; format 1 uses it for random tensors.

    Raises:
        ValueError: it does not conform to the page.
    """
    stated = parse_json(text)
    if isinstance(stated, dict) and stated.get("format") == 1:
        stated = _of_format_1(stated, seed)
    return Sharing.model_validate_json(text_of(stated), strict=True)


def _of_format_1(stated: Mapping[str, Any], seed: int) -> dict[str, Any]:
    """Convert format 1 to format 2; format 1 lists terms in each module, and names tensors."""
    try:
        names = {name: i for i, name in enumerate(stated["tensors"])}
        entries = []
        for name, entry in stated["tensors"].items():
            fields = {key: value for key, value in entry.items() if key != "like"}
            entries.append(
                fields | ({"text": f"{seed}:{entry.get('like', name)}"} if "draw" in entry else {})
            )
        terms: list[dict[str, Any]] = []
        modules = []
        for module in stated["modules"]:
            terms_here = []
            for term in module["terms"]:
                tensors = term["tensors"]
                shape = {k: v for k, v in term.items() if k != "tensors"} | {"roles": [*tensors]}
                if shape not in terms:
                    terms.append(shape)
                terms_here.append([terms.index(shape), *(names[name] for name in tensors.values())])
            modules.append(module | {"terms": terms_here})
        full = [parameter | {"tensor": names[parameter["tensor"]]} for parameter in stated["full"]]
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"`sharing` lacks or has what it should not: {error!r}") from error
    return {"format": 2, "needs": [], "tensors": entries, "terms": terms} | {
        "modules": modules,
        "full": full,
    }


def contents_of(plan: Plan, sharing: Sharing, by_entry: int | None = None) -> dict[str, Any]:
    """Return the plan's tensors that are random, recomputed, in parts or the base's, for `AdapterConfig`.

    `sharing` lists the tensors in the order of the plan.

    Args:
        plan: of the spec, or of `sharing`.
        sharing: of the folder.
        by_entry: the seed, if `sharing` defines the plan: random tensors that the plan cannot express are
            then stored.

    Raises:
        ValueError: the numbers of tensors differ.
    """
    listed = {full.parameter for full in sharing.full}
    of_base = tuple(t.tensor for t in plan.trained if t.parameter not in listed)
    names = [tensor.name for tensor in plan.tensors if tensor.name not in of_base]
    if len(names) != len(sharing.tensors):
        raise ValueError("`sharing` has not the tensors that its spec gives")
    drawn: dict[str, DrawnTensor] = {}
    marks: dict[str, SignFingerprint] = {}
    compact: dict[str, tuple[str, ...]] = {}
    for name, entry in zip(names, sharing.tensors, strict=True):
        if entry.draw is not None:
            if by_entry is not None and not is_drawn_by_plan(entry, name, by_entry):
                continue
            assert entry.dtype is not None
            generator: Literal["torch", "philox"] = "torch" if "torch" in entry.draw else "philox"
            drawn[name] = DrawnTensor(dtype=entry.dtype, generator=generator, sha256=entry.sha256)
        elif entry.base is not None:
            marks[name] = SignFingerprint(signs=entry.signs, sums=entry.sums)
        elif entry.keys:
            compact[name] = tuple(entry.keys)
    return {"drawn": drawn, "marks": marks, "compact": compact, "of_base": of_base}


# Plans of folders without a spec ------------------------------------------------------------------------


def names_in(sharing: Sharing) -> list[str]:
    """Create tensor names for a plan from a folder's keys, since such a folder has no names."""
    taken, names = set[str](), []
    for i, entry in enumerate(sharing.tensors):
        if entry.draw is not None:
            source = entry.text.partition(":")[2]
        else:
            key = entry.key or next(iter(entry.keys.values()), f"tensor.{i}")
            source = attribute_in(key).partition(":")[0].replace("__", ".")
        name = re.sub(r"[^\w.]+", "_", source).strip(".") or "tensor"
        name = name if "." in name else f"tensor.{name}"
        while attribute(name) in taken:
            name += "_"
        taken.add(attribute(name))
        names.append(name)
    return names


def is_drawn_by_plan(entry: Entry, name: str, seed: int) -> bool:
    """Tell whether a plan can express how a tensor is generated; if not, its values are stored."""
    return entry.draw is not None and entry.text == f"{seed}:{name}" and _start(entry) is not None


def config_of_others(fields: Mapping[str, Any]) -> AdapterConfig:
    """Return the config of a folder written by another program, following `docs/format.md`.

    Raises:
        ValueError: it does not conform to the page.
    """
    record = fields[RECORD]
    if fields.get("peft_type") != PEFT_TYPE:
        raise ValueError(f"its `peft_type` is not {PEFT_TYPE}")
    seed = fields.get("seed", 0)
    text = text_in(record["sharing"])
    if type(seed) is not int:
        raise ValueError(f"`seed` is {seed!r}")
    name = fields.get("base_model_name_or_path")
    sharing = read_sharing(text, seed)
    texts = [entry.text.partition(":")[0] for entry in sharing.tensors if entry.draw is not None]
    with suppress(ValueError):
        seed = int(texts[0]) if texts and str(int(texts[0])) == texts[0] else seed
    members = record.get("adapters")
    return AdapterConfig(
        versions={},
        spec="",
        seed=seed,
        base_model=name if isinstance(name, str) else None,
        base=base_of(sharing, name if isinstance(name, str) and name else UNNAMED),
        plan="",
        rounded="bfloat16",  # Loading converts them to float32, in which bishare trains.
        adapters=dict.fromkeys(members, "") if isinstance(members, dict) else None,
        sharing=sharing.model_dump(mode="json", exclude_defaults=True),  # type: ignore[arg-type]
    )


def base_of(sharing: Sharing, name: str) -> Architecture:
    """Return a folder's description of its base: the modules and parameters it names.

    Raises:
        ValueError: an expert is not at the position that its path implies.
    """
    sites = []
    for module in sharing.modules:
        d_out, d_in = module.shape
        site = Site.outside(module.module, d_in, d_out, module.tied)
        if site.expert != module.expert:
            raise ValueError(f"`{site.path}` is not a path of expert {module.expert}")
        sites.append(site)
    others = [Parameter(path=f.parameter, shape=f.shape, tied=f.tied) for f in sharing.full]
    layers = [site.layer for site in sites if site.layer is not None]
    return Architecture(
        name=name,
        family="",
        layers=max(layers, default=-1) + 1,
        parameters=sum(site.d_in * site.d_out for site in sites) + sum(o.size for o in others) or 1,
        sites=tuple(site for site in sites if site.layer is not None),
        outside=tuple(site for site in sites if site.layer is None),
        others=tuple(others),
        complete=False,
    )


def plan_of(sharing: Sharing, base: Architecture, seed: int) -> Plan:
    """Build the plan of a folder without a spec. Stored tensors are trainable, random tensors are frozen.

    Raises:
        BishareError: a transform fails.
        ValueError: `sharing` names missing or inconsistent tensors.
    """
    names, users = names_in(sharing), dict[int, list[str]]()
    _check_needs(sharing)
    terms: list[Term] = []
    for module in sharing.modules:
        d_out, d_in = module.shape
        terms_here: list[Term] = []
        for first, *tensors in module.terms:
            shape = _at(sharing.terms, first)
            transform = _transform(shape)
            if len(tensors) != len(shape.roles) or {*shape.roles} != {
                *transform.roles,
                *({*shape.roles} & {GAIN_RANK, GAIN_OUT}),
            }:
                raise ValueError(f"the roles of {shape.transform} at `{module.module}` are others")
            if transform.name == MAGNITUDE and not _may_scale(shape, module, terms_here):
                raise ValueError(f"`{module.module}` cannot have such a magnitude")
            shapes = {
                r: _at(sharing.tensors, t).shape for r, t in zip(shape.roles, tensors, strict=True)
            }
            _check_shapes(transform, shape.rank, Width(d_in, d_out), shapes, module.module)
            for tensor in tensors:
                users.setdefault(tensor, []).append(module.module)
            terms_here.append(
                Term(
                    share=f"term_{first}",
                    site=module.module,
                    transform=shape.transform,
                    options=transform.options(),
                    rank=shape.rank,
                    rows=transform.rows(shape.rank, Width(d_in, d_out)) if transform.linear else 0,
                    scale=shape.scale,
                    dropout=0.0,
                    linear=transform.linear,
                    tensors={r: names[t] for r, t in zip(shape.roles, tensors, strict=True)},
                )
            )
        rank = sum(term.rows for term in terms_here)
        if module.rank not in (None, rank):
            raise ValueError(f"`{module.module}` has rank {rank}, and not {module.rank}")
        terms += terms_here
    trained = []
    for full in sharing.full:
        _at(sharing.tensors, full.tensor)
        users.setdefault(full.tensor, []).append(full.parameter)
        fields = full.model_dump() | {"tensor": names[full.tensor]}
        trained.append(Trained.model_validate(fields))
    in_full = {parameter.tensor for parameter in trained}
    return Plan(
        spec="sharing",
        params={},
        base=base,
        sites=base.every_site,
        tensors=tuple(
            _tensor(entry, name, users.get(i, []), name in in_full, seed)
            for i, (entry, name) in enumerate(zip(sharing.tensors, names, strict=True))
        ),
        pools=tuple(_pools(terms)),
        terms=tuple(terms),
        trained=tuple(trained),
    )


def _may_scale(shape: Shape, module: Module, before: list[Term]) -> bool:
    """Tell whether a magnitude can stand behind some terms of a module."""
    d_out, d_in = module.shape
    return (
        shape.roles == ("mu",)
        and shape.rank == shape.scale == 1
        and len(before) == len(module.terms) - 1
        and (bool(shape.options["plain"]) or all(term.linear for term in before))
        and module.expert is None
        and "embeddings" not in parts(Site.outside(module.module, d_in, d_out, module.tied))
    )


def _check_needs(sharing: Sharing) -> None:
    known = {*transform_names(), *FEATURES, MAGNITUDE}
    if unknown := next((word for word in sharing.needs if word not in known), None):
        raise ValueError(f"it needs `{unknown}`, which this version of bishare does not know")


def _transform(shape: Shape) -> Transform:
    try:
        transform = load_transform(shape.transform, shape.options)
    except SpecError as error:
        raise ValueError(f"{shape.transform}: {_why(error)}") from error
    stated = transform.model_dump(mode="json", by_alias=True)
    for name, value in stated.items():
        value_given = shape.options.get(name, ...)
        if value_given != value or isinstance(value_given, bool) != isinstance(value, bool):
            what = "missing" if value_given is ... else repr(value_given)
            raise ValueError(f"the option `{name}` of {shape.transform} is {what}")
    return transform


def _check_shapes(
    transform: Transform, rank: int, width: Width, shapes: dict[str, tuple[int, int]], path: str
) -> None:
    if transform.name == MAGNITUDE and shapes["mu"] == (1, width.d_out):
        return  # No factors to check.
    try:
        transform.check_rank(rank)
        check_term(transform, rank, width, shapes)
        rows = transform.rows(rank, width) if transform.linear else 0
        gains = {GAIN_RANK: (1, rows), GAIN_OUT: (1, width.d_out)}
        wrong = [role for role in shapes.keys() & gains.keys() if shapes[role] != gains[role]]
        if wrong and (transform.linear or wrong != [GAIN_RANK]):
            raise ValueError(f"`{wrong[0]}` has the shape {shapes[wrong[0]]}")
    except (ValueError, SpecError) as error:
        reason = _why(error) if isinstance(error, SpecError) else error
        raise ValueError(
            f"the tensors at `{path}` do not fit {transform.name}: {reason}"
        ) from error


def _why(error: SpecError) -> str:
    """Return a transform's reason for rejecting a folder, which is not a fault of its package."""
    return error.problems[0].message.partition("cannot be used: ")[2] or str(error)


def _at(entries: tuple[Any, ...], index: int) -> Any:
    if index >= len(entries):
        raise ValueError(f"`sharing` refers to entry {index} of {len(entries)}")
    return entries[index]


def _start(entry: Entry) -> dict[str, Any] | None:
    """Return a random tensor's initialisation in the plan's terms, or None if the plan has no such term."""
    [(kind, amount)] = _plain_draw(entry.draw or {})
    if kind in ("constant", "normal"):
        return {"init": kind, "amount": float(amount)}
    if kind == "choice":
        return {"init": kind, "fan_in": int(amount)}
    if kind == "uniform" and amount[0] in (0.0, -amount[1]):
        return {"init": "positive" if amount[0] == 0.0 else "uniform", "amount": float(amount[1])}
    return None


def _tensor(entry: Entry, name: str, users: list[str], in_full: bool, seed: int) -> Tensor:
    start: dict[str, Any] = {"init": "base" if in_full else "zeros"}
    if is_drawn_by_plan(entry, name, seed):
        start = _start(entry) or start
    elif entry.base is not None:
        [(init, amount)] = entry.base.items()
        start = {"init": init, "amount": amount}
        assert init in SINGULAR
    frozen = entry.draw is not None or entry.base is not None
    place = "" if in_full else owner(tuple(users)) if users else ""
    fields = {"fan_in": 1, "trainable": not frozen} | start
    return Tensor(name=name, share="sharing", shape=entry.shape, owner=place, **fields)


def _pools(terms: list[Term]) -> Iterator[Pool]:
    members_of: dict[tuple[str, str], dict[str, str]] = {}
    for term in terms:
        for role in load_transform(term.transform, term.options).pooled:
            members_of.setdefault((role, term.tensors[role]), {}).setdefault(term.site, term.share)
    for (role, tensor), members in members_of.items():
        share = next(iter(members.values()))
        yield Pool(share=share, role=role, key=(), tensor=tensor, members=tuple(members))
