"""A proposal: the spec that was chosen, with the evidence for each of its shares, checked by the compiler."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from bishare_dsl.analyse.keys import Grouping
from bishare_dsl.analyse.progress import Watch, no_progress
from bishare_dsl.analyse.propose import intervals
from bishare_dsl.analyse.propose.candidates import Candidate, Unit, candidates
from bishare_dsl.analyse.propose.choose import (
    SHARES,
    Choice,
    ScoredCandidate,
    choose,
    cost,
    kept_by,
    score_candidates,
    units_of,
)
from bishare_dsl.analyse.propose.evidence import Evidence
from bishare_dsl.analyse.propose.residual import Residual
from bishare_dsl.compiler import Planned, make_plan
from bishare_dsl.diagnostics import AdapterError
from bishare_dsl.diagnostics.codes import analyse as codes
from bishare_dsl.export.from_peft import is_kind
from bishare_dsl.language import format_text, spec_text
from bishare_dsl.spec import Arm, RankMatch, Ref, Selection, Settings, Share, Spec

NAME = "proposed"
SCALE = 2
"""As in the paper's specs."""
_GROUPS_RANK = 8
BEST = 12
"""Of so many of what was weighed, and of what the spec tells, it is told what chance gives."""
_TOLD = 5
_WIDTH = 98


@dataclass(frozen=True)
class Part:
    """A share of a proposal.

    Attributes:
        share: its name.
        parameters: what it costs.
        kept: the energy that it keeps alone, at its ranks.
        chance: the energy that it would keep of independent updates.
    """

    share: str
    parameters: int
    kept: float
    chance: float


@dataclass(frozen=True)
class Proposal:
    """A spec, and why.

    Attributes:
        text: of the spec, formatted, with comments.
        made: its plan, within the budget, and what the compiler warns of.
        budget: in parameters.
        kept: the energy that all shares keep together.
        chance: the energy that they would keep of independent updates.
        parts: the shares.
        weighed: all that was weighed, by itself; what keeps most is first.
    """

    text: str
    made: Planned
    budget: int
    kept: float
    chance: float
    parts: tuple[Part, ...]
    weighed: tuple[ScoredCandidate, ...]


def propose(
    evidence: Evidence,
    budget: int,
    *,
    shares: int = SHARES,
    seed: int = 0,
    watch: Watch = no_progress,
) -> Proposal:
    """Propose who should share what, within a budget of parameters.

    Args:
        evidence: what is to be kept.
        budget: in parameters.
        shares: the most shares.
        seed: of chance.
        watch: goes over the candidates.

    Raises:
        AdapterError: nothing fits into the budget (BS851).
    """
    grouping = Grouping(evidence.architecture, evidence.sites)
    offered = units_of(
        candidates(intervals.groups(evidence, _GROUPS_RANK), evidence.sites), grouping
    )
    weighed = score_candidates(Residual(evidence.sets), offered, budget, watch)
    chosen = choose(evidence, offered, weighed, budget, shares=shares, watch=watch)
    if not chosen.ranks:
        least = min(unit.price(1) for _, parts in offered for unit in parts)
        raise AdapterError(codes.SMALL_BUDGET(budget=f"{budget:,}", least=f"{least:,}"))
    null = evidence.independent(seed)
    told = {w.candidate for w in [*weighed[:BEST], *_told(weighed, chosen)]}
    weighed = [
        replace(w, chance=kept_by(null, w.ranks)) if w.candidate in told else w for w in weighed
    ]
    parts = tuple(_part(candidate, chosen, evidence, null) for candidate in chosen.candidates)
    chance = kept_by(null, chosen.ranks)
    text = _text(evidence, grouping, chosen, parts, chance, weighed, budget)
    made = make_plan(text, evidence.architecture)
    assert made.plan.trainable == chosen.parameters <= budget
    return Proposal(text, made, budget, chosen.kept, chance, parts, tuple(weighed))


def _part(candidate: Candidate, chosen: Choice, evidence: Evidence, null: Evidence) -> Part:
    ranks = _ranks(candidate, chosen)
    return Part(
        share=candidate.name,
        parameters=cost(ranks),
        kept=kept_by(evidence, ranks),
        chance=kept_by(null, ranks),
    )


