"""A server's answers to short texts: log-probabilities of the next token, and distances between them."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from multiprocessing.pool import ThreadPool

from bishare_dsl.verify.server import Answer, Server, ServerError

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

IN_FLIGHT = 4
"""The number of requests that a server gets at a time."""

Bar = Callable[[Iterable[str], str], Iterable[str]]
"""Yields items, and shows progress under a label."""


@dataclass(frozen=True)
class Asked:
    """The answers of the base and the adapter.

    Attributes:
        base: the base's answers.
        adapter: the adapter's answers.
        noise: the distance between the base's answers to the same texts; 0 if they are bit-identical.
        long: the adapter's answers to a long text, without and with the prefix cache; None if it is
            rejected.
    """

    base: list[Answer]
    adapter: list[Answer]
    noise: float
    long: tuple[list[Answer], list[Answer]] | None = None


def ask(
    server: Server,
    names: Sequence[str],
    base: str | None,
    bar: Bar,
    texts: Sequence[str] = TEXTS,
) -> dict[str, Asked | ServerError]:
    """Query the base in three arrangements, and each adapter once.

    No adapter runs beside the base, which vLLM's build for the CPU then answers with the adapter.

    Args:
        server: the server.
        names: its names for the adapters.
        base: its name for the base; by default, the first listed model that is no adapter.
        bar: yields the names, and shows progress.
        texts: the texts.
    """
    try:
        base = server.base(names) if base is None else base
        first = server.ask(base, texts)
        if all(answer == first[0] for answer in first):
            raise server.fails("gives one answer to all texts")
        others = [[server.ask(base, [text])[0] for text in texts]]
        others.append(server.ask(base, texts[::-1])[::-1])
        with ThreadPool(IN_FLIGHT) as pool:  # Its threads do not delay the end of the program.
            told = pool.imap(lambda name: _ask_one(server, name, first, texts), names)
            found = dict(zip(bar(names, f"asking {server.url}"), told, strict=True))
        others.append(server.ask(base, texts))
    except ServerError as error:
        error.status = 0  # It is about the base.
        return dict.fromkeys(names, error)
    noise = max(0.0 if other == first else distance(other, first) for other in others)
    return {n: replace(a, noise=noise) if isinstance(a, Asked) else a for n, a in found.items()}


def _ask_one(
    server: Server, name: str, base: list[Answer], texts: Sequence[str]
) -> Asked | ServerError:
    asked = None
    try:
        asked = Asked(base, server.ask(name, texts), 0)
        # Each run leaves its answer in the cache, so that a run after a reload detects stale entries.
        long = server.ask(name, [LONG]), server.ask(name, [LONG], salt=False)
        return replace(asked, long=long)
    except ServerError as error:
        return asked or error


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
