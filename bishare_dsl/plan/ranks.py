"""Find the highest rank that an update can have."""

from __future__ import annotations

from functools import cache

from bishare_dsl.plan.plan import Plan
from bishare_dsl.transforms import Width, guard, load_transform


def maximum_ranks(plan: Plan) -> dict[str, int | None]:
    """Return the highest rank that the terms of each site can have, or None if they are not a matrix.

    Raises:
        SpecError: a package's transform fails (BS214).
    """
    terms = {term.share: term for term in plan.terms}
    transforms = {name: load_transform(t.transform, t.options) for name, t in terms.items()}

    @cache
    def reach(share: str, rank: int, width: Width) -> int:
        with guard(transforms[share], "reach"):
            return transforms[share].reach(rank, width)

    rank_of: dict[str, int | None] = {}
    for site in plan.sites:
        width = Width(site.d_in, site.d_out)
        adding = [term for term in plan.terms_of[site.path] if not term.is_magnitude]
        linear = all(term.linear for term in adding)
        reached = sum(reach(t.share, t.rank, width) for t in adding) if linear else 0
        rank_of[site.path] = min(reached, *width) if linear else None
    return rank_of
