"""What the rewriting does, for people to read: each distinct region after each pass."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import nn

from bishare_dsl.plan import Plan
from bishare_dsl.rewrite.adapt import adapt
from bishare_dsl.rewrite.passes import OPTIMISATIONS
from bishare_dsl.rewrite.region import Pass, RegionGraphs
from bishare_dsl.rewrite.rewritten import GraphCode


@dataclass(frozen=True)
class Stage:
    """A region's graphs at one point: as text, as graphs or as the Python that runs.

    ``region`` is the path of the first region that has these graphs; all that are alike share it.
    """

    region: str
    step: str
    forward_graph: str
    assembly_graph: str
    forward_code: str
    assembly_code: str


def explain(
    model: nn.Module, plan: Plan, optimisations: Sequence[Pass] = OPTIMISATIONS
) -> Iterator[Stage]:
    """Rewrite a model, and give each distinct region's graphs as traced and after each pass.

    The model is adapted by it; one on the meta device is enough, and quick.
    """
    stages: list[Stage] = []

    def observe(path: str, step: str, region: RegionGraphs) -> None:
        stages.append(
            Stage(
                path,
                step,
                str(region.forward),
                str(region.assembly),
                GraphCode.of(region.forward).source,
                GraphCode.of(region.assembly).source,
            )
        )

    tensors = {t.name: torch.empty(t.shape, device="meta") for t in plan.tensors}
    adapt(model, plan, tensors, observe=observe, optimisations=tuple(optimisations))
    yield from stages
