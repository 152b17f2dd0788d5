"""Requests in plain English, each with the `.share` statement that it asks for.

    request  Call it tier: one pair for each layer, of rank 8; on q_proj and v_proj; slice sharing, leading.
    answer   share tier where q_proj, v_proj per layer rank 8 via SS(slice = leading)

A statement is drawn clause by clause, and each clause brings a few ways to ask for it. No statement is
drawn twice, so the parts of a split have none in common. Nobody has to judge an answer: the compiler does,
by planning it beside the statement that was meant (`mark`).
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from enum import IntEnum

from bishare_dsl import Plan, parse_spec
from bishare_dsl.diagnostics import BishareError
from bishare_dsl.models.presets import preset
from bishare_dsl.plan import build_plan

MODEL = preset("smollm2-135m")
KINDS = tuple(dict.fromkeys(site.kind for site in MODEL.sites))
NAMES = ("local", "intra", "inter", "tier", "pair", "shared", "common", "base", "low", "high")
RANKS = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64)
OPENINGS = (
    "Call it {}",
    "Name it {}",
    "A share named {}",
    "I want a share {}",
    "Write the share {}",
)


@dataclass(frozen=True)
class Example:
    """A request and the statement that it means."""

    request: str
    answer: str


class Mark(IntEnum):
    """How far an answer got; each mark includes those before it."""

    NOTHING = 0
    PARSES = 1
    FITS = 2
    RIGHT = 3


def examples(count: int, seed: int = 0) -> list[Example]:
    """``count`` examples, every statement another one; the same ones for the same seed."""
    rng = random.Random(seed)
    drawn: dict[str, Example] = {}
    while len(drawn) < count:
        example = _draw(rng)
        drawn.setdefault(example.answer, example)
    return list(drawn.values())


def mark(example: Example, answer: str) -> Mark:
    """What the compiler says of an answer: is it a statement, does it fit the model, is it the one meant?

    It is right if its plan is that of the statement that was meant: the same pools over the same
    modules, tensors of the same names and shapes, the same transforms.
    """
    try:
        spec = parse_spec(_spec(answer))
    except BishareError:
        return Mark.NOTHING
    try:
        plan = build_plan(spec, MODEL)[0]
    except BishareError:
        return Mark.PARSES
    return Mark.RIGHT if plan == _meant(example) else Mark.FITS


def _meant(example: Example) -> Plan:
    return build_plan(parse_spec(_spec(example.answer)), MODEL)[0]


def _spec(statement: str) -> str:
    return f"spec answer\ntarget {', '.join(KINDS)}\n{statement}"


def _draw(rng: random.Random) -> Example:
    name, rank = rng.choice(NAMES), rng.choice(RANKS)
    where, per, via = _where(rng), _per(rng), _via(rng)
    clauses = [f"share {name}", *where[0], f"per {per[0]}", f"rank {rank}"]
    asked = [rng.choice((f"{per[1]}, of rank {rank}", f"rank {rank} and {per[1]}")), where[1]]
    # Modules of several widths that share a factor need a transform; one that has its own does not.
    if per[0] != "module":
        clauses.append(f"via {via[0]}")
        asked.append(via[1])
    rng.shuffle(asked)
    opening = rng.choice(OPENINGS).format(name)
    return Example(f"{opening}: {'; '.join(asked)}.", " ".join(clauses))


def _where(rng: random.Random) -> tuple[list[str], str]:
    """The clause, of which ``all`` has none, and what asks for it."""
    match rng.choice(("all", "kinds", "kinds", "last", "layers", "parent")):
        case "kinds":
            kinds = sorted(rng.sample(KINDS, rng.randint(1, 3)), key=KINDS.index)
            listed = " and ".join(filter(None, (", ".join(kinds[:-1]), kinds[-1])))
            return [f"where {', '.join(kinds)}"], f"on {listed}"
        case "last":
            last = rng.randint(2, 12)
            return [f"where layer in -{last}..-1"], f"in the last {last} layers"
        case "layers":
            first, last = sorted(rng.sample(range(MODEL.layers), 2))
            return [f"where layer in {first}..{last}"], f"in layers {first} to {last}"
        case "parent":
            parent, said = rng.choice((("mlp", "MLP"), ("self_attn", "attention")))
            return [f"where parent {parent}"], f"in the {said}"
        case _:
            return [], "everywhere"


def _per(rng: random.Random) -> tuple[str, str]:
    several = rng.choice((2, 3, 5, 6, 10))
    return rng.choice(
        (
            ("module", "one pair for each module"),
            ("layer", "one pair for each layer"),
            ("model", rng.choice(("one pair for the whole model", "a single pair for everything"))),
            ("kind", rng.choice(("one pair for each kind", "one pair for all modules of a kind"))),
            (f"layer // {several}", f"one pair for every {several} layers"),
            ("layer % 2", "one pair for the odd layers and one for the even"),
        )
    )


def _via(rng: random.Random) -> tuple[str, str]:
    window, size = rng.choice(("centre", "leading", "trailing")), rng.choice((32, 64, 96, 192))
    return rng.choice(
        (
            (f"SS(slice = {window})", f"slice sharing, {window}"),
            (f"GT(size = {size})", f"gates of size {size}"),
            (f"KE(size = {size})", f"Kronecker extension of size {size}"),
        )
    )
