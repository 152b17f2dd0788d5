"""Adapters whose sharing is known: tensors are random, and the spec says who shares them."""

from functools import cache
from pathlib import Path

import pytest
import torch

from bishare_dsl.adapter.files import read_adapter, save_adapter
from bishare_dsl.adapter.initial import draw
from bishare_dsl.analyse.analysis import analyse
from bishare_dsl.analyse.read import read_updates
from bishare_dsl.compiler import make_plan
from bishare_dsl.models.site import Architecture, Site

TARGET = "target q_proj, k_proj, v_proj, up_proj, down_proj"
INDEPENDENT = f"spec planted {TARGET} share own per module rank 4"
BY_LAYER = f"spec planted {TARGET} share one A per layer, in B per module rank 4"


def architecture(layers: int = 8) -> Architecture:
    """A model of some layers, with grouped-query attention, wide enough for chance to be little."""
    widths = {
        "self_attn.q_proj": (192, 192),
        "self_attn.k_proj": (192, 96),
        "self_attn.v_proj": (192, 96),
        "self_attn.o_proj": (192, 192),
        "mlp.up_proj": (192, 320),
        "mlp.down_proj": (320, 192),
    }
    sites = tuple(
        Site.at(f"model.layers.{layer}.{path}", *width)
        for layer in range(layers)
        for path, width in widths.items()
    )
    return Architecture(
        name="planted", family="llama", layers=layers, parameters=10**8, sites=sites
    )


@pytest.fixture(scope="session")
def plant(tmp_path_factory):
    """Save an adapter of a spec's topology: random tensors, or starts that changed a little."""

    def plant(
        text: str, name: str = "adapter", seed: int = 0, model=None, change: float = 0.0
    ) -> Path:
        made = make_plan(f"{text}\n", model or architecture())
        random = torch.Generator().manual_seed(seed)
        starts = draw(made.plan, 0)
        tensors = {
            t.name: starts[t.name] * bool(change or not t.trainable)
            + t.trainable
            * (change or 1)
            * torch.randn(t.shape, generator=random)
            / t.shape[1] ** 0.5
            for t in made.plan.tensors
        }
        folder = tmp_path_factory.mktemp("planted") / name
        save_adapter(folder, made.plan, tensors, made.text(), seed=0)
        return folder

    return plant


@pytest.fixture(scope="session")
def read(plant):
    """The same, read as updates."""

    def read(text: str, name: str = "adapter", **settings):
        return read_updates(name, read_adapter(plant(text, name, **settings)))

    return read


@pytest.fixture(scope="session")
def analysed(read):
    """The same, analysed: each takes seconds, and is computed once."""

    @cache
    def analysed(text: str, name: str = "adapter", seed: int = 0):
        return analyse(read(text, name=name, seed=seed))

    return analysed
