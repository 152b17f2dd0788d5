from pathlib import Path

import pytest
import torch

from bishare_dsl import load_adapter
from bishare_dsl.evaluate.candidates import Candidate, activate_candidate, candidates

IDS = torch.arange(12).view(2, 6)


@pytest.mark.parametrize(
    ("folders", "base", "labels"),
    [
        ([], False, ["base"]),
        (["a", "out/b"], False, ["a", "b"]),
        (["a", "a/"], True, ["base", "a"]),
        (["x/last", "y/last", "z"], False, ["x/last", "y/last", "z"]),
        (["out/base"], True, ["base", "out/base"]),
    ],
)
def test_labels_tell_models_apart(folders, base, labels):
    assert [candidate.label for candidate in candidates(folders, base=base)] == labels


def logits(model):
    with torch.no_grad():
        return model(IDS).logits


def test_a_model_becomes_each_candidate_and_is_the_base_again(model, adapters):
    plain = logits(model)
    seen = []
    for folder in adapters:
        with activate_candidate(model, Candidate("x", folder)):
            assert not model.training
            seen.append(logits(model))
        assert torch.equal(logits(model), plain)
    assert not torch.equal(*seen)
    load_adapter(adapters[0], model).train()
    with activate_candidate(model, Candidate("live")):
        assert torch.equal(logits(model), seen[0])
    with activate_candidate(model, Candidate("base", disable=True)):
        assert torch.equal(logits(model), plain)
    assert model.training


def test_an_interruption_leaves_the_base(model, adapters):
    plain = logits(model)
    with pytest.raises(KeyboardInterrupt), activate_candidate(model, Candidate("x", adapters[0])):
        raise KeyboardInterrupt
    assert torch.equal(logits(model), plain)
    with (
        pytest.raises(Exception, match="BS601"),
        activate_candidate(model, Candidate("x", Path("nowhere"))),
    ):
        pass
    assert not hasattr(model, "bishare")
