from xml.etree import ElementTree

import pytest

from bishare_dsl.api import plan_spec
from bishare_dsl.folder.files import save_library
from bishare_dsl.initial.values import draw


@pytest.mark.parametrize(
    ("words", "code", "says"),
    [
        ("", 2, "missing option"),
        ("--out s.png", 2, "`s.png` is not SVG: write `--out s.svg`"),
        ("--out nowhere/s.svg", 2, "error[BS904]"),
        ("--set r=0.5 --out s.svg", 1, "error[BS211]"),
    ],
)
def test_what_cannot_be_drawn_is_told_and_nothing_is_written(bishare, here, words, code, says):
    run = bishare("show", "lora", "--model", "llama-7b", *words.split())
    assert (run.code, run.out, says in run.err) == (code, "", True), run.err
    assert not list(here.iterdir())


def test_a_picture_is_written(bishare, here):
    (here / "s.svg").write_text("<svg>old</svg>")
    run = bishare("show", "bishare_ke", "-m", "llama-7b", "--out", "s.svg")
    assert (run.code, run.out, run.err) == (0, "s.svg\n", "")
    assert ElementTree.parse(here / "s.svg").getroot().get("role") == "img"
    assert [path.name for path in here.iterdir()] == ["s.svg"]


def test_an_adapter_is_drawn_and_planned_as_its_spec(bishare, here):
    assert bishare("compile", "bishare_ss", "--model", "smollm2-135m", "--out", "one").code == 0
    for name, arguments in (("one", ()), ("bishare_ss", ("--model", "smollm2-135m"))):
        assert bishare("show", name, *arguments, "--out", f"{name}.svg").code == 0
    assert (here / "one.svg").read_text() == (here / "bishare_ss.svg").read_text()
    plans = [
        bishare("plan", *words).out for words in (("one",), ("bishare_ss", "-m", "smollm2-135m"))
    ]
    assert plans[0] == plans[1]


def test_a_library_and_a_lora_of_peft_are_drawn_and_planned(bishare, here, checkpoint):
    text = "spec s\ntarget q_proj\nshare a A per layer B per adapter, module rank 2\n"
    plan = plan_spec(text, str(checkpoint))
    tensors = draw(plan, 0)
    save_library(here / "lib", plan, {"acme": tensors, "globex": tensors}, text, seed=0)
    assert bishare("compile", "lora", "--model", checkpoint, "--out", "one").code == 0
    words = ("convert", "one", "--model", checkpoint, "--out", "lora")
    assert bishare(*words).code == 0
    for name in ("lib#acme", "lora"):
        run = bishare("show", name, "--out", "a.svg")
        assert (run.code, run.out) == (0, "a.svg\n"), run.err
        plan_of_it = bishare("plan", name)
        assert plan_of_it.code == 0
        assert "on tiny" in plan_of_it.out
        (here / "a.svg").unlink()


def test_the_adapters_of_a_folder_are_counted(bishare, here):
    for name in "ab":
        bishare("compile", "lora", "--model", "smollm2-135m", "--out", f"loras/{name}")
    run = bishare("plan", "--adapters", "loras", "--memory", "80GB")
    assert run.out.startswith("lora on smollm2-135m: 2 adapters;")
    assert bishare("plan", "lora", "--adapters", "many", "-m", "llama-7b").code == 2


def test_what_is_no_picture_is_not_replaced(bishare, here):
    (here / "s.svg").write_text("spec mine")
    run = bishare("show", "lora", "-m", "llama-7b", "--out", "s.svg")
    assert (run.code, "error[BS618]" in run.err) == (2, True)
    assert (here / "s.svg").read_text() == "spec mine"
