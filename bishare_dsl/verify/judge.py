"""Judge whether a server applies an adapter, from the answers of its base and of the adapter.

The server's rounding limits detection. For example, if its base differs from the float32 base by 0.07, as
in bfloat16, effects below four times that are not judged.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import torch

from bishare_dsl.verify.answers import LONG, TEXTS, Answer, distance
from bishare_dsl.verify.contents import Contents, kind_of
from bishare_dsl.verify.reference import (
    LEAST_EFFECT,
    NONE,
    WHOLE,
    WITHOUT,
    Located,
    Reference,
    tolerance,
)
from bishare_dsl.verify.server import Server, VerifyError

MOST_NOISE = 0.3
"""The limit for differences between the base's answers to the same texts; rounding causes less."""

OTHER_BASE = 0.2
"""The distance between the server's base and the reference above which their weights differ."""

IN_FLIGHT = 4
"""The number of requests that a server gets at a time."""

Bar = Callable[[Iterable[str], str], Iterable[str]]
"""Yields items, and shows progress under a label."""

APPLIED, NOT_APPLIED, AS_IF = "APPLIED", "NOT APPLIED", "AS IF"
OTHER_TENSORS, STALE = "OTHER TENSORS", "STALE"
UNKNOWN = "cannot be judged"


@dataclass
class Verdict:
    """The result for an adapter on a server.

    Attributes:
        word: `APPLIED`, a fault, or `UNKNOWN`.
        why: the evidence in one sentence.
        unseen: possible faults that were not tested.
        warnings: further remarks.
        numbers: the distances, in natural logarithms.
    """

    word: str = UNKNOWN
    why: str = ""
    unseen: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    numbers: dict[str, float] = field(default_factory=dict)


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
    server: Server, names: Sequence[str], base: str | None, bar: Bar
) -> dict[str, Asked | VerifyError]:
    """Query the base in three arrangements, and each adapter once.

    No adapter runs beside the base, which vLLM's build for the CPU then answers with the adapter.

    Args:
        server: the server.
        names: its names for the adapters.
        base: its name for the base; by default, the first listed model that is no adapter.
        bar: yields the names, and shows progress.

    Raises:
        VerifyError: the server does not answer for the base (BS872).
    """
    base = server.base(names) if base is None else base
    first = server.ask(base, TEXTS)
    one_by_one = [server.ask(base, [text])[0] for text in TEXTS]
    reverse = server.ask(base, TEXTS[::-1])[::-1]

    def ask_one(name: str) -> tuple[list[Answer], Any] | VerifyError:
        try:
            answers = server.ask(name, TEXTS)
        except VerifyError as error:
            return error
        try:
            # Each run leaves its answer in the cache, so that a run after a reload detects stale
            # entries.
            return answers, (server.ask(name, [LONG]), server.ask(name, [LONG], salt=False))
        except VerifyError:
            return answers, None

    pool = ThreadPoolExecutor(IN_FLIGHT)
    try:
        told = dict(zip(bar(names, f"asking {server.url}"), pool.map(ask_one, names), strict=True))
    except BaseException:
        server.stop()
        raise
    finally:
        pool.shutdown(cancel_futures=True)
    others = [one_by_one, reverse, server.ask(base, TEXTS)]
    noise = max(0.0 if other == first else distance(other, first) for other in others)
    return {
        name: found if isinstance(found, VerifyError) else Asked(first, found[0], noise, found[1])
        for name, found in told.items()
    }


