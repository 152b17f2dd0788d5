"""Whatever a spec mentions is looked up, wherever in the language it stands; and what tells nothing apart is told."""

import re
from collections import defaultdict

import pytest

from bishare_dsl.diagnostics import BishareError
from bishare_dsl.language import read
from bishare_dsl.language.grammar import lark
from bishare_dsl.models import Architecture, Site, inspect_model, preset
from bishare_dsl.plan import build_plan
from tests.support.families import tiny_model

# What stands for an expression, alone or in a selection, a key or a list, in the rules of `share.lark`.
HOLDING = {
    *("expr", "disjunction", "conjunction", "condition", "comparison", "sum", "product", "atom"),
    *("signed", "power"),
    *("item", "range", "selection", "_key", "values"),
}
# Neither is ever evaluated: to look where a value is needed is not enough.
NUMBER = "(3 if 1 == 1 else (1 if kind == q_porj else 2))"
CONDITION = "(3 < 4 or kind == q_porj)"
HEAD = "target q_proj, v_proj\n"
SHARE = f"{HEAD}share s per module rank"
WHERE = f"{HEAD}share s per module rank 2 where"
# By rule, a text for each expression in it: `#` is that number, `?` that condition.
PLACES = {
    "param": [f"param p = #\n{SHARE} p"],
    "let": [f"let l = ?\n{WHERE} l"],
    "target": ["target ?\nshare s per module rank 2"],
    "train": [f"{HEAD}train ?\nshare s per module rank 2"],
    "where": [f"{WHERE} ?"],
    "per": [f"{HEAD}share s per ? rank 2"],
    "role_per": [f"{HEAD}share s A per # B per module rank 2"],
    "role_is": [f"{HEAD}share r per layer rank 2\nshare s A per # is r.A B per module rank 2"],
    "key": [f"{HEAD}share s per layer, # rank 2"],
    "rank": [f"{SHARE} #"],
    "alpha": [f"{SHARE} 2 alpha #"],
    "scale": [f"{SHARE} 2 scale #"],
    "dropout": [f"dropout # / 9\n{SHARE} 2"],
    "initial": [f"{SHARE} 2 init A #"],
    "diagonal": [f"{SHARE} 2 gain out init #"],
    "top": [f"{HEAD}share s per layer rank 2 via Core(count = 9) gate top #"],
    "option": [f"{HEAD}share s per layer rank 2 via KE(size = #)"],
    "include": [f"{WHERE} q_proj, ?"],
    "exclude": [f"{WHERE} layer > 3 except ?"],
    "arms": [f"{SHARE} match # {{ 3: 4; else: 2 }}"],
    "arm": [
        f"{SHARE} match layer {{ #: 4; else: 2 }}",
        f"{SHARE} match kind {{ q_proj: #; else: 2 }}",
    ],
    "values": [f"{SHARE} match layer {{ 0, #: 4; else: 2 }}"],
    "otherwise": [f"{SHARE} match kind {{ q_proj: 4; else: # }}"],
    "choice": [
        f"{SHARE} # if layer > 3 else 2",
        f"{SHARE} 4 if ? else 2",
        f"{SHARE} 4 if layer > 3 else #",
    ],
    "any_of": [f"{WHERE} ? or q_proj", f"{WHERE} q_proj or ?"],
    "all_of": [f"{WHERE} ? and q_proj", f"{WHERE} q_proj and ?"],
    "negation": [f"{WHERE} not ?"],
    "compare": [f"{WHERE} # == layer", f"{WHERE} layer == #"],
    "member": [f"{WHERE} # in {{3}}"],
    "set": [f"{WHERE} layer in {{#}}"],
    "single": [f"{WHERE} layer in #..31"],
    "range": [f"{WHERE} layer in #..31", f"{WHERE} layer in 0..#"],
    "range_from": [f"{WHERE} layer in #.."],
    "range_to": [f"{WHERE} layer in ..#"],
    "sum": [f"{SHARE} # + 1", f"{SHARE} 1 + #"],
    "product": [f"{SHARE} # * 2", f"{SHARE} 2 * #"],
    "power": [f"{SHARE} # ** 1", f"{SHARE} 1 ** #"],
    "minus": [f"{SHARE} 9 + -#"],
    "group": [f"{SHARE} (#)"],
    "arguments": [f"{SHARE} max(2, #)"],
}


