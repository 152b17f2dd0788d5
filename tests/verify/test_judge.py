"""Verdicts on made answers: what distances, directions and greedy texts decide."""

import numpy as np
import pytest

from bishare_dsl.verify.judge import ADAPTER, BASE, UNSCALED, Expected, Verdict, judge
from bishare_dsl.verify.server import Asked, distance

TEXTS, TOKENS = 8, range(16)


def expected(effect=1.0, same=0):
    """An adapter that moves each log-probability by this much, up or down, and all but some greedy texts."""
    random = np.random.default_rng(0)
    none = -3 - random.random((TEXTS, len(TOKENS)))
    whole = none + effect * random.choice([-1, 1], none.shape)
    greedy = [(f"base {i}", f"base {i}" if i < same else f"mine {i}") for i in range(TEXTS)]
    return Expected({i: i for i in TOKENS}, {BASE: none, ADAPTER: whole}, greedy)


def verdict(wanted, base, mine, listed=(TOKENS, TOKENS), noise=1e-9):
    told = [
        [{i: float(row[i]) for i in some} for row in rows]
        for rows, some in zip((base, mine), listed, strict=True)
    ]
    return judge(Verdict("mine"), Asked(*told, noise), wanted)


def of_base(wanted, floor):
    """The base's answers, rounded by this much."""
    none = wanted.answers[BASE]
    return none + floor * np.random.default_rng(1).choice([-1, 1], none.shape)


@pytest.mark.parametrize(("floors", "told"), [(1, False), (3.9, False), (4.1, True), (40, True)])
@pytest.mark.parametrize(("way", "word"), [(ADAPTER, "APPLIED"), (BASE, "NOT APPLIED")])
def test_distances_are_judged_from_four_floors_on(floors, told, way, word):
    """The base lists other tokens, so that there is no direction; below there is no verdict, right or wrong."""
    wanted = expected(floors * 0.01)
    listed = (TOKENS[:8], TOKENS[8:])
    found = verdict(wanted, of_base(wanted, 0.01), wanted.answers[way], listed)
    assert found.word == (word if told else "UNKNOWN")
    assert told or "this server's rounding is 0.01" in found.why


@pytest.mark.parametrize(
    ("scale", "word"),
    [(1, "APPLIED"), (0.8, "APPLIED"), (1.3, "APPLIED"), *((s, "UNKNOWN") for s in (0.7, 1.4, 0, -1))],
)  # fmt: skip
def test_below_four_floors_the_direction_decides_whether_it_is_applied(scale, word):
    """The base of the server is shifted, as by quantising it, and its differences are not."""
    wanted = expected(0.1)
    base = of_base(wanted, 0.1)
    mine = base + scale * (wanted.answers[ADAPTER] - wanted.answers[BASE])
    assert verdict(wanted, base, mine).word == word
    assert verdict(wanted, base, mine, (TOKENS[:10], TOKENS[8:])).word == "UNKNOWN"
    other = mine + of_base(wanted, 0.1) - wanted.answers[BASE][::-1]
    assert verdict(wanted, base, np.minimum(other, 0)).word == "UNKNOWN"


@pytest.mark.parametrize(
    ("scale", "word", "said"),
    [
        (1, "APPLIED", "as base + adapter"),
        (0.5, "AS IF SCALED", "at 0.5 of its scale"),
        (2, "AS IF SCALED", "at 2 of its scale"),
        (0.001, "NOT APPLIED", "or something much weaker"),
        (0.85, "ANOTHER ADAPTER", "an older version"),
        (-1, "ANOTHER ADAPTER", "an older version"),
    ],
)
@pytest.mark.parametrize("floor", [0, 0.05])
def test_a_large_effect(floor, scale, word, said):
    wanted = expected(1.0)
    base = of_base(wanted, floor)
    mine = base + scale * (wanted.answers[ADAPTER] - wanted.answers[BASE])
    found = verdict(wanted, base, mine)
    assert (found.word, said in found.why) == (word, True), found.why
    assert scale != 1 or found.numbers["error"] < 1e-9  # The shift of the base cancels.
    assert any("a part of it" in one for one in found.not_tested) == (word == "APPLIED")


@pytest.mark.parametrize("value", [np.nan, -np.inf])
@pytest.mark.parametrize("count", [1, TEXTS * len(TOKENS)])
@pytest.mark.parametrize(("name", "said"), [(BASE, "of the base"), (ADAPTER, "of base + adapter")])
def test_what_is_not_finite_is_never_applied_nor_called_ignored(value, count, name, said):
    """One infinite distance is as near to the base as to the adapter."""
    finite = expected()
    for answers in (finite.answers[BASE] - 1e-3, finite.answers[ADAPTER] - 1e-3):
        wanted = expected()
        wanted.answers[name].flat[:count] = value
        found = verdict(wanted, finite.answers[BASE], answers)
        assert found.word == "UNKNOWN"
        assert f"the expected answers {said} are not finite" in found.why


