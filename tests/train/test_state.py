import math
import random

import numpy as np
import pytest
import torch

from bishare_dsl.train import TrainError
from bishare_dsl.train.state import (
    from_bytes,
    generators,
    keep_generators,
    set_generators,
    to_bytes,
)

CPU = torch.device("cpu")


def draws():
    return random.random(), random.gauss(0, 1), np.random.rand(), torch.rand(2).tolist()


def test_a_tree_is_the_same_again():
    tree = {
        "numbers": [1, 0.1 + 0.2, -0.0, math.inf, True, None, "word"],
        "inner": {"tuple": (1, (2.5, "x")), "empty": {}, "none": []},
        "tensors": [torch.arange(6).view(2, 3).t(), torch.tensor(1.5, dtype=torch.bfloat16)],
        "numpy": np.float64(1 / 3),
    }
    again = from_bytes(*to_bytes(tree))
    assert again["numbers"] == tree["numbers"]
    assert [type(x) for x in again["numbers"]] == [type(x) for x in tree["numbers"]]
    assert again["inner"] == {"tuple": [1, [2.5, "x"]], "empty": {}, "none": []}
    for one, other in zip(again["tensors"], tree["tensors"], strict=True):
        assert one.dtype == other.dtype
        assert torch.equal(one, other)
    assert again["numpy"] == 1 / 3


def test_tensors_that_share_memory_are_stored_each():
    whole = torch.arange(4.0)
    again = from_bytes(*to_bytes({"a": whole, "b": whole[1:], "c": whole}))
    assert torch.equal(again["b"], whole[1:])


@pytest.mark.parametrize("odd", [lambda: 0, {1: 2}, object(), {1, 2}, b"bytes"])
def test_what_is_neither_tensor_nor_json(odd):
    with pytest.raises(TrainError, match=r"BS748.*`optimizer/0/odd`"):
        to_bytes({"optimizer": [{"odd": odd}]})


def test_generators_go_on():
    random.gauss(0, 1)  # Of which Python keeps the second one for later.
    state = from_bytes(*to_bytes(generators(CPU)))
    first = draws()
    assert draws() != first
    set_generators(state, CPU)
    assert draws() == first


def test_a_block_leaves_them_as_they_were():
    state = generators(CPU)
    first = draws()
    set_generators(state, CPU)
    with keep_generators(CPU):
        draws()
    assert draws() == first
