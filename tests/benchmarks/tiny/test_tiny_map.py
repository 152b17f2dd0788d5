"""Points of the map have as many numbers as is said, and losses pull where they should."""

import pytest
import tiny_map
import torch
from tiny_map import POINTS, STYLE, Point, Rows, at_ends, best, loss_of

from bishare_dsl import plan_spec

BLOCK = {
    "model_type": "llama",
    "architectures": ["LlamaForCausalLM"],
    "num_hidden_layers": 2,
    "hidden_size": 576,
    "intermediate_size": 1536,
    "num_attention_heads": 9,
    "num_key_value_heads": 3,
    "vocab_size": 64,
}


def test_points_have_the_numbers_of_the_page(tmp_path):
    (tmp_path / "config.json").write_text(tiny_map.json.dumps(BLOCK))
    counts = {plan_spec(point.spec, str(tmp_path)).trainable for point in POINTS}
    assert counts == {1, 10, 13, 14, 15, 120, 1_000, 10_240, 144_000}


def rows(labels):
    """Two prompts of three and two tokens, with noise behind them."""
    count = len(labels)
    return Rows(
        hidden=torch.zeros(1, count, 3 + STYLE, 4),
        ends=torch.tensor([[2, 1]]),
        labels=torch.tensor([labels]),
        noise=torch.zeros(1, count, STYLE, dtype=torch.long),
    )


def test_the_answer_is_read_at_the_end_of_each_prompt():
    logits = torch.arange(2 * 5).view(1, 2, 5, 1)
    assert at_ends(logits, torch.tensor([[2, 1]])).flatten().tolist() == [2, 6]


@pytest.mark.parametrize("objective", ["rl", "sft"])
def test_a_step_down_the_loss_makes_the_label_likelier(objective, monkeypatch):
    # So many answers that the right one is among them.
    monkeypatch.setattr(tiny_map, "GROUP", 64)
    logits = torch.zeros(1, 2, 3 + STYLE, 4 + 8, requires_grad=True)
    batch, point = rows([1, 3]), Point(objective, "top", "model", 1, 2)
    draw = torch.Generator().manual_seed(0)
    loss_of(point, logits, batch, 4, draw).sum().backward()
    down = at_ends(-logits.grad, batch.ends)[0, :, :4]
    assert down.argmax(-1).tolist() == [1, 3]


def test_the_rate_that_is_best_in_the_mean_is_chosen():
    row = {**vars(POINTS[0]), "numbers": 1, "untrained": 0.3}
    # The test rows have no say.
    tried = [(1e-3, 0, 0.4, 0.2), (1e-3, 1, 0.5, 0.4), (1e-2, 0, 0.7, 0.9), (1e-2, 1, 0.1, 0.9)]
    results = [
        {**row, "rate": rate, "seed": seed, "validation": validation, "right": right}
        for rate, seed, validation, right in tried
    ]
    (found,) = best(results).values()
    assert (found.rate, found.right) == (1e-3, [0.2, 0.4])
    assert found.gain == pytest.approx(0.0)