def test_a_scale_that_gives_no_number_is_not_the_nearest():
    wanted = expected()
    answers = wanted.answers | {UNSCALED: np.full_like(wanted.answers[BASE], np.nan)}
    wanted = Expected(wanted.columns, answers)
    found = verdict(wanted, wanted.answers[BASE], wanted.answers[ADAPTER])
    assert found.word == "APPLIED"
    assert UNSCALED not in found.why


@pytest.mark.parametrize(("known", "word"), [(9, "UNKNOWN"), (10, "APPLIED"), (20, "APPLIED")])
def test_most_tokens_of_the_adapter_must_be_known(known, word):
    """The others are none of the vocabulary's: they may be those of another model."""
    wanted = expected(1.0)
    base, adapter = wanted.answers[BASE], wanted.answers[ADAPTER]
    others = {f"other {i}": -9.0 for i in range(20 - known)}
    answers = [{i: float(row[i % 16]) for i in TOKENS[:known]} | others for row in adapter]
    own = sum(len(answer) - len(others) for answer in answers)
    asked = Asked([{i: float(row[i]) for i in TOKENS} for row in base], answers, 1e-9)
    found = judge(Verdict("mine"), asked, wanted)
    assert found.word == word, found.why
    count = sum(map(len, answers))
    assert f"{own} of its {count} tokens" in found.why
    assert (found.numbers["judged"], found.numbers["tokens"]) == (own, count)


@pytest.mark.parametrize(("depth", "word"), [(8, "UNKNOWN"), (4, "APPLIED")])
def test_of_a_card_the_tokens_count_that_it_must_list(depth, word):
    """The server lists sixteen tokens, four of which the card has. They are its likeliest."""
    wanted = expected(1.0)
    base, adapter = wanted.answers[BASE], wanted.answers[ADAPTER]
    base[:, 4:] = adapter[:, 4:] = np.nan
    columns = {i: i for i in TOKENS[:4]}
    card = Expected(columns, wanted.answers, depths=[depth] * TEXTS)
    told = [{i: float(row[i]) for i in TOKENS[:4]} for row in base]
    own = [
        {i: float(row[i]) for i in TOKENS[:4]} | {i: -9.0 - i for i in range(4, 16)}
        for row in adapter
    ]
    own = [{**answer, **{20 + i: -1e-3 for i in range(5)}} for answer in own] if depth == 8 else own
    found = judge(Verdict("mine"), Asked(told, own, 1e-9), card)
    assert found.word == word, found.why


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
    assert (found.word, said in found.why) == ("UNKNOWN", True), found.why


@pytest.mark.parametrize(
    ("same", "mine", "word"),
    [
        (0, "mmmmmmmm", "APPLIED"),
        (0, "mmmmmmxb", "APPLIED"),
        (0, "mmmmmxxb", "UNKNOWN"),
        (0, "bbbbbbbb", "NOT APPLIED"),
        (0, "xxxxxxxx", "UNKNOWN"),
        (5, "bbbbbmmm", "APPLIED"),
        (5, "bbbbbbbb", "NOT APPLIED"),
        (6, "bbbbbbmm", "UNKNOWN"),
        (8, "bbbbbbbb", "UNKNOWN"),
    ],
)
def test_greedy_texts_tell_where_those_of_base_and_adapter_differ(same, mine, word):
    words = {"m": "mine", "b": "base", "x": "another"}
    base = [f"base {i}" for i in range(TEXTS)]
    told = [f"{words[one]} {i}" for i, one in enumerate(mine)]
    found = judge(Verdict("mine"), Asked(base, told, 0), expected(same=same))
    assert found.word == word, found.why
    assert found.numbers["texts"] == TEXTS - same
    assert any("its scale and its parts" in one for one in found.not_tested) == (word == "APPLIED")


def test_a_token_that_is_not_listed_counts_as_the_least():
    one, other = [{1: -1.0, 2: -3.0}], [{1: -1.0, 3: -2.0}]
    # Token 1: 0; 2: -3 against at most -2; 3: at most -3 against -2.
    assert distance(one, other) == pytest.approx((2 / 3) ** 0.5)
    assert (distance(one, one), distance(["a", "b"], ["a", "c"])) == (0, pytest.approx(0.5**0.5))
