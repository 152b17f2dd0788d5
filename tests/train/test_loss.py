"""The loss of what is learned is the model's own, of fewer logits."""

import pytest
import torch

from bishare_dsl.train.loss import IGNORED, learned_logits, loss_of
from tests.support.families import tiny_model


def batch(learned, tokens=9):
    ids = torch.randint(3, 60, (len(learned), tokens), generator=torch.Generator().manual_seed(0))
    labels = torch.full_like(ids, IGNORED)
    for row, columns in enumerate(learned):
        labels[row, columns] = ids[row, columns]
    return {"input_ids": ids, "labels": labels, "use_cache": False}


@pytest.mark.each_once
@pytest.mark.parametrize(
    "family", ["llama", "mistral", "qwen2", "qwen3", "gemma2", "phi3", "mixtral", "opt"]
)
@pytest.mark.parametrize("learned", [[[4, 5], [7]], [[8], []], [[*range(9)], [1, 2]]])
@pytest.mark.parametrize("items", [None, torch.tensor(5)])
def test_the_loss_and_the_gradient_are_the_models(family, learned, items):
    model, found = tiny_model(family), []
    weight = next(
        p for n, p in model.named_parameters() if n.endswith("v_proj.weight") or "qkv" in n
    )
    for ours in (False, True):
        model.zero_grad()
        if ours:
            loss = loss_of(*learned_logits(model, model.forward, batch(learned)), items)
        else:
            loss = model(**batch(learned), num_items_in_batch=items).loss
        loss.backward()
        found.append((loss.detach(), weight.grad.clone()))
    torch.testing.assert_close(found[1][0], found[0][0], rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(found[1][1], found[0][1], rtol=1e-4, atol=1e-6)


def test_logits_are_made_where_any_row_learns():
    model, seen = tiny_model("llama"), []
    model.lm_head.register_forward_hook(lambda module, given, made: seen.append(made.shape))
    loss_of(*learned_logits(model, model.forward, batch([[4, 5], [7]])), None)
    assert seen == [(2, 3, 64)]


@pytest.mark.each_once
@pytest.mark.parametrize("family", ["llama", "mistral", "qwen2", "gemma2", "phi3", "opt"])
def test_with_options_the_output_layer_computes_no_other_logits(family):
    model, inputs = tiny_model(family), batch([[4, 5], [7]])
    tokens = torch.tensor([[[inputs["labels"][row, i], 9] for i in range(9)] for row in (0, 1)])
    allowed = torch.where(inputs["labels"].unsqueeze(-1) == IGNORED, -1, tokens)
    allowed[0, 5, 1] = -1
    wanted = (
        model(input_ids=inputs["input_ids"]).logits[:, :-1].gather(-1, tokens[:, 1:].clamp(min=0))
    )
    layer, seen = model.get_output_embeddings(), []
    big = torch.nn.Linear(layer.in_features, 64 * layer.out_features, bias=False)
    with torch.no_grad():
        big.weight[: layer.out_features] = layer.weight
    model.set_output_embeddings(big)
    plain = type(big).forward
    try:
        torch.nn.Linear.forward = lambda self, x: seen.append(self) or plain(self, x)
        logits, learned = learned_logits(model, model.forward, {**inputs, "allowed": allowed})
    finally:
        torch.nn.Linear.forward = plain
    assert big not in seen
    assert "forward" not in vars(big)
    assert logits.shape == (2, 3, 2)
    for row, column, place in ((0, 0, 3), (0, 1, 4), (1, 2, 6)):
        found, expected = logits[row, column], wanted[row, place].clone()
        if (row, column) == (0, 1):
            expected[1] = -torch.inf
        torch.testing.assert_close(found, expected)
        assert learned[row, column] == 0
    assert (learned == IGNORED).sum() == 3
