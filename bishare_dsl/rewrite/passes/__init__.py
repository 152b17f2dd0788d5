"""The passes, in the order in which they run. Each changes a region's graphs and has one file."""

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
"""Passes that run after `ExpandTerms`.

The order matters: equal products are merged before islands are
formed, a gated product needs the island that reads it, and factors are hoisted once all exist. No pass
changes the outputs.
"""


def run_passes(
    region: RegionGraphs, expand: ExpandTerms, optimisations: Sequence[Pass] = OPTIMISATIONS
) -> Iterator[str]:
    """Run the passes over a region's graphs, and yield the name of each pass after it ran."""
    for step in (expand, *optimisations):
        step.run(region)
        region.forward.lint()
        region.assembly.lint()
        yield type(step).__name__
