"""Presets against transformers: the arithmetic must give what a model on the meta device has."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from transformers import AutoConfig

from bishare_dsl.models import PRESETS, architecture_of, config_of, inspect_config, preset


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_is_the_model_that_its_config_builds(name: str) -> None:
    built = inspect_config(AutoConfig.for_model(**config_of(name)))
    assert preset(name).sites == built.sites
    assert preset(name).parameters == built.parameters
    assert preset(name).layers == built.layers
    assert preset(name).family == built.family


def test_every_linear_of_a_block_is_a_site_in_the_models_order() -> None:
    llama = preset("llama-3-8b")
    assert llama.kinds == (
        "q_proj",
        "k_proj",
        "v_proj",
        "o_proj",
        "gate_proj",
        "up_proj",
        "down_proj",
    )
    key = llama.sites[1]
    assert (key.path, key.layer, key.parent) == ("model.layers.0.self_attn.k_proj", 0, "self_attn")
    assert (key.d_in, key.d_out) == (4096, 1024)


def test_every_map_of_every_expert_is_a_site() -> None:
    mixture = preset("qwen3-30b-a3b")
    of_experts = [site for site in mixture.sites if site.expert is not None]
    assert len(of_experts) == 48 * 128 * 3
    assert {site.kind for site in of_experts} == {"gate_proj", "up_proj", "down_proj"}
    assert of_experts[-1].path == "model.layers.47.mlp.experts.127.down_proj"
    assert (of_experts[-1].d_in, of_experts[-1].d_out) == (768, 2048)


def test_the_hub_id_of_a_preset_needs_no_network() -> None:
    known = architecture_of("meta-llama/Meta-Llama-3.1-8B")
    assert known.sites == preset("llama-3-8b").sites
    assert known.name == known.model_id == "meta-llama/Meta-Llama-3.1-8B"


def test_presets_import_neither_torch_nor_transformers(tmp_path: Path) -> None:
    script = (
        "import sys; from bishare_dsl.models import architecture_of; architecture_of('llama-3.1-405b');"
        "assert not {'torch', 'transformers', 'huggingface_hub', 'numpy'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", script], check=True)