def found_in(text, model="llama-7b"):
    """Return what is found in a text: code, severity and the words at which it is."""
    spec, where = read(f"spec s\n{text}")
    try:
        problems = build_plan(spec, preset(model) if isinstance(model, str) else model)[1]
    except BishareError as error:
        problems = error.problems
    spans = [where.locate(problem.loc) for problem in problems]
    return [
        (p.code, p.severity, where.source.text[s.start : s.end])
        for p, s in zip(problems, spans, strict=True)
    ]


def test_places_are_those_of_the_grammar():
    """A new rule that may hold an expression or a selection needs a text above, and the walk to find it."""
    held = defaultdict(int)
    for rule in lark().rules:
        parts = [symbol.name for symbol in rule.expansion]
        if rule.alias or (len(parts) > 1 and not rule.origin.name.startswith("__")):
            name = rule.alias or rule.origin.name
            held[name] = max(held[name], sum(part in HOLDING for part in parts))
        elif parts[0] in HOLDING and rule.origin.name not in HOLDING:
            held[rule.origin.name] = max(held[rule.origin.name], 1)
    wanted = {name: count for name, count in held.items() if count}
    assert wanted == {name: len(texts) for name, texts in PLACES.items()} | {
        name: wanted[name]
        # They come in a list.
        for name in ("any_of", "all_of")
    }


@pytest.mark.parametrize("text", [text for texts in PLACES.values() for text in texts])
def test_a_name_is_looked_up_wherever_it_stands(text):
    inserted = NUMBER if "#" in text else CONDITION
    found = found_in(re.sub("[#?]", lambda _: inserted, text))
    errors = [words for _, severity, words in found if severity == "error"]
    assert [words for words in errors if words in inserted], found


@pytest.fixture(scope="module")
def mixture():
    """Two blocks of attention and eight experts."""
    names = [f"self_attn.{kind}" for kind in ("q_proj", "o_proj")]
    names += [f"mlp.experts.{i}.{kind}" for i in range(8) for kind in ("up_proj", "down_proj")]
    sites = [Site.at(f"model.layers.{i}.{name}", 8, 8) for i in range(2) for name in names]
    return Architecture(name="tiny", family="mixtral", layers=2, parameters=1, sites=sites)


@pytest.mark.parametrize(
    ("text", "code", "words"),
    [
        (f"param r = 2\n{SHARE} 8 if r else 2", "BS301", "r"),
        (f"{SHARE} 8 if kind == q_porj else 2", "BS301", "q_porj"),
        (f"{SHARE} 8 if q_porj else 2", "BS301", "q_porj"),
        (f'{SHARE} 8 if kind "q_porj" else 2', "BS301", 'kind "q_porj"'),
        (f"{SHARE} 8 if parent == mpl else 2", "BS301", "mpl"),
        (f"{SHARE} 8 if layer in {{0, 50}} else 2", "BS302", "50"),
        (f"{SHARE} 8 if layer in -40..-1 else 2", "BS302", "-40..-1"),
        (f"{SHARE} 8 if layer > 99 else 2", "BS302", "layer > 99"),
        (f"{SHARE} match kind {{ q_proj: 1 if layer > 99 else 2; else: 2 }}", "BS302", "layer > 99"),
        (f"{SHARE} 8 scale 2 if kind == q_porj else 1", "BS301", "q_porj"),
        (f"{SHARE} 8 dropout 0.1 if layer in {{0, 50}} else 0", "BS302", "50"),
        (f"dropout 0.1 if layer > 99 else 0\n{SHARE} 8", "BS302", "layer > 99"),
        (f"{SHARE} 8 scale match kind {{ k_proj: 2; else: 1 }}", "BS306", "k_proj"),
        (f"scale match kind {{ k_porj: 2; else: 1 }}\n{SHARE} 8", "BS301", "k_porj"),
        (f"{SHARE} 8 scale 1 / (1 + layer + layr)", "BS201", "layr"),
        (f"{SHARE} 8 scale layer", "BS211", "layer"),
        (f"let g = match layr {{ 0: 1; else: 2 }}\n{HEAD}share s per g, kind rank 2", "BS201", "layr"),
        (f"let g = match kind {{ q_porj: 1; else: 2 }}\n{HEAD}share s per g, kind rank 2", "BS301", "q_porj"),
        (f"let g = layer // 8\n{WHERE} g", "BS210", "g"),
        (f"let g = match 3 {{ 0..4: 1; else: 2 }}\n{HEAD}share s per g rank 2", "BS221", "g"),
        (f"{SHARE} 8 dropout layer / 10", "BS211", "layer / 10"),
        (f"{SHARE} 8 alpha 2 if kind == q_proj else 1", "BS210", "kind"),
        (f"{HEAD}share s per layer rank 2 via KE(size = 4 if layer == 3 else 8)", "BS210", "layer"),
        (f"{SHARE} 8 scale 2 if fast == slow else 1", "BS201", "fast"),
        (f"{WHERE} d_in == d_out", "BS201", "d_in"),
        (f"{WHERE} q_proj and d_in == 4096", "BS201", "d_in"),
        (f"{WHERE} dept in {{1, 2}}", "BS201", "dept"),
        (f"{WHERE} layer < hafl", "BS201", "hafl"),
        (f"{HEAD}train norms and layer in 0..40\nshare s per module rank 2", "BS302", "0..40"),
        (f"{WHERE} expert in 0..7", "BS320", "0..7"),
    ],
)  # fmt: skip
def test_what_is_nowhere_or_tells_nothing_apart_is_told_at_its_place(text, code, words):
    found = found_in(text)
    assert (code, words) in [(code, words) for code, _, words in found]
    assert {code for code, severity, _ in found if severity == "error"} <= {code}


