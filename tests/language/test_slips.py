"""Known mistakes: each row of the table has a text whose advice, followed literally, gives a spec that fits a model."""

import pytest

from bishare_dsl.compiler import make_plan
from bishare_dsl.diagnostics import BishareError
from bishare_dsl.diagnostics.words import peft_advice
from bishare_dsl.language.read import survey
from bishare_dsl.language.slips import rows
from bishare_dsl.models.presets import preset
from bishare_dsl.plan.advice import Adviser

HEAD = "spec s\ntarget q_proj, v_proj\n"
SHARE = "share a per module rank 4"
CHOICE = "param r = 4\nshare a per module rank"
# A text, and what its advice makes of it.
EXAMPLES = [
    (f"{HEAD}```\n{SHARE}", f"{HEAD}\n{SHARE}"),
    (f"{HEAD}- {SHARE}", f"{HEAD}{SHARE}"),
    (f"{HEAD}{SHARE} // one each", f"{HEAD}{SHARE} # one each"),
    (f"{HEAD}{SHARE}\nLet me know if it works!", f"{HEAD}{SHARE}\n# Let me know if it works!"),
    (f"spec s\ntarget 'q_proj', 'v_proj'\n{SHARE}", f"spec s\ntarget q_proj, v_proj\n{SHARE}"),
    (f"spec s\ntarget kind “q_proj”\n{SHARE}", f'spec s\ntarget kind q_proj\n{SHARE}'),
    ("spec s\nparam r := 4\ntarget q_proj\nshare a per module rank r", "spec s\nparam r = 4\ntarget q_proj\nshare a per module rank r"),
    (f"{HEAD}{SHARE} where layer === 3", f"{HEAD}{SHARE} where layer == 3"),
    (f"{HEAD}share **a** per module rank 4", f"{HEAD}{SHARE}"),
    (f"{HEAD}{SHARE} where layer => 3", f"{HEAD}{SHARE} where layer >= 3"),
    (f"{HEAD}{SHARE} where layer <> 3", f"{HEAD}{SHARE} where layer != 3"),
    (f"{HEAD}{SHARE} where q_proj && layer > 3", f"{HEAD}{SHARE} where q_proj and layer > 3"),
    (f"{HEAD}{SHARE} where q_proj || layer > 3", f"{HEAD}{SHARE} where q_proj or layer > 3"),
    (f"{HEAD}{SHARE} where !q_proj", f"{HEAD}{SHARE} where not q_proj"),
    (f"{HEAD}share a per module rank=4", f"{HEAD}{SHARE}"),
    (f"{HEAD}share a per module rank4", f"{HEAD}{SHARE}"),
    (f"{HEAD}{SHARE} dropout 0,05", f"{HEAD}{SHARE} dropout 0.05"),
    (f"{HEAD}{SHARE} dropout .05", f"{HEAD}{SHARE} dropout 0.05"),
    (f"{HEAD}{SHARE} where layer in (0, 4, 8)", f"{HEAD}{SHARE} where layer in {{0, 4, 8}}"),
    (f"spec s\ntarget [q_proj, v_proj]\n{SHARE}", f"spec s\ntarget q_proj, v_proj\n{SHARE}"),
    (f"{HEAD}{SHARE} where layer in 0 to 7", f"{HEAD}{SHARE} where layer in 0..7"),
    (f"{HEAD}{SHARE} where layers 0-7", f"{HEAD}{SHARE} where layer in 0..7"),
    (f"{HEAD}{SHARE} for layers 0-7", f"{HEAD}{SHARE} where layer in 0..7"),
    (f"{HEAD}{SHARE} where layer between 0 and 7", f"{HEAD}{SHARE} where layer in 0..7"),
    (f"{HEAD}{SHARE} where first 4 layers", f"{HEAD}{SHARE} where layer < 4"),
    (f"{HEAD}{SHARE} where last 4 layers", f"{HEAD}{SHARE} where layer in -4..-1"),
    (f"{HEAD}{SHARE} where layer not in 0..7", f"{HEAD}{SHARE} where not layer in 0..7"),
    (f"{HEAD}{SHARE} where layer is not 3", f"{HEAD}{SHARE} where layer != 3"),
    (f"{HEAD}{SHARE} where kind is q_proj", f"{HEAD}{SHARE} where kind == q_proj"),
    (f"spec s\ntarget *_proj\n{SHARE}", f'spec s\ntarget kind "*_proj"\n{SHARE}'),
    (f"spec s\ntarget mlp.*\n{SHARE}", f'spec s\ntarget path "*mlp.*"\n{SHARE}'),
    (f"{HEAD}share a per module rank layer > 15 ? 8 : 4", f"{HEAD}share a per module rank 8 if layer > 15 else 4"),
    (f"{HEAD}param r = 4\nshare a per module rank layer % 2 == 0 ? r : 2 * r dropout 0.1", f"{HEAD}param r = 4\nshare a per module rank r if layer % 2 == 0 else 2 * r dropout 0.1"),
    (f"{HEAD}{SHARE} where layer in 0:16", f"{HEAD}{SHARE} where layer in 0..15"),
    (f"{HEAD}share a per module rank if layer > 15: 8 else 4", f"{HEAD}share a per module rank 8 if layer > 15 else 4"),
    (f"{HEAD}share a per module rank case when layer > 15 then 8 else 4 end", f"{HEAD}share a per module rank 8 if layer > 15 else 4"),
    ('spec s\nimport "lora"', 'spec s\nuse "lora"'),
    ("spec s\nuse bishare-ke", "spec s\nuse bishare_ke"),
    ("spec s\nuse lora\nset r = 16", "spec s\nuse lora\nreplace param r = 16"),
    ("spec s\nconst r = 4\ntarget q_proj\nshare a per module rank r", "spec s\nparam r = 4\ntarget q_proj\nshare a per module rank r"),
    ("spec s\nparam r: int = 4\ntarget q_proj\nshare a per module rank r", "spec s\nparam r = 4\ntarget q_proj\nshare a per module rank r"),
    (f"{HEAD}share per module rank 4", f"{HEAD}{SHARE}"),
    (f"{HEAD}share\n  per module\n  rank 4", f"{HEAD}share a\n  per module\n  rank 4"),
    (f"{HEAD}share B per module A per kind rank 4", f"{HEAD}share a B per module A per kind rank 4"),
    ("spec s\ntarget q_proj\nshare a of q_proj per module rank 4", "spec s\ntarget q_proj\nshare a where q_proj per module rank 4"),
    (f"{HEAD}share a by layer rank 4", f"{HEAD}share a per layer rank 4"),
    (f"{HEAD}share a per each layer rank 4", f"{HEAD}share a per layer rank 4"),
    (f"{HEAD}share a per 4 layers rank 4", f"{HEAD}share a per layer // 4 rank 4"),
    (f"{HEAD}share a per layer, rank 8, alpha 16", f"{HEAD}share a per layer rank 8 alpha 16"),
    (f"{HEAD}{SHARE} freeze A and B start nonzero init B normal gain out init 1", f"{HEAD}{SHARE} freeze A, B start nonzero init B normal gain out init 1"),
    (f"spec s\ntarget q_proj,\n{SHARE}", f"spec s\ntarget q_proj\n{SHARE}"),
    (f"{HEAD}{SHARE} via KE[size = 64]", f"{HEAD}{SHARE} via KE(size = 64)"),
    (f"{HEAD}{SHARE} except v_proj", f"{HEAD}{SHARE} where not v_proj"),
    (f"{HEAD}{SHARE} via KE(64)", f"{HEAD}{SHARE} via KE(size = 64)"),
    (f"spec s\ninit normal\ntarget q_proj\n{SHARE}", f"spec s\ninit A normal\ntarget q_proj\n{SHARE}"),
    (f"{HEAD}{SHARE} init A normal B ones freeze A B gain rank init 1 out init 0", f"{HEAD}{SHARE} init A normal, B ones freeze A, B gain rank init 1, out init 0"),
    (f"{HEAD}{SHARE} gain rank = 1, out = 1", f"{HEAD}{SHARE} gain rank init 1, out init 1"),
    (f"{HEAD}share a per A: kind, B: module rank 4", f"{HEAD}share a A per kind B per module rank 4"),
    (f"{HEAD}share a per module rank match kind {{\n  q_proj => 4,\n  v_proj => 8,\n}}", f"{HEAD}share a per module rank match kind {{\n  q_proj: 4;\n  v_proj: 8;\n}}"),
    (f"spec my-first-spec\ntarget q_proj\n{SHARE}", f'spec "my-first-spec"\ntarget q_proj\n{SHARE}'),
    (f"{HEAD}share a-b-c per module rank 4", f"{HEAD}share a_b_c per module rank 4"),
    (f"{HEAD}{SHARE}\nuse_dora true", f"{HEAD}{SHARE}\nmagnitude per module"),
    (f"{HEAD}{SHARE}\nmagnitude per module if layer > 15", f"{HEAD}{SHARE}\nmagnitude per module where layer > 15"),
    (f"{HEAD}{SHARE} via GT(gate rank = 8)", f"{HEAD}{SHARE} via GT(gate_rank = 8)"),
    ('spec s\nuse "lora"\n--set r = 16', 'spec s\nuse "lora"\nreplace param r = 16'),
    (f"{HEAD}learning_rate 1e-4\n{SHARE}", f"{HEAD}# learning_rate 1e-4\n{SHARE}"),
    (f"{HEAD}a per module rank 4", f"{HEAD}{SHARE}"),
    # Corrections that are no rows.
    (f"spec s\ntaget q_proj\n{SHARE}", f"spec s\ntarget q_proj\n{SHARE}"),
    (f"spec s\ntarget q_proj v_proj k_proj\n{SHARE}", f"spec s\ntarget q_proj, v_proj, k_proj\n{SHARE}"),
    (f"spec s\ntarget_modules = [q_proj, v_proj]\n{SHARE}", f"spec s\ntarget q_proj, v_proj\n{SHARE}"),
    (f"{HEAD}share a per\xa0module rank 4", f"{HEAD}{SHARE}"),
    (f"{HEAD}share a PER module rank 4", f"{HEAD}{SHARE}"),
    (f"{HEAD}{SHARE} dropout 5%", f"{HEAD}{SHARE} dropout 0.05"),
    (f"spec s\ndropout 5%\nalpha 16\ntarget q_proj\n{SHARE}", f"spec s\ndropout 0.05\nalpha 16\ntarget q_proj\n{SHARE}"),
    (f"{HEAD}{SHARE} init A kaiming-normal", f"{HEAD}{SHARE} init A kaiming_normal"),
    (f"{HEAD}share a per m\xf3dule rank 4", f"{HEAD}{SHARE}"),
    (f"{HEAD}{SHARE} alpha 2r", f"{HEAD}{SHARE} alpha 2 * rank"),
    (f"{HEAD}{SHARE} where (q_proj or v_proj", f"{HEAD}{SHARE} where (q_proj or v_proj)"),
    (f"{HEAD}{SHARE} where layer < = 3", f"{HEAD}{SHARE} where layer <= 3"),
    (f"{HEAD}{SHARE} where layer in 0..=15", f"{HEAD}{SHARE} where layer in 0..15"),
    (f"{HEAD}share a where kind is q_proj per layer // 4 rank 4", f"{HEAD}share a where kind == q_proj per layer // 4 rank 4"),
    (f"{HEAD}share a per layer ÷ 4 rank 4", f"{HEAD}share a per layer // 4 rank 4"),
    ("spec s\nparam r ?= 4\ntarget q_proj\nshare a per module rank r", "spec s\nparam r = 4\ntarget q_proj\nshare a per module rank r"),
    (f"{HEAD}share a A per kind; B per module rank 4", f"{HEAD}share a A per kind B per module rank 4"),
    (f"spec s\ntarget kind '*_proj'\n{SHARE}", f'spec s\ntarget kind "*_proj"\n{SHARE}'),
    (f"{HEAD}share a per layer A per module B rank 4", f"{HEAD}share a A per layer B per module rank 4"),
    (f"{HEAD}share a A kind B module rank 4", f"{HEAD}share a A per kind B per module rank 4"),
    (f"{HEAD}{SHARE} init B ones gain out 1 freeze A start nonzero", f"{HEAD}{SHARE} init B ones gain out init 1 freeze A start nonzero"),
    # What can be read and has no meaning.
    (f"{HEAD}share a per-module rank 4", f"{HEAD}{SHARE}"),
    (f"{HEAD}share a per all rank 4", f"{HEAD}share a per model rank 4"),
    (f"spec s\ntarget\n  - q_proj\n  - v_proj\n{SHARE}", f"spec s\ntarget\nq_proj, v_proj\n{SHARE}"),
    (f"spec s\ntarget qkv_proj and layer > 3\n{SHARE}", f"spec s\ntarget (q_proj or k_proj or v_proj) and layer > 3\n{SHARE}"),
    (f"spec s\ntarget query, wv\n{SHARE}", f"spec s\ntarget q_proj, v_proj\n{SHARE}"),
    (f"spec s\ntarget c_attn, c_proj\n{SHARE}", f"spec s\ntarget q_proj, k_proj, v_proj, o_proj, down_proj\n{SHARE}"),
    ("spec s\ntarget q_proj, up_proj, down_proj\nshare a A per model B per kind rank 4 gain out init 1", "spec s\ntarget q_proj, up_proj, down_proj\nshare a A per model B per kind rank 4 via SS gain out init 1"),
]  # fmt: skip


