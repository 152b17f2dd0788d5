"""Which shares, at which ranks, keep most energy within a budget."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from bishare_dsl.analyse.keys import Grouping
from bishare_dsl.analyse.progress import Watch, no_progress
from bishare_dsl.analyse.propose.candidates import Candidate, Unit, units
from bishare_dsl.analyse.propose.evidence import Evidence
from bishare_dsl.analyse.propose.residual import Residual
from bishare_dsl.diagnostics import BishareError

SHARES = 3
"""The most shares of a proposal, as many as the paper's tiers."""
_GIVEN_UP = (0.25, 0.5)
"""The parts of their ranks that the shares there are give up for one more."""
_BEGUN = 0.5
_FOR_MORE = 8
"""Groups of layers are many: those among so many best are weighed for further shares."""
_WORTH = 0.01
"""What one more share must keep beyond what is kept without it, of all energy."""
_STEP = 0.02
"""The part of the budget that is spent at once, where a rank costs less."""
_ROUNDING = 1e-5
"""A rank that keeps less of all energy is not worth having."""
_LOOK = 64
"""The most ranks that a candidate alone is weighed with."""

Ranks = Mapping[Unit, int]


@dataclass(frozen=True)
class ScoredCandidate:
    """A candidate by itself.

    Attributes:
        candidate: which.
        ranks: of its units, as the budget allows; one of no use is left out.
        kept: the energy that it keeps at these ranks.
        chance: the energy that it would keep of independent updates; None where that was not looked at.
    """

    candidate: Candidate
    ranks: Ranks
    kept: float
    chance: float | None = None

    @property
    def parameters(self) -> int:
        """What it costs."""
        return cost(self.ranks)

    @property
    def rank(self) -> str:
        """Its rank, or the least and the most of its kinds'."""
        found = self.ranks.values() or (0,)
        least, most = min(found), max(found)
        return f"{least}" if least == most else f"{least}-{most}"


@dataclass(frozen=True)
class Choice:
    """The ranks of a proposal, by unit, and the energy that all keep together."""

    ranks: Ranks
    kept: float

    @property
    def candidates(self) -> list[Candidate]:
        """The candidates that were chosen, what costs most first."""
        costs: dict[Candidate, int] = {}
        for unit, rank in self.ranks.items():
            costs[unit.candidate] = costs.get(unit.candidate, 0) + unit.price(rank)
        return sorted(costs, key=lambda candidate: (-costs[candidate], candidate.name))

    @property
    def parameters(self) -> int:
        """What all of it costs."""
        return cost(self.ranks)


def units_of(
    offered: Iterable[Candidate], grouping: Grouping
) -> list[tuple[Candidate, tuple[Unit, ...]]]:
    """Return the units of those candidates that fit the model."""
    found = []
    for candidate in offered:
        try:
            found.append((candidate, tuple(units(candidate, grouping))))
        except BishareError:  # The language has such a key, and this model has not.
            continue
    return found


def score_candidates(
    residual: Residual,
    offered: Sequence[tuple[Candidate, tuple[Unit, ...]]],
    budget: int,
    watch: Watch = no_progress,
) -> list[ScoredCandidate]:
    """Score what each candidate keeps alone, at the ranks that the budget allows; the best is first."""
    found = []
    for candidate, parts in watch(offered, "weighing keys"):
        ranks, kept = _best_ranks(residual, parts, budget)
        found.append(ScoredCandidate(candidate, ranks, kept))
    return sorted(found, key=_order)


def _order(scored: ScoredCandidate) -> tuple[float, int, str]:
    """Return what puts the best first; of those as good, the smallest."""
    return -round(scored.kept, 4), scored.parameters, scored.candidate.name


def choose(
    evidence: Evidence,
    offered: Sequence[tuple[Candidate, tuple[Unit, ...]]],
    alone: Sequence[ScoredCandidate],
    budget: int,
    *,
    shares: int = SHARES,
    watch: Watch = no_progress,
) -> Choice:
    """Spend a budget: the candidate that keeps most, then one more as long as it is worth it.

    Those that there are give up a part of their ranks for one more. In the end ranks are given out one by
    one, each to where it keeps most for a parameter.

    Args:
        evidence: to be kept.
        offered: the candidates, with their units.
        alone: what each keeps alone, the best first.
        budget: in parameters.
        shares: the most candidates that are chosen.
        watch: goes over the candidates.
    """
    chosen = Choice(alone[0].ranks, kept_by(evidence, alone[0].ranks))
    starts = [Choice(one.ranks, one.kept) for one in _of_each_role(alone)]
    first = {one.candidate for one in alone[:_FOR_MORE]}
    best = [
        one
        for one in offered
        if one[0] in first
        or not (one[0].of_groups or one[0].alone)  # The same costs less by itself.
    ]
    bounds = {one.candidate: one.kept for one in alone}
    best.sort(key=lambda one: -bounds[one[0]])
    for _ in range(1, shares):
        if chosen.kept > 1 - _WORTH:
            break
        tried = [(start, part) for start in starts for part in _GIVEN_UP]
        more = [
            _with_one_more(evidence, best, bounds, start, part, budget)
            for start, part in watch(tried, "weighing one more")
        ]
        better = max(more, key=lambda other: other.kept, default=chosen)
        if better.kept < chosen.kept + _WORTH:
            break
        chosen, starts = better, [better]
    by_rank = _rank_by_rank(evidence, chosen, offered, budget)
    return max(by_rank, chosen, key=lambda one: (round(one.kept, 4), -one.parameters))


