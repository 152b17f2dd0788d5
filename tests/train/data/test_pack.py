"""Packing loses nothing, and fits."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bishare_dsl.train.data import Examples, encode, pack

LENGTHS = st.lists(st.integers(2, 16), max_size=40)


def examples_of(lengths):
    """Examples of which every token has a number of its own; each second one is trained on."""
    ids = np.arange(sum(lengths), dtype=np.int32)
    trained = ids % 2 == 1
    trained[np.cumsum([0, *lengths])[:-1]] = False
    return Examples({"input_ids": ids, "labels": np.where(trained, ids, -100)}, lengths)


@given(lengths=LENGTHS, room=st.integers(16, 40))
def test_every_example_is_there_once_and_as_it_was(lengths, room):
    examples = examples_of(lengths)
    packed = pack(examples, room)
    parts = []
    for sequence in packed:
        assert len(sequence["input_ids"]) <= room
        starts = [i for i, position in enumerate(sequence["position_ids"]) if position == 0]
        for start, end in zip(starts, [*starts[1:], len(sequence["input_ids"])], strict=True):
            ids, labels = sequence["input_ids"][start:end], sequence["labels"][start:end]
            assert sequence["position_ids"][start:end] == list(range(end - start))
            assert labels[0] == -100
            parts.append({"input_ids": ids, "labels": labels})
    assert sorted(parts, key=lambda p: p["input_ids"]) == list(examples)
    # No two sequences could be one: best fit is at most 11/9 of the best there is.
    sizes = sorted(len(sequence["input_ids"]) for sequence in packed)
    assert len(sizes) < 2 or sizes[0] + sizes[1] > room
    assert [s["input_ids"] for s in packed] == [s["input_ids"] for s in pack(examples, room)]


def test_what_fits_best_comes_first():
    packed = pack(examples_of([5, 7, 3, 2, 3]), 10)
    sizes = [len(sequence["input_ids"]) for sequence in packed]
    assert sizes == [10, 10]
    # In the order of the data: the first has examples 0, 3 and 4 or the like, the second the others.
    assert [sequence["input_ids"][0] for sequence in packed] == [0, 5]


def test_an_example_that_does_not_fit():
    with pytest.raises(ValueError, match="an example of 7 tokens does not fit 6"):
        pack(examples_of([5, 7]), 6)


def test_of_encoded_rows(tokenizer, rows, chat):
    made = tokenizer("chatml")
    values = [chat("user: fox", f"assistant: {'dog ' * i}") for i in range(1, 9)]
    examples = encode(rows(*values), made, max_length=64).examples
    packed = pack(examples, 128)
    assert len(packed) < len(examples)
    for name in ("input_ids", "labels"):
        assert sorted(i for e in packed for i in e[name]) == sorted(
            i for e in examples for i in e[name]
        )
