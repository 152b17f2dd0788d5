"""Held-out rows: none of them is trained on, and the same ones are held out every time."""

from hypothesis import given
from hypothesis import strategies as st

from bishare_dsl.train.data.formats import split_off

TEXTS = st.lists(st.sampled_from([f"text {i}" for i in range(30)]), min_size=2, max_size=40)


@given(texts=TEXTS.filter(lambda t: len({*t}) > 1), seed=st.integers(0, 5), data=st.data())
def test_no_content_is_on_both_sides(texts, seed, data, rows, problems):
    whole = rows(*({"text": text, "id": i} for i, text in enumerate(texts)))
    smallest = min(texts.count(text) for text in texts)
    size = data.draw(st.integers(smallest, len(texts) - 1))
    train, held_out = split_off(whole, size, seed)
    assert 0 < len(held_out) <= size
    assert not {row["text"] for row in train.table} & {row["text"] for row in held_out.table}
    for side in (train, held_out):
        ids = [row["id"] for row in side.table]
        assert ids == sorted(ids)
        assert side.places == [f"rows.jsonl:{i + 1}" for i in ids]
    assert len(train) + len(held_out) == len(whole)
    # Which content is held out depends on no order, and on nothing random.
    shuffled = data.draw(st.permutations(texts))
    again = split_off(rows(*({"text": text} for text in shuffled)), size, seed)[1]
    assert {row["text"] for row in again.table} == {row["text"] for row in held_out.table}


def test_only_what_is_encoded_counts_as_content(rows):
    whole = rows(*({"instruction": "a", "output": str(i % 2), "id": i} for i in range(10)))
    train, held_out = split_off(whole, 5, 0)
    assert (
        len({row["output"] for row in held_out.table})
        == len({row["output"] for row in train.table})
        == 1
    )
    inputs = rows(*({"instruction": "a", "input": str(i), "output": "b"} for i in range(10)))
    assert len(split_off(inputs, 3, 0)[1]) == 3
