"""Anybody's trainer: TRL's and transformers', unmodified, with `BishareConfig` where they take a PEFT config."""

import math

import pytest
import torch
from datasets import Dataset
from peft import AutoPeftModelForSequenceClassification, PeftModel, get_peft_model
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, TrainerCallback
from trl import (
    DPOConfig,
    DPOTrainer,
    GRPOConfig,
    GRPOTrainer,
    KTOConfig,
    KTOTrainer,
    RewardConfig,
    RewardTrainer,
    RLOOConfig,
    RLOOTrainer,
    SFTConfig,
    SFTTrainer,
)

from bishare_dsl import load_adapter
from bishare_dsl.folder.files import read_adapter
from bishare_dsl.peft import BishareConfig
from bishare_dsl.resources import find_spec
from tests.peft.conftest import SPEC
from tests.support.stored import load_stored

ROWS = Dataset.from_list(
    [{"prompt": "q" * (i % 5 + 1), "completion": "abc" * (i % 4 + 1)} for i in range(24)]
)
PAIRS = Dataset.from_list(
    [{"prompt": "q" * (i % 5 + 1), "chosen": "abc", "rejected": "cba"} for i in range(8)]
)
PROMPTS = Dataset.from_list([{"prompt": "q" * (i % 5 + 1)} for i in range(8)])
LABELLED = Dataset.from_list(
    [{"prompt": "q" * (i % 5 + 1), "completion": "abc", "label": i % 2 == 0} for i in range(8)]
)
COMMON = {
    "per_device_train_batch_size": 2,
    "learning_rate": 1e-2,
    "logging_steps": 1,
    "report_to": [],
    "use_cpu": True,
    "bf16": False,
    "disable_tqdm": True,
}


def config(**settings):
    return BishareConfig(spec=SPEC, **settings)


def losses(trainer):
    return [row["loss"] for row in trainer.state.log_history if "loss" in row]


def tensors_of(trainer):
    return {n: p.detach().clone() for n, p in trainer.model.named_parameters() if "bishare" in n}


class Stop(TrainerCallback):
    """Stop a run after some steps."""

    def __init__(self, step):
        self.step = step

    def on_step_end(self, args, state, control, **_):
        control.should_training_stop |= state.global_step == self.step


def supervised(checkpoint, out, stop=None, resume=None, **more):
    settings = {"max_steps": 6, "gradient_accumulation_steps": 2, "max_length": 32} | more
    trainer = SFTTrainer(
        str(checkpoint),
        args=SFTConfig(str(out), save_steps=1, **settings, **COMMON),
        train_dataset=ROWS,
        eval_dataset=ROWS,
        peft_config=config(task_type="CAUSAL_LM"),
        callbacks=[Stop(stop)],
    )
    trainer.train(resume_from_checkpoint=resume)
    return trainer


def test_a_run_of_sft_goes_on_bit_for_bit_from_checkpoints_of_the_adapter_alone(
    checkpoint, tmp_path
):
    """With dropout and accumulation."""
    whole = supervised(checkpoint, tmp_path / "whole")
    assert all(
        p.requires_grad == ("bishare_tensors.default" in n)
        for n, p in whole.model.named_parameters()
    )
    for stop in (1, 4):
        out = tmp_path / str(stop)
        supervised(checkpoint, out, stop=stop)
        files = {path.name for path in (out / f"checkpoint-{stop}").iterdir()}
        assert "adapter_model.safetensors" in files
        assert "model.safetensors" not in files
        again = supervised(checkpoint, out, resume=True)
        assert losses(again) == losses(whole)
        for name, tensor in tensors_of(whole).items():
            assert torch.equal(tensors_of(again)[name], tensor), name
    read_adapter(tmp_path / "whole" / "checkpoint-6")


def test_the_best_checkpoint_is_loaded_at_the_end(checkpoint, tmp_path):
    """Into an adapter whose config tells of another one that was saved later."""
    evaluated = {"eval_strategy": "steps", "eval_steps": 1, "load_best_model_at_end": True}
    judged = {"metric_for_best_model": "loss", "greater_is_better": True}
    trainer = supervised(checkpoint, tmp_path, max_steps=3, **evaluated, **judged)
    assert trainer.state.best_model_checkpoint.endswith("checkpoint-1")
    best = read_adapter(trainer.state.best_model_checkpoint).tensors()
    for name, tensor in trainer.model.get_base_model().bishare.tensors().items():
        assert torch.equal(tensor, best[name])


TRAINERS = {
    "sft": (SFTTrainer, SFTConfig, ROWS),
    "dpo": (DPOTrainer, DPOConfig, PAIRS),
    "kto": (KTOTrainer, KTOConfig, LABELLED),
    "grpo": (GRPOTrainer, GRPOConfig, PROMPTS),
    "rloo": (RLOOTrainer, RLOOConfig, PROMPTS),
    "reward": (RewardTrainer, RewardConfig, PAIRS),
}


def trainer_of(kind, model, checkpoint, folder, adapter, **more):
    """Return a trainer for two steps, which rewards long answers if it takes a reward."""
    trainer, settings, rows = TRAINERS[kind]
    given = {}
    if rows is PROMPTS:
        more |= {"num_generations": 2, "max_completion_length": 4}
        given["reward_funcs"] = lambda completions, **_: [float(len(text)) for text in completions]
    return trainer(
        model,
        args=settings(str(folder), max_steps=2, save_strategy="no", **more, **COMMON),
        train_dataset=rows,
        processing_class=tokenizer_of(checkpoint),
        peft_config=adapter,
        **given,
    )


