"""Blocks below all adapters are computed once for each example, and nothing else changes."""

import json
import shutil
from contextlib import nullcontext
from pathlib import Path

import pytest
import torch

from bishare_dsl.testing.models import tiny_model
from bishare_dsl.testing.tokenizer import tiny_tokenizer
from bishare_dsl.train import run as runs
from bishare_dsl.train import train, trunk
from tests.train.conftest import SMALL

LAST = "spec s\ntarget layer in -1..-1 and (q_proj or v_proj or down_proj)\nalpha 8\n"
CORES = f"{LAST}share x  A per module  B per module  core per adapter, module  rank 3 via Core\n"
WHOLE = {"num_train_epochs": 3, "per_device_train_batch_size": 24, "gradient_accumulation_steps": 1}
BLOCKS = 4


class Count:
    """Counts the tokens that each block of a model sees."""

    def __init__(self, model):
        self.tokens = [0] * BLOCKS
        for number, block in enumerate(model.model.layers):
            block.self_attn.register_forward_hook(
                lambda _, args, output, number=number: self.see(number, output[0])
            )

    def see(self, number, output):
        self.tokens[number] += output.shape[0] * output.shape[1]


def start(spec, data, out, **how):
    model = tiny_model("llama", num_hidden_layers=BLOCKS, **how.pop("config", {}))
    counted = Count(model)
    how = SMALL | WHOLE | {"quiet": True} | how
    result = train(spec, model, data, out, tokenizer=tiny_tokenizer(), **how)
    handle = result.model.bishare
    named = [task.name for task in result.tasks] if isinstance(data, dict) else []
    found = {
        f"{name}:{key}": tensor.detach().clone()
        for name in named or [""]
        for key, tensor in (handle[name] if name else handle).tensors().items()
    }
    return found, counted.tokens


@pytest.fixture
def tasks(files):
    return {name: str(files / f"{name}.jsonl") for name in ("rows", "others")}


@pytest.fixture
def without(monkeypatch):
    """Train as if nothing were kept."""

    def run(*given, **how):
        with monkeypatch.context() as patch:
            patch.setattr(runs, "cached_trunk", lambda *_: nullcontext())
            return start(*given, **how)

    return run


@pytest.mark.parametrize("more", [{}, {"bf16": True}])
def test_the_results_are_the_same_bit_for_bit_where_a_step_has_all_examples(
    tasks, tmp_path, without, more
):
    how = {"rows_at_once": 30, "start": "zero"} | more  # Equal examples are in one pass.
    found, tokens = start(CORES, tasks, tmp_path / "kept", **how)
    wanted, before = without(CORES, tasks, tmp_path / "not", **how)
    assert found.keys() == wanted.keys()
    assert all(torch.equal(found[name], tensor) for name, tensor in wanted.items())
    tried = 2 * 6  # Tokens of the trial, which runs twice above and three times below.
    assert tokens[-1] == before[-1] + 2 * tried
    assert tokens[0] == before[0] // 3 + 3 * tried
    assert tokens[:-1] == [tokens[0]] * (BLOCKS - 1)


def test_a_resumed_run_computes_the_states_again_and_ends_as_it_would_have(tasks, tmp_path):
    how = {"save_strategy": "steps", "save_steps": 2, "max_steps": 6, "save_total_limit": 9}
    wanted, before = start(CORES, tasks, tmp_path / "run", **how)
    for later in ("checkpoint-4", "checkpoint-6"):
        shutil.rmtree(tmp_path / "run" / later)
    model = tiny_model("llama", num_hidden_layers=BLOCKS)
    counted = Count(model)
    resumed = train(
        model=model, tokenizer=tiny_tokenizer(), resume=tmp_path / "run", quiet=True
    ).model.bishare
    for name in tasks:
        for key, tensor in resumed[name].tensors().items():
            assert torch.equal(wanted[f"{name}:{key}"], tensor)
    # Below, all examples once again; above, four of six steps.
    assert counted.tokens[0] == before[0]
    assert counted.tokens[-1] < before[-1]