# No text surely mends these, and only the cause is said.
CAUSES = [
    f"{HEAD}share a\n  per module\n  if layer < 16:\n    rank 8\n  else:\n    rank 2",
    f"{HEAD}share a where layer < 16 per kind else per module rank 4",
    f"{HEAD}remove share intra\n{SHARE}",
    f"{HEAD}share a(per = module, rank = 4)",
    f"{HEAD}{SHARE} where layer > 1 and (q_proj, v_proj)",
    f"{HEAD}let late(n) = layer >= n\n{SHARE}",
    f"{HEAD}share a per module rank 4 via Hadamard(A_2 per kind, B_2 per kind)",
    f"{HEAD}share a &defaults per module rank 4\nshare b\n  <<: *defaults\n  where layer > 3",
]


def advised(text):
    """Return the problems of a text, each with advice that was tried on a model."""
    try:
        make_plan(f"{text}\n", "llama-7b")
    except BishareError as error:
        return error.problems
    return ()


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (f"{HEAD}let a = q_proj and not b\nlet b = not a\n{SHARE} where b", "`a` and `b` read each other"),
        (f"{HEAD}let a = not c\nlet b = not a\nlet c = not b\n{SHARE} where b", "`a` and `b` and `c` read each other"),
        (f"{HEAD}{SHARE}\nmagnitude per kind where q_proj\nmagnitude per kind where v_proj", "none for all targets"),
        # A text could be given, but it was another spec.
        ("spec s\nuse vera\nreplace share vera\nrank 128", "`replace share` gives a whole share"),
        (f"{HEAD}share norm magnitude per module", "a statement without it"),
        (f"{HEAD}let q_proj = q_proj\n{SHARE}", "a name that it does not read"),
        (f"{HEAD}{SHARE} init B normal(0, 0.02)", "without brackets"),
    ],
)  # fmt: skip
def test_the_cause_is_said_where_no_remedy_is_sure(text, said):
    first, *_ = advised(text)
    assert said in first.help
    assert first.edits == ()


