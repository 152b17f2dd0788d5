"""Models with an adapter, and regions with graphs of identity, for the tests of this folder."""

import copy
from dataclasses import dataclass
from functools import cache

import torch
from torch import nn
from torch.nn.utils import parametrize
from transformers.pytorch_utils import Conv1D

from bishare_dsl.language import parse_spec
from bishare_dsl.models.inspect import inspect_model
from bishare_dsl.plan import Plan, build_plan
from bishare_dsl.rewrite import OwnedTensors
from bishare_dsl.rewrite.capture import capture_region
from bishare_dsl.rewrite.fallback import linear_region
from bishare_dsl.rewrite.rewritten import GraphCode, set_code
from bishare_dsl.rewrite.structure import structure_key
from bishare_dsl.rewrite.trace import UntraceableRegion
from tests.support.families import tiny_model
from tests.support.references import reference_model
from tests.support.regions import adapt


def identity(model):
    """Rewrite every region of `model` without adapting anything.

    Returns the reason, by class name, for each parent that had to fall back to its linears.
    """
    graphs, fallbacks = {}, {}
    for module in list(model.modules()):
        linears = [n for n, c in module.named_children() if isinstance(c, nn.Linear | Conv1D)]
        if not linears or "lm_head" in linears:
            continue
        key = structure_key(module)
        if key not in graphs:
            try:
                graphs[key] = capture_region(module, linears)
            except UntraceableRegion as error:
                graphs[key], fallbacks[type(module).__name__] = None, error.reason
        if graphs[key] is not None:
            set_code(module, GraphCode.of(graphs[key]))
        else:
            for name in linears:
                linear = module.get_submodule(name)
                set_code(linear, GraphCode.of(linear_region(linear)))
    return fallbacks


@dataclass
class Adapted:
    """A model with an adapter, what the adapter is, and an untouched copy of its base."""

    model: nn.Module
    base: nn.Module
    plan: Plan
    notes: tuple[str, ...]

    @property
    def tensors(self):
        stores = [module for module in self.model.modules() if isinstance(module, OwnedTensors)]
        return {name: p for s in stores for name, p in zip(s.names, s(), strict=True)}

    def train(self):
        """As after some training: no tensor is zero any more."""
        random = torch.Generator().manual_seed(1)
        with torch.no_grad():
            for tensor in self.tensors.values():
                tensor.copy_(torch.randn(tensor.shape, generator=random) * 0.2)
        return self

    def reference(self):
        """The base with dense weights W + sum of dW, which are functions of `tensors`."""
        return reference_model(self.base, self.plan, self.tensors)

    def merged(self):
        """The same as plain weights, for what runs many forwards."""
        dense = self.reference()
        for module in dense.modules():
            if parametrize.is_parametrized(module):
                with torch.no_grad():
                    for name in [*module.parametrizations]:
                        parametrize.remove_parametrizations(module, name)
        return dense


PAPER = """
spec paper
target every
scale 2
share local  per module rank 2
share intra  per layer  rank 2 via SS
share inter  per model  rank 4 via KE(size = 8)
"""


def planned(model, text=PAPER):
    architecture = inspect_model(model)
    return build_plan(
        parse_spec(text.replace("every", ", ".join(architecture.kinds))), architecture
    )[0]


def fresh_tensors(plan):
    """Tensors of a fresh adapter: as the plan says, zero or not."""
    random = torch.Generator().manual_seed(0)
    return {
        t.name: torch.randn(t.shape, generator=random) * (t.init != "zeros") for t in plan.tensors
    }


def adapted(model="llama", text=PAPER, **overrides):
    if isinstance(model, str):
        # A copy takes a tenth of the time.
        return copy.deepcopy(_adapt_tiny(model, text, tuple(overrides.items())))
    base, plan = copy.deepcopy(model), planned(model, text)
    return Adapted(model, base, plan, adapt(model, plan, fresh_tensors(plan)))


@cache
def _adapt_tiny(family, text, overrides):
    return adapted(tiny_model(family, **dict(overrides)), text)
