"""What our trainer asks of TRL's, and what it leaves alone."""

from pathlib import Path

import pytest
import torch
from transformers import Trainer, TrainerCallback, TrainingArguments
from trl import SFTConfig, SFTTrainer

from bishare_dsl import compile_spec
from bishare_dsl.testing.models import tiny_model
from bishare_dsl.train import TrainError, callbacks
from bishare_dsl.train.arguments import Arguments
from bishare_dsl.train.loss import fused_head_is_right, has_plain_head
from bishare_dsl.train.trainer import AdapterTrainer, _Logging
from tests.train.conftest import SPEC, losses, values


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        (AdapterTrainer, (SFTTrainer,)),
        (_Logging, (Trainer,)),
        (Arguments, (SFTConfig, TrainingArguments)),
        *((c, (TrainerCallback,)) for c in vars(callbacks).values() if isinstance(c, type)
          and issubclass(c, TrainerCallback)),
    ],
)  # fmt: skip
def test_nothing_private_is_overridden(ours, theirs):
    private = {name for name in vars(ours) if name.startswith("_") and not name.endswith("__")}
    for kind in theirs:
        assert not [name for name in private if hasattr(kind, name)]


def test_what_is_overridden_is_still_called_so():
    for name in (
        "log", "create_optimizer", "create_scheduler", "set_initial_training_values", "training_step",
        "compute_loss", "evaluate", "save_model", "create_model_card",
    ):  # fmt: skip
        assert name in {**vars(AdapterTrainer), **vars(_Logging)}
        assert callable(getattr(SFTTrainer, name))
    for name in ("n_gpu", "place_model_on_device"):
        assert isinstance(getattr(TrainingArguments, name), property)


def fused(model):
    from trl.trainer.utils import add_fused_lm_head

    add_fused_lm_head(model)
    return model


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("family", ["llama", "gemma2", "mixtral", "qwen3", "phi3"])
def test_the_fused_head_gives_the_loss_of_the_model(family, dtype):
    model = fused(tiny_model(family).to(dtype))
    assert fused_head_is_right(model)
    assert not model.training


def test_looking_draws_nothing_and_runs_nothing_in_eval_mode():
    model = fused(compile_spec(SPEC, tiny_model("llama")))
    with torch.no_grad():
        model.bishare.tensors()["a.q_proj.B"].normal_()  # So that dropout can be heard.
    seen = []
    model.model.register_forward_pre_hook(lambda module, _: seen.append(module.training))
    before = torch.get_rng_state()
    assert fused_head_is_right(model)
    assert seen == [True, True]
    assert torch.equal(torch.get_rng_state(), before)


def test_a_fused_head_that_gives_another_loss_is_known():
    model = fused(tiny_model("llama"))
    own = model.loss_function
    model.loss_function = lambda *arguments, **keywords: 2 * own(*arguments, **keywords)
    assert not fused_head_is_right(model)


def test_a_head_with_an_adapter_is_known():
    """A loss that reads the weight of the head alone would leave its adapter out."""
    model = compile_spec(SPEC, tiny_model("llama"))
    assert has_plain_head(model)
    model.get_output_embeddings = lambda: model.model.layers[0].self_attn.k_proj
    assert has_plain_head(model)
    model.get_output_embeddings = lambda: model.model.layers[0].self_attn.q_proj
    assert not has_plain_head(model)


def test_losses_of_both_ways_agree_where_a_batch_is_accumulated(start, tmp_path, monkeypatch):
    more = {"logging_steps": 1, "per_device_train_batch_size": 1, "gradient_accumulation_steps": 4}
    monkeypatch.setattr("bishare_dsl.train.trainer.takes_only_learned", lambda _: False)
    one = start(tmp_path / "one", **more)
    monkeypatch.setattr("bishare_dsl.train.trainer.has_plain_head", lambda _: False)
    other = start(tmp_path / "other", **more)
    for here, there in zip(losses(one)[:6], losses(other)[:6], strict=True):
        assert here[1:4] == pytest.approx(there[1:4], rel=1e-4)


def test_tensors_stay_in_float32_on_a_base_of_8_bits(start, tmp_path):
    plain = start(tmp_path / "plain", logging_steps=1)
    model = tiny_model("llama")
    model.is_loaded_in_8bit = True
    result = start(tmp_path / "it", model=model, logging_steps=1)
    assert {tensor.dtype for tensor in values(result).values()} == {torch.float32}
    assert losses(result) == losses(plain)


def test_config_and_tags_are_left_as_they_were(start, tmp_path):
    model = tiny_model("llama")
    model.config.eos_token_id = model.generation_config.eos_token_id = 7  # Not the tokenizer's.
    before = model.config.to_dict(), model.generation_config.to_dict(), model.model_tags
    start(tmp_path / "it", model=model)
    assert (model.config.to_dict(), model.generation_config.to_dict(), model.model_tags) == before


def test_nothing_is_left_of_what_transformers_saved(start, tmp_path):
    start(tmp_path / "it", save_strategy="steps", save_steps=2)
    assert not list((tmp_path / "it").glob(".*"))
    assert not list((tmp_path / "it").rglob("*.pt*"))


def test_another_loss_of_trl(start, tmp_path, monkeypatch):
    plain = start(tmp_path / "plain", logging_steps=1)
    dft = start(tmp_path / "dft", logging_steps=1, loss_type="dft")
    assert dft.history[0]["loss"] < plain.history[0]["loss"]
    monkeypatch.setattr("bishare_dsl.train.trainer.has_plain_head", lambda _: False)
    with pytest.raises(TrainError, match=r"BS732.*loss_type"):
        start(tmp_path / "no", loss_type="dft")


def test_the_loss_of_routing_is_added_where_it_is_asked_for(start, tmp_path):
    spec = "spec s\ntarget q_proj\nshare a per module rank 2\n"
    found = []
    for more in ({}, {"router_aux_loss_coef": 0.5}):
        folder = tmp_path / str(len(found))
        found.append(start(folder, spec=spec, model=tiny_model("mixtral"), logging_steps=1, **more))
    plain, added = (result.history[0]["loss"] for result in found)
    assert added > plain + 0.4
    assert "aux_loss" in found[1].history[0]
    assert "aux_loss" not in found[0].history[0]


def test_callbacks_of_the_user_see_the_folder_of_the_run(start, tmp_path):
    seen = set()

    class Sees(TrainerCallback):
        def on_event(self, args, state, control, **_):
            seen.add(args.output_dir)

        on_train_begin = on_step_begin = on_step_end = on_log = on_evaluate = on_train_end = (
            on_event
        )

        def on_save(self, args, state, control, **_):
            found = Path(args.output_dir, f"checkpoint-{state.global_step}")
            assert (found / "adapter_model.safetensors").is_file()

    more = {"eval_split": 4, "save_strategy": "steps", "save_steps": 2}
    start(tmp_path / "it", callbacks=[Sees()], logging_steps=1, **more)
    assert seen == {str(tmp_path / "it")}
