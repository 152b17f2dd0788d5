"""Figures for comparing plans."""

from __future__ import annotations

from typing import Any

from bishare_dsl.plan import Plan
from bishare_dsl.plan.ranks import maximum_ranks
from bishare_dsl.show.rows import BYTES, lora_size, rank_bounds


def figures(plan: Plan) -> dict[str, Any]:
    """Compute the cost, the scale and the rank of a plan.

    ``scale`` is the smallest and the largest scale of a term, or None without terms.
    ``maximum_rank`` is the rank of the modules' updates, or None if an update is not a matrix. ``of_lora``
    is the number of trainable parameters relative to LoRA r=8 on the same modules, or None without modules.
    """
    ranks = maximum_ranks(plan)
    lora = lora_size(plan)
    scales = [term.scale for term in plan.update_terms]
    adapted = [path for path, terms in plan.terms_of.items() if terms]
    return {
        "modules": len(adapted),
        "trainable": plan.trainable,
        "frozen": plan.frozen,
        "bytes": BYTES * plan.stored,
        "scale": (min(scales), max(scales)) if scales else None,
        "maximum_rank": rank_bounds(ranks[path] for path in adapted),
        "of_lora": plan.trainable / lora if lora else None,
    }
