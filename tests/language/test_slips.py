"""What the table of known mistakes says of those that no golden file has, and that what it advises can be read."""

import re
from collections import Counter
from pathlib import Path

import pytest

from bishare_dsl.diagnostics import SpecError
from bishare_dsl.language import parse_spec
from bishare_dsl.language.slips import _table

HEAD = "spec s\ntarget q_proj, v_proj\n"
SHARE = "share a per module rank 4 "
# A text, what is said of it, and what its edits make of it.
EXAMPLES = [
    ("let qkv := q_proj\n" + SHARE, "here stands `=` alone", "let qkv = q_proj\n" + SHARE),
    ("share a per module rank if layer > 3: 8 else: 2", "`rank 8 if layer > 3 else 2`", None),
    ("share a per module rank 8 if layer > 3 else if layer > 1 4", "`8 if layer > 9 else 4 if layer > 3 else 2`", None),
    ("share a per module rank layer > 3 ? 8 : 2", "a choice reads `8 if layer > 3 else 2`", None),
    ("share a per layer mod 2 rank 8", "`layer % 2`", "share a per layer % 2 rank 8"),
    ("share a per module rank 8 magnitude per module alpha 4", "`alpha` is of a share, and a default stands before", None),
    ("magnitude per module where layer < 3\nscale 4", "`scale` is of a share, and a default stands before", None),
    ("share a per module, rank 8", "no `,` stands before `rank`", "share a per module rank 8"),
    ("share a rank 8, per module", "no `,` stands before `per`", "share a rank 8 per module"),
    ("share a per module and rank 8", "no `and` stands before `rank`", "share a per module  rank 8"),
    ("share a per module with rank 8", "no `with` stands before `rank`", "share a per module  rank 8"),
    ("share per module rank 8", "a share has a name: `share a per module`", "share a per module rank 8"),
    ("share a { per module rank 8 }", "clauses stand after the name", None),
    ("share a per (layer, kind) rank 8", "without brackets: `per layer, kind`", "share a per layer, kind rank 8"),
    ("share a per 4 layers rank 8", "`per layer // 4`", "share a per layer // 4 rank 8"),
    ("share a per layer -- why so\nrank 8", "comments begin with `#`", "share a per layer # why so\nrank 8"),
    ("share a per layer rank 8 // so it is", "comments begin with `#`", "share a per layer rank 8 # so it is"),
    (SHARE + "where layer => 8", "at least is `>=`", SHARE + "where layer >= 8"),
    (SHARE + "where layer <> 8", "by `!=`", SHARE + "where layer != 8"),
    (SHARE + "where layer not in 0..8", "`not layer in ...`", SHARE + "where not layer in 0..8"),
    (SHARE + "where layer 0-15", "`layer in 0..15`", SHARE + "where layer in 0..15"),
    (SHARE + "where layer in 0-15 start nonzero", "`0..15`", SHARE + "where layer in 0..15 start nonzero"),
    (SHARE + "where layer in [0, 4]", "a set has braces", SHARE + "where layer in {0, 4}"),
    ("train norms where layer > 4\n" + SHARE, "follows `and`", "train norms and layer > 4\n" + SHARE),
    (SHARE + "where q_proj & layer > 4", "both of two conditions", SHARE + "where q_proj and layer > 4"),
    (SHARE + "via KE[size = 64]", "options stand in round brackets", SHARE + "via KE(size = 64)"),
    (SHARE + "via KE size = 64", "`KE(size = 64)`", SHARE + "via KE (size = 64)"),
    (SHARE + "gain init 1", "`gain out init 1`", SHARE + "gain out init 1"),
    ("share a per\xa0module rank 8", "write a space", "share a per module rank 8"),
    ("share a per each layer rank 4", "leave `each` out", "share a per  layer rank 4"),
    (SHARE + "where layers 0-7", "`layer in 0..7`", SHARE + "where layer in 0..7"),
    (SHARE + "where even layers", "`layer % 2 == 0`", SHARE + "where layer % 2 == 0"),
    (SHARE + "where layer in first half", "`layer < layers // 2`", SHARE + "where layer < layers // 2"),
    (SHARE + "where last 4 layers", "`layer in -4..-1`", SHARE + "where layer in -4..-1"),
    (SHARE + "where layer in 3, 5, 7", "`layer in {3, 5, 7}`", SHARE + "where layer in { 3 , 5 , 7 }"),
    (SHARE + "where layer between 3 and 5", "`layer in 3..5`", SHARE + "where layer in 3.. 5"),
    (SHARE + "where layer not 3", "`layer != 3`", SHARE + "where layer != 3"),
    (SHARE + "where kind is q_proj", "`kind == q_proj`", SHARE + "where kind == q_proj"),
    (SHARE + "where layer[3]", "`layer == 3`", SHARE + "where layer== 3"),
    (SHARE + "except layer 0", "`where layer != 0`", SHARE + "where layer != 0"),
    (SHARE + "/* four */", "comments begin with `#`", SHARE + "# four */"),
    (SHARE + "plain", "leave `plain` out", SHARE.strip()),
    (SHARE + "dtype bfloat16", "there is no clause `dtype`: leave it out", None),
    ("learning_rate 1e-4\n" + SHARE, "a spec says nothing of training", "# learning_rate 1e-4\n" + SHARE),
    ("model llama-7b\n" + SHARE, "a spec names no model", "# model llama-7b\n" + SHARE),
    ("param r: int = 8\n" + SHARE, "a param has no type", "param r = 8\n" + SHARE),
    ("param attn = q_proj, k_proj\n" + SHARE, "by `let`", "let attn = q_proj, k_proj\n" + SHARE),
    ("per module rank 8", "a clause belongs to a share", "share a per module rank 8"),
    ("share per layer a rank 8", "`share a per layer`", "share a per layer rank 8"),
    ("share a by layer rank 8", "a key begins with `per`", "share a per layer rank 8"),
    ("share a of q_proj per layer rank 8", "`share a where q_proj`", "share a where q_proj per layer rank 8"),
    ("share a per layer rank 8\nand share b per kind rank 4", "leave `and` out", None),
    ("share a = per layer rank 8", "no `=` stands after the name", "share a  per layer rank 8"),
    ("share a per layer 8", "`rank 8`", "share a per layer rank 8"),
    ("share a per layer rank={r}", "`rank r`", "share a per layer rank r"),
    ("share a per layer rank +8", "leave the `+` out", "share a per layer rank 8"),
    ("share a per layer rank 8.", "a number ends without a point", "share a per layer rank 8"),
    ("share a per layer rank 50%", "a rank is a whole number", None),
    # The advice is tried first.
    ("share a per module rank 4, 8", "a share has one rank", None),
    ("share a per module rank 1,024", "`1024`", "share a per module rank 1024"),
    (SHARE + "dropout 0,05", "a point, and no comma", SHARE + "dropout 0.05"),
    ("share a per module rank8", "`rank 8`", "share a per module rank 8"),
    ("share a permodule rank 8", "`per module`", "share a per module rank 8"),
    ("share a per module rank=8", "`rank 8`", "share a per module rank 8"),
    ("share a per module r=8", "it is called `rank`", "share a per module rank 8"),
    ("share a per module rank 8.\nshare b per layer. rank 8", "a number ends", "share a per module rank 8\nshare b per layer rank 8"),
    (SHARE + "— one each", "comments begin with `#`", SHARE + "# one each"),
    ("% by module\n" + SHARE, "comments begin with `#`", "# by module\n" + SHARE),
    (SHARE + "\nLet me know if it works!", "this line is no statement", SHARE + "\n# Let me know if it works!"),
    ("new param r = 4\nshare a per module rank r", "leave `new` out", " param r = 4\nshare a per module rank r"),
    (SHARE + "weight_decay 0.1", "there is no clause `weight_decay`: leave it out", SHARE.strip()),
    (SHARE + "for q_proj, 4 for v_proj", "`for` is no clause", None),
    (SHARE + "where layer BETWEEN 0 AND 7", "`layer in 0..7`", SHARE + "where layer in 0.. 7"),
    (SHARE + 'where kind like "q%"', '`kind "q*"`', SHARE + 'where kind "q*"'),
    (SHARE + "where kind in ('q_proj', 'v_proj')", "a set has braces", None),
    (SHARE + "where q_proj only", "leave `only` out", SHARE + "where q_proj"),
    (SHARE + "where q_proj) or v_proj", "leave `)` out", SHARE + "where q_proj or v_proj"),
    (SHARE + "where 25%", "a part of the layers is counted", None),
    (SHARE + "!important", "such as `rank 8`", None),
    (SHARE + "(unused)", "such as `rank 8`", None),
    (SHARE + "alpha 2 x rank", "times is written `*`", SHARE + "alpha 2 * rank"),
    ("share a A=layer B=module rank 8", "`A per layer`", "share a A per layer B per module rank 8"),
    ("share q_proj, v_proj per layer rank 8", "`share a where q_proj, v_proj`", "share a where q_proj, v_proj per layer rank 8"),
    ("share a per m\xf3dule rank 8", "U+00F3 is not one of the letters a to z", "share a per module rank 8"),
    ("share a per layer // rank 8", "a value is missing after `//`", None),
    ("magnitude per layer rank 8\n" + SHARE, "a magnitude has no rank", "magnitude per layer\n" + SHARE),
    ("train lm_head rank 8\n" + SHARE, "`rank` belongs to a share", None),
    ("for layer in 0..7: " + SHARE, "a spec has no such statements", None),
    (SHARE + "freeze A and B gain d, b", "a comma stands between", None),
    (SHARE + "where layer in 0..8 q_proj, v_proj", "`layer in 0..7 and (q_proj or v_proj)`", None),
    (SHARE + "where layer in {0, 2} q_proj", "`layer in 0..7 and (q_proj or v_proj)`", None),
    (SHARE + "where layer 0, 31", "`layer in {0, 31}`", SHARE + "where layer in { 0 , 31 }"),
    (SHARE + "where layer 0, 2, 31", "`layer in {0, 2, 31}`", SHARE + "where layer in { 0 , 2 , 31 }"),
    (SHARE + "init svd A, B svd", "`A svd`", SHARE + "init A svd, B svd"),
    ("share a target q_proj, v_proj per layer rank 4", "`share a where q_proj, v_proj per ...`", None),
    (SHARE + "init pissa", "PiSSA's is `init A svd, B svd`", SHARE + "init A svd, B svd"),
    (SHARE + "init B = 0", "`B zeros`", SHARE + "init B zeros"),
    ("share a per module rank match layer { < 8: 2; else: 8 }", "`rank 2 if layer < 8 else 8`", None),
    ("share across layers rank 4", "`per kind` shares across the layers", "share a per kind rank 4"),
    (SHARE + "where else", "the rest is `where not ...`", None),
    ("share a target q_proj per layer rank 4", "`share a where q_proj per ...`", None),
    ("share a per module rank 8 where mlp.*", '`path "*.mlp.*"`', 'share a per module rank 8 where path "*.mlp.*"'),
    (SHARE + 'where regex ".*\\.q_proj"', "is no regular expression", None),
]  # fmt: skip