def written(text, problems):
    for edit in sorted((e for p in problems for e in p.edits), key=lambda edit: -edit.span.start):
        text = text[: edit.span.start] + edit.text + text[edit.span.end :]
    return text


@pytest.mark.parametrize(("text", "mended"), EXAMPLES)
def test_the_advice_on_a_known_mistake_is_followed_literally(text, mended):
    made = written(f"{text}\n", advised(text))
    assert [" ".join(line.split()) for line in made.split("\n")] == [
        " ".join(line.split()) for line in f"{mended}\n".split("\n")
    ]
    make_plan(made, "llama-7b")


def test_advice_on_two_statements_is_followed_one_after_the_other():
    text = "spec s\nuse bishare_ke\nset r_inter = 32\nset r_local = 4\n"
    for _ in range(2):
        text = written(text, advised(text)[:1])
    assert text.endswith("replace param r_inter = 32\nreplace param r_local = 4\n")
    make_plan(text, "llama-7b")


def kinds_used():
    used = set()
    for text, _ in EXAMPLES:
        found = survey(f"{text}\n")
        settled = Adviser(found.where, preset("llama-7b")).settled(found.problems)
        for before, after in zip(found.problems, settled, strict=True):
            used |= {one.kind for one in before.remedies if after.edits and one.help == after.help}
    return used


