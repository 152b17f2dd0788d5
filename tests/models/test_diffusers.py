"""Transformers of diffusers: adapters of a tiny Flux 2, through `get_peft_model` as PEFT's image benchmark does."""

import copy
import warnings

import pytest
import torch
from peft import PeftModel, get_peft_model

diffusers = pytest.importorskip("diffusers")

import bishare_dsl.peft  # noqa: E402, F401 - registers the method
from bishare_dsl.peft import BishareConfig  # noqa: E402
from tests.support.checks import randomize  # noqa: E402

SPECS = {
    "private": "spec a\ntarget to_q, to_k, to_v, to_qkv_mlp_proj\nshare x per module rank 2\n",
    "shared": "spec b\ntarget to_q, to_k, to_v\nshare x  A per model  B per layer, kind  rank 4\n",
    "cores": "spec c\ntarget to_q, to_k, to_v\n"
    "share x  A per kind  B per kind  core per module  rank 4  via Core\n",
}


@pytest.fixture(scope="module")
def base():
    torch.manual_seed(0)
    model = diffusers.Flux2Transformer2DModel(
        in_channels=8,
        num_layers=2,
        num_single_layers=2,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=32,
        timestep_guidance_channels=16,
        axes_dims_rope=(4, 4, 4, 4),
    )
    return model.eval().requires_grad_(False)


def inputs():
    random = torch.Generator().manual_seed(0)
    return {
        "hidden_states": torch.randn(2, 6, 8, generator=random),
        "encoder_hidden_states": torch.randn(2, 3, 32, generator=random),
        "timestep": torch.tensor([0.5, 0.1]),
        "guidance": torch.tensor([1.0, 2.0]),
        "img_ids": torch.zeros(6, 4),
        "txt_ids": torch.zeros(3, 4),
        "return_dict": False,
    }


def adapted(base, name):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return get_peft_model(copy.deepcopy(base), BishareConfig(spec=SPECS[name]))


def gradients(model):
    (out,) = model(**inputs())
    out.square().mean().backward()
    tensors = [p for p in model.parameters() if p.requires_grad]
    found = [p.grad.clone() for p in tensors]
    model.zero_grad()
    return found


@pytest.mark.parametrize("name", SPECS)
def test_flux2(base, name, tmp_path):
    with torch.no_grad():
        (expected,) = base(**inputs())
        model = adapted(base, name)
        assert torch.equal(model(**inputs())[0], expected)
        randomize(model.base_model.model)
        (trained,) = model(**inputs())
        assert not torch.allclose(trained, expected)
        with model.disable_adapter():
            assert torch.equal(model(**inputs())[0], expected)
    model.train()
    plain = gradients(model)
    assert all(gradient.any() for gradient in plain)
    model.base_model.model.enable_gradient_checkpointing()
    for gradient, other in zip(gradients(model), plain, strict=True):
        torch.testing.assert_close(gradient, other)
    model.save_pretrained(tmp_path)
    again = PeftModel.from_pretrained(copy.deepcopy(base), tmp_path).eval()
    with torch.no_grad():
        assert torch.equal(again(**inputs())[0], trained)
        merged = again.merge_and_unload()
        torch.testing.assert_close(merged(**inputs())[0], trained, rtol=1e-4, atol=1e-4)
