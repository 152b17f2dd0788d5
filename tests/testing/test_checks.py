"""`check_transform` itself: it passes on what is right, and fails on what is wrong."""

from typing import ClassVar

import pytest
import torch

from bishare_dsl.testing import checks
from bishare_dsl.testing.reference import REFERENCES
from bishare_dsl.transforms import Transform, Width
from bishare_dsl.transforms.shipped.identity import Identity
from bishare_dsl.transforms.shipped.kronecker_extension import KroneckerExtension
from bishare_dsl.transforms.shipped.slice_sharing import SliceSharing

WIDTHS = [Width(6, 4), Width(5, 9)]


class Wrong(Transform):
    """A transform with one thing wrong with it."""

    name: ClassVar[str] = "Wrong"
    title: ClassVar[str] = "wrong"
    fault: str

    def shared_shape(self, role, rank, widths):
        return rank, 8

    def factors(self, tensors, rank, width):
        down, up = tensors["A"][:, : width.d_in], tensors["B"][:, : width.d_out]
        match self.fault:
            case "shape":
                return down[:1], up
            case "start":
                return down, up + 1
            case "trace" if isinstance(down, torch.Tensor):
                return down * 2, up
            case "gradient":
                return down, up.detach() * 0
        return down, up

    def zeros(self, zero):
        match self.fault:
            case "zeros of A only":
                return zero & {"A"}
            case "one zero of two":
                return frozenset(sorted(zero)[:1])
            case "zeros of what is not":
                return frozenset({"A", "B"} if zero else ())
        return super().zeros(zero)

    def reach(self, rank, width):
        return 1 if self.fault == "reach" else super().reach(rank, width)


@pytest.mark.parametrize(
    ("fault", "says"),
    [
        ("shape", "shape of the effective A"),
        ("start", "the update is not zero at 5 -> 6 with B at zero"),
        ("trace", "the effective A of a traced graph"),
        ("gradient", "tensors that no gradient reaches"),
        ("reach", "the update's rank is 3 at 5 -> 6, and reach says 1"),
        ("zeros of A only", r"the update is zero at 5 -> 6 with B at zero, and `zeros` gives \[\]"),
        ("one zero of two", r"no gradient comes at 5 -> 6 with A and B at zero, .* gives \['A'\]"),
        ("zeros of what is not", r"`zeros` gives \['B'\], and at zero are \['A'\]"),
    ],
)
def test_what_is_wrong_with_a_transform_is_told(fault, says):
    with pytest.raises(AssertionError, match=says):
        checks.check_transform(Wrong(fault=fault), 3, [Width(5, 6)])
    assert checks.check_transform(Wrong(fault=""), 3, [Width(5, 6)])


def test_a_built_in_name_is_taken():
    taken = type("Other", (Wrong,), {"name": "KE"})
    with pytest.raises(AssertionError, match="the class of the built-in name KE"):
        checks.check_transform(taken(fault=""), 3, [Width(5, 6)])


def test_a_transform_that_is_not_its_reference_is_found(monkeypatch):
    monkeypatch.setitem(REFERENCES, "SS", lambda term: (0.5 * term["B"].T, term["A"]))
    with pytest.raises(AssertionError, match="the update at 6 -> 4 differs"):
        checks.check_transform(SliceSharing(), 3, [Width(6, 4)])


def test_a_refused_pool_is_passed_over():
    assert not checks.check_transform(Identity(), 2, WIDTHS)
    assert not checks.check_transform(KroneckerExtension(shared_rank=2), 3, WIDTHS)
    assert checks.check_transform(KroneckerExtension(size=3, shared_rank=2), 4, WIDTHS)
