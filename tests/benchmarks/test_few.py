"""What benchmarks/few judges is what ships: its late blocks give bishare's own logits."""

import copy
import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from few import rivals, start_tables, tables, training
from few.families import Family
from few.late import LATE, Late, Site, items_of
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


@pytest.mark.parametrize(
    ("note", "module", "files"),
    [
        ("2026-11-29-few", tables, ["results"]),
        ("2026-11-30-starting", start_tables, ["results", "start"]),
    ],
)
def test_a_note_has_the_tables_of_its_results(note, module, files):
    folder = Path(tables.__file__).parent
    texts = [(folder / f"{name}.jsonl").read_text() for name in files]
    found = [json.loads(line) for text in texts for line in text.splitlines()]
    text = (folder.parent / "notes" / f"{note}.md").read_text()
    assert text.endswith("\n".join(module.lines(found)).rstrip() + "\n")


def test_not_worse_is_an_interval_above_the_margin():
    mine, theirs = np.array([50.0, 52.0] * 10), np.array([51.0, 52.0] * 10)
    row = start_tables._compared("f", "zero", mine, theirs, 0.99, -2)
    assert "| 51.0 | 51.5 | -0.5 |" in row
    assert row.endswith("not worse |")
    assert start_tables._compared("f", "zero", mine, theirs, 0.99, 0).endswith("loss |")
    assert start_tables._compared("f", "zero", mine, mine, 0.99, 0).endswith("open |")


def test_a_sum_of_loras_is_the_sum_of_their_updates():
    draw = torch.Generator().manual_seed(0)
    a, b = torch.randn(1, 3, 2, 5, generator=draw), torch.randn(1, 3, 4, 2, generator=draw)
    site = Site("joint", 0, "q_proj", "A")
    mix = torch.tensor([[[0.2, 0.5, 0.3], [1.0, 0.0, 0.0]]])
    made = rivals.summed({site: a, site._replace(role="B"): b}, mix)
    update = made[site._replace(role="B")] @ made[site]
    torch.testing.assert_close(update[0], torch.einsum("tm,mor,mri->toi", mix[0], b[0], a[0]))


def test_a_win_is_an_interval_above_zero():
    rows = [
        {"part": "judged", "family": "f", "method": m, "n": 8, "T": 16, "asked": 4, "right": right}
        for m, right in (
            ("core", [[3, 4] * 10] * 2),
            ("lora", [[1, 3] * 10] * 2),
            ("lora1", [[0] * 20] * 2),
        )
    ]
    text = "\n".join(tables.lines(rows))
    # Differences are 50 and 25 points, so the mean's standard error is 12.5 / sqrt(20).
    low, high = tables.interval(np.array([50.0, 25.0] * 10))
    assert low == pytest.approx(37.5 - 1.96 * 2.8, abs=0.7)
    assert high == pytest.approx(37.5 + 1.96 * 2.8, abs=0.7)
    shown = f"({low:+.1f} to {high:+.1f})"
    assert f"| f | 8 | 87.5 | 50.0 | **+37.5** | {shown} |" in text
    assert f"| fresh LoRA, r=8 | 0 |  | 50.0 | **+37.5** {shown} |" in text
    assert tables.interval(np.array([-1.0, 1.0] * 10))[0] < 0 < high
