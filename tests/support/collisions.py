"""Random specs whose params, lets and shares have the names of kinds, parts and attribute values.

A text has marks instead of declared names. It is written twice: with names that collide with the model's,
and with fresh names. Both must have the same meaning.

    python tests/support/collisions.py [COUNT [SEED]]
"""

from __future__ import annotations

import random
import re
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

from bishare_dsl.diagnostics import BishareError, Problem
from bishare_dsl.language import parse_spec
from bishare_dsl.models import Architecture
from bishare_dsl.models.decoder import decoder
from bishare_dsl.plan import Plan, build_plan
from bishare_dsl.plan.select import Sites
from bishare_dsl.spec import Spec
from bishare_dsl.spec.evaluate import EvaluationError

KINDS = ["q_proj", "k_proj", "v_proj", "down_proj"]
POOL = [
    *KINDS,
    "attention_inputs",
    "mlp_downs",
    "lm_head",
    "heads",
    "norms",
    "self_attn",
    "embed_tokens",
]
HIDES = "BS322"  # Only a name in the model can hide a kind.


@cache
def architecture(family: str) -> Architecture:
    """Build a small model with a tied head: a Llama or a mixture of experts."""
    config = {
        "model_type": family,
        "num_local_experts": 3,
        "num_experts_per_tok": 1,
        "hidden_size": 12,
        "intermediate_size": 18,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "vocab_size": 7,
        "tie_word_embeddings": True,
    }
    return decoder(family, None, config)


class Text:
    """A random spec, with marks such as ``<1>`` for declared names, and kinds unmarked."""

    def __init__(self, chance: random.Random) -> None:
        self.chance = chance
        self.names = chance.sample(POOL, 6)
        self.params = [f"<{i}>" for i in range(chance.randrange(3))]
        self.lets: list[str] = []
        lines = [f"param {name} = {chance.randrange(1, 9)}" for name in self.params]
        for i in range(chance.randrange(3)):
            lines.append(f"let <{2 + i}> = {self.condition()}")
            self.lets.append(f"<{2 + i}>")
        self.where = self.selection()
        key = chance.choice(["module", "kind", f"kind, ({self.condition(1)} and 0 < 1)", "layer"])
        rank = f"({self.number()} if {self.condition(1)} else 2)" if chance.random() < 0.3 else "2"
        head = "" if "lm_head" in self.names[2:4] else ", lm_head"  # A let would hide it.
        target = chance.choice([f'kind "*"{head}', 'kind "*"', self.selection()])
        train = chance.choice(["", "", f"train {self.named()}\n", f"train {self.atom()}\n"])
        self.text = "\n".join(
            [
                *("spec t", *lines, f"target {target}", train),
                f"share <4>\n  where {self.where}\n  per {key}\n  rank {rank}\n  via SS",
                f"share <5>  per module  rank {chance.choice(self.params or ['3'])}",
            ]
        )

    def spelt(self, *, fresh: bool) -> str:
        """Write the text with colliding or ``fresh`` names."""
        names = [f"n{i}" for i in range(6)] if fresh else self.names
        return re.sub(r"<(\d)>", lambda mark: f'"{names[int(mark[1])]}"', self.text)

    def kind(self) -> str:
        """Choose the name of a kind or part that no let or param hides."""
        taken = self.names[:4]
        return self.chance.choice([name for name in POOL[:8] if name not in taken])

    def named(self) -> str:
        """Choose a bare name for a condition: a kind, even if a param has its name, or a let."""
        hidden = self.names[2:4]
        kinds = [name for name in POOL[:9] if name not in hidden]
        return self.chance.choice([*kinds, *self.lets, *self.lets])

    def number(self) -> str:
        plain = [str(self.chance.randrange(-2, 34)), "layer", "layers - 1", "layer // 2", "in"]
        return self.chance.choice([*plain, "max(layer, 4)", *self.params, *self.params])

    def atom(self) -> str:
        choose = self.chance.choice
        match self.chance.randrange(9):
            case 0 | 1 | 2:
                return self.named()
            case 3:
                return f"layer {choose(['<', '>=', '==', '!='])} {self.number()}"
            case 4:
                return f"kind {choose(['==', '!='])} {self.kind()}"
            case 5:
                pattern = choose(["q*", "*proj", "*.3.*", "*attn*", "lm_head"])
                return f'{choose(["kind", "path", "parent"])} "{pattern}"'
            case 6:
                return f"layer in {choose(['0..3', '-4..', '{1, 3}', '{0..2, 3}'])}"
            case 7:
                return f"kind in {{{self.kind()}, {choose([self.kind(), *self.lets])}}}"
        return f"{self.number()} {choose(['<', '>', '=='])} {self.number()}"

    def condition(self, depth: int = 2) -> str:
        if not depth or self.chance.random() < 0.3:
            return self.atom()
        one, two = self.condition(depth - 1), self.condition(depth - 1)
        return self.chance.choice([f"not ({one})", f"({one} and {two})", f"({one} or {two})"])

    def selection(self) -> str:
        more = f", {self.atom()}" if self.chance.random() < 0.3 else ""
        less = f" except {self.atom()}" if self.chance.random() < 0.3 else ""
        return f"{self.condition()}{more}{less}"


def _plain(problem: Problem) -> tuple[object, ...]:
    # Of two list items with the same error, one is reported, which depends on nearby names.
    return problem.code, problem.severity, problem.loc[:-1]


def _outcome(spec: Spec, model: Architecture) -> tuple[object, list[tuple[object, ...]]]:
    """Return the result for a spec, without its declared names."""
    plan: Plan | None = None
    try:
        plan, problems = build_plan(spec, model)
    except BishareError as error:
        problems = error.problems
    told = sorted({_plain(problem) for problem in problems if problem.code != HIDES}, key=repr)
    if plan is None:
        return None, told
    index = {share.name: i for i, share in enumerate(spec.shares)}
    terms = [(index[t.share], t.site, t.rank, t.scale) for t in plan.terms]
    pools = [(index[p.share], p.role, p.members) for p in plan.pools]
    return (terms, pools, plan.trainable, [t.parameter for t in plan.trained]), told


def differences(seed: int) -> Iterator[str]:
    """Compare the two spellings of one random spec, also at the sites of its conditions."""
    chance = random.Random(seed)
    made, model = Text(chance), architecture(chance.choice(["llama", "mixtral"]))
    text = made.spelt(fresh=False)
    spec, other = parse_spec(text), parse_spec(made.spelt(fresh=True))
    if (one := _outcome(spec, model)) != (two := _outcome(other, model)):
        yield f"{text}\non {model.name}: {one[1]} and, with fresh names, {two[1]}"
    sites = Sites(spec, model)
    for condition in (spec.shares[0].where, *(let.selection for let in spec.lets)):
        true, false = sites.site_sets.partition(condition)
        for i, scope in enumerate(sites.site_sets.scopes):
            try:
                holds: bool | None = scope.holds(condition)
            except EvaluationError:
                holds = None
            if holds is not (True if i in true else False if i in false else None):
                yield f"{text}\non {model.name}: at {sites.sites[i].path} it is {holds}"
                return


def main(count: int = 10_000, seed: int = 0) -> int:
    """Test ``count`` specs, and print differences."""
    found = 0
    for number in range(seed, seed + count):
        for said in differences(number):
            found += 1
            sys.stdout.write(f"--- spec {number}: {said}\n")
    sys.stdout.write(f"{count} specs whose names collide: {found} differ\n")
    return found


if __name__ == "__main__":
    sys.exit(bool(main(*map(int, sys.argv[1:]))))
