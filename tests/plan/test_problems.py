"""Every problem of a spec (BS2xx) and of a spec against a model (BS3xx): code, place and help."""

import re
from typing import ClassVar

import pytest

from bishare_dsl.compiler import make_plan
from bishare_dsl.diagnostics import BishareError, PlanError
from bishare_dsl.diagnostics.codes import registry
from bishare_dsl.language import read
from bishare_dsl.models import inspect_model, preset
from bishare_dsl.plan import build_plan
from bishare_dsl.plan.advice import Adviser
from bishare_dsl.plan.sharing import sharing
from bishare_dsl.transforms import register
from bishare_dsl.transforms.registry import _REGISTERED as registry_of_transforms
from bishare_dsl.transforms.shipped.slice_sharing import SliceSharing
from tests.support.families import tiny_model

TARGET = "target q_proj, v_proj\n"

# What is written, the code, the text that is underlined, a part of the help.
ERRORS = [
    (f"{TARGET}share s per module rank q", "BS201", "q", None),
    (f"param rank_a = 4\n{TARGET}share s per module rank rank_b", "BS201", "rank_b", "`rank_a`"),
    (f"{TARGET}share s per module rank 4 scale kind", "BS210", "kind", None),
    (f"{TARGET}share s per module rank 4\nshare s per module rank 2", "BS202", "s", None),
    (f"param r = 4\nlet r = q_proj\n{TARGET}share s where r per module rank 4", "BS202", "r", None),
    (f'param "layer" = 4\n{TARGET}share s per module rank layer + 1', "BS203", '"layer"', None),
    (f'{TARGET}share "a b" per module rank 4', "BS203", '"a b"', None),
    (f"param layers = 4\n{TARGET}share s per module rank layers + 1", "BS203", "layers", None),
    (f"param k = 2 * q\n{TARGET}share s per module rank k", "BS201", "q", None),
    (f"param k = 2 * layers\n{TARGET}share s per module rank k", "BS210", "layers", None),
    (f"param r = 2\nparam k = r / (r - 2)\n{TARGET}share s per module rank k", "BS210", "r / (r - 2)", None),
    (f"param w = some\nparam k = w + 1\n{TARGET}share s per module rank k", "BS210", "w", None),
    (f"{TARGET}share s per kind rank 4\nshare s__q_proj per model rank 4 via SS", "BS203", "s__q_proj", None),
    (f"{TARGET}share s_ per module rank 4", "BS203", "s_", None),
    (f"{TARGET}share s per model rank 4 via KA", "BS204", "KA", "`KE`"),
    (f"{TARGET}share s per model rank 4 via KE(sise = 4)", "BS205", "sise", "`size`"),
    (f"{TARGET}share s per model rank 4 via SS(slice = middle)", "BS206", "middle", None),
    (f"{TARGET}share s per model rank 4 via KE(size = 0)", "BS206", "0", None),
    (f"{TARGET}share s per model rank 4 via KE(rowwise = true, shared_rank = 2)", "BS206", "KE(rowwise = true, shared_rank = 2)", None),
    (f"{TARGET}share s per model rank 4 via KE(shared_rank = 3)", "BS206", "4", None),
    (f"{TARGET}share s where layer in {{0-7}} per module rank 4", "BS210", "0-7", "dots: `0..7`"),
    (f"{TARGET}share s where layer == 0-7 per module rank 4", "BS210", "0-7", "`layer in 0..7`"),
    ("target attention_inputs, mlp_ups and mlp_downs\nshare s per module rank 4", "BS303", "mlp_ups and mlp_downs", "`mlp_ups, mlp_downs`"),
    (f"let l = q_proj, k_proj and v_proj\n{TARGET}share s per module rank 4 where l", "BS303", "k_proj and v_proj", "`k_proj, v_proj`"),
    (f"{TARGET}share s per module rank 16 if kind == parent mlp else 4", "BS210", "kind == parent mlp", "`parent == mlp`"),
    (f"{TARGET}share s per module rank 4 where kind != parent mlp", "BS210", "kind != parent mlp", "`parent != mlp`"),
    (f"{TARGET}share s per module rank 16 if kind == self_attn else 4", "BS301", "self_attn", "`parent == self_attn`"),
    (f"{TARGET}share s per module rank match layer {{ 0-7: 8; else: 4 }}", "BS210", "0-7", "`0..7`"),
    (f"{TARGET}share s per model rank 4 via GT(gate_rank = 1.5)", "BS206", "1.5", None),
    (f"{TARGET}share s per module rank 4 init A normale", "BS208", "normale", "`normal`"),
    (f"{TARGET}share s per layer, experts // 2 rank 4", "BS201", "experts", "`expert`"),
    (f"{TARGET}share s per module rank 4 init A svd * S", "BS208", None, "`svd_scaled`"),
    (f"param k = kaiming-normal\n{TARGET}share s per model rank 4 via KE(size = 64, kernel = ones) scale k", "BS201", "kaiming", "`kaiming_normal`"),
    (f"let quarter = layer // 8\n{TARGET}share s per quarter rank 4", "BS210", "layer // 8", "written out if it reads `layer`"),
    (f"{TARGET}share s where in < 99 per module rank 4", "BS303", "in < 99", "from 4096 to 4096"),
    (f"{TARGET}share s where tower == vision per module rank 4", "BS301", "vision", "all modules of llama-7b have `main` there"),
    ("train q_proj and layer >= 30", "BS317", "q_proj and layer >= 30", None),
    ("let top = v_proj and layer > 3\ntrain norms, top", "BS317", "top", None),
    ("train norms and kind in {q_proj}", "BS301", "q_proj", "which `target` names"),
    ("train norms and layer > 3", "BS210", "layer > 3", "leaves it out"),
    (f"{TARGET}share s where in != out per module rank 4", "BS303", "in != out", "`in == out` holds for all targets"),
    ("train bias", "BS301", "bias", "`biases` is the word, and llama-7b lacks these"),
    (f"{TARGET}train biases and q_proj\nshare s per module rank 4", "BS301", "biases", "lacks these"),
    (f"init A normale\n{TARGET}share s per module rank 4", "BS208", "normale", "`normal`"),
    (f"{TARGET}share s per module rank 4 init A ones, B ones", "BS209", None, "start nonzero"),
    (f"{TARGET}share s per module rank 4 init A zeros", "BS209", None, "one of them alone"),
    (f"{TARGET}share s per module rank 4 freeze B", "BS209", "freeze B", None),
    (f"{TARGET}share s per module rank 4 init B ones gain out init 0 freeze gain_out", "BS209", "freeze gain_out", None),
    (f"{TARGET}share s per module rank 4 / 0", "BS210", None, None),
    (f'{TARGET}share s per module rank path "*"', "BS210", 'path "*"', None),
    (f"{TARGET}share s per module rank kind * 2", "BS210", "kind", None),
    (f"{TARGET}share s per module rank sqrt(0 - 4)", "BS210", None, None),
    (f"{TARGET}share s where 4 per module rank 4", "BS210", "4", None),
    (f"{TARGET}share s where kind < q_proj per module rank 4", "BS210", None, None),
    (f"{TARGET}share s where 1 / (layer - 3) < 1 per module rank 4", "BS210", None, None),
    (f"{TARGET}share s per 1 / (layer - 3) < 1 rank 4 via SS", "BS210", None, None),
    (f"{TARGET}share s per layer // (layer - 3) rank 4 via SS", "BS210", None, None),
    (f"{TARGET}share s per module rank match 1 / (layer - 3) {{ 1: 2; else: 1 }}", "BS210", None, None),
    (f"let l = 1 / (layer - 3) < 1\n{TARGET}share s where l per module rank 2", "BS210", None, None),
    (f"{TARGET}share s per module rank 2.5", "BS211", "2.5", None),
    (f"{TARGET}share s per module rank -1", "BS211", "-1", "the value must fit"),
    (f"param r = 8.5\n{TARGET}share s per module rank r", "BS211", "r", "write `floor(r)`"),
    (f"param r = abc\n{TARGET}share s per module rank r", "BS210", "r", None),
    (f"{TARGET}share s per module rank layer / 2", "BS211", "layer / 2", None),
    (f"{TARGET}share s per module rank 4 dropout 1", "BS211", "1", None),
    (f"dropout -0.1\n{TARGET}share s per module rank 4", "BS211", "-0.1", None),
    (f"{TARGET}share s per module rank 4 scale 0", "BS211", "0", "`rank 0` leaves"),
    (f"{TARGET}share s per module rank 16 - layer", "BS211", "16 - layer", "the value must fit"),
    (f"{TARGET}share s per module rank 6 via Grid(blocks = 4)", "BS206", "6", None),
    (f"{TARGET}share s A per in B per out core_1 per layer rank 4 via Core(cores = 2)", "BS215", "core_1", "`core`"),
    (f"{TARGET}share s per model rank 4 via LoRA_XS", "BS204", "LoRA_XS", "in place of the shares, whose transform is `Core`"),
    ("target q_proj, o_proj, down_proj, up_proj\nshare block per layer // 4 rank 4", "BS305", "layer // 4", "or write `per layer // 4, in, out`, or write `per layer // 4, kind`"),
    ("target q_proj, k_proj, down_proj\nshare s A per q_proj B per module rank 4", "BS305", None, "equal widths"),
    ("target q_proj, up_proj\nshare s per in rank 4", "BS305", "in", "equal widths"),
    (f"{TARGET}share s A per kind and late B per module rank 4", "BS301", "kind", "commas"),
    ("target q_proj, down_proj\nshare s A per block B per module rank 4", "BS301", "block", "a key has attributes"),
    (f"{TARGET}share s per module rank 16 if late else 4", "BS301", "late", "`let late = layer >= layers // 2`"),
    (f'{TARGET}share s per module rank 4 where parent == "attention"', "BS301", '"attention"', "`self_attn`"),
    (f"param late = 20\n{TARGET}share s per module rank 4 where late", "BS301", "late", "`layer >= late`"),
    (f"alpha 0\n{TARGET}share s per module rank 4", "BS211", "0", None),
    (f"{TARGET}share s per module rank 4 scale alpha", "BS212", "alpha", None),
    (f"{TARGET}share s per model rank 4 via KE freeze G_id", "BS215", "G_id", "`via GT`"),
    (f"{TARGET}share s per module rank 4 freeze gain_out", "BS215", "gain_out", "`gain out init`"),
    (f"param p = 4\n{TARGET}share s per module rank 4 freeze p", "BS215", "p", "`A`"),
    (f"param p = \"B\"\n{TARGET}share s per module rank 4 freeze p", "BS209", "freeze p", None),
    (f"{TARGET}share s per module rank 4 via VectorBank init A zeros start nonzero", "BS215", "A", None),
    (f"{TARGET}share s A per model B per layer bank per model rank 4 via VectorBank start nonzero", "BS215", "A", "`bank`"),
    (f"{TARGET}share s L_A per model rank 4 via VectorBank start nonzero", "BS222", None, "`bank per` and a key"),
    # Of the names that could stand there, those are listed that give a plan.
    (f"{TARGET}share s per model rank 16 via KE(size = 64, r_a = 4)", "BS205", "r_a", "here: `shared_rank`; or leave it out"),
    (f"{TARGET}share s per module rank 4\nmagnitude per module init m ones start nonzero", "BS215", "m", "`mu`"),
    (f"{TARGET}share s A per in B per out core_2 per kind rank 4 via Core", "BS215", "core_2", "`Core(cores = 2)`"),
    (f"{TARGET}share s per kind rank 4 freeze all", "BS215", "all", "`freeze A, B`"),
    (f"{TARGET}share s A per q_proj + v_proj B per module rank 4", "BS210", "q_proj", "a `let` names a list"),
    (f"{TARGET}share s where first per module rank 4", "BS301", "first", "write `layer == 0`"),
    (f"{TARGET}share s per module rank match layer % 2 {{ even: 2; odd: 8; else: 4 }}", "BS306", "even", "there are `0`, `1`"),
    (f"{TARGET}share s per module rank 4 via Core init A normal, B normal train core", "BS301", "core", "unless `freeze`"),
    (f"{TARGET}share s where q_proj, k_proj v_proj per layer rank 4", "BS215", "v_proj", "`A`"),
    ("target q_proj, up_proj\nshare s per layer rank 4 via KE K_B per layer", "BS305", "KE", None),
    ("target q_proj, up_proj\nshare s per module rank 4 gain out init 1 gain_out per layer", "BS305", None, None),
    (f"{TARGET}share s per layer A per kind B per kind rank 4", "BS213", "layer", None),
    (f"{TARGET}share s per module rank 4 via Experts gain rank init 1", "BS217", None, None),
    ("target q_proj, FAKE\nshare s per module rank 4", "BS301", "FAKE", "`q_proj`"),
    ("target q_prj\nshare s per module rank 4", "BS301", "q_prj", "did you mean `q_proj`?"),
    (f"{TARGET}share s where kind in {{q_prj}} per module rank 4", "BS301", "q_prj", "did you mean `q_proj`?"),
    (f"{TARGET}share s where kind == q_prj per module rank 4", "BS301", "q_prj", "did you mean `q_proj`?"),
    (f"{TARGET}share s where not parent mpl per module rank 4", "BS301", "parent mpl", "did you mean `mlp`?"),
    (f'{TARGET}share s where path "*.x" per module rank 4', "BS301", 'path "*.x"', None),
    (f"{TARGET}share s per q_prj rank 4 via SS", "BS301", "q_prj", "did you mean `q_proj`?"),
    (f"{TARGET}share s per layr rank 4 via SS", "BS301", "layr", "did you mean `layer`?"),
    (f"{TARGET}share s per none rank 4 via SS", "BS201", "none", "`per module`"),
    (f"{TARGET}share s A per kind, none B per module rank 4", "BS201", "none", "`per module`"),
    (f"let top = q_prj\n{TARGET}share s where top per module rank 4", "BS301", "q_prj", "did you mean `q_proj`?"),
    (f"{TARGET}share s where layer in 16..40 per module rank 4", "BS302", "16..40", None),
    (f"{TARGET}share s where layer in 3..1 per module rank 4", "BS220", "3..1", "`1..3`"),
    (f"{TARGET}share s where layer in -1..2 per module rank 4", "BS220", "-1..2", "-1 is the last one"),
    (f"param n = 3\n{TARGET}share s per module rank match layer {{ n..1: 4; else: 2 }}", "BS220", "n..1", "`1..3`"),
    (f"{TARGET}share s where layer in 40.. per module rank 4", "BS302", "40..", None),
    (f"{TARGET}share s where layer in ..32 per module rank 4", "BS302", "..32", None),
    (f"let l = q_proj\n{TARGET}share s where l per module rank 4 scale 2 if l else 1", "BS210", "l", None),
    (f"{TARGET}share s per module rank 4 if q_prj + 1 > 2 else 2", "BS201", "q_prj", None),
    (f"let l = k_proj, v_proj\n{TARGET}share s where q_proj per module rank match kind {{ l: 4; else: 2 }}", "BS306", "l", None),
    (f"{TARGET}share s where layer in {{0, 32}} per module rank 4", "BS302", "32", None),
    (f"{TARGET}share s where layer == -33 per module rank 4", "BS302", "layer == -33", None),
    ("target q_proj and parent mlp\nshare s per module rank 4", "BS303", "q_proj and parent mlp", None),
    (f"{TARGET}share s where up_proj per module rank 4", "BS303", "up_proj", None),
    ("target q_proj, up_proj\nshare s per layer rank match kind { q_proj: 4; else: 2 } via SS", "BS304", "match kind { q_proj: 4; else: 2 }", None),
    (f"{TARGET}share s per layer rank 4 via KE init A svd", "BS223", "svd", None),
    (f"init A svd_bottom\n{TARGET}share s per layer rank 4 via KE", "BS223", "svd_bottom", None),
    (f"{TARGET}share s per module rank 4 via Core init core svd", "BS223", "svd", "`A` and `B`"),
    ("target q_proj, up_proj\nshare s per layer rank 4 via SS init B svd", "BS319", "svd", "widths are equal"),
    ("target q_proj, down_proj\ninit A svd\nshare s A per layer B per module rank 4 via SS", "BS319", "svd", "widths are equal"),
    ("target q_proj, up_proj\nshare s per module rank 5000 init A svd", "BS319", "svd", "a rank of 4096"),
    ("target q_proj, up_proj\nshare s A per in B per module rank 8000 init B svd, A zeros", "BS319", "svd", "a rank of 4096"),
    ("target q_proj, up_proj\nshare s per layer rank 4", "BS305", "layer", "via SS"),
    ("target q_proj, up_proj\nshare s per layer rank 4 via Identity", "BS305", "Identity", None),
    (f"{TARGET}share s per module rank match kind {{ up_proj: 4; else: 2 }}", "BS306", "up_proj", None),
    (f"{TARGET}share s where layer < 4 per module rank match layer {{ 4..7: 4; else: 2 }}", "BS306", "4..7", None),
    (f"{TARGET}share s per module rank match kind {{ q_proj: 4 }}", "BS307", None, None),
    (f'{TARGET}share s per module rank match kind {{ "q*": 4; else: 2 }}', "BS306", '"q*"', None),
    (f'{TARGET}share s per module rank match path {{ path "*q*": 4; else: 2 }}', "BS306", 'path "*q*"', None),
    (f'{TARGET}share s where kind in {{kind "q*"}} per module rank 4', "BS301", 'kind "q*"', None),
    (f"param p = q_proj\n{TARGET}share s where p per module rank 4", "BS301", "p", "`kind == p`"),
    (f"param p = true\n{TARGET}share s per module rank 4 if p else 2", "BS301", "p", "`p == true`"),
    (f"param p = q_proj\n{TARGET}share s where kind p per module rank 4", "BS301", "kind p", "`kind == p`"),
    (f"let p = q_proj\n{TARGET}share s where kind p per module rank 4", "BS301", "kind p", "leave `kind`"),
    (f'{TARGET}share s where layer == "3" per module rank 4', "BS201", '"3"', "without quotes"),
    (f"{TARGET}share s per module rank 0", "BS309", None, None),
    (f"{TARGET}share s per module rank match kind {{ layer >= 16: 4; else: 2 }}", "BS306", "layer >= 16", "no condition"),
    (f"{TARGET}share s per module rank 4\ntrain norms and embeddings", "BS301", "norms and embeddings", "a comma takes"),
    (f"param r = 8\n{TARGET}share s per module rank r / 16", "BS211", "r / 16", "fit at every module"),
    ("target q_proj, k_proj, up_proj\nshare s per module rank 4\nmagnitude per model", "BS305", "model", "write `per out`, or write `per kind`"),
    (f"param g = kaiming_uniform / ones\n{TARGET}share s per module rank 4 alpha g", "BS201", "kaiming_uniform", "no sign beside it"),
    (f"{TARGET}share s per module rank 4 init B normal freeze A, B start nonzero", "BS309", "freeze A, B", "comes with `via`"),
]  # fmt: skip

