"""What commands that print texts say with ``--json``."""

import json

import pytest

SPEC = "spec s\n\ntarget q_proj\n\nshare x  per layer  rank 2\n"


@pytest.fixture
def told(bishare, here):
    """Runs a command, and gives its one JSON object."""

    def run(*arguments, stdin=b"", code=0):
        found = bishare(*arguments, "--json", stdin=stdin)
        assert found.code == code, found.err
        return json.loads(found.out)

    return run


def test_fmt(told, here):
    (here / "a.share").write_text(SPEC)
    (here / "b.share").write_text("spec s target q_proj share x per layer rank 2")
    files = told("fmt", "--check", "a.share", "b.share", code=1)["files"]
    assert files == [{"file": "a.share", "changed": False}, {"file": "b.share", "changed": True}]
    (of_b,) = told("fmt", "--diff", "b.share")["files"]
    assert "+target q_proj" in of_b["diff"]
    (of_stdin,) = told("fmt", "-", stdin=(here / "b.share").read_bytes())["files"]
    assert of_stdin["text"] == SPEC
    assert told("fmt", "b.share")["files"] == [{"file": "b.share", "changed": True}]
    assert (here / "b.share").read_text() == SPEC


def test_specs_and_explain(told):
    found = {spec["name"]: spec for spec in told("specs")["specs"]}
    assert found["lora"]["path"] == told("specs", "--path", "lora")["path"]
    assert found["lora"]["about"]
    page = told("explain", "bs201")
    assert page["code"] == "BS201"
    assert page["title"] in page["page"]


def test_show_and_compile(told, here):
    model = ("--model", "smollm2-135m")
    (here / "a.share").write_text(SPEC)
    assert "per layer" in told("show", "a.share", *model)["text"]
    assert told("show", "a.share", *model, "--svg", "a.svg") == {"svg": "a.svg", "problems": []}
    assert told("compile", "a.share", "--emit", "spec")["spec"]["name"] == "s"
    assert "share" in told("compile", "a.share", "--emit", "syntax")["syntax"]
    plan = told("compile", "a.share", *model, "--emit", "plan")["plan"]
    graphs = told("compile", "a.share", *model, "--emit", "graph", "--passes", "ExpandTerms")[
        "graph"
    ]
    assert [graph["after"] for graph in graphs] == ["capture", "ExpandTerms"]
    (code,) = told("compile", "a.share", *model, "--emit", "code")["code"]
    assert "def forward" in code["forward"]
    made = told("compile", "a.share", *model, "--out", "made")
    assert made["out"] == "made"
    assert made["trainable"] == sum(t["shape"][0] * t["shape"][1] for t in plan["tensors"])
