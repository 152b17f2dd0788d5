"""A spec trained by Axolotl, saved, and gone on with."""

import torch
import yaml

from tests.clients.conftest import run, trained

CONFIG = {
    "base_model": "tiny",
    "plugins": ["bishare_dsl.integrations.axolotl.BisharePlugin"],
    "adapter": "bishare",
    "bishare": {"spec": "mixed.share", "params": {"r": 3}},
    "datasets": [{"path": "rows.jsonl", "ds_type": "json", "type": "chat_template"}],
    "sequence_len": 64,
    "micro_batch_size": 2,
    "gradient_accumulation_steps": 1,
    "learning_rate": 1e-2,
    "optimizer": "adamw_torch",
    "lr_scheduler": "constant",
    "bf16": False,
    "fp16": False,
    "tf32": False,
    "flash_attention": False,
    "val_set_size": 0,
    "special_tokens": {"pad_token": "<pad>"},
}


def train(work, out, **settings):
    (work / "run.yml").write_text(yaml.safe_dump({**CONFIG, "output_dir": out, **settings}))
    return run("axolotl", "train", "run.yml", "--launcher", "python", AXOLOTL_DO_NOT_TRACK="1")


def test_two_steps_are_saved_and_gone_on_with(work):
    train(work, "out", max_steps=2)
    first = trained(work / "out")
    assert torch.count_nonzero(first["inter.B"])
    train(work, "again", max_steps=2, lora_model_dir="out")
    assert not torch.equal(trained(work / "again")["inter.B"], first["inter.B"])
