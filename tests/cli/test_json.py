"""What commands that print texts say with ``--json``."""

import json

import pytest

SPEC = "spec s\n\ntarget q_proj\n\nshare x  per layer  rank 2\n"


@pytest.fixture
def json_of(bishare, here):
    """Runs a command, and gives its one JSON object."""

    def run(*arguments, stdin=b"", code=0):
        found = bishare(*arguments, "--json", stdin=stdin)
        assert found.code == code, found.err
        return json.loads(found.out)

    return run


@pytest.mark.parametrize("words", ["check a.share --nope", "chck a.share"])
def test_mistakes_of_a_command_line(json_of, words):
    (problem,) = json_of(*words.split(), code=2)["problems"]
    assert problem["code"] == "BS901"


def test_fmt(json_of, here):
    (here / "a.share").write_text(SPEC)
    (here / "b.share").write_text("spec s target q_proj share x per layer rank 2")
    files = json_of("fmt", "--check", "a.share", "b.share", code=1)["files"]
    assert files == [{"file": "a.share", "changed": False}, {"file": "b.share", "changed": True}]
    (of_stdin,) = json_of("fmt", "-", stdin=(here / "b.share").read_bytes())["files"]
    assert of_stdin["text"] == SPEC
    assert json_of("fmt", "b.share")["files"] == [{"file": "b.share", "changed": True}]
    assert (here / "b.share").read_text() == SPEC


def test_specs_and_explain(json_of):
    found = {spec["name"]: spec for spec in json_of("specs")["specs"]}
    assert found["lora"]["path"] == json_of("specs", "--path", "lora")["path"]
    models = {model["name"]: model for model in json_of("specs")["models"]}
    assert models["llama-7b"]["layers"] == 32
    assert found["lora"]["about"]
    page = json_of("explain", "bs201")
    assert page["code"] == "BS201"
    assert page["title"] in page["page"]


def test_show_and_compile(json_of, here):
    model = ("--model", "smollm2-135m")
    (here / "a.share").write_text(SPEC)
    assert json_of("show", "a.share", *model, "--out", "a.svg") == {"svg": "a.svg", "problems": []}
    assert json_of("compile", "a.share", "--emit", "spec")["spec"]["name"] == "s"
    plan = json_of("compile", "a.share", *model, "--emit", "plan")["plan"]
    graphs = json_of("compile", "a.share", *model, "--emit", "graph")["graph"]
    assert [graph["after"] for graph in graphs][:2] == ["capture", "ExpandTerms"]
    (code,) = json_of("compile", "a.share", *model, "--emit", "code")["code"]
    assert "def forward" in code["forward"]
    made = json_of("compile", "a.share", *model, "--out", "made")
    assert made["out"] == "made"
    assert made["trainable"] == sum(t["shape"][0] * t["shape"][1] for t in plan["tensors"])
