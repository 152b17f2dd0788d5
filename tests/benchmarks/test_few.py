"""What benchmarks/few judges is what ships: its late blocks give bishare's own logits."""

import copy
import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from few import bench, rivals, start_tables, training
from few.families import Family
from few.late import LATE, SCALE, Late, Site, _term, _terms, items_of
from transformers import LlamaConfig, LlamaForCausalLM

from bishare_dsl import compile_spec

PROMPTS = [[5, 9, 3], [7, 1, 8, 2, 6], [4]]
OPTIONS = [11, 3, 17]
TWO = """spec lora_late
target layer in -2.. and (attention_inputs or mlp_ups or mlp_downs)
scale 2
share own  per module  rank 2
"""


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=32,
        hidden_size=24,
        intermediate_size=40,
        num_hidden_layers=4,
        num_attention_heads=6,
        num_key_value_heads=2,
        attn_implementation="eager",
    )
    return LlamaForCausalLM(config).eval()


@pytest.mark.parametrize("spec", ["library_core", "library_joint", TWO])
@torch.no_grad()
def test_the_late_blocks_give_the_logits_of_bishare(model, spec):
    late, items = Late(model), items_of(model, PROMPTS)
    draw = torch.Generator().manual_seed(1)
    tensors = {
        site: torch.randn(p.shape, generator=draw) / 5 for site, p in late.start(spec, 0).items()
    }
    rows = torch.tensor([[[0, 1, 2]]])
    options = torch.tensor([[OPTIONS]])
    adapted = compile_spec(spec, copy.deepcopy(model), seed=0)
    first = model.config.num_hidden_layers - LATE
    parameters = {n.rpartition(".")[2]: p for n, p in adapted.named_parameters()}
    for site, tensor in tensors.items():
        part = "self_attn" if site.kind[0] in "qkv" else "mlp"
        place = f"{site.share}__layers__{first + site.block}__{part}__{site.kind}__{site.role}"
        parameters[place].copy_(tensor[0, 0])
    expected = [
        adapted(input_ids=torch.tensor([prompt])).logits[0, -1, OPTIONS] for prompt in PROMPTS
    ]
    base = late.logits(late.states({}, items, rows), options)[0, 0]
    found = late.logits(late.states(tensors, items, rows), options)[0, 0]
    torch.testing.assert_close(found, torch.stack(expected), rtol=1e-5, atol=1e-5)
    assert (found - base).abs().max() > 0.01
    # States beyond a block that does not change are computed once.
    first = {site: p for site, p in tensors.items() if not site.block}
    ahead = late.beyond(first, items, 1)
    again = late.logits(late.states(tensors, ahead, rows), options)[0, 0]
    torch.testing.assert_close(again, found, rtol=1e-5, atol=1e-5)
    # Many lanes give what one gives.
    many = {s: t.expand(2, 3 if s.role == "core" else 1, -1, -1) for s, t in tensors.items()}
    lanes = late.logits(late.states(many, items, rows.expand(2, 3, -1)), options.expand(2, 3, -1))
    torch.testing.assert_close(lanes, found.expand_as(lanes), rtol=1e-5, atol=1e-5)


def test_states_are_computed_once_and_read_again(model, tmp_path, monkeypatch):
    monkeypatch.setattr(training, "folder", lambda: tmp_path)
    monkeypatch.setitem(training.FAMILIES, "three", lambda *_: Family(("a", "b", "c"), None))
    monkeypatch.setitem(training.LONGEST, "three", 4)
    tokenizer = SimpleNamespace(encode=lambda text, **_: PROMPTS["abc".index(text)], decode=None)
    made, read = (
        training.Subject("three", load, tokenizer, Late(model)) for load in (lambda: model, None)
    )
    torch.testing.assert_close(made.items.states, items_of(model, PROMPTS).states)
    for one, other in zip((*made.items, made.final), (*read.items, read.final), strict=True):
        torch.testing.assert_close(torch.as_tensor(one), torch.as_tensor(other))


