"""The linear maps and parameters of a model, as data without torch."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from functools import lru_cache
from itertools import compress, groupby, pairwise
from math import prod
from typing import Any, Literal

from pydantic import (
    BaseModel,
    ConfigDict,
    FieldSerializationInfo,
    NonNegativeInt,
    PositiveInt,
    ValidationInfo,
    field_serializer,
    field_validator,
)

from bishare_dsl.diagnostics.interrupt import unhidden_interrupt

ADAPTER = "bishare"
"""The child of an adapted model that users call."""

TENSORS = "bishare_tensors"
"""The child of each module that owns adapter tensors. It has a child for each adapter, by name."""

_RUNS = {"sites": "linears", "others": "shapes"}
"""Fields of `Architecture` that are written as `_Run`s, with their names there."""

MAX_SITES = 250_000
"""More sites than any model has. A short file could otherwise request any number."""

_ALWAYS_FITS = 2**28
"""An adapter with at most this many parameters fits any base."""

_WORDS = {
    "connector": "connector projector resampler perceiver merger qformer abstractor",
    "vision": "vision visual image video vit",
    "audio": "audio speech",
    "language": "language text",
    "encoder": "encoder",
    "decoder": "decoder",
}
"""Towers of a model and the words in their names. Any other stack of blocks is ``main``."""


@lru_cache(maxsize=1024)
def _tower(place: str) -> str:
    # `vision_tower.vision_model.encoder` is vision, `model.language_model` is language. A connector is often
    # inside of a tower.
    words_of = [(tower, set(words.split())) for tower, words in _WORDS.items()]
    parts = [set(part.split("_")) for part in place.split(".")]
    named = [[tower for tower, words in words_of if words & part] for part in parts]
    if any("connector" in towers for towers in named):
        return "connector"
    several = [towers[0] for towers in named if towers]
    # An encoder or decoder may be part of another tower, which takes precedence.
    return next(iter(sorted(several, key=("decoder", "encoder").__contains__)), "main")


class Data(BaseModel):
    """A frozen record without further fields: a part of a plan, or of an architecture."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    def model_dump(self, *args: Any, **options: Any) -> dict[str, Any]:
        """Return the record as plain values, as Pydantic does, but for Ctrl-C, which stays Ctrl-C."""
        with unhidden_interrupt():
            return super().model_dump(*args, **options)

    def model_dump_json(self, *args: Any, **options: Any) -> str:
        """Return the record as JSON, as Pydantic does, but for Ctrl-C, which stays Ctrl-C."""
        with unhidden_interrupt():
            return super().model_dump_json(*args, **options)


class Site(Data):
    """One linear map of a model, to which a share can add a term.

    ``path`` is its name in the model, ``layer`` the index of its block, ``kind`` its own name (``q_proj``)
    and ``parent`` the name of its nearest ancestor that is not a number (``self_attn``). It maps ``d_in``
    features to ``d_out``. `bishare_dsl.models.weights` finds its weight, whose layout differs between
    versions of a model. The map of an expert has a path as if each expert were a module,
    ``model.layers.0.mlp.experts.3.up_proj``.

    A head or an embedding is outside of blocks: its ``layer`` is None. An embedding maps the one-hot
    vectors of a vocabulary of size ``d_in`` to its rows. ``tied`` lists the paths of other modules that
    use the same weight. If one of them is a head, the site is the head's, and the embedding looks up rows of
    ``dW (d_out, d_in)``.
    """

    path: str
    layer: NonNegativeInt | None = None
    kind: str
    parent: str
    d_in: PositiveInt
    d_out: PositiveInt
    tied: tuple[str, ...] = ()

    @property
    def block(self) -> int:
        """The index of its block. Only for sites in blocks."""
        assert self.layer is not None, self.path
        return self.layer

    @property
    def paths(self) -> tuple[str, ...]:
        """The paths of all modules that use the weight."""
        return (self.path, *self.tied)

    @property
    def kinds(self) -> frozenset[str]:
        """The names of these modules."""
        return frozenset(path.rpartition(".")[2] for path in self.paths)

    @property
    def expert(self) -> int | None:
        """The index of its expert, or None."""
        parts = self.path.split(".") if "experts" in self.path else ()
        indices = (
            int(n) for above, n in pairwise(parts) if n.isdecimal() and above.endswith("experts")
        )
        return next(indices, None)

    @property
    def tower(self) -> str:
        """The tower that contains it, from the names of its ancestors: a key of `_WORDS`, or ``main``."""
        block = block_of(self.path)
        return _tower(self.path.rpartition(".")[0] if block is None else block[0])

    @classmethod
    def at(cls, path: str, d_in: int, d_out: int) -> Site | None:
        """Return the site at a module path, or None if the path has no block index."""
        return None if block_of(path) is None else cls.outside(path, d_in, d_out)

    @classmethod
    def outside(cls, path: str, d_in: int, d_out: int, tied: Sequence[str] = ()) -> Site:
        """Return the site at a module path, inside or outside of blocks."""
        block = block_of(path)
        *ancestors, kind = path.split(".")
        return cls(
            path=path,
            layer=None if block is None else int(block[1]),
            kind=kind,
            parent=next((part for part in reversed(ancestors) if not part.isdecimal()), ""),
            d_in=d_in,
            d_out=d_out,
            tied=tuple(tied),
        )


