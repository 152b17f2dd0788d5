"""DPO, KTO and GRPO of TRL train an adapted model, and measure from where it began, in any stage."""

import json
import math

import pytest
import torch

from bishare_dsl import load_adapter
from bishare_dsl.testing.models import tiny_model
from tests.support.parts import quick

PAIRS = [{"prompt": "a b c", "chosen": "abc abc", "rejected": "bca bca"}]
MARKED = [
    {"prompt": "a b c", "completion": "abc abc", "label": True},
    {"prompt": "a b c", "completion": "bca bca", "label": False},
]
QUESTIONS = [{"prompt": "a b c", "answer": "a"}]


@pytest.fixture
def run(tmp_path, checkpoint, monkeypatch):
    """Run an example's main on rows, for three steps."""

    def run(main, rows, *flags):
        data = tmp_path / "rows.jsonl"
        data.write_text("\n".join(map(json.dumps, rows * 8)))
        places = ("--model", checkpoint, "--data", data, "--output_dir", tmp_path / "out")
        how = "--max_steps 3 --learning_rate 1e-2 --logging_steps 1 --use_cpu --disable_tqdm True"
        how += " --bf16 False --per_device_train_batch_size 4"
        return main([*map(str, places), *how.split(), *flags])

    return run


@pytest.fixture(params=quick(["first", "second"], ["second"]))
def stage(request, trained):
    """The flags that begin with a new adapter, or with one that was trained."""
    return ["--adapter", "lora" if request.param == "first" else str(trained)]


def logged(trainer, name):
    return [entry[name] for entry in trainer.state.log_history if name in entry]


def check_trained_alone(trainer, tmp_path):
    """The adapter that was saved is the one that was trained, and the base is what it was."""
    ids = torch.arange(3, 12)[None]
    with torch.no_grad():
        expected = trainer.model.eval()(ids).logits
        loaded = load_adapter(tmp_path / "out", tiny_model("llama", max_position_embeddings=128))
        assert torch.equal(loaded(ids).logits, expected)
    assert not list((tmp_path / "out").rglob("model.safetensors"))


@pytest.mark.parametrize(("rows", "first"), [(PAIRS, math.log(2)), (MARKED, 0.5)])
def test_dpo_and_kto_begin_where_nothing_is_learned(run, stage, tmp_path, rows, first):
    import dpo

    trainer = run(dpo.main, rows, *stage)
    losses = logged(trainer, "loss")
    assert losses[0] == pytest.approx(first, abs=1e-6)
    assert losses[-1] < losses[0] or rows is MARKED
    assert logged(trainer, "kl")[:1] == ([0] if rows is MARKED else [])
    check_trained_alone(trainer, tmp_path)


def test_the_first_kl_of_grpo_is_0(run, stage, tmp_path):
    import grpo

    flags = "--beta 0.1 --num_generations 4 --max_completion_length 8"
    trainer = run(grpo.main, QUESTIONS, *stage, *flags.split())
    assert trainer.beta == 0.1
    divergences = logged(trainer, "kl")
    assert divergences[0] == pytest.approx(0, abs=1e-6)
    assert divergences[-1] > 1e-3
    check_trained_alone(trainer, tmp_path)
