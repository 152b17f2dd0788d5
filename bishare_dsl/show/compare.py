"""Figures for comparing plans."""

from __future__ import annotations

from dataclasses import dataclass

from bishare_dsl.plan import Plan
from bishare_dsl.plan.ranks import maximum_ranks
from bishare_dsl.show.rows import BYTES, Bounds, lora_size, rank_bounds


@dataclass(frozen=True)
class Figures:
    """Cost and rank of a plan.

    ``maximum_rank`` is the rank of the modules' updates, or None if an update is not a matrix. ``of_lora``
    is the number of trainable parameters relative to LoRA r=8 on the same modules, or None without modules.
    """

    modules: int
    trainable: int
    frozen: int
    bytes: int
    maximum_rank: Bounds | None
    of_lora: float | None


def figures(plan: Plan) -> Figures:
    """Compute the figures of a plan."""
    ranks = maximum_ranks(plan)
    adapted = [path for path, terms in plan.terms_of.items() if terms]
    return Figures(
        modules=len(adapted),
        trainable=plan.trainable,
        frozen=plan.frozen,
        bytes=BYTES * plan.stored,
        maximum_rank=rank_bounds(ranks[path] for path in adapted),
        of_lora=plan.trainable / lora if (lora := lora_size(plan)) else None,
    )
