"""An export for mlx-lm, loaded by mlx-lm: a forward of the same base gives the adapted model's logits."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
import torch
from mlx_lm.models import llama, qwen3
from mlx_lm.tuner.utils import load_adapters

from bishare_dsl import compile_spec, parse_spec
from tests.support.checks import randomize
from tests.support.families import tiny_model

MODULES = {"llama": llama, "qwen3": qwen3}
SPEC = """
spec mixed
target q_proj, v_proj, down_proj
share local where q_proj, down_proj per module rank 2
share inter per model rank 3 via SS scale 0.5
"""


def in_mlx(base: Any, module: Any) -> Any:
    """The same base, in mlx."""
    known = module.ModelArgs.__dataclass_fields__
    config = base.config.to_dict()
    config |= {"rope_theta": 10_000.0} | (config.get("rope_parameters") or {})
    config.pop("rope_scaling", None)
    model = module.Model(module.ModelArgs(**{k: v for k, v in config.items() if k in known}))
    weights = {name: mx.array(value.numpy()) for name, value in base.state_dict().items()}
    model.load_weights([*model.sanitize(weights).items()])
    model.eval()
    return model


@pytest.mark.parametrize("family", MODULES)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_its_logits_are_ours(family: str, dtype: str, tmp_path: Path) -> None:
    base = tiny_model(family)
    model = in_mlx(base, MODULES[family])
    ids = torch.arange(3, 13).view(1, -1)
    adapted: Any = compile_spec(parse_spec(SPEC), copy.deepcopy(base))
    randomize(adapted, 1)
    adapted.bishare.export(tmp_path / "for-mlx", format="mlx", dtype=dtype)
    with torch.no_grad():
        plain, wanted = base(ids).logits.numpy(), adapted(ids).logits.numpy()
    inputs = mx.array(ids.numpy())
    assert np.abs(np.array(model(inputs)) - plain).max() < 1e-3
    load_adapters(model, str(tmp_path / "for-mlx"))
    model.eval()
    found = np.array(model(inputs).astype(mx.float32))
    most = 1e-3 if dtype == "float32" else 0.05
    assert np.abs(found - wanted).max() < most * np.abs(wanted).max()
    assert np.abs(wanted - plain).max() > 0.1