@pytest.mark.parametrize(
    ("where", "found"),
    [
        ("expert in 0..15", [("BS320", "error", "0..15")]),
        ("expert in {7, 8}", [("BS320", "error", "8")]),
        ("expert >= 8", [("BS320", "error", "expert >= 8")]),
        ("expert == -1", [("BS320", "error", "expert == -1")]),
        ("expert >= 4", []),
        ("expert // 2 in {0, 3}", []),
        ("expert in 4..", []),
        ("high", []),
    ],
)
def test_experts_are_those_of_the_model_and_asked_of_the_target_alone(mixture, where, found):
    """At attention, which is no target, `expert` has no number."""
    let = "let high = expert >= 4\n" if where == "high" else ""
    text = f"{let}target parent experts\nshare s where {where} per module rank 1"
    assert found_in(text, mixture) == found


@pytest.mark.parametrize(
    "text",
    [
        # What tells models, or values of a param, apart is asked of no module.
        f"{SHARE} 8 if layers > 30 else 2",
        f"let deep = layers > 30\n{SHARE} 2 + 6 * deep",
        f"param mode = slow\n{SHARE} 8 if mode == fast else 2",
        f"param mode = slow\n{SHARE} 8 scale 2 if mode == fast else 1",
        f"{SHARE} 8 scale 2 if rank > 4 else layer + 1",
        f"{SHARE} 8 scale match rank {{ 8: layer + 1; else: 2 }}",
        f"alpha 4\n{SHARE} 8 scale 2 * alpha / (1 + layer)",
        f"{WHERE} layer != none and layer >= 4",
        f"{WHERE} expert == none",
        f"{SHARE} 8 if expert != none else 2",
        # Of one module all is always true, or never.
        "target q_proj and layer == 2\nshare s per module rank 8 if layer > 1 else 2",
        # Names say what is meant.
        "target q_proj\nshare s where q_proj and layer > 3 per module rank 2",
        'target kind "*"\nshare s per module rank 2',
        f"{WHERE} q_proj, v_proj",
        f"{SHARE} 8 if q_proj else (4 if layer < 8 else 2)",
    ],
)
def test_of_these_nothing_is_said(text):
    assert found_in(text) == []


@pytest.mark.parametrize(
    ("key", "found"),
    [
        ("layer", [("BS326", "warning", "layer")]),
        ("layer, kind", [("BS326", "warning", "layer")]),
        ("tower, layer", []),
        ("layer, tower", []),
        ("layer % 2", []),
        ("parent, module", []),
    ],
)
def test_key_joins_layers_of_two_towers(key, found):
    model = inspect_model(tiny_model("t5"))
    assert found_in(f"target q, v\nshare s per {key} rank 2 via SS", model) == found
    text = f"target q, v\nshare s where tower == encoder per {key} rank 2 via SS"
    assert [one for one in found_in(text, model) if one[0] == "BS326"] == []