def judge(
    asked: Asked,
    name: str,
    contents: Contents,
    reference: Reference | None,
    expected: Mapping[str, torch.Tensor] | None = None,
) -> Verdict:
    """Judge the answers.

    Args:
        asked: the answers.
        name: the server's name for the adapter.
        contents: the adapter.
        reference: the base in float32; without it, only an ignored adapter is detected.
        expected: `Reference.expect` of the adapter, if it is computed already.
    """
    verdict = Verdict(numbers={"noise": asked.noise, "moved": distance(asked.adapter, asked.base)})
    exact = asked.noise == 0
    if asked.noise > MOST_NOISE:
        verdict.why = (
            f"the base answers the same texts differently (by {asked.noise:.2f}): try again when no "
            "other requests run"
        )
    elif exact and asked.adapter == asked.base:
        count = len(TEXTS)
        verdict.word = NOT_APPLIED
        verdict.why = f"'{name}' answers as the base, bit for bit, on {count} of {count} texts"
    elif reference is None or not contents.complete:
        lacking = "files that fit" if not contents.complete else "the base's weights (--model)"
        verdict.why = (
            f"'{name}' differs from the base by {verdict.numbers['moved']:.3g}; to tell whether by this "
            f"adapter takes {lacking}"
        )
    elif (heard := reference.locate(asked.adapter)) is None or (
        rounding := reference.rounding(asked.base)
    ) is None:
        verdict.why = "the tokens of the server are not those of --model's tokenizer"
    else:
        floor = max(rounding, asked.noise)
        compare(verdict, name, heard, expected or reference.expect(contents.pairs), floor)
    if asked.long is None:
        verdict.unseen.append(
            "a prefix cache of older tensors: the server takes no text of 300 tokens"
        )
    elif exact and verdict.word in (APPLIED, UNKNOWN) and (off := distance(*asked.long)):
        verdict.word = STALE
        verdict.why = (
            f"a long text is answered by what older tensors left in the prefix cache ({off:.2g} off): "
            "reset that cache, or load the adapter under a new name"
        )
    verdict.unseen += _unseen_modules(contents)
    return verdict


def compare(
    verdict: Verdict,
    name: str,
    heard: Located,
    expected: Mapping[str, torch.Tensor],
    floor: float,
) -> None:
    """Find the hypothesis with the nearest answers, and complete the verdict.

    Args:
        verdict: what is known so far.
        name: the server's name for the adapter.
        heard: the server's answers to the adapter.
        expected: the answers of each hypothesis, ``(texts, vocabulary)``, with `NONE` and `WHOLE`.
        floor: the rounding of the server.
    """
    if floor > OTHER_BASE:
        verdict.warnings.append(
            f"the server's base differs from --model by {floor:.2g}: it is another base, or quantised"
        )
    errors = {words: heard.distance(row) for words, row in expected.items()}
    best = min(errors, key=lambda words: errors[words])
    near = sorted(
        (w for w in errors if errors[w] <= errors[best] + 0.2 * floor), key=errors.__getitem__
    )
    effect = heard.distance(expected[WHOLE], expected[NONE])
    verdict.numbers |= {"floor": floor, "effect": effect, "error": errors[WHOLE]}
    verdict.numbers |= {f"as if {words}": errors[words] for words in near if words != WHOLE}
    numbers = (
        f"{errors[best]:.2g} from it, {errors[WHOLE]:.2g} from the whole, rounding {floor:.2g}"
    )
    if not effect >= LEAST_EFFECT * floor:  # Also if it is not a number.
        verdict.why = (
            f"the adapter moves these answers by {effect:.2g}, and this server's rounding is {floor:.2g}: "
            "ask a server that runs in float32"
        )
    elif errors[best] > tolerance(floor, effect):
        verdict.word = OTHER_TENSORS
        verdict.why = (
            f"'{name}' matches no known way of applying this adapter ({errors[best]:.2g} from {best}, the "
            "nearest): it is an older version, another adapter, or on another base"
        )
    elif WHOLE in near:
        kinds = [w for w in expected if w.startswith(WITHOUT)]
        small = [
            w.removeprefix(WITHOUT)
            for w in kinds
            if heard.distance(expected[WHOLE], expected[w]) < floor
        ]
        verdict.word = APPLIED
        verdict.why = (
            f"'{name}' answers as base + adapter ({errors[WHOLE]:.2g} from it, {errors[NONE]:.2g} from "
            f"the base, rounding {floor:.2g})"
        )
        if small:
            verdict.unseen.append(
                f"whether {', '.join(small)} count, whose effect is below the rounding"
            )
        verdict.unseen.append("what may be left in unused ranks of its slot")
    elif best == NONE:
        verdict.word, verdict.why = NOT_APPLIED, f"'{name}' answers as the base ({numbers})"
    else:
        verdict.word = AS_IF
        verdict.why = f"'{name}' answers as the adapter {', or '.join(near)} ({numbers})"


def _unseen_modules(contents: Contents) -> list[str]:
    """List the modules that short texts may not reach."""
    unseen = []
    if any(".experts" in path for path in contents.modules):
        unseen.append("experts to which no token of the texts was sent")
    towers = ("vision", "visual", "audio", "image")
    if any(word in path for path in contents.modules for word in towers):
        unseen.append("towers that read no text")
    if any(kind_of(path) == "embed_tokens" for path in contents.modules):
        unseen.append("rows of `embed_tokens` whose tokens are not in the texts")
    return unseen
