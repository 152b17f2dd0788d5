"""A pytest fixture that checks a server by a probe card.

    pytest_plugins = ["bishare_dsl.testing.cards"]

    def test_my_engine_applies_the_adapter(assert_applied):
        assert_applied("card.json", "http://localhost:8000/v1", name="mine")

It needs neither torch nor weights.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from bishare_dsl.verify.card import judge_cards, read_card
from bishare_dsl.verify.judge import Word
from bishare_dsl.verify.server import Server


@pytest.fixture
def assert_applied() -> Callable[..., None]:
    """Return a function of a card's file, a server's URL, and the server's names of adapter and base."""

    def check(card: str, url: str, name: str = "", base: str | None = None) -> None:
        contents = read_card(Path(card))
        cards = [(name or contents.adapter, contents)]
        (verdict,) = judge_cards(cards, [Server(url)], base, lambda items, _: items)
        assert verdict.word == Word.APPLIED, f"{verdict.word}: {verdict.why}"

    return check