def _ranks(candidate: Candidate, chosen: Choice) -> Mapping[Unit, int]:
    return {unit: rank for unit, rank in chosen.ranks.items() if unit.candidate == candidate}


def _text(
    evidence: Evidence,
    grouping: Grouping,
    chosen: Choice,
    parts: Sequence[Part],
    chance: float,
    weighed: Sequence[ScoredCandidate],
    budget: int,
) -> str:
    kinds = tuple(dict.fromkeys(site.kind for site in evidence.sites))
    spec = Spec(
        name=NAME,
        target=grouping.target,
        defaults=Settings(scale=SCALE),
        shares=tuple(_share(c, _ranks(c, chosen), kinds) for c in chosen.candidates),
    )
    total = chosen.parameters
    made_for = (
        f"Proposed by `bishare propose` for {evidence.architecture.name}: {total:,} parameters, of the "
        f"{budget:,} that the budget allows. Edit it as you like."
    )
    seen = (
        f"Evidence: {evidence.source}. The shares keep {chosen.kept:.1%} of its energy; of independent "
        f"updates they would keep {chance:.1%}."
    )
    head = [made_for, seen, *_left(weighed, chosen)]
    text = "\n".join(map(_comment, head)) + "\n" + spec_text(spec)
    for part in parts:
        said = (
            f"{part.parameters / total:.0%} of the parameters. Alone it keeps {part.kept:.1%}; of "
            f"independent updates {part.chance:.1%}."
        )
        start = re.search(rf"^share {part.share}\b", text, re.MULTILINE)
        assert start is not None
        text = f"{text[: start.start()]}\n{_comment(said)}\n{text[start.start() :]}"
    return format_text(text)


def _told(weighed: Sequence[ScoredCandidate], chosen: Choice) -> list[ScoredCandidate]:
    """Return the best of what was left, then the best of each further kind."""
    left = [w for w in weighed if w.candidate not in chosen.candidates and w.ranks]
    kinds: dict[tuple[str, str], ScoredCandidate] = {}
    for w in left:
        kinds.setdefault((w.candidate.role, w.candidate.via), w)
    return [*left[:_TOLD], *(w for w in kinds.values() if w not in left[:_TOLD])]


def _left(weighed: Sequence[ScoredCandidate], chosen: Choice) -> list[str]:
    """Describe what was weighed and left, and a plain LoRA."""
    lines = [
        f"{w.candidate.text} (rank {w.rank}, {w.kept:.1%}, by chance {w.chance:.1%})"
        for w in _told(weighed, chosen)
    ]
    (own,) = [w for w in weighed if w.candidate.name == "own"]
    found = [f"A plain LoRA within the budget has rank {own.rank} and keeps {own.kept:.1%}."]
    if lines:
        found.append(
            f"{len(weighed)} ways to share were weighed, each alone with the whole budget. The best of those "
            f"that were left, and of each further kind: {'; '.join(lines)}."
        )
    return found


def _comment(text: str) -> str:
    # What a name of the model may hold ends no comment.
    line = " ".join(text.split())
    return textwrap.fill(line, _WIDTH, initial_indent="# ", subsequent_indent="# ")


def _share(candidate: Candidate, ranks: Mapping[Unit, int], kinds: Sequence[str]) -> Share:
    share = candidate.share()
    by_kind = {unit.kind: rank for unit, rank in ranks.items()}
    if None in by_kind:
        return share.model_copy(update={"rank": by_kind[None]})
    covered = [kind for kind in kinds if kind in by_kind]
    where = None
    if len(covered) < len(kinds):
        where = Selection(include=tuple(is_kind(kind) for kind in covered))
    rank: RankMatch | int = by_kind[covered[0]]
    if len(set(by_kind.values())) > 1:
        groups: dict[int, list[str]] = {}
        for kind in covered:
            groups.setdefault(by_kind[kind], []).append(kind)
        rank = RankMatch(
            subject=Ref(ref="kind"),
            arms=tuple(
                Arm(values=tuple(Ref(ref=kind) for kind in group), rank=value)
                for value, group in groups.items()
            ),
        )
    return share.model_copy(update={"where": where, "rank": rank})
