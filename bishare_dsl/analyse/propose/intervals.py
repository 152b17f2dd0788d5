"""Contiguous groups of layers: the partitions whose common factors keep most, by dynamic programming."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache

import torch

from bishare_dsl.analyse.propose.evidence import Evidence, Updates
from bishare_dsl.analyse.update import Factored
from bishare_dsl.models.site import Site

COUNTS = (2, 3, 4, 6, 8, 12)
"""How many groups are tried."""
_COORDINATES = 192
"""The most directions of a stream of modules that are told apart."""
_RUNNING = 24
"""The most directions of an interval that are kept while it grows."""

Stream = Sequence[Sequence[torch.Tensor]]
"""For each layer, matrices (rank, coordinates): modules that may share one factor if their layers do."""


def groups(evidence: Evidence, rank: int) -> list[tuple[str, str]]:
    """Find, for a common A and for a common B, how to cut the layers into a few groups.

    Args:
        evidence: to be kept.
        rank: of the common factors that are looked at.

    Returns:
        A name and a key, in the words of the language, for each partition.
    """
    layers = sorted({site.block for site in evidence.sites})
    found: dict[str, str] = {}
    for side in ("in", "out"):
        cost = _kept(list(_streams(evidence, layers, side)), len(layers), rank)
        for cuts in partitions(cost, len(layers), [c for c in COUNTS if 2 * c <= len(layers)]):
            if (text := _text(cuts, layers)) is not None:
                found.setdefault(text, f"groups_{len(cuts)}_{side}")
    return [(name, text) for text, name in found.items()]


def partitions(
    kept: Callable[[int, int], float], length: int, counts: Sequence[int]
) -> list[tuple[int, ...]]:
    """Cut ``0 .. length - 1`` into intervals that keep most, once for each number of intervals.

    Args:
        kept: what an interval keeps, by its first element and the one behind its last.
        length: how many elements there are.
        counts: numbers of intervals.

    Returns:
        The first elements of the intervals, for each count.
    """
    # best[m][b]: the most that m intervals keep of the first b elements, and where the last begins.
    nothing = (float("-inf"), 0)
    best = [[(0.0, 0), *[nothing] * length]]
    for m in range(1, max(counts, default=0) + 1):
        row = [nothing] * m
        for b in range(m, length + 1):
            row.append(max((best[m - 1][a][0] + kept(a, b), a) for a in range(m - 1, b)))
        best.append(row)
    found = []
    for m in counts:
        starts, b = [], length
        for i in range(m, 0, -1):
            b = best[i][b][1]
            starts.append(b)
        found.append(tuple(reversed(starts)))
    return found


def _text(starts: Sequence[int], layers: Sequence[int]) -> str | None:
    """Write a partition as keys; None where all groups are as long, which ``layer // k`` says."""
    ends = [*starts[1:], len(layers)]
    lengths = {end - start for start, end in zip(starts, ends, strict=True)}
    if len(lengths) == 1:
        return None
    # The layers of the last group are in none of the others.
    parts = zip(starts[:-1], ends[:-1], strict=True)
    return ", ".join(_condition(layers[start], layers[end - 1]) for start, end in parts)


def _condition(first: int, last: int) -> str:
    return f"layer == {first}" if first == last else f"layer in {first}..{last}"


def _streams(evidence: Evidence, layers: Sequence[int], side: str) -> list[Stream]:
    """Return the modules of each width, in coordinates of their own."""
    found = []
    for updates in evidence.sets:
        by_width: dict[int, list[Site]] = {}
        for site in evidence.sites:
            if site.path in updates:
                by_width.setdefault(site.d_in if side == "in" else site.d_out, []).append(site)
        found += [_stream(sites, updates, layers, side) for sites in by_width.values()]
    return found


def _stream(sites: Sequence[Site], updates: Updates, layers: Sequence[int], side: str) -> Stream:
    def rows(update: Factored) -> torch.Tensor:
        return update.values[:, None] * (update.right if side == "in" else update.left)

    every = torch.cat([rows(updates[site.path]) for site in sites])
    gram = every @ every.t() if len(every) <= every.shape[1] else every.t() @ every
    values, vectors = torch.linalg.eigh(gram.double())
    values, vectors = values[-_COORDINATES:], vectors[:, -_COORDINATES:]
    if len(every) <= every.shape[1]:
        coordinates = (vectors * values.clamp(min=0).sqrt()).float()
    else:
        coordinates = every @ vectors.float()
    found: dict[int, list[torch.Tensor]] = {layer: [] for layer in layers}
    first = 0
    for site in sites:
        count = updates[site.path].rank
        found[site.block].append(coordinates[first : first + count])
        first += count
    return [found[layer] for layer in layers]


def _kept(streams: Sequence[Stream], length: int, rank: int) -> Callable[[int, int], float]:
    """Return what an interval of layers keeps with one common factor of a rank for each stream."""
    table = torch.zeros(length, length + 1, dtype=torch.float64)
    for stream in streams:
        for a in range(length):
            running = torch.empty(0)
            for b in range(a, length):
                here = [running, *stream[b]] if len(running) else list(stream[b])
                if here:
                    running, values = _shortened(torch.cat(here))
                    table[a, b + 1] += float(values[:rank].sum())
                elif len(running):
                    table[a, b + 1] += float(running.square().sum(dim=1)[:rank].sum())

    @cache
    def kept(a: int, b: int) -> float:
        return float(table[a, b])

    return kept


def _shortened(rows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the strongest directions of some rows, each at its length, and their energies."""
    values, vectors = torch.linalg.eigh((rows @ rows.t()).double())
    values, vectors = values.flip(0)[:_RUNNING].clamp(min=0), vectors.flip(1)[:, :_RUNNING]
    return vectors.float().t() @ rows, values
