"""The passes, in the order in which they run. Each is a step on a region's graphs; one file each."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from bishare_dsl.rewrite.passes.expand_terms import ExpandTerms
from bishare_dsl.rewrite.passes.fuse_gated_mlp import FuseGatedMlp
from bishare_dsl.rewrite.passes.fuse_islands import FuseIslands
from bishare_dsl.rewrite.passes.hoist_factors import HoistFactors
from bishare_dsl.rewrite.passes.share_factors import ShareFactors
from bishare_dsl.rewrite.region import Pass, RegionGraphs

OPTIMISATIONS: tuple[Pass, ...] = (
    ShareFactors(),
    FuseIslands(),
    FuseGatedMlp(),
    HoistFactors(),
)
"""What runs behind `ExpandTerms`, in an order in which each finds what those before it made: equal products
are one before islands are looked for, a gated product needs the island that reads it, and factors are hoisted
when all are made. None of it changes what is computed."""


def run_passes(
    region: RegionGraphs, expand: ExpandTerms, optimisations: Sequence[Pass] = OPTIMISATIONS
) -> Iterator[str]:
    """Run the passes over a region's graphs, which are valid after each, and give its name then."""
    for step in (expand, *optimisations):
        step.run(region)
        region.forward.lint()
        region.assembly.lint()
        yield type(step).__name__