TESTS = Path(__file__).parents[1]
GOLDEN = [*TESTS.glob("messages/inputs/*.share")]


def problems_of(text):
    try:
        parse_spec(text)
    except SpecError as error:
        return error.problems
    return ()


def written(text, edits):
    for edit in sorted(edits, key=lambda edit: -edit.span.start):
        text = text[: edit.span.start] + edit.text + text[edit.span.end :]
    return text


@pytest.mark.parametrize(("text", "said", "mended"), EXAMPLES, ids=lambda value: None)
def test_a_slip_is_known(text, said, mended):
    problems = problems_of(HEAD + text)
    assert said in problems[0].help
    assert {problem.code for problem in problems} <= {"BS103", "BS110"}
    if mended is not None:
        made = written(HEAD + text, [edit for problem in problems for edit in problem.edits])
        assert made == HEAD + mended
        assert parse_spec(made)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("share a per module rank 8px", "a number stands alone: `8`"),
        ("param r = 4\nshare a per module rank 2r", "a product is written `2 * r`"),
        ("share 1st per module rank 8", 'stands in quotes: `"1st"`'),
    ],
)
def test_advice_on_a_broken_number_depends_on_its_place(text, said):
    assert said in problems_of(HEAD + text)[0].help


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('import "lora"', 'it is `use "lora"`'),
        ("use bishare-ke", "did you mean `bishare_ke`?"),
        ("use bishare_ke.share", '`use "bishare_ke.share"`'),
        ('use "lora"\nset r = 16', "`replace param r = ...`"),
        ('use "lora"\nr = 16', "`replace param r = ...`"),
    ],
)
def test_a_slip_of_what_is_used_is_known(text, said):
    assert [said in problem.help for problem in problems_of(f"spec s\n{text}")] == [True]


