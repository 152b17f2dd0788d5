"""Every transform, through the protocol: shapes, zero start, rank, tracing, and the paper's equation."""

from typing import NamedTuple

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from bishare_dsl.testing.checks import check_transform
from bishare_dsl.testing.strategies import accepted_pool, pools, transforms_of
from bishare_dsl.transforms import Width, check_term, transform_kind
from bishare_dsl.transforms.registry import BUILT_IN
from bishare_dsl.transforms.shipped.gate_transformation import GateTransformation
from bishare_dsl.transforms.shipped.identity import Identity
from bishare_dsl.transforms.shipped.kronecker_extension import KroneckerExtension
from bishare_dsl.transforms.shipped.magnitude import LONGEST, bounded_ratio
from bishare_dsl.transforms.shipped.slice_sharing import SliceSharing
from tests.support.references import REFERENCES
from tests.support.toeplitz import Toeplitz

# Each example checks every site of a pool, and with every set of its tensors at zero.
SOME = settings(max_examples=max(1, settings().max_examples // 2))
BUILT_IN_KINDS = {name: transform_kind(name) for name in BUILT_IN}


@pytest.mark.parametrize("kind", [*BUILT_IN_KINDS.values(), Toeplitz], ids=lambda kind: kind.name)
@SOME
@given(st.data(), pools(), st.integers(1, 4))
def test_it_is_its_dense_reference(kind, data, widths, rank):
    """Shapes, zero starts, rank, tracing, products and gradients; on every site of a pool."""
    transform = data.draw(transforms_of(kind))
    rank, widths = accepted_pool(transform, rank, widths)
    assert check_transform(transform, rank, widths)


def test_each_of_ours_has_a_reference():
    assert {*BUILT_IN} <= REFERENCES.keys()


class Halved(NamedTuple):
    """A factor of a package's own, which multiplies by half of what it says to be."""

    tensor: torch.Tensor

    def down(self, x):
        return x @ self.tensor.mT / 2

    def add_up(self, y, z, scale=1.0):
        return y.add_(z @ self.tensor, alpha=scale)

    def dense(self):
        return self.tensor


def test_a_factor_that_multiplies_otherwise_than_it_is_fails_the_check():
    class Wrong(Identity):
        name = "Wrong"

        def factor(self, role, tensors, rank, side):
            return Halved(tensors[role])

    with pytest.raises(AssertionError, match=r"`down` of the effective A at .* 1 tokens differs"):
        check_transform(Wrong(), 2, [Width(4, 6)])


def test_a_row_that_the_terms_cancel_is_scaled_by_a_bounded_ratio():
    """Its rest is rounding, which may also be negative; without a change the ratio is 1."""
    before, after = torch.tensor([4.0, 4, 4, 4, 0]), torch.tensor([1.0, 0, 1e-12, -1e-9, 0])
    assert bounded_ratio(before, after).tolist() == pytest.approx([2, *3 * [LONGEST], 1])


def test_fan_in_is_of_the_papers_orientation():
    """kaiming_*_ draws by the columns of the paper's matrix; what is stored transposed has it in rows."""
    gates = GateTransformation(size=10, gate_rank=2).own(4, Width(6, 8))
    assert {role: t.fan_in for role, t in gates.items()} == {
        "G_id": 6,  # (g, d_in)
        "G_iu": 2,  # (m, g)
        "G_od": 10,  # (g, n)
        "G_ou": 2,  # (d_out, g)
    }
    kernels = KroneckerExtension(size=2).own(4, Width(6, 8))
    assert {role: t.fan_in for role, t in kernels.items()} == {"K_A": 3, "K_B": 1}


@pytest.mark.parametrize(
    ("transform", "rank", "reach"),
    [
        (SliceSharing(), 4, 4),
        (SliceSharing(), 9, 6),  # the width of the input
        (GateTransformation(), 16, 1),
        (GateTransformation(gate_rank=3), 16, 3),
        (GateTransformation(gate_rank=3), 2, 2),
        (KroneckerExtension(size=2), 4, 2),  # A_s (4, 2) has rank 2
        (KroneckerExtension(size=2, shared_rank=1), 4, 3),  # K_A (4, 3)
        (KroneckerExtension(size=2, shared_rank=2), 4, 4),
        (KroneckerExtension(size=2, rowwise=True), 4, 4),
    ],
)
def test_reach(transform, rank, reach):
    assert transform.reach(rank, Width(6, 8)) == reach


def test_a_worker_in_inference_mode_checks_terms():
    """As those of vLLM are, in which a tensor does not count its changes."""
    shapes = {"A": (3, 23), "B": (3, 29)}  # Of no other test: results are cached.
    with torch.inference_mode():
        check_term(SliceSharing(), 3, Width(17, 19), shapes)
