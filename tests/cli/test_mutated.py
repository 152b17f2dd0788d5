"""``bishare check`` of mutated specs: each gets an answer, and each error a code and a place."""

import json
import random
import re

import pytest

from bishare_dsl.resources import shipped_specs

HEAD = "spec s\ntarget q_proj, k_proj, v_proj, o_proj, gate_proj, up_proj, down_proj\n"
FORMS = (
    "share a per model core per layer rank 8 via A KE(size = 64), B SS, between Core",
    "share a per model rank 8 via A SS then Loadings(vectors = 16), B SS",
    (
        "share a per model by_layer per layer by_kind per kind rank 8\n"
        "via Core as by_layer then Core as by_kind init by_kind normal"
    ),
    "share a per model core per layer rank 8 via KE(size = 64) then Core",
    (
        "share up per layer rank 8 where gate_proj, up_proj\n"
        "share down A per module B is up.A rank 8 where down_proj init A zeros"
    ),
    (
        "share read A per layer B per module rank 8 where q_proj\n"
        "share write A per module B per layer + 1 is read.A rank 8 where o_proj and layer < layers - 1 init A zeros"
    ),
    "share same A per layer B is A core per module rank 8 where q_proj, o_proj via Core",
    "let late = layer >= 8\nshare a per match layer { 0..1: 0; else: 1 }, kind rank 2 + 6 * late",
    "param r = 8\nshare a per layer rank 2 ** (1 + layer // 8) via SS scale alpha / sqrt(rank) alpha r",
    "share a per layer rank match kind { q_proj, k_proj: 4; v_proj: 8; else: 2 } via GT(size = 64)",
    "share a per layer rank 2 via Experts(count = 2)",
    "magnitude per module\ntrain norms\nshare a per module rank 2 init A svd, B svd",
)
"""Forms that few shipped specs have."""

ODD = (
    "0",
    "-1",
    "1e999",
    "99999999999",
    "0.5",
    "none",
    "§",
    '"',
    "(",
    "}",
    "layer.A",
    "a.B",
    "auto",
)


def sources():
    """The texts that are mutated."""
    shipped = [path.read_text(encoding="utf-8") for path in shipped_specs().values()]
    return [*shipped, *[f"{HEAD}{form}\n" for form in FORMS] * 3]


def mutated(seed, texts, words):
    """Change one word to three of a text."""
    chance = random.Random(seed)
    parts = re.split(r"(\s+|\w+|[^\w\s])", chance.choice(texts))
    for _ in range(chance.randint(1, 3)):
        places = [i for i, part in enumerate(parts) if part.strip()]
        place, other = chance.choice(places), chance.choice(places)
        form = chance.choice(["drop", "double", "swap", "word", "word", "odd", "insert"])
        if form == "drop":
            parts[place] = ""
        elif form == "double":
            parts[place] += f" {parts[place]}"
        elif form == "swap":
            kept = parts[place]
            parts[place] = parts[other]
            parts[other] = kept
        elif form == "word":
            parts[place] = chance.choice(words)
        elif form == "odd":
            parts[place] = chance.choice(ODD)
        else:
            parts[place] += f" {chance.choice(words)}"
    return "".join(parts)


def fault(run, shown, text):
    """What is wrong with an answer; None if nothing is."""
    if run.code not in (0, 1, 2) or shown.code != run.code:
        return f"codes {run.code} and {shown.code}"
    problems = json.loads(run.out)["problems"]
    errors = [problem for problem in problems if problem["severity"] == "error"]
    if bool(errors) != (run.code != 0):
        return "the exit code is not that of the problems"
    lines = text.count("\n") + 1
    for problem in problems:
        if not re.fullmatch(r"BS\d{3}", problem["code"]) or not problem["message"]:
            return "a problem without a code or a message"
        if problem["severity"] == "error" and not 1 <= (problem.get("line") or 0) <= lines:
            return f"{problem['code']} has no place"
        if problem["code"] not in shown.out + shown.err:
            return f"{problem['code']} is not shown"
    return None


@pytest.mark.parametrize("count", [40, pytest.param(1000, marks=pytest.mark.long, id="a thousand")])
def test_each_mutated_spec_gets_an_answer_with_codes_and_places(count, bishare, here):
    texts = sources()
    words = sorted({word for text in texts for word in re.findall(r"\w+|[^\w\s]", text)})
    faults = {}
    for seed in range(count):
        text = mutated(seed, texts, words)
        (here / "m.share").write_text(text, encoding="utf-8")
        command = ("check", "m.share", "--model", "smollm2-135m")
        wrong = fault(bishare(*command, "--json"), bishare(*command), text)
        if wrong is not None:
            faults[seed] = wrong
    assert faults == {}
