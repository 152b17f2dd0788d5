"""`check_transform` itself: it passes on what is right, and fails on what is wrong."""

from typing import ClassVar

import pytest
import torch

from bishare_dsl.testing import checks
from bishare_dsl.testing.reference import REFERENCES
from bishare_dsl.transforms import Transform, Width
from bishare_dsl.transforms.shipped.identity import Identity
from bishare_dsl.transforms.shipped.kronecker_extension import KroneckerExtension
from bishare_dsl.transforms.shipped.rotation import Rotation
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
        ("trace", "the first output of the generated code at 5 -> 6, of an input"),
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


CALLS = []


def drop(matrix):
    return torch.nn.functional.dropout(matrix, 0.5)


def count_calls(matrix):
    CALLS.append(1)
    return matrix * len(CALLS)


def permuted(matrix):
    order = torch.arange(matrix.shape[-1]).flip(0)
    return matrix[:, order]


class Changed(Transform):
    """Factors as they are, but for what a function does to A."""

    name: ClassVar[str] = "Changed"
    title: ClassVar[str] = "changed"
    change: str

    def factor(self, role, tensors, rank, side):
        matrix = CHANGES[self.change](tensors[role]) if role == "A" else tensors[role]
        return matrix[:, :side]


def multiply_in_place(matrix):
    matrix.mul_(2)
    return matrix


def augment(matrix):
    matrix *= 2
    return matrix


CHANGES = {
    "dropout": drop,
    "state": count_calls,
    "in place": multiply_in_place,
    "augmented": augment,
    "in place, without gradients": lambda matrix: matrix.data.mul_(2),
    "permuted": permuted,
    "a shape": lambda matrix: matrix * 2 if matrix.shape[0] > 1 else matrix,
    "a value": lambda matrix: matrix * 2 if matrix.sum() > 0 else matrix,
}


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ("dropout", "another effective A at the second call at 5 -> 6: it reads random numbers"),
        ("state", "another effective A at the second call at 5 -> 6"),
        ("in place", "in-place operation"),
        ("augmented", "in-place operation"),
        (
            "in place, without gradients",
            r"tensors that `factors` at 5 -> 6 changes in place: found \['A'\]",
        ),
        ("a value", "BS214.*`factors` raises .*: symbolically traced variables|`factors` raises"),
    ],
)
def test_factors_that_the_compiler_cannot_repeat_fail(change, says):
    with pytest.raises(AssertionError, match=says):
        checks.check_transform(Changed(change=change), 3, [Width(5, 6)])


@pytest.mark.parametrize("change", ["permuted", "a shape"])
def test_what_the_compiler_takes_passes(change):
    """A graph knows the shapes of tensors, and lifts constants."""
    assert checks.check_transform(Changed(change=change), 3, [Width(5, 6), Width(7, 3)])


class Gated(Transform):
    """An update that is not linear, with one thing wrong with it."""

    name: ClassVar[str] = "Gated"
    title: ClassVar[str] = "gated"
    linear: ClassVar[bool] = False
    fault: str

    def shared_shape(self, role, rank, widths):
        return rank, widths[0]

    def update(self, x, tensors, rank, width):
        z = x @ tensors["A"].t()
        match self.fault:
            case "value" if z.max() > 0:
                z = z * 2
            case "rows":
                z = z - z.mean(0, keepdim=True)
            case "tokens":
                z = z.cumsum(-2)
            case "dropout":
                z = torch.nn.functional.dropout(z, 0.5)
            case "in place":
                tensors["A"].data.mul_(2)
            case "input":
                x.mul_(2)
        return (z.sigmoid() * z) @ tensors["B"]


@pytest.mark.parametrize(
    ("fault", "says"),
    [
        ("value", "BS214|`update` raises"),
        ("rows", "which may not depend on other rows or tokens, differs"),
        ("tokens", "which may not depend on other rows or tokens, differs"),
        ("dropout", "`update` gives another result at the second call"),
        ("in place", r"changes in place: found \['A'\]"),
        ("input", r"changes in place: found \['x'\]"),
    ],
)
def test_updates_that_the_compiler_cannot_repeat_fail(fault, says):
    with pytest.raises(AssertionError, match=says):
        checks.check_transform(Gated(fault=fault), 2, [Width(4, 6)])
    assert checks.check_transform(Gated(fault=""), 2, [Width(4, 6)])


def test_a_reach_that_random_tensors_do_not_reach_fails(monkeypatch):
    """Copies of a chunk repeat after `rank / stride` turns, so that the rank stays below the width."""
    rotation = Rotation(chunks_A=4, chunks_B=4, stride=2)
    assert checks.check_transform(rotation, 4, [Width(4, 16)])
    monkeypatch.setattr(Rotation, "reach", lambda self, rank, width: min(rank, *width))
    with pytest.raises(
        AssertionError, match=r"updates of random tensors is at most 2 .* reach says 4"
    ):
        checks.check_transform(rotation, 4, [Width(4, 16)])


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