@pytest.mark.parametrize("stage", ["first", "second", "taken over"])
def test_dpo_begins_where_it_begins(checkpoint, tmp_path, stage):
    """At ln 2: the reference is the model as it was given, with a trained adapter too."""
    model, adapter = str(checkpoint), config(task_type="CAUSAL_LM")
    if stage != "first":
        supervised(checkpoint, tmp_path / "sft").save_model(str(tmp_path / "trained"))
        base, adapter = AutoModelForCausalLM.from_pretrained(checkpoint), None
        if stage == "second":
            model = PeftModel.from_pretrained(base, tmp_path / "trained", is_trainable=True)
        else:
            load_adapter(tmp_path / "trained", base)
            model = get_peft_model(base, base.peft_config["default"])
    trainer = trainer_of("dpo", model, checkpoint, tmp_path / "dpo", adapter)
    trainer.train()
    assert losses(trainer)[0] == pytest.approx(math.log(2), abs=1e-6)


def test_thirteen_numbers_are_trained_by_grpo_and_saved_in_26_bytes(checkpoint, tmp_path):
    tied = find_spec("tiny_lora").read_text("utf-8").replace("tiny  per", "tiny  c per model  per")
    adapter = BishareConfig(spec=tied, params={"count": 13}, task_type="CAUSAL_LM")
    trainer = trainer_of("grpo", str(checkpoint), checkpoint, tmp_path, adapter)
    trainer.train()
    handle = trainer.model.bishare
    assert handle.plan.trainable == 13
    numbers = handle.tensors()["tiny.c"].detach()
    assert numbers.all()
    handle.save_pretrained(tmp_path / "out", frozen="base", dtype="bfloat16")
    assert sum(t.nbytes for t in load_stored(tmp_path / "out").values()) == 26
    base = AutoModelForCausalLM.from_pretrained(checkpoint)
    ids = torch.arange(3, 9)[None]
    before = base(ids).logits
    loaded = load_adapter(tmp_path / "out", base)
    assert torch.equal(loaded.bishare.tensors()["tiny.c"], numbers.bfloat16().float())
    adapted = loaded(ids).logits
    torch.testing.assert_close(adapted, trainer.model.eval()(ids).logits, rtol=1e-3, atol=1e-3)
    assert not torch.equal(adapted, before)
    merged = loaded.bishare.merge_and_unload()
    torch.testing.assert_close(merged(ids).logits, adapted, rtol=1e-4, atol=1e-5)


def test_reward(checkpoint, tmp_path):
    """Its head is PEFT's to train and to save, and comes back."""
    base = AutoModelForSequenceClassification.from_pretrained(checkpoint, num_labels=1)
    trainer = trainer_of("reward", base, checkpoint, tmp_path, config(task_type="SEQ_CLS"))
    trainer.train()
    trainer.save_model(str(tmp_path / "out"))
    ids = torch.arange(3, 9)[None]
    again = AutoPeftModelForSequenceClassification.from_pretrained(tmp_path / "out", num_labels=1)
    want = trainer.model.eval()(input_ids=ids).logits
    assert torch.equal(again.eval()(input_ids=ids).logits, want)


# A head with an adapter ----------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["sft", "dpo", "kto", "grpo", "rloo"])
def test_a_head_that_is_trained_in_full_is_heard(checkpoint, tmp_path, kind):
    text = "spec x\ntarget q_proj\ntrain lm_head\nshare a per module rank 2\n"
    adapter = BishareConfig(spec=text, task_type="CAUSAL_LM")
    model = AutoModelForCausalLM.from_pretrained(checkpoint, tie_word_embeddings=False)
    more = {"beta": 0.0} if kind in ("grpo", "rloo") else {}
    trainer = trainer_of(kind, model, checkpoint, tmp_path, adapter, **more)
    handle = trainer.model.get_base_model().bishare
    with torch.no_grad():  # Not what the base has: a loss of the base's head would be another.
        for tensor in handle.tensors().values():
            tensor.add_(
                torch.randn(tensor.shape, generator=torch.Generator().manual_seed(0)), alpha=0.1
            )
    before = {name: tensor.detach().clone() for name, tensor in handle.tensors().items()}
    if kind == "sft":
        batch = trainer._prepare_inputs(next(iter(trainer.get_train_dataloader())))
        parameters = [p for p in trainer.model.parameters() if p.requires_grad]
        found = trainer.compute_loss(trainer.model, batch)
        plain = trainer.model(**{k: v for k, v in batch.items() if k != "fused_lm_head"}).loss
        torch.testing.assert_close(found, plain, rtol=1e-4, atol=1e-5)
        grads = [torch.autograd.grad(loss, parameters) for loss in (found, plain)]
        for one, other in zip(*grads, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-6)
    trainer.train()
    changed = {n for n, t in handle.tensors().items() if not torch.equal(t, before[n])}
    assert any("lm_head" in name for name in changed)
    assert any("q_proj" in name for name in changed)


def tokenizer_of(checkpoint):
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(checkpoint)
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
    return tokenizer