def test_the_note_has_the_tables_of_its_results():
    folder = Path(start_tables.__file__).parent
    texts = [(folder / f"{name}.jsonl").read_text() for name in ("results", "start")]
    found = [json.loads(line) for text in texts for line in text.splitlines()]
    text = (folder.parent / "notes" / "2026-11-30-starting.md").read_text()
    assert text.endswith("\n".join(start_tables.lines(found)).rstrip() + "\n")


def test_not_worse_is_an_interval_above_the_margin():
    mine, theirs = np.array([50.0, 52.0] * 10), np.array([51.0, 52.0] * 10)
    row = start_tables._compared("f", "zero", mine, theirs, 0.99, -2)
    assert "| 51.0 | 51.5 | -0.5 |" in row
    assert row.endswith("not worse |")
    assert start_tables._compared("f", "zero", mine, theirs, 0.99, 0).endswith("loss |")
    assert start_tables._compared("f", "zero", mine, mine, 0.99, 0).endswith("open |")


def test_a_sum_of_loras_is_the_sum_of_their_updates():
    draw = torch.Generator().manual_seed(0)
    a, b = torch.randn(1, 3, 2, 5, generator=draw), torch.randn(1, 3, 2, 4, generator=draw)
    site = Site("joint", 0, "q_proj", "A")
    mix = torch.tensor([[[0.2, 0.5, 0.3], [1.0, 0.0, 0.0]]])
    made = rivals.summed({site: a, site._replace(role="B"): b}, mix)
    [factors] = _terms(made)[0, "q_proj"]
    x = torch.randn(1, 2, 1, 3, 5, generator=draw)
    update = torch.einsum("tm,mri,mro->tio", mix[0], a[0], b[0])
    torch.testing.assert_close(_term(x, factors)[0, :, 0], SCALE * x[0, :, 0] @ update)


def test_a_win_is_an_interval_above_zero():
    # Differences are 50 and 25 points, so the mean's standard error is 12.5 / sqrt(20).
    mine, theirs = np.array([75.0, 100.0] * 10), np.array([25.0, 75.0] * 10)
    low, high = start_tables.interval(mine - theirs)
    assert low == pytest.approx(37.5 - 1.96 * 2.8, abs=0.7)
    assert high == pytest.approx(37.5 + 1.96 * 2.8, abs=0.7)
    row = start_tables._compared("f", "better fresh LoRA", mine, theirs, 0.95, 0)
    assert f"| 87.5 | 50.0 | +37.5 | ({low:+.1f} to {high:+.1f}) |" in row
    assert row.endswith("win |")
    # Seeds are averaged, and the better fresh LoRA is the rival.
    rows = {
        ("f", method, 8, 16): {"asked": 4, "right": right}
        for method, right in (("lora", [[1] * 20, [3] * 20]), ("lora1", [[0] * 20] * 2))
    }
    assert start_tables._fresh(rows, "f", 8).tolist() == [50.0] * 20
    assert start_tables.interval(np.array([-1.0, 1.0] * 10))[0] < 0


def test_a_lora_of_rank_1_is_placed_where_the_validation_tasks_have_it_best(tmp_path, monkeypatch):
    monkeypatch.setattr(bench, "smollm2_folder", lambda _: None)
    monkeypatch.setattr(bench.AutoTokenizer, "from_pretrained", lambda _: None)
    rows = [
        {"part": "tuning", "family": "f", "method": name, "n": 8, "best": 4, "accuracy": found}
        for name, found in zip(
            bench.LORA1, ({"0.1": 0.5}, {"0.1": 0.4, "1": 0.6}, {"1": 0.3}), strict=True
        )
    ]
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    known = bench.Bench(tmp_path / "rows.jsonl")
    assert known.placed("f", "lora1") == "lora1_up"
    assert known.placed("f", "lora") == "lora"
    assert known.place("f", "lora1_up", 16) == 4