WARNINGS = [
    (f"init K_A ones\n{TARGET}share s per module rank 4", "BS213", "ones", None),
    (f"{TARGET}share s per module rank 4 start nonzero", "BS213", "start nonzero", None),
    (f"init A normal\n{TARGET}share s per module rank 4 init A uniform", "BS213", "normal", None),
    (f"param r = 4\n{TARGET}share s per module rank 4", "BS213", "param r = 4", None),
    (f"dropout 0.05\n{TARGET}share s per module rank 4 dropout 0", "BS213", "0.05", "each share has its own"),
    (f"let r = q_proj\n{TARGET}share s per module rank 4", "BS213", "let r = q_proj", None),
    (f"param r = 2\nparam k = 2 * r\n{TARGET}share s per module rank r", "BS213", "param k = 2 * r", None),
    (f"{TARGET}share s where q_proj per module rank 4", "BS308", "q_proj, v_proj", None),
    ("target q_proj except up_proj\nshare s per module rank 4", "BS310", "up_proj", None),
    (f"{TARGET}share s where layer < 4 except up_proj per module rank 4", "BS310", "up_proj", None),
    (f"{TARGET}share s per layers rank 4 via SS", "BS221", "layers", "`layer`"),
    (f"param n = 2\n{TARGET}share s per kind, n // 2 rank 4 via SS", "BS221", "n // 2", "other parts"),
    (f"{TARGET}share q_proj per module rank 4\nshare s where v_proj per module rank 2", "BS226", "q_proj", "`where q_proj`"),
    (f"{TARGET}share s per module rank 4 where layer >= 16, q_proj", "BS227", "layer >= 16, q_proj", "`and`"),
    (f"{TARGET}share s per module rank 4 where not q_proj, v_proj", "BS227", "not q_proj, v_proj", "not (... or ...)"),
    (f"{TARGET}share s per module rank 4 where not q_proj or v_proj", "BS227", "not q_proj or v_proj", "not (... or ...)"),
    (f"{TARGET}share a per module rank 4 where layer in 0..16\nshare b per module rank 2 where layer in 16..31", "BS228", "layer in 16..31", "begins in it"),
    (f"{TARGET}share a per module rank 4 where layer >= 16\nshare b per module rank 2 where layer <= 16 and layer > 3", "BS228", None, "begins in it"),
    ("target q_proj, layer < 8\nshare a per module rank 4", "BS227", "q_proj, layer < 8", "`and`"),
    (f"{TARGET}share a per module rank 4\nshare b per module rank 12", "BS229", "b", "`where` selects"),
    (f"{TARGET}share a where kind != q_proj or kind != v_proj per module rank 4", "BS227", "kind != q_proj or kind != v_proj", "`and`"),
    (f"{TARGET}share a where kind != q_proj, kind != v_proj per module rank 4", "BS227", "kind != q_proj, kind != v_proj", "`and`"),
    (f"{TARGET}share a where q_proj, up_proj per module rank 4\nshare b where v_proj per module rank 2", "BS313", "up_proj", "name them"),
    (f"{TARGET}share a per module rank 4 where layer < layers", "BS231", "layers", "the last is -1"),
    (f"{TARGET}share a per module rank 4 where layers > 8", "BS231", "layers", "`layer`"),
    (f"let late = layers > 8\n{TARGET}share a per module rank 4 where late", "BS231", "layers", "`layer`"),
    ("target q_proj\nshare s per model rank 64 via KE(shared_rank = 1)", "BS311", "64", None),
    ("target q_proj\nshare s per model rank 5000 via SS", "BS311", "5000", None),
    ("target q_proj\nshare s per model rank 4 via GT", "BS350", "GT", None),
    ("target q_proj\nshare s per model rank 4 via KE(size = 300)", "BS351", "300", "256"),
]  # fmt: skip


