"""Judge whether a server applies an adapter, from the answers of its base and of the adapter.

The server's rounding limits detection. For example, if its base differs from the float32 base by 0.07, as
in bfloat16, effects below four times that are not judged.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field

from bishare_dsl.verify.answers import LONG, TEXTS, Answer, distance, rms
from bishare_dsl.verify.contents import Contents, kind_of
from bishare_dsl.verify.reference import NONE, WHOLE, WITHOUT, Reference, hypotheses
from bishare_dsl.verify.server import Server, VerifyError

MOST_NOISE = 0.3
"""The limit for differences between the base's answers to the same texts; rounding causes less."""

OTHER_BASE = 0.2
"""The distance between the server's base and the reference above which their weights differ."""

LEAST_FLOOR = 5e-4
"""A bound for the difference between two programs in float32."""

APPLIED, NOT_APPLIED, IN_PART, AS_IF = "APPLIED", "NOT APPLIED", "APPLIED IN PART", "AS IF"
OTHER_TENSORS, STALE, SCALE, GARBAGE = "OTHER TENSORS", "STALE", "SCALE", "GARBAGE"
UNKNOWN = "cannot be judged"


@dataclass
class Verdict:
    """The result for an adapter on a server.

    Attributes:
        word: `APPLIED`, a fault, or `UNKNOWN`.
        why: the evidence in one sentence.
        faults: all faults, each a word and a sentence.
        unseen: possible faults that were not tested.
        warnings: further remarks.
        numbers: the distances, in natural logarithms.
    """

    word: str = UNKNOWN
    why: str = ""
    faults: list[tuple[str, str]] = field(default_factory=list)
    unseen: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    numbers: dict[str, float] = field(default_factory=dict)

    def fault(self, word: str, why: str) -> None:
        """Add a fault; the first determines the verdict."""
        if not self.faults:
            self.word, self.why = word, why
        self.faults.append((word, why))

    @property
    def sentence(self) -> str:
        """The verdict with its evidence."""
        return "; ".join(f"{word}: {why}" for word, why in self.faults or [(self.word, self.why)])


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

    @property
    def exact(self) -> bool:
        """Whether the base's answers are bit-identical for any batching."""
        return self.noise == 0


def ask(server: Server, name: str, base: str, tell: Callable[[str], None]) -> Asked:
    """Query the base in three arrangements, and the adapter once.

    Raises:
        VerifyError: the server does not answer (BS872).
    """
    tell(f"asking the base, and '{name}' ...")
    first = server.ask(base, TEXTS)
    one_by_one = [server.ask(base, [text])[0] for text in TEXTS]
    reverse = server.ask(base, TEXTS[::-1])[::-1]
    adapter = server.ask(name, TEXTS)
    repeated = server.ask(base, TEXTS)
    try:
        # Each run leaves its answer in the cache, so that a run after a reload detects stale
        # entries.
        long = server.ask(name, [LONG]), server.ask(name, [LONG], salt=False)
    except VerifyError:
        long = None
    others = [other for other in (one_by_one, reverse, repeated) if other != first]
    noise = max((distance(other, first) for other in others), default=0.0)
    return Asked(first, adapter, noise, long)


def judge(asked: Asked, name: str, contents: Contents, reference: Reference | None) -> Verdict:
    """Judge the answers, without loading anything into the server.

    Args:
        asked: the answers.
        name: the server's name for the adapter.
        contents: the adapter.
        reference: the base in float32; without it, only an ignored adapter is detected.
    """
    verdict = Verdict(numbers={"noise": asked.noise, "moved": distance(asked.adapter, asked.base)})
    if asked.noise > MOST_NOISE:
        verdict.why = (
            f"the base answers the same texts differently (by {asked.noise:.2f}): ask it alone"
        )
    elif asked.exact and asked.adapter == asked.base:
        count = len(TEXTS)
        verdict.fault(
            NOT_APPLIED,
            f"'{name}' answers as the base does, bit for bit, on {count} of {count} texts",
        )
    elif reference is None or not contents.complete:
        lacking = (
            "the base's weights (--model)" if reference is None else "all that it does in the file"
        )
        verdict.why = (
            f"'{name}' differs from the base by {verdict.numbers['moved']:.3g}, and whether by this adapter "
            f"cannot be told without {lacking}"
        )
    else:
        _compare(verdict, asked, name, contents, reference)
    if asked.long is None:
        verdict.unseen.append(
            "a prefix cache of older tensors: the server takes no text of 300 tokens"
        )
    elif asked.exact and (off := distance(*asked.long)):
        why = f"a long text is answered by what older tensors left in the prefix cache ({off:.2g} off)"
        verdict.fault(STALE, f"{why}: reset that cache, or load the adapter under a new name")
    return verdict


