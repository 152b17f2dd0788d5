"""What our trainer asks of TRL's, and what it leaves alone."""

import warnings

import pytest
import torch
from transformers import Trainer, TrainerCallback

from bishare_dsl.diagnostics import BishareWarning
from bishare_dsl.train import TrainError
from bishare_dsl.train.trainer import AdapterTrainer, BankTrainer, Watch
from tests.support.families import tiny_model
from tests.train.conftest import losses, values


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [(AdapterTrainer, Trainer), (BankTrainer, Trainer), (Watch, TrainerCallback)],
)
def test_nothing_private_is_overridden(ours, theirs):
    overridden = {name for name in vars(ours) if not name.endswith("__") and hasattr(theirs, name)}
    assert overridden
    assert not [name for name in overridden if name.startswith("_")]


def test_what_is_overridden_is_still_called_so():
    both = "create_optimizer create_scheduler evaluate"
    for ours, names in (
        (AdapterTrainer, f"{both} compute_loss set_initial_training_values"),
        (BankTrainer, f"{both} get_train_dataloader training_step log save_model"),
    ):
        for name in names.split():
            assert name in vars(ours)
            assert callable(getattr(Trainer, name))


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


@pytest.mark.parametrize("name", ["loss_type", "label_smoothing_factor", "router_aux_loss_coef"])
def test_losses_of_others_are_refused(start, tmp_path, name):
    with pytest.raises(TrainError, match=rf"BS730.*`{name}` is not an argument"):
        start(tmp_path / "it", **{name: 0.1})


def test_a_module_that_is_not_used_is_named(start, tmp_path):
    """The third step names the tensors of a layer that is left out, and none of a whole model."""
    model = tiny_model("llama")
    model.model.layers[1].mlp.forward = lambda x: x
    spec = "spec s\ntarget q_proj, up_proj\nshare x per module rank 2\n"
    said = r"BS873.*2 of 8 tensors in step 3: .*layers\.1\.mlp.*up_proj__A"
    with pytest.warns(BishareWarning, match=said):
        start(tmp_path / "out", spec=spec, model=model, max_steps=4)
    with warnings.catch_warnings():
        warnings.simplefilter("error", BishareWarning)
        start(tmp_path / "again", spec=spec, max_steps=4)