def problems_of(text):
    spec, where = read(f"spec test\n{text}")
    try:
        problems = build_plan(spec, preset("llama-7b"))[1]
    except BishareError as error:
        problems = error.problems
    return (*Adviser(where, preset("llama-7b")).settled(problems),), where


@pytest.mark.parametrize(("text", "code", "underlined", "help"), ERRORS + WARNINGS)
def test_problem(text, code, underlined, help):
    problems, where = problems_of(text)
    found = [problem for problem in problems if problem.code == code]
    assert found, problems
    assert len(set(problems)) == len(problems)
    assert {problem.code for problem in problems if problem.severity == "error"} <= {code}
    assert found[0].severity == registry()[code].severity
    span = where.locate(found[0].loc)
    if underlined is not None:
        assert where.source.text[span.start : span.end] == underlined
    else:
        assert span is not None
    if help is not None:
        assert help in found[0].help


def test_no_key_is_advised_under_which_fewer_modules_share():
    """In BERT up and down projections have other widths: of two modules in a layer, none would share."""
    model = inspect_model(tiny_model("bert"))
    spec, where = read("spec s target mlp_ups, mlp_downs share x per layer rank 2")
    with pytest.raises(PlanError) as caught:
        build_plan(spec, model)
    (problem,) = Adviser(where, model).settled(caught.value.problems)
    assert problem.code == "BS305"
    assert "per layer, parent" not in problem.help
    assert "via SS" in problem.help