def test_each_row_has_an_example_in_which_it_is_the_advice():
    assert {row.pattern.pattern for row in rows() if row.instead} - kinds_used() == set()
    caused = {advised(text)[0].help for text in CAUSES}
    assert {row.help for row in rows() if not row.instead} == caused
    assert len(rows()) <= 62


@pytest.mark.parametrize(
    "text",
    [
        f"{HEAD}share q_proj, v_proj per module rank 4",
        f"{HEAD}{SHARE} where layer <= 50%",
        f"{HEAD}share a per module rank 50%",
        "spec s\nparam r = 50%\ntarget q_proj\nshare a per module rank r",
        "spec s\ntarget q_proj except rank 8\nshare a per module",
        f"{HEAD}defaults:\n  - lora\n{SHARE}",
        f"{HEAD}{SHARE} !important",
        f"{HEAD}{SHARE} scale 8 / 2 + 2)",
        f"{HEAD}{SHARE} scale alpha / √rank",
        f"{HEAD}share a A shared per layer B per module rank 4",
        f"{HEAD}let mut r = 8\n{SHARE}",
        f"{HEAD}let late layer >= 16\n{SHARE} where late",
        "spec s extends lora\nreplace param r = 4",
        f"{HEAD}share a\n per module\n rank match kind:\n  case q_proj: 8\n  case _: 4",
        f"{HEAD}share a per module rank match kind {{\n q_proj => 8\n _ => 4\n}}",
        f"{HEAD}share a per model for A, per kind for B rank 4",
        "MODEL := s\nspec $(MODEL)",
        # The rest cannot be read, so that nothing says whether a sign would mend it.
        f"{HEAD}let early = 0..15\nshare a where layer in early per kind rank 4",
        'spec s\nuse "lora"\nrank 4',
    ],
)
def test_what_is_not_understood_is_named_without_a_guess(text):
    first, *_ = advised(text)
    assert (first.edits, first.help) == ((), None)
    assert "expected" in first.message or "not used in a spec" in first.message


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("share a per module rank 8px", "a number has digits"),
        ("param r = 4\nshare a per module rank 2r", "`2 * r`"),
        ("share 1st per module rank 8", 'quote it: `"1st"`'),
        # Of a choice, the whole of both branches.
        (f"{CHOICE} layer < 16 ? r : 2 * r", "`r if layer < 16 else 2 * r`"),
        (f"{CHOICE} case when layer < 16 then r else 2 * r end", "`r if layer < 16 else 2 * r`"),
    ],
)
def test_advice_on_a_broken_number_or_a_choice_depends_on_its_place(text, said):
    assert said in advised(HEAD + text)[0].help


def test_a_factor_is_not_quoted_as_the_name_of_a_share():
    problems = advised(f"{HEAD}share A per kind rank 16\nshare B per module rank 16\nmagnitude\n")
    assert [problem.code for problem in problems] == ["BS111", "BS111", "BS123"]
    assert problems[-1].message == "`magnitude` does not say `per`"
    assert not any('"' in (problem.help or "") for problem in problems)


@pytest.mark.parametrize(
    "word", ["alpha_pattern", "fan_in_fan_out", "layers_pattern", "use_rslora"]
)
def test_a_word_of_peft_gets_the_answer_of_its_table(word):
    problem = advised(f"{HEAD}{word} true\n{SHARE}")[0]
    assert problem.help == peft_advice(word, "true")
