"""Verdicts on made answers: what distances, directions and greedy texts decide."""

import numpy as np
import pytest

from bishare_dsl.verify.judge import NONE, WHOLE, Expected, Row, judge
from bishare_dsl.verify.server import Asked, distance

TEXTS, TOKENS = 8, range(16)


def expected(effect=1.0, same=0):
    """An adapter that moves each log-probability by this much, up or down, and all but some greedy texts."""
    random = np.random.default_rng(0)
    none = -3 - random.random((TEXTS, len(TOKENS)))
    whole = none + effect * random.choice([-1, 1], none.shape)
    greedy = [(f"base {i}", f"base {i}" if i < same else f"mine {i}") for i in range(TEXTS)]
    return Expected({i: i for i in TOKENS}, {NONE: none, WHOLE: whole}, greedy)


def verdict(wanted, base, mine, listed=(TOKENS, TOKENS), noise=1e-9):
    told = [
        [{i: float(row[i]) for i in some} for row in rows]
        for rows, some in zip((base, mine), listed, strict=True)
    ]
    return judge(Row("mine"), Asked(*told, noise), wanted)


def of_base(wanted, floor):
    """The base's answers, rounded by this much."""
    none = wanted.answers[NONE]
    return none + floor * np.random.default_rng(1).choice([-1, 1], none.shape)


@pytest.mark.parametrize(("floors", "told"), [(1, False), (3.9, False), (4.1, True), (40, True)])
@pytest.mark.parametrize(("way", "word"), [(WHOLE, "APPLIED"), (NONE, "NOT APPLIED")])
def test_distances_are_judged_from_four_floors_on(floors, told, way, word):
    """The base lists other tokens, so that there is no direction; below there is no verdict, right or wrong."""
    wanted = expected(floors * 0.01)
    listed = (TOKENS[:8], TOKENS[8:])
    found = verdict(wanted, of_base(wanted, 0.01), wanted.answers[way], listed)
    assert found.word == (word if told else "cannot be judged")
    assert told or "this server's rounding is 0.01" in found.why


@pytest.mark.parametrize(
    ("scale", "word"),
    [(1, "APPLIED"), (0.8, "APPLIED"), (1.3, "APPLIED"), *((s, "cannot be judged") for s in (0.7, 1.4, 0, -1))],
)  # fmt: skip
def test_below_four_floors_the_direction_decides_whether_it_is_applied(scale, word):
    """The base of the server is shifted, as by quantising it, and its differences are not."""
    wanted = expected(0.1)
    base = of_base(wanted, 0.1)
    mine = base + scale * (wanted.answers[WHOLE] - wanted.answers[NONE])
    assert verdict(wanted, base, mine).word == word
    assert verdict(wanted, base, mine, (TOKENS[:10], TOKENS[8:])).word == "cannot be judged"
    other = mine + of_base(wanted, 0.1) - wanted.answers[NONE][::-1]
    assert verdict(wanted, base, np.minimum(other, 0)).word == "cannot be judged"


@pytest.mark.parametrize(
    ("scale", "word", "said"),
    [
        (1, "APPLIED", "as base + adapter"),
        (0.5, "AS IF", "at 0.5 of its scale"),
        (2, "AS IF", "at 2 of its scale"),
        (0.001, "NOT APPLIED", "or something much weaker"),
        (0.85, "OTHER TENSORS", "an older version"),
        (-1, "OTHER TENSORS", "an older version"),
    ],
)
@pytest.mark.parametrize("floor", [0, 0.05])
def test_a_large_effect(floor, scale, word, said):
    wanted = expected(1.0)
    base = of_base(wanted, floor)
    mine = base + scale * (wanted.answers[WHOLE] - wanted.answers[NONE])
    found = verdict(wanted, base, mine)
    assert (found.word, said in found.why) == (word, True), found.why
    assert scale != 1 or found.numbers["error"] < 1e-9  # The shift of the base cancels.
    assert ("each part of it: a card proves the whole" in found.unseen) == (word == "APPLIED")


def test_what_is_no_number_is_never_applied():
    wanted = expected(np.nan)
    found = verdict(wanted, wanted.answers[NONE], wanted.answers[NONE])
    assert found.word == "cannot be judged"


@pytest.mark.parametrize(
    ("known", "noise", "said"),
    [
        ((False, False), 1e-9, "the server's base has other tokens"),
        ((True, False), 1e-9, "the server's adapter has other tokens"),
        ((True, True), 0.31, "try again when no other requests run"),
    ],
)
def test_there_is_no_verdict(known, noise, said):
    wanted = expected()
    moved = [np.pad(rows, ((0, 0), (0, 8))) for rows in wanted.answers.values()]
    found = verdict(wanted, *moved, [TOKENS if some else range(16, 24) for some in known], noise)
    assert (found.word, said in found.why) == ("cannot be judged", True), found.why


@pytest.mark.parametrize(
    ("same", "mine", "word"),
    [
        (0, "mmmmmmmm", "APPLIED"),
        (0, "mmmmmmxb", "APPLIED"),
        (0, "mmmmmxxb", "cannot be judged"),
        (0, "bbbbbbbb", "NOT APPLIED"),
        (0, "xxxxxxxx", "cannot be judged"),
        (5, "bbbbbmmm", "APPLIED"),
        (5, "bbbbbbbb", "NOT APPLIED"),
        (6, "bbbbbbmm", "cannot be judged"),
        (8, "bbbbbbbb", "cannot be judged"),
    ],
)
def test_greedy_texts_tell_where_those_of_base_and_adapter_differ(same, mine, word):
    words = {"m": "mine", "b": "base", "x": "another"}
    base = [f"base {i}" for i in range(TEXTS)]
    told = [f"{words[one]} {i}" for i, one in enumerate(mine)]
    found = judge(Row("mine"), Asked(base, told, 0), expected(same=same))
    assert found.word == word, found.why
    assert found.numbers["texts"] == TEXTS - same
    assert any("its scale and its parts" in one for one in found.unseen) == (word == "APPLIED")


def test_a_token_that_is_not_listed_counts_as_the_least():
    one, other = [{1: -1.0, 2: -3.0}], [{1: -1.0, 3: -2.0}]
    # Token 1: 0; 2: -3 against at most -2; 3: at most -3 against -2.
    assert distance(one, other) == pytest.approx((2 / 3) ** 0.5)
    assert (distance(one, one), distance(["a", "b"], ["a", "c"])) == (0, pytest.approx(0.5**0.5))