@pytest.mark.parametrize(
    ("text", "code", "mended"),
    [
        ('target kind ".*(q|v)_proj"\nshare s per module rank 4', "BS301", 'target kind "*q_proj", kind "*v_proj"'),
        ("target q_proj\nshare s per module rank 4 where layer >= 0.5", "BS210", "where layer >= 0.5 * layers"),
        ("target attention_inputs\nshare s A per kind B per module rank 8 if layer >= layers // 2 else 4", "BS304", "A per kind, layer >= layers // 2 B"),
        ("target q_proj, k_proj, v_proj, o_proj, up_proj\nshare s per layer rank 4", "BS305", "rank 4 via SS"),
        ("target q_proj, up_proj\nshare s A per in B per out rank 4 if layer < 16 else 2", "BS304", "A per in, layer < 16 B per out, layer < 16"),
        ("target q_proj, up_proj\nshare s per kind rank 4 + layer // 16", "BS304", "per kind, layer // 16 rank"),
    ],
)  # fmt: skip
def test_a_remedy_that_was_tried_can_be_followed(text, code, mended):
    problems, where = problems_of(text)
    problem = next(problem for problem in problems if problem.code == code)
    (edit,) = problem.edits
    source = where.source.text
    made = source[: edit.span.start] + edit.text + source[edit.span.end :]
    assert mended in made
    assert make_plan(made, "llama-7b").problems == ()


