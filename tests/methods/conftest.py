"""Methods of the literature as shipped specs, on a tiny model with unequal widths and grouped queries."""

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor

from bishare_dsl import compile_spec, parse_spec
from bishare_dsl.export.effective import delta
from bishare_dsl.language import read_file
from bishare_dsl.models import preset
from bishare_dsl.plan import Plan, build_plan
from bishare_dsl.resources import shipped_specs
from bishare_dsl.spec import Spec
from bishare_dsl.testing.models import tiny_model
from tests.support.checks import randomize

# Three layers: enough for pools of several layers that are not all layers.
LAYERS = 3

# layers, hidden, key and value, intermediate width; grouped queries make the third smaller.
SIZES = {
    "llama-7b": (32, 4096, 4096, 11008),
    "llama-3-8b": (32, 4096, 1024, 14336),
    "llama-1-13b": (40, 5120, 5120, 13824),
}


def sites(model: str) -> list[tuple[int, int]]:
    """``(d_in, d_out)`` of q, k, v, up and down of each layer, written down by hand."""
    layers, d, kv, ffn = SIZES[model]
    return [(d, d), (d, kv), (d, kv), (d, ffn), (ffn, d)] * layers


def spec(name: str, **params: Any) -> Spec:
    return read_file(shipped_specs()[name])[0].with_params(params)


def planned(name: str, model: str = "llama-7b", **params: Any) -> Plan:
    return build_plan(spec(name, **params), preset(model))[0]


@dataclass
class Adapted:
    """An adapted float64 model whose tensors are all random."""

    base: Any
    model: Any

    @property
    def plan(self) -> Plan:
        return self.model.bishare.plan

    def tensors(self, site: str, share: str | None = None) -> dict[str, Tensor]:
        """The tensors of a site by role."""
        terms = [term for term in self.plan.terms_of[site] if share in (None, term.share)]
        assert len(terms) == 1
        return {role: self.model.bishare.tensors()[name] for role, name in terms[0].tensors.items()}

    def delta(self, site: str) -> Tensor:
        """The update of a site, ``(d_out, d_in)``."""
        place = next(s for s in self.plan.sites if s.path == site)
        return delta(self.plan, self.model.bishare.tensors(), place)


@pytest.fixture(scope="session")
def llama() -> Any:
    return tiny_model("llama", num_hidden_layers=LAYERS).double()


@pytest.fixture
def adapted(llama: Any) -> Callable[..., Adapted]:
    def make(name: str, text: str | None = None, base: Any = llama, **params: Any) -> Adapted:
        chosen = spec(name, **params) if text is None else parse_spec(text)
        model = compile_spec(chosen, copy.deepcopy(base)).double()
        randomize(model)
        return Adapted(base, model)

    return make


def run(model: Any) -> Tensor:
    """Logits; their gradients are left in the parameters."""
    ids = torch.arange(12).view(2, 6) * 5 % 64
    logits: Tensor = model(ids).logits
    weights = torch.randn(logits.shape, generator=torch.Generator().manual_seed(1)).double()
    model.zero_grad()
    (logits * weights).sum().backward()
    return logits.detach()


def close(found: Tensor, expected: Tensor) -> None:
    """Equal up to the rounding of float64."""
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)


def near(found: Tensor, expected: Tensor) -> None:
    """Equal up to the rounding of float32, in which `Adapted.delta` computes."""
    torch.testing.assert_close(found.double(), expected.double(), rtol=1e-5, atol=1e-6)