def _compare(
    verdict: Verdict, asked: Asked, name: str, contents: Contents, reference: Reference
) -> None:
    """Find the hypothesis with the nearest answers."""
    expected = {words: reference.answer(h) for words, h in hypotheses(contents.pairs).items()}
    ids = [[reference.number(token) for token in answer] for answer in asked.adapter]

    def moved(words: str, other: str = NONE) -> float:
        rows = zip(expected[words], expected[other], ids, strict=True)
        return rms([float(a[i] - b[i]) for a, b, tokens in rows for i in tokens if i is not None])

    rounding = reference.distance(asked.base, expected[NONE])
    if rounding == math.inf:
        verdict.why = "the tokens of the server are not those of --model's tokenizer"
        return
    if rounding > OTHER_BASE:
        verdict.warnings.append(
            f"the server's base differs from --model by {rounding:.2g}: it is another base, or quantised"
        )
    floor = max(rounding, LEAST_FLOOR, asked.noise)
    errors = {words: reference.distance(asked.adapter, row) for words, row in expected.items()}
    best = min(errors, key=lambda words: errors[words])
    near = sorted(
        (w for w in errors if errors[w] <= errors[best] + 0.2 * floor), key=errors.__getitem__
    )
    effect = moved(WHOLE)
    verdict.numbers |= {"floor": floor, "effect": effect, "error": errors[WHOLE]}
    verdict.numbers |= {f"as if {words}": errors[words] for words in near if words != WHOLE}
    numbers = (
        f"{errors[best]:.2g} from it, {errors[WHOLE]:.2g} from the whole, rounding {floor:.2g}"
    )
    if effect < 4 * floor:
        verdict.why = (
            f"the adapter moves these answers by {effect:.2g}, and this server's rounding is {floor:.2g}: "
            "ask one that runs in float32, or add --copies"
        )
    elif errors[best] > 1.5 * floor * math.hypot(1, effect):  # The update is rounded, too.
        verdict.fault(
            OTHER_TENSORS,
            f"'{name}' answers as nothing that this adapter gives ({errors[best]:.2g} from {best}, the "
            f"nearest): an older version of it, another adapter, or another base",
        )
    elif WHOLE in near:
        kinds = [w for w in expected if w.startswith(WITHOUT)]
        small = [w.removeprefix(WITHOUT) for w in kinds if moved(WHOLE, w) < floor]
        verdict.word = APPLIED
        verdict.why = (
            f"'{name}' answers as base + adapter ({errors[WHOLE]:.2g} from it, {errors[NONE]:.2g} from "
            f"the base, rounding {floor:.2g})"
        )
        if small:
            verdict.unseen.append(
                f"whether {', '.join(small)} count, whose effect is below the rounding"
            )
        verdict.unseen.append("what may be left in unused ranks of its slot (--copies)")
    elif best == NONE:
        verdict.fault(NOT_APPLIED, f"'{name}' answers as the base ({numbers})")
    else:
        verdict.fault(AS_IF, f"'{name}' answers as the adapter {', or '.join(near)} ({numbers})")


def unseen_modules(contents: Contents) -> list[str]:
    """List the modules that short texts may not reach."""
    unseen = []
    if any(".experts." in path for path in contents.named):
        unseen.append("experts to which no token of the texts was sent")
    towers = ("vision", "visual", "audio", "image")
    if any(word in path for path in contents.named for word in towers):
        unseen.append("towers that read no text")
    if any(kind_of(path) == "embed_tokens" for path in contents.named):
        unseen.append("rows of `embed_tokens` whose tokens are not in the texts")
    return unseen
