"""Exports for mlx-lm, by what its loader does; `tests/clients/test_mlx_lm.py` has mlx-lm itself load one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from bishare_dsl import compile_spec, parse_spec
from bishare_dsl.diagnostics import AdapterError
from bishare_dsl.export.effective import delta
from tests.support.checks import randomize
from tests.support.families import tiny_model

SPEC = """
spec mixed
target q_proj, v_proj, down_proj
share local where q_proj, down_proj per module rank 2
share inter per model rank 3 via SS scale 0.5
"""


def adapted(text: str = SPEC, family: str = "llama") -> Any:
    model = compile_spec(parse_spec(text), tiny_model(family))
    randomize(model, 0)
    return model


def test_each_key_is_a_layer_of_one_rank_and_scale(tmp_path: Path) -> None:
    model = adapted()
    report = model.bishare.export(tmp_path / "out", format="mlx")
    assert report.max_lora_rank is None  # That is vLLM's.
    config = json.loads((tmp_path / "out/adapter_config.json").read_text())
    parameters = config["lora_parameters"]
    plan = model.bishare.plan
    assert config["fine_tune_type"] == "lora"
    assert config["num_layers"] == 2
    assert parameters["keys"] == [site.path for site in plan.sites]
    tensors = load_file(tmp_path / "out/adapters.safetensors")
    assert len(tensors) == 2 * len(plan.sites)
    for site in plan.sites:
        a, b = (tensors.pop(f"{site.path}.lora_{name}") for name in "ab")
        assert a.shape == (site.d_in, parameters["rank"])
        assert b.shape == (parameters["rank"], site.d_out)
        found = parameters["scale"] * (a @ b).mT
        torch.testing.assert_close(found, delta(plan, model.bishare.tensors(), site).detach())


def test_a_folder_in_the_way(tmp_path: Path) -> None:
    model = adapted()
    model.bishare.export(tmp_path / "out", format="mlx")
    with pytest.raises(AdapterError, match="BS618"):
        model.bishare.export(tmp_path / "out", format="mlx")


@pytest.mark.parametrize(
    ("text", "family", "code"),
    [
        ("spec s target up_proj share a per module rank 2", "mixtral", "BS646"),
        ("spec s target lm_head, embed_tokens share a per module rank 2", "gemma2", "BS646"),
        ("spec s target q_proj share a per module rank 2 train norms", "llama", "BS686"),
        ("spec s target q_proj share a per module rank 2 via Experts", "llama", "BS633"),
    ],
)
def test_what_mlx_lm_does_not_have(text: str, family: str, code: str, tmp_path: Path) -> None:
    with pytest.raises(AdapterError, match=code):
        adapted(text, family).bishare.export(tmp_path / "out", format="mlx")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("option", [{"uniform_rank": True}])
def test_options_of_other_formats(option: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(AdapterError, match=r"BS646.*the format mlx"):
        adapted().bishare.export(tmp_path / "out", format="mlx", **option)
