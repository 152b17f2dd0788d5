"""An adapted model is a model like any other: TRL trains its adapter."""

import torch
from datasets import Dataset
from peft import get_peft_model
from trl import SFTConfig, SFTTrainer

from bishare_dsl.peft import BishareConfig
from bishare_dsl.testing.models import tiny_model
from bishare_dsl.testing.tokenizer import tiny_tokenizer


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
