"""Every problem of a spec (BS2xx) and of a spec against a model (BS3xx): its message, place and help.

`problems` has a file for each code, with texts and the answers that a user sees.
"""

from pathlib import Path
from typing import ClassVar

import pytest

from bishare_dsl import parse_spec
from bishare_dsl.advice import advise
from bishare_dsl.compiler import make_plan
from bishare_dsl.diagnostics import BishareError
from bishare_dsl.diagnostics.codes import registry
from bishare_dsl.models import inspect_model
from bishare_dsl.plan import build_plan
from bishare_dsl.plan.select import Sites
from bishare_dsl.transforms import register
from bishare_dsl.transforms.registry import _REGISTERED as registry_of_transforms
from bishare_dsl.transforms.shipped.slice_sharing import SliceSharing
from tests.support.calls import calls_of
from tests.support.documents import answered, check_document, check_edits, edited
from tests.support.families import tiny_model

TARGET = "target q_proj, v_proj\n"
DOCUMENTS = sorted((Path(__file__).parent / "problems").glob("*.txt"))


def problems_of(text):
    return answered(f"spec test\n{text}\n")


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.stem)
def test_a_problem_is_answered_as_written(path):
    code = path.stem
    for text, problems in check_document(path):
        assert [problem for problem in problems if problem.code == code], text
        assert len(set(problems)) == len(problems)
        assert {problem.code for problem in problems if problem.severity == "error"} <= {code}
        check_edits(text, problems)


def test_every_code_of_a_spec_and_of_a_plan_is_tested():
    # BS320 and BS326 in test_vocabulary.py, BS327 in test_outside.py, BS323 in tests/rewrite/test_magnitude.py.
    elsewhere = "BS207 BS214 BS218 BS313 BS315 BS316 BS317 BS318 BS320 BS323 BS326 BS327"
    tested = {path.stem for path in DOCUMENTS} | {*elsewhere.split()}
    assert {code for code in registry() if code.startswith(("BS2", "BS3"))} <= tested


def test_a_transform_is_advised_where_no_key_fits():
    """In BERT up and down projections have other widths."""
    model = inspect_model(tiny_model("bert"))
    text = "spec s\ntarget mlp_ups, mlp_downs\nshare x per layer rank 2\n"
    (problem,), _ = answered(text, model)
    assert problem.code == "BS305"
    make_plan(edited(text, problem.edits), model)


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


@pytest.mark.parametrize("key", ["4", "layers // 4", "expert", "adapter", "layer == 3"])
def test_no_transform_is_advised_for_a_key_that_is_not_meant(key):
    problems, _ = problems_of(f"target q_proj, up_proj\nshare s per {key} rank 4")
    problem = next(problem for problem in problems if problem.code == "BS305")
    assert "via" not in problem.help


@pytest.mark.parametrize("share", ["where q_porj", "where layer == 99", "where kind == q_porj"])
def test_twice_as_many_wrong_shares_take_twice_as_many_calls(share):
    """Of the plan and of the advice, without the trials, whose number is limited."""
    model = inspect_model(tiny_model("llama"))
    specs = {}
    for count in (2, 200, 400):
        lines = (f"share s{i} per module rank 2 {share}" for i in range(count))
        specs[count] = parse_spec("\n".join(["spec many", "target q_proj", *lines, ""]))

    def check(count):
        with pytest.raises(BishareError) as error:
            build_plan(specs[count], model)
        advised = advise(error.value.problems, architecture=model, spec=specs[count])
        assert len([problem for problem in advised if problem.help]) == count

    check(2)  # Caches are filled.
    assert calls_of(lambda: check(400)) < 2.2 * calls_of(lambda: check(200))


def test_the_sites_of_a_model_are_read_once_for_all_problems(monkeypatch):
    model = inspect_model(tiny_model("llama"))
    lines = (f"share s{i} per module rank 2 where q_porj" for i in range(20))
    spec = parse_spec("\n".join(["spec many", "target q_proj", *lines, ""]))
    with pytest.raises(BishareError) as error:
        build_plan(spec, model)
    reads = []

    class Counted(Sites):
        def __init__(self, *arguments):
            reads.append(arguments)
            super().__init__(*arguments)

    monkeypatch.setattr("bishare_dsl.advice.question.Sites", Counted)
    advised = advise(error.value.problems, architecture=model, spec=spec)
    assert len([problem for problem in advised if "q_proj" in problem.help]) == 20
    assert len(reads) == 1
