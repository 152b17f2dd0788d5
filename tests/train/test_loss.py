"""Logits where something is learned, and nowhere else."""

import pytest
import torch

from bishare_dsl.testing.models import tiny_model
from bishare_dsl.train.loss import IGNORED, only_learned, takes_only_learned


def batch(learned, tokens=9):
    ids = torch.randint(3, 60, (len(learned), tokens), generator=torch.Generator().manual_seed(0))
    labels = torch.full_like(ids, IGNORED)
    for row, columns in enumerate(learned):
        labels[row, columns] = ids[row, columns]
    return {"input_ids": ids, "labels": labels, "use_cache": False}


@pytest.mark.parametrize(
    "family", ["llama", "mistral", "qwen2", "qwen3", "gemma2", "phi3", "mixtral"]
)
@pytest.mark.parametrize("learned", [[[4, 5], [7]], [[8], []], [[*range(9)], [1, 2]], [[0], [3]]])
@pytest.mark.parametrize("items", [None, torch.tensor(5)])
def test_the_loss_and_the_gradient_are_the_same(family, learned, items):
    model = tiny_model(family)
    found = []
    for inputs in (batch(learned), only_learned(batch(learned))):
        model.zero_grad()
        loss = model(**inputs, num_items_in_batch=items).loss
        loss.backward()
        found.append((loss, model.model.layers[0].self_attn.o_proj.weight.grad.clone()))
    torch.testing.assert_close(found[1][0], found[0][0], rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(found[1][1], found[0][1], rtol=1e-4, atol=1e-6)


def test_logits_are_made_where_any_row_learns():
    inputs = only_learned(batch([[4, 5], [7]]))
    assert inputs["logits_to_keep"].tolist() == [3, 4, 6]
    assert (inputs["shift_labels"] != IGNORED).tolist() == [[1, 1, 0], [0, 0, 1]]
    assert tiny_model("llama")(**inputs).logits.shape == (2, 3, 64)


def test_a_batch_of_which_nothing_is_learned_is_left_alone():
    for inputs in (batch([[], []]), batch([[0], []]), {"input_ids": torch.ones(1, 2)}):
        assert only_learned(inputs).keys() == inputs.keys()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("family", ["llama", "gemma2", "mixtral", "opt"])
def test_models_that_take_it_are_known(family, dtype):
    model = tiny_model(family).to(dtype)
    assert takes_only_learned(model)
    assert not model.training


def test_models_that_would_learn_something_else_are_known():
    def without(name, forward):
        def call(*arguments, logits_to_keep=None, shift_labels=None, **more):
            keep = {"logits_to_keep": logits_to_keep or 0, "shift_labels": shift_labels}
            return forward(*arguments, **{k: v for k, v in keep.items() if k != name}, **more)

        return call

    model = tiny_model("llama")
    forward = model.forward
    model.forward = lambda input_ids, labels, use_cache: forward(input_ids, labels=labels)
    assert not takes_only_learned(model)  # It has no such argument.
    for name in ("logits_to_keep", "shift_labels"):
        model.forward = without(name, forward)
        assert not takes_only_learned(model), name
