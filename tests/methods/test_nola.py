"""NOLA: the paper's equation, a count that knows neither rank nor width, and bases from the seed."""

import copy

import pytest
import torch

from bishare_dsl import compile_spec
from tests.methods.conftest import close, near, planned, spec

COUNT, R = 5, 3


def test_the_paper_s_equation(adapted):
    ours = adapted("nola", r=R, count=COUNT, lora_alpha=6)
    for site in ours.plan.sites:
        tensors = ours.tensors(site.path)
        a = sum(tensors["c_A"][0, i] * tensors["A"].chunk(COUNT)[i] for i in range(COUNT))
        b = sum(tensors["c_B"][0, i] * tensors["B"].chunk(COUNT)[i] for i in range(COUNT))
        near(ours.delta(site.path), 2 * b.T @ a)


@pytest.mark.parametrize("model", ["llama-7b", "llama-3-8b"])
@pytest.mark.parametrize("r", [1, 8])
def test_count(model, r):
    assert planned("nola", model, r=r, count=128).trainable == 32 * 5 * 2 * 128


def test_bases_are_shared_where_widths_agree():
    tensors = {t.name: t.shape for t in planned("nola", "llama-3-8b", r=2, count=3).tensors}
    bases = {name: shape for name, shape in tensors.items() if name[-2:] in (".A", ".B")}
    assert sorted(bases.values()) == [(6, 1024), (6, 4096), (6, 4096), (6, 14336), (6, 14336)]


def test_bases_come_from_the_seed_and_never_train(llama):
    def bases(seed):
        model = compile_spec(spec("nola", r=R, count=COUNT), copy.deepcopy(llama), seed=seed)
        named = model.bishare.tensors()
        return {name: t for name, t in named.items() if name.endswith((".A", ".B"))}

    first, again, other = bases(0), bases(0), bases(1)
    assert len(first) > 0
    for name, tensor in first.items():
        assert not tensor.requires_grad
        close(again[name], tensor)
        assert not torch.equal(other[name], tensor)
