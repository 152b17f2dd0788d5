"""`autocast_adapter_dtype`, which TRL passes for ZeRO-3, at both doors of PEFT."""

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model

from bishare_dsl.folder.files import read_adapter
from bishare_dsl.peft import BishareConfig
from bishare_dsl.testing.models import tiny_model
from tests.support.checks import randomize

# A transform of each kind of tensor, a frozen one, and a magnitude.
SPEC = """spec s
target q_proj, v_proj, down_proj
share a per layer rank 4 via KE(size = 4)
share b per model rank 2 via SS init A kaiming_normal, B kaiming_normal freeze A, B gain rank init 0.1, out init 0
magnitude per module
"""
IDS = torch.arange(3, 19).view(2, 8)
SHORT = [torch.bfloat16, torch.float16]


def config():
    return BishareConfig(spec=SPEC, task_type="CAUSAL_LM")


def lora(base, *, autocast):
    """The dtype that PEFT gives to a LoRA."""
    adapter = LoraConfig(target_modules=["q_proj"], task_type="CAUSAL_LM")
    model = get_peft_model(base, adapter, autocast_adapter_dtype=autocast)
    return next(p.dtype for p in model.parameters() if p.requires_grad)


@pytest.mark.each_once
@pytest.mark.parametrize("autocast", [True, False])
@pytest.mark.parametrize("dtype", [*SHORT, torch.float32])
def test_a_new_adapter(dtype, autocast):
    base = tiny_model().to(dtype)
    plain = base(IDS).logits
    model = get_peft_model(base, config(), autocast_adapter_dtype=autocast)
    tensors = model.bishare.tensors()
    wide = get_peft_model(tiny_model().to(dtype), config()).bishare.tensors()
    assert {t.dtype for t in wide.values()} == {torch.float32}
    wanted = lora(tiny_model().to(dtype), autocast=autocast)
    assert {t.dtype for t in tensors.values()} == {wanted}
    for name, tensor in tensors.items():
        assert torch.equal(tensor, wide[name].to(wanted)), name
    assert torch.equal(model.eval()(IDS).logits, plain)
    loss = model.train()(IDS, labels=IDS).loss
    loss.backward()
    for name, tensor in tensors.items():
        assert not tensor.requires_grad or tensor.grad.dtype == wanted, name


@pytest.mark.each_once
@pytest.mark.parametrize("autocast", [True, False])
@pytest.mark.parametrize("dtype", SHORT)
def test_one_of_a_folder(dtype, autocast, tmp_path):
    """What it computes is near to the float32 adapter's, and it is saved again as it was."""
    trained = get_peft_model(tiny_model(), config())
    randomize(trained, frozen=False)
    trained.save_pretrained(tmp_path / "one")
    expected = trained.eval()(IDS).logits
    stored = read_adapter(tmp_path / "one").tensors()
    model = PeftModel.from_pretrained(
        tiny_model().to(dtype), tmp_path / "one", autocast_adapter_dtype=autocast
    )
    wanted = torch.float32 if autocast else dtype
    for name, tensor in model.bishare.tensors().items():
        assert tensor.dtype == wanted, name
        assert torch.equal(tensor, stored[name].to(wanted)), name
    found = model(IDS).logits
    assert (found.float() - expected).norm() < 0.05 * expected.norm()
    model.load_adapter(tmp_path / "one", "two", autocast_adapter_dtype=autocast)
    model.set_adapter("two")
    assert torch.equal(model(IDS).logits, found)
    model.save_pretrained(tmp_path / "out", selected_adapters=["two"])
    again = read_adapter(tmp_path / "out" / "two").tensors()
    assert all(torch.equal(again[n].to(wanted), stored[n].to(wanted)) for n in stored)
