"""The terms of a plan as a server keeps them: where each factor lies in an adapter's row of numbers."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from math import prod
from typing import NamedTuple, TypeVar

from bishare_dsl.plan import Plan, Term
from bishare_dsl.transforms import GAIN_OUT, GAIN_RANK, Kept, Transform, Width, load_transform

T = TypeVar("T")


class Place(NamedTuple):
    """Where a tensor ``(rows, columns)`` lies: ``offset`` numbers from the start of an adapter's row.

    One that all adapters share, ``common``, lies behind the rows of all.
    """

    offset: int
    rows: int
    columns: int
    common: bool = False

    @property
    def end(self) -> int:
        """The offset of what lies next to it."""
        return self.offset + self.rows * self.columns

    def joined(self, other: Place) -> Place | None:
        """Return both as one tensor, this one's rows first; None where the other does not lie next to it."""
        if (other.offset, other.columns, other.common) != (self.end, self.columns, self.common):
            return None
        return self._replace(rows=self.rows + other.rows)


def side_by_side(
    places: Iterable[tuple[Place, T]],
) -> list[tuple[Place, list[tuple[T, int, int]]]]:
    """Join tensors that lie next to each other, and tell from which row to which each one's are."""
    found: list[tuple[Place, list[tuple[T, int, int]]]] = []
    for place, item in sorted(places, key=lambda pair: pair[0].offset):
        whole = found[-1][0].joined(place) if found else None
        if whole is None:
            found.append((place, [(item, 0, place.rows)]))
        else:
            before, parts = found.pop()
            found.append((whole, [*parts, (item, before.rows, whole.rows)]))
    return found


@dataclass(frozen=True)
class Factor:
    """An effective factor ``(rows, side)`` of a term.

    It is the columns from ``first`` on of what is ``stored``; or, with a ``kernel (b, k)``, the leading
    columns of ``kernel (x) stored``, row by row where ``rowwise`` says so. See `transforms.Kept`.
    """

    stored: Place
    side: int
    first: int = 0
    kernel: Place | None = None
    rowwise: bool = False

    @property
    def rows(self) -> int:
        """How many rows it has."""
        own = 1 if self.kernel is None or self.rowwise else self.kernel.rows
        return own * self.stored.rows

    @property
    def kept(self) -> Kept:
        """The same as a transform says it, of tensors with the roles ``stored`` and ``kernel``."""
        kernel = None if self.kernel is None else "kernel"
        return Kept("stored", self.first, kernel, self.rowwise)

    @property
    def tiled(self) -> bool:
        """Whether it is a Kronecker product, so that inputs and outputs are read in tiles."""
        return self.kernel is not None and not self.rowwise


@dataclass(frozen=True)
class ServedTerm:
    """A term of a site: ``scale * diag(gain_out) B^T diag(gain_rank) A``."""

    a: Factor
    b: Factor
    scale: float
    gain_rank: Place | None = None
    gain_out: Place | None = None


class _Source(NamedTuple):
    """A term with what its factors are found by, and the names of the tensors that are kept for it."""

    term: Term
    transform: Transform
    width: Width
    kept: tuple[Kept | None, Kept | None]

    def name(self, role: str) -> str:
        """Return the name of an effective factor that is made, which no tensor of a plan has."""
        return f"{self.term.share}@{self.term.site}:{role}"


class Layout:
    """Where the tensors of a plan lie in the row of an adapter.

    What a transform says to be `kept` lies there as it is, each tensor once; of other terms the effective
    factors do, which are made once for each adapter. What belongs to sites that read one input lies side
    by side, so that it is read in one go.

    Args:
        plan: of the adapters.

    Attributes:
        numbers: how many numbers an adapter has.
        common: how many all adapters have in common: those of frozen tensors.
        places: of all tensors, and of factors that are made, by their names.
        terms: of each site, by its path.
    """

    def __init__(self, plan: Plan):
        self.numbers = self.common = 0
        self.places: dict[str, Place] = {}
        self.plan = plan
        self.made: list[_Source] = []
        self._width = {site.path: Width(site.d_in, site.d_out) for site in plan.sites}
        sources = {path: [*self._sources(path)] for path in plan.terms_of if plan.terms_of[path]}
        reading: dict[tuple[str, int], list[str]] = {}
        for path, found in sources.items():
            reading.setdefault((path.rpartition(".")[0], found[0].width.d_in), []).append(path)
        for paths in reading.values():
            self._place_together([source for path in paths for source in sources[path]])
        self.terms = {path: [self._term(s) for s in found] for path, found in sources.items()}

    def _sources(self, path: str) -> Iterator[_Source]:
        width = self._width[path]
        for term in self.plan.terms_of[path]:
            transform = load_transform(term.transform, term.options)
            kept = [
                transform.kept(role, side, self.plan.tensor[term.tensors[role]].shape[1])
                if role in term.tensors
                else None
                for role, side in zip("AB", width, strict=True)
            ]
            source = _Source(term, transform, width, (kept[0], kept[1]))
            if None in kept:
                self.made.append(source)
            yield source

    def _place_together(self, sources: Sequence[_Source]) -> None:
        """Give places to what sites have that read one input."""
        by_share = sorted(sources, key=lambda source: source.term.share)
        # Those that are read as they are first.
        for source in sorted(sources, key=lambda s: bool(s.kept[0] and s.kept[0].kernel)):
            self._place_stored(source, "A")
        for side, found in (("A", by_share), ("B", sources)):
            for source in found:
                kept = source.kept["AB".index(side)]
                if kept is not None and kept.kernel is not None:
                    self._place(source.term.tensors[kept.kernel])
        for source in sources:
            self._place_stored(source, "B")
            for gain in (GAIN_RANK, GAIN_OUT):
                if gain in source.term.tensors:
                    self._place(source.term.tensors[gain])

    def _place_stored(self, source: _Source, side: str) -> None:
        number = "AB".index(side)
        if (kept := source.kept[number]) is not None:
            self._place(source.term.tensors[kept.role])
        else:
            shape = source.transform.rows(source.term.rank, source.width), source.width[number]
            self._put(source.name(side), shape)

    def _place(self, name: str) -> None:
        tensor = self.plan.tensor[name]
        self._put(name, tensor.shape, not tensor.trainable)

    def _put(self, name: str, shape: tuple[int, int], common: bool = False) -> None:
        if name in self.places:
            return
        self.places[name] = Place(self.common if common else self.numbers, *shape, common)
        if common:
            self.common += prod(shape)
        else:
            self.numbers += prod(shape)

    def _term(self, source: _Source) -> ServedTerm:
        names = source.term.tensors
        factors = []
        for side, kept, width in zip("AB", source.kept, source.width, strict=True):
            if kept is None:
                factors.append(Factor(self.places[source.name(side)], width))
            else:
                kernel = self.places[names[kept.kernel]] if kept.kernel else None
                place = self.places[names[kept.role]]
                factors.append(Factor(place, width, kept.first, kernel, kept.rowwise))
        rank, out = (
            self.places[names[gain]] if gain in names else None for gain in (GAIN_RANK, GAIN_OUT)
        )
        return ServedTerm(factors[0], factors[1], source.term.scale, rank, out)
