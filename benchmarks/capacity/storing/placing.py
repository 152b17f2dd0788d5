"""Specs for a budget: LoRA at chosen modules, custom designs, random topologies."""

from __future__ import annotations

import itertools
import random
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from bishare_dsl import plan_spec
from bishare_dsl.diagnostics import BishareError
from bishare_dsl.language.format import format_text
from bishare_dsl.models import Architecture
from bishare_dsl.models.site import Site

NEAR = 0.05
"""How far from a budget a topology may be, as a part of it."""
SHARED = "q_proj, k_proj, v_proj, up_proj, down_proj"
"""The kinds that the specs of bishare adapt."""


def sites(architecture: Architecture, kinds: Iterable[str]) -> list[Site]:
    """Return the modules of some kinds, in the order of the layers."""
    wanted = set(kinds)
    return [site for site in architecture.sites if site.kind in wanted]


def even(architecture: Architecture, kinds: Sequence[str], budget: int) -> str:
    """Return a LoRA on these kinds whose ranks are as even as the budget allows."""
    chosen = sites(architecture, kinds)
    layers = sorted({site.layer for site in chosen})
    chosen.sort(key=lambda site: (_scattered(layers.index(site.layer)), site.path))
    return _dealt(itertools.cycle(chosen), budget)


def by_layer(
    architecture: Architecture, kinds: Sequence[str], layers: range, budget: int
) -> str | None:
    """Return a LoRA on these kinds of some layers alone."""
    chosen = [site for site in sites(architecture, kinds) if site.layer in layers]
    return _dealt(itertools.cycle(chosen), budget)


def by_energy(energies: Mapping[Site, Sequence[float]], budget: int) -> str:
    """Return a LoRA whose ranks are dealt one by one to where they keep most energy for a parameter.

    Args:
        energies: by module, of each rank of its gradient, the largest first.
    """
    worth = [
        (energy / (site.d_in + site.d_out), site)
        for site, values in energies.items()
        for energy in values
    ]
    worth.sort(key=lambda one: -one[0])
    return _dealt((site for _, site in worth), budget)


def _dealt(order: Iterable[Site], budget: int) -> str:
    """Give ranks to one module after another; the budget is passed by half a rank at most."""
    ranks: dict[Site, int] = defaultdict(int)
    spent, refused = 0, set[Site]()
    for site in order:
        price = site.d_in + site.d_out
        most = min(site.d_in, site.d_out)
        if spent + price / 2 > budget or ranks[site] >= most:
            refused.add(site)
            if len(refused) >= len(ranks):
                break
            continue
        ranks[site] += 1
        spent += price
    return of_ranks(ranks)


def of_ranks(ranks: Mapping[Site, int]) -> str:
    """Return a spec in which each module has private factors and a separate rank."""
    layers: dict[tuple[str, int], list[int]] = defaultdict(list)
    for site, rank in ranks.items():
        if rank:
            layers[site.kind, rank].append(site.layer)
    kinds = ", ".join(dict.fromkeys(kind for kind, _ in layers))
    lines = ["spec placed", f"target {kinds}", "scale 2"]
    for number, ((kind, rank), where) in enumerate(sorted(layers.items())):
        these = ", ".join(map(str, sorted(where)))
        lines.append(
            f"share own_{number}  where {kind} and layer in {{{these}}}  per module  rank {rank}"
        )
    return format_text("\n\n".join(lines) + "\n", "placed")


def grown(architecture: Architecture, text: str, budget: int) -> str | None:
    """Return a spec whose ``RANK`` is what comes nearest to the budget; None where none is near enough."""

    def count(rank: int) -> int:
        return plan_spec(text.replace("RANK", str(rank)), architecture).trainable

    rank = _nearest(count, budget)
    return text.replace("RANK", str(rank)) if near(count(rank), budget) else None


def grown_params(
    architecture: Architecture, name: str, params: Callable[[int], dict[str, Any]], budget: int
) -> dict[str, Any] | None:
    """Return the params, of a rank, that come nearest to the budget; None where none are near enough."""

    def count(rank: int) -> int:
        return plan_spec(name, architecture, params(rank)).trainable

    rank = _nearest(count, budget)
    return params(rank) if near(count(rank), budget) else None


def _nearest(count: Callable[[int], int], budget: int) -> int:
    """Return the rank, at least 1, whose count is nearest to the budget."""
    low, high = 1, 2
    while count(high) < budget:
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if count(middle) < budget else (low, middle)
    return min((low, high), key=lambda rank: abs(count(rank) - budget))


def near(count: int, budget: int) -> bool:
    """Tell whether a topology of so many parameters is one for the budget."""
    return abs(count - budget) <= NEAR * budget


def fitted(
    architecture: Architecture, name: str, grid: Mapping[str, Sequence[Any]], budget: int
) -> dict[str, Any] | None:
    """Return those of a shipped spec's params that come nearest to the budget; None where none is near."""
    best: tuple[int, dict[str, Any]] | None = None
    for values in itertools.product(*grid.values()):
        params = dict(zip(grid, values, strict=True))
        try:
            count = plan_spec(name, architecture, params).trainable
        except BishareError:  # Such as one in which no rank is above 0.
            continue
        if near(count, budget) and (best is None or abs(count - budget) < best[0]):
            best = abs(count - budget), params
    return best and best[1]


DRAWS = 40
"""The first that is near the budget counts, of at most so many."""
_DRAWN_KEYS = (
    *("layer", "layer // 2", "layer // 5", "kind"),
    *("kind, layer // 2", "kind, layer // 5", "parent, layer"),
)


def drawn(architecture: Architecture, budget: int, seed: int) -> str | None:
    """Return a spec of two shares with random keys, or None if too few have the size."""
    draw = random.Random(seed)

    def text(shares: Sequence[str]) -> str:
        return "\n\n".join(["spec drawn", f"target {SHARED}", "scale 2", *shares, ""])

    def count(shares: Sequence[str]) -> int:
        return plan_spec(text(shares), architecture).trainable if shares else 0

    for _ in range(DRAWS):
        shares: list[str] = []
        for name, part in (("one", draw.uniform(0.2, 0.8)), ("two", 1.0)):
            key = draw.choice(_DRAWN_KEYS)
            one, other = f"A per {key}, in  B per module", f"A per module  B per {key}, out"
            share = f"share {name}  {draw.choice([one, other, f'per {key}, in, out'])}  rank "
            price = count([*shares, share + "1"]) - count(shares)
            if rank := int(part * (budget - count(shares)) // price):
                shares.append(share + str(rank))
        if near(count(shares), budget):
            return format_text(text(shares), "drawn")
    return None


def _scattered(place: int) -> float:
    """Return a number in [0, 1) such that the first few of them are spread over it (van der Corput)."""
    value, part = 0.0, 0.5
    while place:
        value += part * (place & 1)
        place, part = place >> 1, part / 2
    return value
