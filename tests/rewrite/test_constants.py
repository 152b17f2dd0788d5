"""Tensors that a transform creates itself are buffers of the region, and move with the model."""

import copy
import math
import pickle
from typing import ClassVar

import pytest
import torch

from bishare_dsl import compile_spec, load_adapter, parse_spec
from bishare_dsl.testing.checks import check_transform
from bishare_dsl.testing.models import tiny_model
from bishare_dsl.testing.reference import REFERENCES
from bishare_dsl.transforms import Transform, Width, register
from tests.support.checks import check_spec, randomize
from tests.support.families import tiny_inputs


def cosine(rows, columns):
    place, wave = torch.arange(columns) + 0.5, torch.arange(rows)
    return torch.cos(math.pi / columns * wave.unsqueeze(1) * place)


def hadamard(size):
    matrix = torch.ones(1, 1)
    while len(matrix) < size:
        pair = torch.cat([matrix, matrix], 1), torch.cat([matrix, -matrix], 1)
        matrix = torch.cat(pair)
    return matrix


class Cosine(Transform):
    """``A = A_s C`` with the first cosines of the width."""

    name: ClassVar[str] = "Cosine"
    title: ClassVar[str] = "cosine"

    def shared_shape(self, role, rank, widths):
        return rank, 6

    def reach(self, rank, width):
        return min(rank, 6, *width)

    def factor(self, role, tensors, rank, side):
        return tensors[role] @ cosine(6, side).to(tensors[role])


class Permuted(Transform):
    """``A = A_s P`` with the columns in reverse."""

    name: ClassVar[str] = "Permuted"
    title: ClassVar[str] = "permuted"

    def factor(self, role, tensors, rank, side):
        return tensors[role][:, torch.arange(side).flip(0)]


class Walsh(Transform):
    """``A = A_s H`` with rows of a Hadamard matrix."""

    name: ClassVar[str] = "Walsh"
    title: ClassVar[str] = "walsh"

    def shared_shape(self, role, rank, widths):
        return rank, 8

    def reach(self, rank, width):
        return min(rank, 8, *width)

    def factor(self, role, tensors, rank, side):
        rows = hadamard(64)[:8, :side]
        return tensors[role] @ rows.to(tensors[role])


class Centred(Transform):
    """An update that is not linear, with a constant of each kind."""

    name: ClassVar[str] = "Centred"
    title: ClassVar[str] = "centred"
    linear: ClassVar[bool] = False

    def update(self, x, tensors, rank, width):
        order = torch.arange(rank).flip(0)
        down = (x @ tensors["A"][:, : width.d_in].t())[..., order]
        return (
            (down + torch.linspace(0, 1, rank).to(x)).sigmoid()
            * down
            @ tensors["B"][:, : width.d_out]
        )


KINDS = [Cosine, Permuted, Walsh, Centred]


@pytest.fixture(autouse=True)
def registered(monkeypatch):
    for kind in KINDS:
        register(kind)
    references = {
        "Cosine": lambda t: (
            (t["B"] @ cosine(6, t.d_out).to(t["B"])).T,
            t["A"] @ cosine(6, t.d_in).to(t["A"]),
        ),
        "Permuted": lambda t: (t["B"][:, : t.d_out].flip(1).T, t["A"][:, : t.d_in].flip(1)),
        "Walsh": lambda t: (
            (t["B"] @ hadamard(64)[:8, : t.d_out].to(t["B"])).T,
            t["A"] @ hadamard(64)[:8, : t.d_in].to(t["A"]),
        ),
    }
    for name, function in references.items():
        monkeypatch.setitem(REFERENCES, name, function)


def text(kind):
    return f"spec s\ntarget q_proj, k_proj, up_proj\nshare a per model rank 3 via {kind.name}\n"


@pytest.mark.parametrize("kind", KINDS)
def test_it_passes_the_check(kind):
    """The widths of a Permuted factor are equal, since the reversed columns start at the width."""
    assert check_transform(kind(), 3, [Width(12, 9)])


@pytest.mark.parametrize("kind", [Cosine, Permuted, Walsh])
def test_every_invariant_holds(kind):
    check_spec(parse_spec(text(kind)), tiny_model())


def test_an_update_that_is_not_linear_takes_constants():
    model = tiny_model()
    inputs = tiny_inputs(model, 0)
    expected = model(**inputs).logits
    compile_spec(text(Centred), model)
    assert torch.equal(model(**inputs).logits, expected)
    randomize(model)
    assert not torch.allclose(model(**inputs).logits, expected)


def test_constants_move_and_are_not_saved(tmp_path):
    model = compile_spec(text(Cosine), tiny_model())
    randomize(model)
    named = [name for name, _ in model.named_buffers() if "constant" in name]
    assert named
    assert not [name for name in model.state_dict() if "constant" in name]
    inputs = tiny_inputs(model, 0)
    expected = model(**inputs).logits
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert torch.equal(other(**inputs).logits, expected)
    model.double()
    assert {dict(model.named_buffers())[name].dtype for name in named} == {torch.float64}
    torch.testing.assert_close(model(**inputs).logits.float(), expected, rtol=1e-4, atol=1e-4)


def test_rows_of_a_mixed_batch_are_those_of_each_adapter(tmp_path):
    inputs = tiny_inputs(tiny_model(), 0)
    expected = []
    for seed in range(2):
        model = compile_spec(text(Walsh), tiny_model())
        randomize(model, seed)
        model.bishare.save_pretrained(tmp_path / str(seed))
        expected.append(model(**inputs).logits[seed])
    model = load_adapter(tmp_path / "0", tiny_model())
    model.load_adapter(str(tmp_path / "1"), adapter_name="other")
    with torch.no_grad(), model.bishare.rows(["default", "other"]):
        mixed = model(**inputs).logits
    torch.testing.assert_close(mixed, torch.stack(expected), rtol=1e-4, atol=1e-4)