def test_states_that_do_not_fit_into_memory_are_not_kept_and_a_note_says_so(
    tasks, tmp_path, without, monkeypatch, capfd
):
    monkeypatch.setattr(trunk, "MEMORY", 2000)
    found, tokens = start(CORES, tasks, tmp_path / "run", quiet=False)
    assert "blocks 0 to 2 run again in each epoch: their states need " in capfd.readouterr().err
    wanted, before = without(CORES, tasks, tmp_path / "not")
    assert all(torch.equal(found[name], tensor) for name, tensor in wanted.items())
    assert tokens[0] == before[0] + 3 * 2 * 6  # Those of the trial.


@pytest.mark.parametrize("way", ["attention_dropout", "a hook in training", "layerdrop"])
def test_blocks_that_differ_in_training_run_again_and_draw_as_they_would(
    tasks, tmp_path, monkeypatch, capsys, without, way
):
    plain = tiny_model

    def model(*given, **how):
        made = plain(*given, **how)
        if way == "a hook in training":  # Some models add noise so.
            mlp = made.model.layers[0].mlp
            mlp.register_forward_hook(lambda mlp, _, output: output * 2 if mlp.training else None)
        elif way == "layerdrop":
            made.model.layerdrop = 0.1
        return made

    monkeypatch.setitem(globals(), "tiny_model", model)
    config = {"attention_dropout": 0.1} if way == "attention_dropout" else {}
    wanted, _ = without(CORES, tasks, tmp_path / "not", config=config)
    found, _ = start(CORES, tasks, tmp_path / "tried", config=config, quiet=False)
    assert all(torch.equal(found[name], tensor) for name, tensor in wanted.items())
    assert ("a trial of their states failed" in capsys.readouterr().err) is (way != "layerdrop")


def test_a_model_whose_last_block_reads_more_than_the_one_before_gives(
    tasks, tmp_path, monkeypatch
):
    """As some read keys and values of an earlier block: the trial tells."""
    made, plain = [], tiny_model

    def model(*given, **how):
        made.append(found := plain(*given, **how))
        layers = found.model.layers
        seen = []
        layers[0].mlp.register_forward_hook(lambda _, __, output: seen.append(output.detach()))
        layers[-1].mlp.register_forward_hook(lambda _, __, output: output + seen[-1])
        return found

    monkeypatch.setitem(globals(), "tiny_model", model)
    _, tokens = start(CORES, tasks, tmp_path / "out")
    assert made
    assert tokens[0] >= tokens[-1]


def test_the_model_is_as_it_was_afterwards(tasks, tmp_path):
    model = tiny_model("llama", num_hidden_layers=BLOCKS)
    train(CORES, model, tasks, tmp_path, tokenizer=tiny_tokenizer(), quiet=True, **SMALL | WHOLE)
    assert not any("forward" in block.__dict__ for block in model.model.layers)
    for module in (model.model, model.model.layers[-1]):
        hooks = [*module._forward_pre_hooks.values(), *module._forward_hooks.values()]
        assert not [hook for hook in hooks if hook.__module__ == trunk.__name__]


def test_the_record_of_a_library_reads_the_states_that_are_cached_already(tmp_path):
    data = {}
    for name, first in (("a", 0), ("b", 12), ("c", 24)):
        lines = [{"prompt": f"{n}: ", "completion": "yes"} for n in range(first, first + 12)]
        data[name] = str(tmp_path / f"{name}.jsonl")
        Path(data[name]).write_text("\n".join(map(json.dumps, lines)))
    _, plain = start(CORES, data, tmp_path / "plain", start="zero")
    _, tokens = start(CORES, data, tmp_path / "recorded")
    assert (tmp_path / "recorded" / "library" / "start.json").exists()
    assert tokens[0] == plain[0]
    assert tokens[-1] > plain[-1]