def test_every_code_of_a_spec_and_of_a_plan_is_tested():
    # BS320 in test_vocabulary.py, BS323 in tests/rewrite/test_magnitude.py.
    elsewhere = "BS207 BS214 BS218 BS313 BS315 BS316 BS317 BS318 BS320 BS323"
    tested = {case[1] for case in ERRORS + WARNINGS} | {*elsewhere.split()}
    assert {code for code in registry() if code.startswith(("BS2", "BS3"))} <= tested


def test_a_transform_that_fails():
    """More of them, and the packages that they are from, in tests/plugins."""

    @register
    class Failing(SliceSharing):
        name: ClassVar[str] = "Failing"

        def reach(self, rank, width):
            raise ZeroDivisionError("division by zero")

    try:
        problems, where = problems_of(
            f"{TARGET}share s per model rank 2.5\nshare t per model rank 2 via Failing()"
        )
        assert [problem.code for problem in problems] == ["BS211"]
        problems, where = problems_of(f"{TARGET}share t per model rank 2 via Failing()")
        (problem,) = problems
        assert problem.code == "BS214"
        assert "`reach` raises ZeroDivisionError: division by zero" in problem.message
        span = where.locate(problem.loc)
        assert where.source.text[span.start : span.end] == "Failing()"
    finally:
        del registry_of_transforms["Failing"]


