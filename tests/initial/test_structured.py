"""Structured initial values: what they are, and that a seed and a name determine them."""

import numpy as np
import pytest

from bishare_dsl import compile_spec, load_adapter, parse_spec
from bishare_dsl.initial.structured import (
    cosine,
    fill_structured,
    hadamard,
    orthogonal,
    sparse,
)
from bishare_dsl.plan.structures import why_no_structure
from bishare_dsl.spec import STRUCTURED
from tests.support.checks import check_spec
from tests.support.families import tiny_model
from tests.support.stored import load_stored

KNOWN = [
    [0.8327229619026184, -0.025272920727729797, -0.553112804889679],
    [0.2476605474948883, 0.9104574918746948, 0.3312574028968811],
]


@pytest.mark.parametrize("shape", [(1, 1), (3, 7), (7, 3), (16, 16), (8, 500)])
def test_rows_or_columns_are_orthonormal(shape):
    values = orthogonal(*shape, 5, "a.A")
    gram = values @ values.T if shape[0] <= shape[1] else values.T @ values
    np.testing.assert_allclose(gram, np.eye(min(shape)), atol=1e-14)


@pytest.mark.parametrize("shape", [(1, 1), (4, 9), (16, 16), (12, 300)])
def test_cosines_are_those_of_the_transform(shape):
    rows, columns = shape
    k, j = np.arange(rows)[:, None], np.arange(columns)
    expected = np.sqrt(2 / columns) * np.cos(np.pi * (2 * j + 1) * k / (2 * columns))
    expected[0] /= np.sqrt(2)
    np.testing.assert_allclose(cosine(rows, columns), expected, atol=1e-14)
    np.testing.assert_allclose(
        cosine(rows, columns) @ cosine(rows, columns).T, np.eye(rows), atol=1e-13
    )


def test_hadamard_rows():
    whole = hadamard(8, 8, 0, "a.A")
    np.testing.assert_allclose(whole @ whole.T, np.eye(8), atol=1e-15)
    np.testing.assert_allclose(np.abs(whole), 8**-0.5)
    cropped = hadamard(4, 6, 0, "a.A")
    assert cropped.shape == (4, 6)
    assert {*np.round(np.abs(cropped).flatten(), 12)} == {round(6**-0.5, 12)}
    by_hand = [[1, 1, 1, 1], [1, -1, 1, -1], [1, 1, -1, -1], [1, -1, -1, 1]]
    assert sorted((2 * hadamard(4, 4, 3, "x")).tolist()) == sorted(by_hand)


def test_sparse_fraction_and_length():
    values = sparse(200, 400, 0.1, 0, "a.A")
    assert abs((values != 0).mean() - 0.1) < 0.01
    assert {*np.round(np.abs(values).flatten(), 12)} == {0, round(40**-0.5, 12)}
    assert abs((values**2).sum(1).mean() - 1) < 0.05
    assert abs(values.mean()) < 1e-3
    assert (sparse(3, 5, 1.0, 0, "a.A") != 0).all()


@pytest.mark.parametrize("word", STRUCTURED)
def test_seed_and_name_determine_them(word):
    def filled(seed, name):
        values = np.empty((4, 16), np.float32)
        fill_structured(values, word, 0.5, seed, name)
        return values.tolist()

    assert filled(1, "a.A") == filled(1, "a.A")
    if word != "cosine":
        assert filled(1, "a.A") != filled(2, "a.A")
        assert filled(1, "a.A") != filled(1, "a.B")


def test_known_values():
    values = np.empty((2, 3), np.float32)
    fill_structured(values, "orthogonal", 1.0, 0, "a.A")
    np.testing.assert_array_equal(values, np.float32(KNOWN))


def test_what_has_no_structure():
    assert why_no_structure("cosine", 5, 4) == (
        "there are 4 cosines of that width, and it has 5 rows"
    )
    assert why_no_structure("hadamard", 9, 6) == (
        "a Hadamard matrix of that width has 8 rows, and it has 9"
    )
    assert why_no_structure("hadamard", 8, 6) is None
    assert why_no_structure("orthogonal", 9, 6) is None
    with pytest.raises(ValueError, match="none of"):
        fill_structured(np.empty((1, 1), np.float32), "zeros", 1.0, 0, "a")


@pytest.mark.parametrize("word", ["orthogonal", "cosine", "hadamard", "sparse(0.25)"])
def test_frozen_structure_in_an_adapter(word, tmp_path):
    """A start with a structure is frozen, drawn again and not stored, and its term learns from zero."""
    text = f"spec s target q_proj, v_proj share s per layer rank 4 via SS init A {word} freeze A"
    model = compile_spec(parse_spec(text), tiny_model("llama"), seed=7)
    tensors = model.bishare.tensors()
    expected = np.empty(tuple(tensors["s.layer_0.A"].shape), np.float32)
    name, _, amount = word.rstrip(")").partition("(")
    fill_structured(expected, name, float(amount or 1), 7, "s.layer_0.A")
    np.testing.assert_array_equal(tensors["s.layer_0.A"].detach().numpy(), expected)
    assert not tensors["s.layer_0.A"].requires_grad
    model.bishare.save_pretrained(tmp_path)
    assert not any(name.endswith(".A") for name in load_stored(tmp_path))
    loaded = load_adapter(tmp_path, tiny_model("llama"))
    np.testing.assert_array_equal(
        loaded.bishare.tensors()["s.layer_0.A"].detach().numpy(), expected
    )
    check_spec(parse_spec(text), tiny_model("llama"))