def _best_ranks(
    residual: Residual, parts: Sequence[Unit], budget: int
) -> tuple[dict[Unit, int], float]:
    """Assign ranks to the units of a candidate, each rank where it keeps most for a parameter."""
    worth = []
    budget -= sum(unit.base for unit in parts)
    for unit in parts:
        sums = residual.gains(unit, max(0, min(budget // unit.cost, _LOOK)))
        worth += [
            ((sums[k] - sums[k - 1]) / unit.cost, -k, unit)
            for k in range(1, len(sums))
            if sums[k] - sums[k - 1] >= _ROUNDING / len(parts)
        ]
    # Each further rank of a unit keeps less than the one before, so that they come in order.
    ranks: dict[Unit, int] = {}
    kept = 0.0
    for value, _, unit in sorted(worth, key=lambda one: one[:2], reverse=True):
        if unit.cost <= budget:
            budget -= unit.cost
            ranks[unit] = ranks.get(unit, 0) + 1
            kept += value * unit.cost
    return ranks, kept


def _of_each_role(alone: Sequence[ScoredCandidate]) -> list[ScoredCandidate]:
    """Return the best candidate of each role, and that in which nothing is common.

    Of what keeps less than half of what the best does, nothing is begun with.
    """
    found: dict[tuple[str, bool], ScoredCandidate] = {}
    for one in alone:
        if one.ranks and one.kept > _BEGUN * alone[0].kept:
            common = any(len(pool) > 1 for unit in one.ranks for pool in unit.pools)
            found.setdefault((one.candidate.role, common), one)
    return list(found.values())


def kept_by(evidence: Evidence, ranks: Ranks) -> float:
    """Return the energy that units keep together, each at its rank, one after the other."""
    residual = Residual(evidence.sets)
    return sum(residual.spend(unit, rank) for unit, rank in ranks.items())


def _with_one_more(
    evidence: Evidence,
    offered: Sequence[tuple[Candidate, tuple[Unit, ...]]],
    bounds: Mapping[Candidate, float],
    chosen: Choice,
    part: float,
    budget: int,
) -> Choice:
    """Add the candidate that keeps most of what is left by those that are chosen, at a part of their ranks.

    Args:
        offered: in the order of ``bounds``: what each keeps of everything, and more than that of nothing.
    """
    ranks = {unit: some for unit, r in chosen.ranks.items() if (some := round(r * (1 - part)))}
    residual = Residual(evidence.sets)
    kept = sum(residual.spend(unit, rank) for unit, rank in ranks.items())
    others = [one for one in offered if one[0] not in chosen.candidates]
    best: ScoredCandidate | None = None
    for one in others:
        if best is not None and bounds[one[0]] < best.kept:
            break
        found = score_candidates(residual, [one], budget - cost(ranks))
        best = min(found if best is None else [best, *found], key=_order)
    if best is None:
        return Choice({}, 0.0)
    kept += sum(residual.spend(unit, rank) for unit, rank in best.ranks.items())
    return Choice({**ranks, **best.ranks}, kept)


def _rank_by_rank(
    evidence: Evidence,
    chosen: Choice,
    offered: Sequence[tuple[Candidate, tuple[Unit, ...]]],
    budget: int,
) -> Choice:
    """Assign the ranks of the chosen candidates, kind by kind where they may differ."""
    every = [unit for c, parts in offered if c in chosen.candidates for unit in parts]
    residual = Residual(evidence.sets)
    # One rank more of these would change those that were given out.
    ranks = {unit: rank for unit, rank in chosen.ranks.items() if unit.base}
    kept = sum(residual.spend(unit, rank) for unit, rank in ranks.items())
    open_to = [unit for unit in every if not unit.base]
    # What a rank keeps only falls while others are given out: what it was once is a bound.
    bound = {unit: float("inf") for unit in open_to}
    fresh: set[Unit] = set()
    while open_to := [unit for unit in open_to if unit.cost <= budget - cost(ranks)]:
        best = max(open_to, key=lambda unit: bound[unit])
        if best not in fresh:
            gain = residual.gains(best, 1)[1]
            bound[best] = gain / best.cost if gain >= _ROUNDING else 0.0
            fresh.add(best)
            continue
        if not bound[best]:
            break
        left = budget - cost(ranks)
        count = max(1, min(left, int(_STEP * budget)) // best.cost)
        kept += residual.spend(best, count)
        ranks[best] = ranks.get(best, 0) + count
        fresh.clear()
    return Choice(ranks, kept)


def cost(ranks: Ranks) -> int:
    """Count the parameters of units at their ranks."""
    return sum(unit.price(rank) for unit, rank in ranks.items())
