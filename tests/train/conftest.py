"""Runs on a tiny model, small enough that a step takes milliseconds."""

import json
import random

import pytest

from bishare_dsl.testing.models import tiny_model
from bishare_dsl.testing.tokenizer import tiny_tokenizer

SPEC = """spec small
target q_proj, v_proj, down_proj
alpha 8
dropout 0.2
share a per kind rank 4
"""
# 24 rows, four in a step: six steps an epoch.
SMALL = {
    "per_device_train_batch_size": 2,
    "gradient_accumulation_steps": 2,
    "warmup_steps": 0,
    "learning_rate": 1e-2,
    "num_train_epochs": 1,
    "max_length": 32,
    "save_strategy": "no",
}


@pytest.fixture(scope="session")
def files(tmp_path_factory):
    """A folder with ``rows.jsonl``, ``others.jsonl`` and ``small.share``."""
    folder = tmp_path_factory.mktemp("files")
    (folder / "small.share").write_text(SPEC)
    draw = random.Random(0)
    for name, count in (("rows", 24), ("others", 6)):
        rows = [
            {"prompt": "q" * draw.randint(1, 9), "completion": "abc" * draw.randint(1, 6)}
            for _ in range(count)
        ]
        (folder / f"{name}.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return folder


@pytest.fixture
def start(files):
    """Train a tiny Llama into a folder."""
    from bishare_dsl.train import train

    def run(folder, **arguments):
        given = {
            "spec": str(files / "small.share"),
            "model": tiny_model("llama"),
            "data": files / "rows.jsonl",
            "tokenizer": tiny_tokenizer(),
            "quiet": True,
            **SMALL,
            **arguments,
        }
        return train(output_dir=folder, **given)

    return run


def go_on(folder, **more):
    """Go on with a run on a tiny Llama."""
    from bishare_dsl.train import train

    given = {"model": tiny_model("llama"), "tokenizer": tiny_tokenizer(), "quiet": True}
    return train(resume=folder, **given | more)


@pytest.fixture
def model_folder(tmp_path):
    """The same model and tokenizer, saved."""
    folder = tmp_path / "tiny"
    tiny_model("llama").save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return folder


def values(result):
    """The adapter's tensors."""
    return {n: t.detach().clone() for n, t in result.model.bishare.tensors().items()}


def losses(result):
    """What was logged that must not depend on an interruption."""
    keys = ("step", "loss", "grad_norm", "learning_rate", "eval_loss", "num_input_tokens_seen")
    return [tuple(entry.get(key) for key in keys) for entry in result.history]


def saved(folder):
    """The tensors of the adapter in a folder, as PEFT loads them."""
    from peft import PeftModel

    import bishare_dsl.peft  # noqa: F401

    model = PeftModel.from_pretrained(tiny_model("llama"), str(folder)).get_base_model()
    return {n: t.detach().clone() for n, t in model.bishare.tensors().items()}
