"""What our trainer asks of TRL's, and what it leaves alone."""

from contextlib import nullcontext
from functools import partial
from types import SimpleNamespace

import pytest
import torch
from transformers import Trainer, TrainerCallback

from bishare_dsl import compile_spec, load_adapter
from bishare_dsl.adapter.initial import draw_tensor
from bishare_dsl.train import TrainError
from bishare_dsl.train.bank_trainer import BankTrainer, BankWatch
from bishare_dsl.train.trainer import AdapterTrainer
from bishare_dsl.train.watch import Watch
from tests.support.families import tiny_model
from tests.train.conftest import losses, values


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        (AdapterTrainer, Trainer),
        (BankTrainer, Trainer),
        (Watch, TrainerCallback),
        (BankWatch, TrainerCallback),
    ],
)
def test_nothing_private_is_overridden(ours, theirs):
    overridden = {name for name in vars(ours) if not name.endswith("__") and hasattr(theirs, name)}
    assert overridden
    assert not [name for name in overridden if name.startswith("_")]


def test_what_is_overridden_is_still_called_so():
    for ours, theirs, names in (
        (
            AdapterTrainer,
            Trainer,
            "create_optimizer create_scheduler training_step compute_loss",
        ),
        (AdapterTrainer, Trainer, "evaluate"),
        (AdapterTrainer, Trainer, "set_initial_training_values"),
        (BankTrainer, Trainer, "get_train_dataloader create_optimizer create_scheduler"),
        (BankTrainer, Trainer, "training_step log evaluate save_model"),
    ):
        for name in names.split():
            assert name in vars(ours)
            assert callable(getattr(theirs, name))


def test_tensors_stay_in_float32_on_a_base_of_8_bits(start, tmp_path):
    plain = start(tmp_path / "plain", logging_steps=1)
    model = tiny_model("llama")
    model.is_loaded_in_8bit = True
    result = start(tmp_path / "it", model=model, logging_steps=1)
    assert {tensor.dtype for tensor in values(result).values()} == {torch.float32}
    assert losses(result) == losses(plain)


HEAD = "spec head\ntarget q_proj, lm_head\nshare a per module rank 2\n"


def test_a_head_with_an_adapter_learns(start, tmp_path):
    spec = tmp_path / "head.share"
    spec.write_text(HEAD)
    result = start(tmp_path / "it", spec=str(spec))
    [head] = [t for n, t in values(result).items() if "lm_head" in n and n.endswith("B")]
    assert head.abs().max() > 0


def test_zero_3_is_refused_if_it_would_lose_a_frozen_tensor():
    """Of a second adapter that does not train. Partitioned tensors have no numbers between forwards."""
    spec = "spec s\ntarget q_proj\nshare x A per model  B per module rank 2{}\n"
    model = compile_spec(spec.format(" freeze A"), tiny_model("llama"))
    peft_model = SimpleNamespace(get_base_model=lambda: model)
    check = partial(AdapterTrainer.check_saving, SimpleNamespace(model=peft_model))
    tensors = model.bishare.tensors()
    for tensor in tensors.values():
        tensor.data = torch.empty(0)
    check()  # The seed gives the frozen A, and transformers gathers the B that train.
    load = compile_spec(spec.format(""), tiny_model("llama"))
    model.bishare.add("other", load.bishare.plan, load.bishare.tensors(), load.bishare.spec_text, 0)
    model.bishare["other"].set_trainable(False)
    check()  # Its tensors are whole.
    for tensor in model.bishare["other"].tensors().values():
        tensor.data = torch.empty(0)
    with pytest.raises(TrainError, match=r"BS755.*ZeRO-3 would not save `x\.\S+`.* `other`"):
        check()


@pytest.mark.parametrize(("frozen", "lost"), [("seed", False), ("tensors", True)])
def test_zero_3_needs_a_seed_for_the_frozen_tensors_of_a_folder(tmp_path, frozen, lost):
    """Those that a folder stores may be other ones than the seed gives."""
    spec = "spec s\ntarget q_proj\nshare x A per model  B per module rank 2 freeze A\n"
    handle = compile_spec(spec, tiny_model("llama")).bishare
    for tensor in (tensor for tensor in handle.plan.tensors if not tensor.trainable):
        handle.tensors()[tensor.name].data = draw_tensor(tensor, 0)
    handle.save_pretrained(tmp_path, frozen=frozen)
    model = load_adapter(tmp_path, tiny_model("llama").eval()).train()
    for tensor in model.bishare.tensors().values():
        tensor.data = torch.empty(0)
    trainer = SimpleNamespace(model=SimpleNamespace(get_base_model=lambda: model))
    with pytest.raises(TrainError, match="BS755") if lost else nullcontext():
        AdapterTrainer.check_saving(trainer)


@pytest.mark.parametrize("name", ["loss_type", "label_smoothing_factor", "router_aux_loss_coef"])
def test_losses_of_others_are_refused(start, tmp_path, name):
    with pytest.raises(TrainError, match=rf"BS730.*`{name}` is not an argument"):
        start(tmp_path / "it", **{name: 0.1})


def test_reentrant_recomputing_gives_gradients(start, tmp_path):
    how = {"logging_steps": 1, "gradient_checkpointing": True}
    plain = start(tmp_path / "plain", **how)
    reentrant = {"gradient_checkpointing_kwargs": {"use_reentrant": True}}
    again = start(tmp_path / "again", **how | reentrant)
    for name, tensor in values(plain).items():
        torch.testing.assert_close(values(again)[name], tensor, rtol=0, atol=1e-5)