class Parameter(Data):
    """A parameter that can be trained in full: a norm, a bias, a router, a head or an embedding.

    ``path`` is its name in the model, ``shape`` its shape, and ``tied`` lists its other names.
    """

    path: str
    shape: tuple[PositiveInt, ...]
    tied: tuple[str, ...] = ()

    @property
    def size(self) -> int:
        return prod(self.shape)

    @property
    def paths(self) -> tuple[str, ...]:
        """All names of the parameter."""
        return (self.path, *self.tied)


class LeftOut(Data):
    """A module in a block that looks like a site, and the reason why it is not one."""

    path: str
    parameters: NonNegativeInt
    why: str


class Architecture(Data):
    """The shapes of a model, which are all that planning an adapter needs.

    Attributes:
        name: the user's name for it.
        family: the ``model_type`` of its config.
        model_id: its id on the Hub, if any.
        layers: the number of blocks.
        parameters: the number of base parameters, counting a tied tensor once.
        sites: the sites in blocks, in the model's order.
        complete: that ``sites`` has all of them, as folders say since 0.4.
        outside: heads and embeddings, which a spec has to name.
        others: parameters that are not the weight of a site in a block.
        head: paths of the parameters of a task's head, which are random on a new task.
        left_out: modules that a condition on paths or kinds may mean, but that are not sites.
    """

    name: str
    family: str
    model_id: str | None = None
    layers: NonNegativeInt
    parameters: PositiveInt
    sites: tuple[Site, ...]
    outside: tuple[Site, ...] = ()
    others: tuple[Parameter, ...] = ()
    head: tuple[str, ...] = ()
    complete: Literal[True] = True
    left_out: tuple[LeftOut, ...] = ()

    @field_serializer("sites", "others")
    def _as_blocks(
        self, parts: Sequence[Site] | Sequence[Parameter], info: FieldSerializationInfo
    ) -> list[dict[str, Any]]:
        """Write runs of equal blocks as one entry.

        ``{"blocks": "model.layers", "first": 0, "count": 32, "linears": [["mlp.up_proj", [d_in,
        d_out]]]}``, with ``"shapes"`` instead for parameters: pairs, because programs may sort the keys of
        dicts. Tied parameters and parameters outside of blocks are written alone.
        """
        what = _RUNS[info.field_name]
        runs: list[dict[str, Any]] = []
        blocks = ((None if part.tied else block_of(part.path), part) for part in parts)
        for place, group in groupby(blocks, lambda pair: pair[0] and pair[0][:2]):
            if place is None:
                runs += (part.model_dump(exclude_defaults=True) for _, part in group)
                continue
            inside = [
                [block[2], [part.d_in, part.d_out] if isinstance(part, Site) else [*part.shape]]
                for block, part in group
                if block
            ]
            path = place[0]
            number = int(place[1])
            last = runs[-1] if runs else {}
            equal = (last.get("blocks"), last.get(what)) == (path, inside)
            if equal and last["first"] + last["count"] == number:
                last["count"] += 1
            else:
                runs.append({"blocks": path, "first": number, "count": 1, what: inside})
        return runs

    @field_validator("sites", "others", mode="before")
    @classmethod
    def _from_blocks(cls, value: Any, info: ValidationInfo) -> Any:
        """Read the form that `_as_blocks` writes."""
        parts = value if isinstance(value, Sequence) else ()
        in_blocks = [isinstance(part, dict) and "blocks" in part for part in parts]
        if not any(in_blocks):
            return value
        what = _RUNS[info.field_name or ""]
        runs = iter(_runs(compress(value, in_blocks)))
        flat: list[Any] = []
        for part, is_run in zip(value, in_blocks, strict=True):
            if not is_run:
                flat.append(part)
                continue
            for path, sizes in next(runs).each(what):
                if what == "linears":
                    flat.append(Site.at(path, *sizes))
                else:
                    flat.append(Parameter(path=path, shape=sizes))
        return tuple(flat)

    @property
    def every_site(self) -> tuple[Site, ...]:
        """The sites in blocks, then the sites outside."""
        return (*self.sites, *self.outside)

    @property
    def kinds(self) -> tuple[str, ...]:
        """The distinct kinds of the sites in blocks, in the model's order."""
        return tuple(dict.fromkeys(site.kind for site in self.sites))


