"""Answers with any update, and what is left of it in the model."""

import pytest
import torch

from bishare_dsl.testing.tokenizer import tiny_tokenizer
from bishare_dsl.verify.answers import TEXTS
from bishare_dsl.verify.contents import Pair
from bishare_dsl.verify.reference import NONE, WHOLE, Reference, hypotheses
from tests.support.families import tiny_model


@pytest.fixture(scope="module")
def experts():
    """A reference with experts that are one parameter, and an update of each map."""
    model = tiny_model("mixtral").eval()
    reference = Reference(model, tiny_tokenizer(), TEXTS)
    random = torch.Generator().manual_seed(0)
    pairs = {
        path: Pair(*(0.3 * torch.randn(s, generator=random) for s in ((2, m.d_in), (m.d_out, 2))))
        for path, m in reference.maps.items()
        if ".layers." in path
    }
    assert any(m.expert is not None for m in reference.maps.values())
    return reference, pairs


def test_no_hypothesis_is_judged_on_the_weights_of_another(experts):
    """The weights of experts are written to, and so must be as before, bit for bit."""
    reference, pairs = experts
    before = {name: tensor.clone() for name, tensor in reference.model.state_dict().items()}
    answers = reference.expect(pairs)
    for name, tensor in reference.model.state_dict().items():
        assert torch.equal(tensor, before[name]), name
    for words, update in hypotheses(pairs).items():
        assert torch.equal(answers[words], reference.answer(update)), words
    assert not torch.allclose(answers[WHOLE], answers[NONE], atol=1e-3)


def test_an_update_of_experts_is_that_of_their_weights(experts):
    reference, pairs = experts
    given = reference.answer(pairs)
    before = {name: tensor.clone() for name, tensor in reference.model.state_dict().items()}
    with torch.no_grad():
        for path, pair in pairs.items():
            reference.maps[path].matrix().add_(pair.scale * pair.up @ pair.down)
        expected = reference.answer({})
        reference.model.load_state_dict(before)
    torch.testing.assert_close(given, expected, rtol=1e-4, atol=1e-4)
