"""HydraLoRA: the paper's equation, which is not linear in the input; so it neither merges nor exports."""

import copy

import pytest
import torch

from bishare_dsl.diagnostics import AdapterError
from tests.methods.conftest import close, planned, sites

COUNT, R = 3, 2


def test_the_paper_s_equation(adapted):
    """``y = W x + s sum_i w_i B_i A x`` at one module, on the input that it gets."""
    ours = adapted("hydralora", r=R, experts=COUNT, lora_alpha=6)
    layer = ours.model.model.layers[0].mlp
    x = torch.randn(2, 4, 32, generator=torch.Generator().manual_seed(0)).double()
    tensors = {
        kind: ours.tensors(f"model.layers.0.mlp.{kind}") for kind in ("up_proj", "down_proj")
    }

    def hydra(kind, x):
        t = tensors[kind]
        weights = torch.softmax(x @ t["G"].T, -1)
        experts = [x @ t["A"].T @ b for b in t["B"].chunk(COUNT)]
        return 3 * sum(weights[..., i, None] * experts[i] for i in range(COUNT))

    mlp = copy.deepcopy(ours.base.model.layers[0].mlp)
    inner = mlp.act_fn(mlp.gate_proj(x)) * (mlp.up_proj(x) + hydra("up_proj", x))
    close(layer(x), mlp.down_proj(inner) + hydra("down_proj", inner))


def test_it_is_not_linear(adapted):
    ours = adapted("hydralora", r=R, experts=COUNT)
    assert not any(term.linear for term in ours.plan.terms)
    for say in (ours.model.bishare.merge, lambda: ours.model.bishare.export("unused")):
        with pytest.raises(AdapterError, match="not linear in its input"):
            say()


def test_count():
    expected = sum(8 * i + 3 * 8 * o + 3 * i for i, o in sites("llama-7b"))
    assert planned("hydralora", r=8, experts=3).trainable == expected
