"""An adapted model is a model like any other: TRL trains its adapter."""

import pytest
import torch
from datasets import Dataset
from peft import get_peft_model
from transformers import AutoModelForSequenceClassification, LlamaConfig
from trl import RewardConfig, RewardTrainer, SFTConfig, SFTTrainer

from bishare_dsl import compile_spec, load_adapter
from bishare_dsl.diagnostics import BishareWarning
from bishare_dsl.peft import BishareConfig
from bishare_dsl.testing.models import tiny_model
from bishare_dsl.testing.tokenizer import tiny_tokenizer


def test_sfttrainer_trains_the_adapter_and_not_the_base(tmp_path):
    model = compile_spec("lora", tiny_model("llama"))
    base = {n: p.clone() for n, p in model.named_parameters() if not p.requires_grad}
    fresh = {n: t.clone() for n, t in model.bishare.tensors().items()}
    args = SFTConfig(
        output_dir=str(tmp_path), max_steps=4, learning_rate=1e-2, logging_steps=1, use_cpu=True,
        per_device_train_batch_size=2, save_strategy="no", report_to="none", max_length=32,
        disable_tqdm=True, bf16=False,  # which would stay wrapped round `forward`
    )  # fmt: skip
    rows = Dataset.from_list([{"prompt": "a b c", "completion": "abc abc"}] * 8)
    trainer = SFTTrainer(model, args=args, train_dataset=rows, processing_class=tiny_tokenizer())
    trainer.train()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert losses[-1] < losses[0]
    assert any(not torch.equal(t, fresh[n]) for n, t in model.bishare.tensors().items())
    for name, parameter in model.named_parameters():
        assert name not in base or torch.equal(parameter, base[name]), name
    model.bishare.save_pretrained(tmp_path / "adapter")
    ids = torch.arange(3, 12)[None]
    loaded = load_adapter(tmp_path / "adapter", tiny_model("llama"))
    with torch.no_grad():
        assert torch.equal(loaded(ids).logits, model.eval()(ids).logits)


def test_a_collator_that_names_rows_trains_an_adapter_for_each(tmp_path):
    """PEFT takes `adapter_names` out of a batch, and lets each row have its adapter."""
    names = ["cats", "dogs"]
    model = get_peft_model(tiny_model("llama"), BishareConfig(spec="lora"), adapter_name="cats")
    model.add_adapter("dogs", BishareConfig(spec="lora", seed=1))
    model.set_requires_grad(names)
    fresh = {name: [t.clone() for t in model.bishare[name].tensors().values()] for name in names}

    def collate(rows):
        ids = torch.tensor([row["input_ids"] for row in rows])
        whose = [names[row["whose"]] for row in rows]
        seen = torch.ones_like(ids)
        return {"input_ids": ids, "attention_mask": seen, "labels": ids, "adapter_names": whose}

    args = SFTConfig(
        output_dir=str(tmp_path), max_steps=2, learning_rate=1e-2, use_cpu=True, bf16=False,
        per_device_train_batch_size=4, save_strategy="no", report_to="none", disable_tqdm=True,
        remove_unused_columns=False, dataset_kwargs={"skip_prepare_dataset": True},
        gradient_checkpointing=True,
    )  # fmt: skip
    rows = [{"input_ids": [*range(3 + i % 5, 11 + i % 5)], "whose": i % 2} for i in range(16)]
    trainer = SFTTrainer(
        model, args=args, train_dataset=Dataset.from_list(rows), data_collator=collate,
        processing_class=tiny_tokenizer(),
    )  # fmt: skip
    trainer.train()
    for name, before in fresh.items():
        found = model.bishare[name].tensors().values()
        assert not all(torch.equal(t, b) for t, b in zip(found, before, strict=True)), name


def test_rewardtrainer_trains_and_saves_the_fresh_head(tmp_path):
    def base():
        torch.manual_seed(0)
        config = LlamaConfig(
            vocab_size=64, hidden_size=32, intermediate_size=48, num_hidden_layers=2,
            num_attention_heads=4, num_labels=1, pad_token_id=0,
        )  # fmt: skip
        return AutoModelForSequenceClassification.from_config(config)

    with pytest.warns(BishareWarning, match=r"BS318.*`score` is trained too"):
        model = compile_spec("lora", base())
    head = model.bishare.tensors()["train.score.weight"].clone()
    args = RewardConfig(
        output_dir=str(tmp_path), max_steps=3, learning_rate=1e-2, logging_steps=1, use_cpu=True,
        per_device_train_batch_size=2, save_strategy="no", report_to="none", max_length=32,
        disable_tqdm=True, bf16=False,
    )  # fmt: skip
    rows = Dataset.from_list([{"chosen": "a b c abc", "rejected": "c b a"}] * 6)
    trainer = RewardTrainer(model, args=args, train_dataset=rows, processing_class=tiny_tokenizer())
    trainer.train()
    assert not torch.equal(model.bishare.tensors()["train.score.weight"], head)
    model.bishare.save_pretrained(tmp_path / "adapter")
    loaded = load_adapter(tmp_path / "adapter", base()).eval()
    ids = torch.arange(3, 12)[None]
    with torch.no_grad():
        assert torch.equal(loaded(ids).logits, model.eval()(ids).logits)
