"""Find the highest rank that an update can have."""

from __future__ import annotations

from functools import cache

from bishare_dsl.plan.plan import Plan
from bishare_dsl.transforms import Transform, Width, guard, load_transform


def maximum_ranks(plan: Plan) -> dict[str, int | None]:
    """Return the highest rank that the terms of each site can have, or None if they are not a matrix.

    Raises:
        SpecError: a package's transform fails (BS214).
    """
    transforms: dict[str, Transform] = {}

    @cache
    def reach(share: str, rank: int, width: Width) -> int:
        with guard(transforms[share], "reach"):
            return transforms[share].reach(rank, width)

    rank_of: dict[str, int | None] = {}
    for site in plan.sites:
        width = Width(site.d_in, site.d_out)
        reached = 0
        terms = [term for term in plan.terms_of[site.path] if not term.is_magnitude]
        for term in terms:
            if term.share not in transforms:
                transforms[term.share] = load_transform(term.transform, term.options)
            if term.linear:
                reached += reach(term.share, term.rank, width)
        rank_of[site.path] = min(reached, *width) if all(term.linear for term in terms) else None
    return rank_of