class _Run(Data):
    """A run of equal blocks: the widths of their linear layers, or the shapes of their parameters."""

    blocks: str
    first: NonNegativeInt
    count: PositiveInt
    linears: tuple[tuple[str, tuple[PositiveInt, PositiveInt]], ...] = ()
    shapes: tuple[tuple[str, tuple[PositiveInt, ...]], ...] = ()

    def each(self, what: str) -> Iterator[tuple[str, tuple[int, ...]]]:
        """Yield the ``linears`` or the ``shapes`` of each block, by their paths."""
        for number in range(self.first, self.first + self.count):
            for name, sizes in getattr(self, what):
                yield f"{self.blocks}.{number}.{name}".removeprefix("."), sizes


def _runs(value: Iterable[Any]) -> list[_Run]:
    runs = [_Run.model_validate(run) for run in value]
    if sum(run.count * (len(run.linears) + len(run.shapes)) for run in runs) > MAX_SITES:
        raise ValueError(f"it has more than {MAX_SITES:,} sites or parameters")
    return runs


def most_parameters(base: Architecture | None) -> int:
    """Return the largest accepted number of parameters of an adapter, which is more than any adapter has.

    Without a base, it is the number that fits any base.
    """
    return max(_ALWAYS_FITS, 4 * base.parameters if base else 0)


def layers_of(sites: Iterable[Site]) -> list[int | None]:
    """Return the distinct layers of sites, in order, with None for sites outside of blocks at the end."""
    layers = {site.layer for site in sites}
    return sorted(layers, key=lambda layer: (layer is None, layer))


def runs_of(layers: Iterable[int | None]) -> list[tuple[int, int]]:
    """Return the first and the last layer of each run without gaps, ignoring None."""
    runs: list[tuple[int, int]] = []
    for layer in sorted({layer for layer in layers if layer is not None}):
        if runs and runs[-1][1] == layer - 1:
            runs[-1] = runs[-1][0], layer
        else:
            runs.append((layer, layer))
    return runs


def in_adapter(path: str) -> bool:
    """Return whether a module or parameter belongs to an adapter and not to the base."""
    return not {ADAPTER, TENSORS}.isdisjoint(path.split("."))


@lru_cache(maxsize=4096)
def block_of(path: str) -> tuple[str, str, str] | None:
    """Split a path into the path of the list of blocks, the number of the block, and the rest."""
    match = re.fullmatch(r"(?:(.+?)\.)?(\d+)\.(.+)", path)
    return None if match is None else (match[1] or "", match[2], match[3])