@pytest.mark.parametrize(
    "text",
    [
        f"{TARGET}share s per module rank 4",
        f"{TARGET}share s per module rank 4 alpha 8 scale alpha / rank",
        "let top = q_proj\ntarget top\nshare s where top per kind rank 4 dropout 0.1",
        "target q_proj, down_proj\nshare s per layer rank 8 via KE(size = 256)",
        "target q_proj\nshare s per module rank 4 init B normal start nonzero",
        f"{TARGET}share a per module rank 0\nshare b per module rank 1",
        f"{TARGET}share s per floor(layer / 4), layer / 4 < 2 rank 4 via SS",
        f"{TARGET}share s per layer, kind rank 4",
        f"{TARGET}share s A per layer B per path rank 4 via SS",
        "target q_proj and layer == 0\nshare s per layer rank 4 via SS",
        f"let l = layer in 16..\n{TARGET}share s per module rank 2 + 6 * l",
        "target q_proj and layer in ..3\nshare s where layer in {3.., ..1} per module rank 4",
        f"param r = 2\nparam k = r\nparam l = floor(k / 2)\n{TARGET}share a per module rank l",
        # A share of one layer is in another one on purpose.
        f"{TARGET}share a where layer > 3 per module rank 4\nshare last where layer == -1 per kind rank 2\nshare b where layer <= 3 per module rank 1",
        # What the only share leaves out of a kind is what its condition is for.
        "target attention_inputs\nshare ends where layer < layers // 4 per module rank 4",
        # A role with a key may follow a name that is a word of English.
        "let all = q_proj, v_proj\ntarget all\nshare a where all core per model A per model B per model rank 4 via Core",
    ],
)
def test_nothing_to_say_of_a_sound_spec(text):
    assert problems_of(text)[0] == ()


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("share s per module rank 8 where layers < 4", "`layers` is from 32 to 32"),
        ("share s per module rank 8\ndora per module", "`magnitude per module`"),
        ("share s per module rank 8 where layer == last", "the number -1"),
        ("share s per module rank 8\ntrain q_proj", "trained by the shares"),
    ],
)
def test_advice_holds_for_what_was_written(text, said):
    problems, _ = problems_of(f"{TARGET}{text}")
    assert said in next(problem.help for problem in problems if problem.severity == "error")


