"""Hostile texts, most of them mutated specs: ``python tests/language/hostile.py [COUNT [SEED]]``, or ``make hostile``.

Each is read and formatted. Fails if anything but a `SpecError` comes out, if a formatted text says something
else, if one takes more than 0.3 s of the processor, or all of them more than 6 ms each: a text of 400 words takes
milliseconds, and work that grows with its square takes seconds.
"""

import random
import sys
import time
from collections import Counter

from bishare_dsl.diagnostics import SpecError, as_json
from bishare_dsl.language import format_text, read
from bishare_dsl.language.grammar import words
from bishare_dsl.resources import shipped_specs

SHIPPED = [path.read_text(encoding="utf-8") for path in shipped_specs().values()]
WORDS = [
    *(*words(), "q_proj", "layer", "8", "0.5", "1e999", "99999999999999999999", "4x"),
    *("§", "é", "\x00", "\x1b[2J", "#", "(", ")", '"', "'", '"odd name"', '"\\u001b[2J"'),
    *('"\\ud800"', '"/etc/passwd"', "# comment\n", "\n", "\r", "\u202e"),
]


def _bytes(chance: random.Random) -> bytes:
    return chance.randbytes(chance.randrange(200))


def _words(chance: random.Random) -> str:
    return " ".join(chance.choices(WORDS, k=chance.randrange(60)))


def _statements(chance: random.Random) -> str:
    lines = [line for text in chance.choices(SHIPPED, k=3) for line in text.splitlines()]
    return "\n".join(chance.sample(lines, k=chance.randrange(1, len(lines))))


def _mutated(chance: random.Random) -> str:
    text = chance.choice(SHIPPED)
    for _ in range(chance.randrange(1, 6)):
        at = chance.randrange(len(text) + 1)
        cut = at + chance.choice([0, 1, 1, chance.randrange(40)])
        text = text[:at] + chance.choice(["", *WORDS]) + text[cut:]
    return text


def _repeated(chance: random.Random) -> str:
    unit = " ".join(chance.choices(WORDS, k=chance.randrange(1, 5))) + " "
    return f"spec x target q share s per layer rank 1 {unit * chance.randrange(400)}"


def outcome(text: str | bytes) -> str:
    """What became of a text."""
    try:
        spec, _ = read(text)
    except SpecError as error:
        drawn = [str(error), *(str(as_json(problem, error.where)) for problem in error.problems)]
        return error.problems[0].code if all(drawn) else "nothing"
    assert read(format_text(text))[0] == spec
    return "a spec"


KINDS = [_mutated, _statements, _words, _bytes, _repeated]
WEIGHTS = [84, 10, 4, 1, 1]
SLOWEST, MEAN = 0.3, 0.006


def text_of(number: int, seed: int = 0) -> str | bytes:
    """Make one of the texts."""
    chance = random.Random(f"{seed} {number}")
    return chance.choices(KINDS, WEIGHTS)[0](chance)


def main(count: int = 10_000, seed: int = 0) -> None:
    """Try ``count`` texts."""
    found: Counter[str] = Counter()
    times = []
    outcome(SHIPPED[0])  # The parser's tables are made once.
    for number in range(count):
        text = text_of(number, seed)
        start = time.process_time()
        try:
            found[outcome(text)] += 1
        except BaseException:
            sys.stderr.write(f"text {number} of seed {seed}: {text!r}\n")
            raise
        times.append(time.process_time() - start)
    slowest, mean = max(times), sum(times) / count
    worst = times.index(slowest)
    sys.stdout.write(f"{found}\n{count} texts in {sum(times):.1f} s of the processor, ")
    sys.stdout.write(f"{1000 * mean:.2f} ms each, text {worst} in {slowest:.3f} s\n")
    if slowest > SLOWEST or mean > MEAN:
        sys.exit(
            f"at most {SLOWEST} s for one text, and {1000 * MEAN:.0f} ms for each, are allowed"
        )


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
