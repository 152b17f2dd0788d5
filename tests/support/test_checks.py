"""Test the checks of specs: they accept correct results and detect wrong results."""

import pytest
import torch

from bishare_dsl.language import parse_spec
from bishare_dsl.testing.models import tiny_model
from bishare_dsl.testing.reference import TermValues
from bishare_dsl.transforms.shipped.slice_sharing import SliceSharing
from tests.support import checks
from tests.support.references import REFERENCES

SPEC = parse_spec(
    "spec s target q_proj, down_proj scale 2 share a per module rank 2 "
    "share b per layer rank 4 via KE(size = 7) share c per model rank 3 via SS"
)


@pytest.fixture(scope="module")
def model():
    return tiny_model("llama")


@pytest.mark.parametrize(
    ("check", "says"),
    [
        (checks.check_against_reference, "logits differ by more than"),
        (checks.check_merging, "logits of the merged model differ"),
        (checks.check_export, "logits of PEFT's model differ"),
    ],
)
def test_a_wrong_transform_is_found(check, says, model, monkeypatch):
    """Wrong only in the graph: merging and exporting run the same code with tensors."""
    right = SliceSharing.factors

    def wrong(self, tensors, rank, width):
        down, up = right(self, tensors, rank, width)
        return (down, up) if isinstance(down, torch.Tensor) else (down, up * 1.01)

    monkeypatch.setattr(SliceSharing, "factors", wrong)
    with pytest.raises(AssertionError, match=says):
        check(SPEC, model)


def test_a_start_that_is_not_zero_is_found(model, monkeypatch):
    from bishare_dsl.initial import values as initial

    right = initial.draw_tensor

    def wrong(tensor, seed):
        return right(tensor, seed) + (1e-3 if tensor.name == "c.B" else 0)

    monkeypatch.setattr(initial, "draw_tensor", wrong)
    with pytest.raises(AssertionError, match="logits of a fresh adapter must be identical"):
        checks.check_fresh(SPEC, model)


def test_checks_pass_and_leave_the_model_alone(model):
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    checks.check_spec(SPEC, model)
    assert model.state_dict().keys() == before.keys()
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_reference_of_a_known_update():
    """Computed by hand: size 2, width 3, so that the second block of the Kronecker product is cropped."""
    tensors = {"A": [[1.0, 2.0]], "B": [[1.0, 3.0]], "K_A": [[1.0, 10.0]], "K_B": [[2.0]]}
    tensors = {role: torch.tensor(rows) for role, rows in tensors.items()}
    b, a = REFERENCES["KE"](TermValues(tensors, {"rowwise": False}, rank=1, d_in=3, d_out=2))
    assert (b @ a).tolist() == [[2.0, 4.0, 20.0], [6.0, 12.0, 60.0]]
