"""Where a model's linear maps are: pure data, no torch."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from functools import lru_cache
from itertools import compress, groupby, pairwise
from math import prod
from typing import Annotated, Any

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    FieldSerializationInfo,
    NonNegativeInt,
    PositiveInt,
    ValidationInfo,
    field_serializer,
    field_validator,
)

_RUNS = {"sites": "linears", "others": "shapes"}
"""The fields of an `Architecture` that are written as `_Run`s, and what these call them."""

MAX_SITES = 250_000
"""More than any model has; a few words in a file may ask for as many as they like."""

_ALWAYS_FITS = 2**28
"""Parameters of an adapter for which no base is too small."""

_WORDS = {
    "connector": "connector projector resampler perceiver merger qformer abstractor",
    "vision": "vision visual image video vit",
    "audio": "audio speech",
    "language": "language text",
    "encoder": "encoder",
    "decoder": "decoder",
}
"""The stacks that a model may have, by the words in their names; any other is the ``main`` one."""


@lru_cache(maxsize=1024)
def _tower(place: str) -> str:
    # `vision_tower.vision_model.encoder` is of vision, `model.language_model` of language. What joins towers
    # is often inside of one.
    found = [(tower, set(words.split())) for tower, words in _WORDS.items()]
    parts = [set(part.split("_")) for part in place.split(".")]
    named = [[tower for tower, words in found if words & part] for part in parts]
    if any("connector" in towers for towers in named):
        return "connector"
    several = [towers[0] for towers in named if towers]
    # That it encodes or decodes is said of a tower by itself, too.
    return next(iter(sorted(several, key=("decoder", "encoder").__contains__)), "main")


class Site(BaseModel):
    """One linear map of a model: a place where a share can add a term.

    ``path`` is its name in the model, ``layer`` the index of its block, ``kind`` its own name (``q_proj``)
    and ``parent`` the name of its nearest ancestor that is not a number (``self_attn``). It maps ``d_in``
    features to ``d_out``. How the model keeps its weight is not said here, and may differ from one version
    of it to the next: `bishare_dsl.models.weights` finds it. An expert's map has the path that it has where
    each expert is a module, ``model.layers.0.mlp.experts.3.up_proj``.

    A head or an embedding is in no block: its ``layer`` is None. An embedding maps the one-hot vectors of a
    vocabulary, ``d_in``, to its rows. ``tied`` are the paths of the other modules that use the same weight:
    where one is a head the site is the head's, and the embedding looks up rows of its ``dW (d_out, d_in)``.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    path: str
    layer: NonNegativeInt | None = None
    kind: str
    parent: str
    d_in: PositiveInt
    d_out: PositiveInt
    tied: tuple[str, ...] = ()

    @property
    def block(self) -> int:
        """The index of the block that it is in: only for sites in blocks."""
        assert self.layer is not None, self.path
        return self.layer

    @property
    def paths(self) -> tuple[str, ...]:
        """The paths of all modules that use its weight."""
        return (self.path, *self.tied)

    @property
    def kinds(self) -> frozenset[str]:
        """What these modules are called."""
        return frozenset(path.rpartition(".")[2] for path in self.paths)

    @property
    def expert(self) -> int | None:
        """The index of the expert that it is of; None where it is of none."""
        parts = self.path.split(".")
        own = (
            int(n) for above, n in pairwise(parts) if n.isdecimal() and above.endswith("experts")
        )
        return next(own, None)

    @property
    def tower(self) -> str:
        """What its stack of blocks is of, told by the names above it: one of `_WORDS`, or ``main``."""
        block = block_of(self.path)
        return _tower(self.path.rpartition(".")[0] if block is None else block[0])

    @classmethod
    def at(cls, path: str, d_in: int, d_out: int) -> Site | None:
        """Return the site at a module path, or None where the path has no block index."""
        return None if block_of(path) is None else cls.outside(path, d_in, d_out)

    @classmethod
    def outside(cls, path: str, d_in: int, d_out: int, tied: Sequence[str] = ()) -> Site:
        """Return the site at a module path, in a block or in none."""
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


class Parameter(BaseModel):
    """A parameter that is not the weight of a site in a block, and may be trained in full.

    A norm, a bias, a router, a head or an embedding. ``path`` is its name in the model, ``shape`` its shape,
    and ``tied`` are its other names there.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    path: str
    shape: tuple[PositiveInt, ...]
    tied: tuple[str, ...] = ()

    @property
    def size(self) -> int:
        return prod(self.shape)

    @property
    def paths(self) -> tuple[str, ...]:
        """All of its names."""
        return (self.path, *self.tied)


class LeftOut(BaseModel):
    """What is in a block and looks like a place for a share, and why it is not a site."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    path: str
    parameters: NonNegativeInt
    why: str


