"""Presets against transformers: the arithmetic must give what a model on the meta device has."""

import subprocess
import sys

import pytest
from transformers import AutoConfig

from bishare_dsl.models import PRESETS, architecture_of, config_of, inspect_config, preset


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_is_the_model_that_its_config_builds(name):
    built = inspect_config(AutoConfig.for_model(**config_of(name)))
    assert preset(name).sites == built.sites
    assert preset(name).parameters == built.parameters
    assert preset(name).layers == built.layers
    assert preset(name).family == built.family


def test_the_hub_id_of_a_preset_needs_no_network():
    known = architecture_of("meta-llama/Meta-Llama-3.1-8B")
    assert known.sites == preset("llama-3-8b").sites
    assert known.name == known.model_id == "meta-llama/Meta-Llama-3.1-8B"


def test_presets_import_neither_torch_nor_transformers(tmp_path):
    script = (
        "import sys; from bishare_dsl.models import architecture_of; architecture_of('llama-3.1-405b');"
        "assert not {'torch', 'transformers', 'huggingface_hub', 'numpy'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", script], check=True)