def test_two_shares_are_said_beside_a_finer_key_for_a_rank_that_varies():
    text = "target q_proj, k_proj\nshare s A per kind B per module rank 8 if layer >= 16 else 2"
    (problem,), where = problems_of(text)
    key, shares = problem.help.split(", or ")
    assert key == "write `A per kind, layer >= 16`"
    rank, more = re.fullmatch(r"`(rank 2)` here, and `(.+)`", shares).groups()
    by_shares = where.source.text.replace("rank 8 if layer >= 16 else 2", f"{rank}\n{more}")
    plan = make_plan(by_shares, "llama-7b").plan
    assert {plan.rows(site.path) for site in plan.sites} == {2, 8}
    by_key = where.source.text.replace("A per kind", key[len("write `") : -1])
    assert sharing(plan).users > sharing(make_plan(by_key, "llama-7b").plan).users


@pytest.mark.parametrize("key", ["4", "layers // 4", "expert", "adapter", "layer == 3"])
def test_no_transform_is_advised_for_a_key_that_is_not_meant(key):
    problems, _ = problems_of(f"target q_proj, up_proj\nshare s per {key} rank 4")
    problem = next(problem for problem in problems if problem.code == "BS305")
    assert "via" not in problem.help


def test_sharing_is_compared_while_another_share_is_wrong():
    text = "target q_proj, o_proj, down_proj\nshare a per layer rank 4\nshare b per layer rank 2 where not o_proj"
    problems, _ = problems_of(text)
    helps = {problem.help for problem in problems if problem.code == "BS305"}
    assert {help.partition(" to ")[0] for help in helps} == {"write `via SS`"}
