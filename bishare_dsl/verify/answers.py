"""A server's answers to short texts: log-probabilities of the next token, and distances between them."""

from __future__ import annotations

import math
from collections.abc import Sequence

TEXTS = (
    "The capital of France is a city that lies on the river",
    "Water boils at one hundred degrees, and it freezes at",
    "def add(first, second):\n    return first +",
    "Once upon a time there was a small girl who lived in",
    "Translate to German: good morning, my friends. Answer:",
    "The three primary colours are red, yellow and",
    "Question: how many legs does a spider have? Answer:",
    "Dear Sir or Madam, I am writing to you about the",
)
"""The texts, of 8 to 16 tokens each, because a prefix cache stores whole blocks of tokens."""

LONG = " ".join(f"Line {n} says that the number after {n} is {n + 1}." for n in range(1, 20))
"""About 300 tokens, most of which a prefix cache stores."""

Answer = dict[int | str, float]
"""The likeliest tokens, by id or by text, with their log-probabilities."""


def distance(one: Sequence[Answer], other: Sequence[Answer]) -> float:
    """Return the root mean square of the differences between the log-probabilities of two answers.

    A token in only one of them counts as the least likely token of the other, which gives a lower bound.
    """
    differences = []
    for a, b in zip(one, other, strict=True):
        least_a, least_b = min(a.values()), min(b.values())
        differences += [a.get(token, least_a) - b.get(token, least_b) for token in a.keys() | b]
    return rms(differences)


def rms(differences: Sequence[float]) -> float:
    """Return the root mean square of numbers."""
    return math.sqrt(sum(d * d for d in differences) / len(differences)) if differences else 0.0