class Architecture(BaseModel):
    """The shapes of a causal language model: all that planning an adapter needs to know of it.

    ``name`` is what the user called it, ``family`` the ``model_type`` of its config, ``model_id``
    its id on the Hub where it has one, ``layers`` the number of blocks and ``parameters`` the
    number of base parameters, a tied tensor counted once. ``sites`` are those in blocks, in the model's
    own order; they are not ``complete`` in what bishare 0.1 saved, which has only those that the adapter
    covers. ``outside`` are the sites in no block, which a spec has to name: heads and embeddings.
    ``others`` are the parameters that are of no site in a block; ``head`` are the paths of those that the
    model has for a task, such as classifying, and that start random on a new task.
    ``left_out`` is what a condition on paths or kinds may mean and not get.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    family: str
    model_id: str | None = None
    layers: NonNegativeInt
    parameters: PositiveInt
    sites: tuple[Site, ...]
    outside: tuple[Site, ...] = ()
    others: tuple[Parameter, ...] = ()
    head: tuple[str, ...] = ()
    complete: bool = True
    left_out: tuple[LeftOut, ...] = ()

    @field_serializer("sites", "others")
    def _as_blocks(
        self, parts: Sequence[Site] | Sequence[Parameter], info: FieldSerializationInfo
    ) -> list[dict[str, Any]]:
        """Write blocks that follow each other and are alike as one.

        ``{"blocks": "model.layers", "first": 0, "count": 32, "linears": {"mlp.up_proj": [d_in, d_out]}}``, or
        of parameters ``"shapes"``; a parameter that is in no block, or tied, stands by itself.
        """
        what = _RUNS[info.field_name]
        runs: list[dict[str, Any]] = []
        found = ((None if part.tied else block_of(part.path), part) for part in parts)
        for place, group in groupby(found, lambda pair: pair[0] and pair[0][:2]):
            if place is None:
                runs += (part.model_dump(exclude_defaults=True) for _, part in group)
            else:
                inside = {
                    block[2]: [part.d_in, part.d_out] if isinstance(part, Site) else [*part.shape]
                    for block, part in group
                    if block
                }
                _add_block(runs, place[0], int(place[1]), what, inside)
        return runs

    @field_validator("sites", "others", mode="before")
    @classmethod
    def _from_blocks(cls, value: Any, info: ValidationInfo) -> Any:
        """Read what `_as_blocks` writes."""
        parts = value if isinstance(value, Sequence) else ()
        in_blocks = [isinstance(part, dict) and "blocks" in part for part in parts]
        if not any(in_blocks):
            return value
        what = _RUNS[info.field_name or ""]
        runs = iter(_runs(compress(value, in_blocks)))
        found: list[Any] = []
        for part, is_run in zip(value, in_blocks, strict=True):
            for path, sizes in next(runs).each(what) if is_run else ():
                is_site = what == "linears"
                found.append(
                    Site.at(path, *sizes) if is_site else Parameter(path=path, shape=sizes)
                )
            found += [] if is_run else [part]
        return tuple(found)

    @property
    def every_site(self) -> tuple[Site, ...]:
        """The sites in blocks, then those outside."""
        return (*self.sites, *self.outside)

    @property
    def kinds(self) -> tuple[str, ...]:
        """The distinct kinds of the sites in blocks, in the model's order."""
        return tuple(dict.fromkeys(site.kind for site in self.sites))


def _from_pairs(value: Any) -> Any:
    """Read a dict that is written as a list of pairs, where something sorts the keys of dicts."""
    try:
        return dict(value) if isinstance(value, list) else value
    except TypeError as error:
        raise ValueError("it is no list of pairs") from error


_AS_PAIRS = BeforeValidator(_from_pairs)


class _Run(BaseModel):
    """Blocks that are alike: the widths of their linear layers, or the shapes of their parameters."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    blocks: str
    first: NonNegativeInt
    count: PositiveInt
    linears: Annotated[dict[str, tuple[PositiveInt, PositiveInt]], _AS_PAIRS] = {}
    shapes: Annotated[dict[str, tuple[PositiveInt, ...]], _AS_PAIRS] = {}

    def each(self, what: str) -> Iterator[tuple[str, tuple[int, ...]]]:
        """Yield the ``linears`` or the ``shapes`` of each block, by their paths."""
        for number in range(self.first, self.first + self.count):
            for name, sizes in getattr(self, what).items():
                yield f"{self.blocks}.{number}.{name}".removeprefix("."), sizes


def _runs(value: Iterable[Any]) -> list[_Run]:
    runs = [_Run.model_validate(run) for run in value]
    if sum(run.count * (len(run.linears) + len(run.shapes)) for run in runs) > MAX_SITES:
        raise ValueError(f"it has more than {MAX_SITES:,} sites or parameters")
    return runs


def most_parameters(base: Architecture) -> int:
    """Return how many parameters an adapter of a base may have: more than any has."""
    return max(_ALWAYS_FITS, 4 * base.parameters)


def layers_of(sites: Iterable[Site]) -> list[int | None]:
    """Return the layers that sites are in, each once and in order; None, for those in none, is the last."""
    layers = {site.layer for site in sites}
    return sorted(layers, key=lambda layer: (layer is None, layer))


def runs_of(layers: Iterable[int | None]) -> list[tuple[int, int]]:
    """Return the layers, None aside, as runs without a gap: the first and the last of each."""
    runs: list[tuple[int, int]] = []
    for layer in sorted({layer for layer in layers if layer is not None}):
        if runs and runs[-1][1] == layer - 1:
            runs[-1] = runs[-1][0], layer
        else:
            runs.append((layer, layer))
    return runs


@lru_cache(maxsize=4096)
def block_of(path: str) -> tuple[str, str, str] | None:
    """Return the list of blocks that a path goes through, the number of its block, and the rest."""
    found = re.fullmatch(r"(?:(.+?)\.)?(\d+)\.(.+)", path)
    return None if found is None else (found[1] or "", found[2], found[3])


def _add_block(
    runs: list[dict[str, Any]], place: str, number: int, what: str, found: dict[str, list[int]]
) -> None:
    """Add a block to runs of alike ones: to the last run, where the block goes on with that."""
    last = runs[-1] if runs else {}
    if (last.get("blocks"), last.get(what)) == (place, found) and (
        # Dicts are equal in any order, and the order counts.
        list(last[what]) == list(found) and last["first"] + last["count"] == number
    ):
        last["count"] += 1
    else:
        runs.append({"blocks": place, "first": number, "count": 1, what: found})