@pytest.mark.parametrize(
    ("text", "mended"),
    [
        ("spec: s\ntarget q_proj\n", "spec s\ntarget q_proj\n"),
        ('spec s\ntarget_modules = ["q_proj"]\n', 'spec s\ntarget "q_proj"\n'),
        ('spec s\ntarget ".*\\.(q|v)_proj"\n', 'spec s\ntarget path "*.q_proj", path "*.v_proj"\n'),
    ],
)
def test_a_slip_of_a_target_is_known(text, mended):
    [problem] = problems_of(text + SHARE)
    assert written(text, problem.edits) == mended
    assert parse_spec(mended + SHARE)


def test_what_a_magnitude_lacks_is_said_of_a_magnitude():
    [problem] = problems_of(HEAD + SHARE + "magnitude")
    assert problem.message == "`magnitude` does not say `per`"


@pytest.mark.parametrize("row", _table().known, ids=lambda row: " ".join(row.words))
def test_a_row_names_words_of_its_pattern(row):
    named = {int(number) for number in re.findall(r"{(\d)}", f"{row.help}{row.instead or ''}")}
    assert named <= set(range(len(row.words) + bool(row.last)))
    assert sum(word.startswith("@") for word in row.words) == 1


@pytest.mark.parametrize("path", GOLDEN, ids=lambda path: path.stem)
def test_a_mistake_is_gone_when_its_remedy_is_written(path):
    def said(text):
        return Counter(
            (problem.code, problem.message, problem.help) for problem in problems_of(text)
        )

    text = path.read_bytes().decode(errors="replace").replace("\r\n", "\n").replace("\r", "\n")
    before = said(text)
    for problem in problems_of(text):
        if problem.edits:
            what = (problem.code, problem.message, problem.help)
            assert said(written(text, problem.edits))[what] < before[what]
