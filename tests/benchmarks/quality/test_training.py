"""The score of an option is that of a text of its own, and every method sees the same batches."""

import pytest
import torch
from sweep.methods import METHODS
from sweep.results import Job
from sweep.tables import unmask
from sweep.training import (
    Example,
    adapted,
    batches,
    bitmask,
    collate,
    evaluate,
    passes,
    scores,
    together,
    train,
    train_together,
)

from bishare_dsl import compile_spec
from bishare_dsl.testing.models import tiny_model

EXAMPLES = [
    Example([5, 6, 7], [[8, 14], [9, 10, 11]], 1),
    Example([5, 20, 21, 22, 23, 24], [[30, 31], [32]], 0),
    Example([9], [[14], [15]], 1),
]


def one_by_one(model, example):
    found = []
    for option in example.options:
        text = torch.tensor([example.prompt + option])
        logits = model(text).logits[0].log_softmax(-1)
        start = len(example.prompt) - 1
        found.append(sum(logits[start + i, token] for i, token in enumerate(option)) / len(option))
    return torch.stack(found)


def test_scores_are_those_of_each_option_alone():
    model = tiny_model("llama").eval()
    together = scores(model, collate(EXAMPLES))
    torch.testing.assert_close(together, torch.stack([one_by_one(model, e) for e in EXAMPLES]))


def test_every_library_is_scored_alike():
    """With adapters that still do nothing, the scores are the base's, and they have gradients."""
    import peft

    batch = collate(EXAMPLES)
    expected = scores(tiny_model("llama").eval(), batch)
    config = peft.LoraConfig(r=2, target_modules=["q_proj"], task_type="CAUSAL_LM")
    for model in (
        peft.get_peft_model(tiny_model("llama"), config),
        compile_spec("lora", tiny_model("llama")),
    ):
        found = scores(model.eval(), batch)
        torch.testing.assert_close(found, expected)
        found[:, 0].sum().backward()
        assert any(p.grad is not None for p in model.parameters())


def test_runs_together_are_those_that_they_are_alone(monkeypatch):
    monkeypatch.setattr("sweep.training.load_base", lambda _: tiny_model("llama"))
    examples = [
        Example([*range(5, 6 + n % 9)], [[8, 14], [9, 10, 11]], n % 2) for n in range(16 * 7)
    ]
    runs = [(5e-3, 0), (1e-3, 0), (5e-3, 1)]
    jobs = [Job("languages", "ke_1_r", *run, params={"size": 4}) for run in runs]
    model = together(jobs, None)
    losses = train_together(model, jobs, examples, 5)
    for number, (job, mine) in enumerate(zip(jobs, losses, strict=True)):
        alone = adapted(job, None)
        assert mine == pytest.approx(train(alone, job, examples, 5), abs=1e-5)
        model.bishare.set_adapter([f"job{number}"])
        expected = scores(alone.eval(), collate(EXAMPLES))
        torch.testing.assert_close(
            scores(model.eval(), collate(EXAMPLES)), expected, atol=1e-4, rtol=0
        )


def test_batches_of_like_lengths_go_through_the_base_together():
    drawn = [[Example([5] * length, [[6]], 0)] * 16 for length in (40, 6, 41, 7, 8, 40)]
    assert passes(drawn) == [[1, 3, 4], [0, 5, 2]]


def test_evaluation_is_in_the_order_of_the_rows():
    model = tiny_model("llama").eval()
    right, _ = evaluate(model, EXAMPLES)
    assert right == [int(one_by_one(model, e).argmax()) == e.answer for e in EXAMPLES]


def test_batches_depend_on_the_seed_alone_and_hold_every_row_once():
    lengths = [(7 * n) % 40 for n in range(1000)]
    made = batches(lengths, seed=1, size=16)
    assert sorted(index for batch in made for index in batch) == list(range(1000))
    assert made == batches(lengths, seed=1, size=16)
    assert made != batches(lengths, seed=2, size=16)
    spread = [max(lengths[i] for i in batch) - min(lengths[i] for i in batch) for batch in made]
    assert sum(spread) / len(spread) < 5


@pytest.mark.parametrize("right", [[True], [False, True, False, False, True], [False] * 7 + [True]])
def test_a_bitmask_keeps_every_row(right):
    row = {"test_right": bitmask(right), "test_rows": len(right)}
    assert unmask(row) == [int(hit) for hit in right]


def test_the_rates_of_all_methods_come_from_one_grid():
    from sweep.methods import GRID

    assert {method.start for method in METHODS.values()} <= set(GRID[1:-1])
