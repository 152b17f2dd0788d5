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


# As the models' own cards and papers count them; independent of our reading of their configs.
@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        ("llama-7b", 6_738_415_616),
        ("llama-1-13b", 13_015_864_320),
        ("llama-3-8b", 8_030_261_248),
        ("llama-3-70b", 70_553_706_496),
        ("llama-3.1-405b", 405_853_388_800),
        ("qwen2.5-7b", 7_615_616_512),
        ("smollm2-135m", 134_515_008),
        ("smollm2-360m", 361_821_120),
        ("smollm2-1.7b", 1_711_376_384),
        ("smollm3-3b", 3_075_098_624),
        ("llama-3.2-1b", 1_235_814_400),
        ("llama-3.2-3b", 3_212_749_824),
        ("mistral-7b", 7_248_023_552),
        ("qwen2.5-0.5b", 494_032_768),
        ("qwen2.5-1.5b", 1_543_714_304),
        ("qwen2.5-3b", 3_085_938_688),
        ("qwen2.5-14b", 14_770_033_664),
        ("qwen2.5-32b", 32_763_876_352),
        ("qwen2.5-72b", 72_706_203_648),
        ("qwen3-0.6b", 596_049_920),
        ("qwen3-1.7b", 1_720_574_976),
        ("qwen3-4b", 4_022_468_096),
        ("qwen3-8b", 8_190_735_360),
        ("qwen3-14b", 14_768_307_200),
        ("qwen3-32b", 32_762_123_264),
        ("gemma-3-1b", 999_885_952),
        ("phi-4", 14_659_507_200),
        ("mixtral-8x7b", 46_702_792_704),
        ("qwen3-30b-a3b", 30_532_122_624),
        ("gemma-3-270m", 268_098_176),
    ],
)
def test_published_parameter_counts(name: str, parameters: int) -> None:
    assert preset(name).parameters == parameters


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
