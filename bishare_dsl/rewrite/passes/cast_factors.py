"""Let what keeps the factors know in which dtype they are applied."""

from __future__ import annotations

from dataclasses import dataclass

from bishare_dsl.rewrite.passes.hoist_factors import HoistFactors
from bishare_dsl.rewrite.region import Pass, RegionGraphs


@dataclass(frozen=True)
class CastFactors(Pass):
    """Before: ``bishare_factors()``. After: ``bishare_factors(hidden_states)``.

    Factors are float32 as a rule. Beside a base in half precision each would be cast at each call: now what
    is kept is cast already.
    """

    # What the call gives is what is applied.
    behind = (HoistFactors,)

    def run(self, region: RegionGraphs) -> None:
        inputs = region.forward.find_nodes(op="placeholder")
        region.factors_call().args = tuple(inputs[:1])
