"""A spec trained by ms-swift, saved, and gone on with."""

from importlib.util import find_spec

import torch

from tests.clients.conftest import run, trained


def sft(out, *more):
    return run(
        *("swift", "sft", "--model", "tiny", "--model_type", "llama", "--template", "chatml"),
        *("--external_plugins", find_spec("bishare_dsl.integrations.ms_swift").origin),
        *("--tuner_type", "bishare", "--dataset", "rows.jsonl", "--output_dir", out),
        *("--model_kwargs", '{"bishare_spec": "mixed.share", "bishare_params": "{\\"r\\": 3}"}'),
        *("--add_version", "false", "--torch_dtype", "float32", "--learning_rate", "1e-2"),
        *("--max_length", "512", "--per_device_train_batch_size", "2", "--save_steps", "2"),
        *("--gradient_accumulation_steps", "1", "--split_dataset_ratio", "0", *more),
        USE_HF="1",
    )


def test_two_steps_are_saved_and_gone_on_with(work):
    sft("out", "--max_steps", "2")
    first = trained(work / "out/checkpoint-2")
    assert torch.count_nonzero(first["inter.B"])
    sft("again", "--max_steps", "4", "--resume_from_checkpoint", "out/checkpoint-2")
    second = trained(work / "again/checkpoint-4")
    assert not torch.equal(second["inter.B"], first["inter.B"])
