"""`bishare fit`, from folders to a folder."""

import json
import math
import shutil
from functools import partial
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM

from bishare_dsl import loading
from bishare_dsl.convert.export import export_adapter
from bishare_dsl.folder.files import names_in, read_adapter, save_adapter, save_library
from bishare_dsl.models.load import meta_model

TARGET = "target q_proj, k_proj, v_proj, up_proj, down_proj\n"
HEAD = f"spec s\n{TARGET}"
SPEC = "spec small\nparam r = 2\ntarget q_proj, down_proj\nshare a per kind rank r\n"


@pytest.fixture(autouse=True)
def small(here):
    """The folder that one is in has a spec."""
    Path("small.share").write_text(SPEC)


@pytest.fixture
def run(bishare):
    """Runs `bishare fit`."""
    return partial(bishare, "fit")


def test_an_adapter_is_fitted_and_replaced_only_with_force(trained, run):
    trained("lora", r=3)
    words = ("given", "--spec", "small.share", "--set", "r=3", "--out", "new")
    code, out, err = run(*words)
    assert code == 0
    made = read_adapter("new")
    assert [tensor.shape[0] for tensor in made.plan.tensors] == [3] * 4
    head, _, row = out.splitlines()
    assert head.split() == ["adapter", "relative", "error"]
    name, error = row.split()
    assert name == "given"
    assert 10 < float(error.rstrip("%")) < 100  # The spec leaves three kinds of modules out.
    assert f"warning[BS851]: `given` is {error} away" in err
    assert "sweep 1: relative error" in err
    code, _, err = run(*words)
    assert (code, "BS618" in err) == (2, True)
    assert run(*words, "--force")[0] == 0


def test_loras_of_peft_are_fitted_and_each_is_read_once(trained, checkpoint, run, monkeypatch):
    """The first one was read again, and its warnings were printed twice."""
    stored, read, real = trained("lora", r=3), list[str](), loading.read_fitting
    for name in ("one", "two"):
        export_adapter(name, stored.plan, stored.tensors(), meta_model(str(checkpoint)))
    monkeypatch.setattr(loading, "read_fitting", lambda *a: (read.append(str(a[0])), real(*a))[1])
    words = ("--spec", "lora", "--set", "r=3", "--out", "new", "--model", checkpoint)
    code, out, _ = run("one", "two", *words, "--json", "--quiet")
    found = json.loads(out)
    assert (code, read, found["out"]) == (0, ["one", "two"], "new")
    # As in `test_a_lora_is_the_best_there_is`: by how skew A and B come out of the drawn start.
    assert found["error"] < 2e-6
    assert [*found["adapters"]] == ["one", "two"]


@pytest.mark.parametrize(
    ("words", "code"),
    [
        (("nowhere", "--spec", "small.share"), "BS601"),
        (("given", "--spec", "nowhere"), "BS902"),
        (("given", "--spec", "small.share", "--model", "llama-7b"), "BS613"),
        (("given", "--spec", "hydralora"), "BS633"),
    ],
)
def test_what_is_wrong_is_told_and_nothing_is_written(words, code, here, trained, run):
    trained("lora")
    exit_code, _, err = run(*words, "--out", "new")
    assert exit_code in (1, 2)
    assert f"error[{code}" in err
    assert not Path("new").exists()


def test_a_folder_of_adapters_and_a_library_are_all_that_is_in_them(trained, run, bishare):
    for seed in (1, 2):
        trained("lora", name=f"all/c{seed}", seed=seed, r=2)
    Path("all/run.json").write_text("{}")
    Path("l.share").write_text(f"{HEAD}share a  per module, adapter  rank 2\n")
    code, out, _ = run("all", "--spec", "l.share", "--out", "lib", "--json")
    assert (code, [*json.loads(out)["adapters"]]) == (0, ["c1", "c2"])
    code, out, _ = run("lib", "--spec", "l.share", "--out", "again", "--json")
    assert (code, [*json.loads(out)["adapters"]]) == (0, ["c1", "c2"])
    assert json.loads(out)["error"] < 1e-5
    said = bishare("inspect", "lib#c1").out
    assert "each adapter of a library: 1,344 private, 0 shared" in said
    Path("l.share").write_text(f"{HEAD}share a  per module  rank 4  via Loadings(vectors = 9)\n")
    assert run("all", "--spec", "l.share", "--out", "of", "--quiet")[0] == 0
    plan, said = read_adapter("of#c1").plan, bishare("inspect", "of#c1").out
    assert f"each adapter of the library: {plan.private:,} private" in said


CORE = f"{HEAD}share c  A per in  B per out  core per adapter, module  rank 3 via Core\n"


@pytest.fixture
def library(trained):
    """A library of two adapters, an adapter `new` that shares what they share, and the library's files."""
    stored = [trained(CORE, name=name, seed=seed) for seed, name in enumerate(("a", "b", "new"))]
    plan, text = stored[0].plan, stored[0].spec_text
    shared = {name: tensor for name, tensor in stored[0].tensors().items() if name in plan.common}
    a, b, new = (one.tensors() | shared for one in stored)
    save_library("lib", plan, {"a": a, "b": b}, text, seed=0)
    save_adapter("new", plan, new, text, seed=0)
    return {str(path): path.read_bytes() for path in Path("lib").rglob("*.safetensors")}


def test_a_lora_that_a_library_has_not_seen_is_added_to_it(library, run):
    code, out, err = run("new", "--library", "lib", "--json")
    found = json.loads(out)
    assert code == 0
    assert found["error"] < 1e-5
    assert found["out"] == "lib"
    assert names_in("lib") == ("a", "b", "new")
    assert all(Path(name).read_bytes() == content for name, content in library.items())
    stored = read_adapter("lib#new")
    given = read_adapter("new")
    for name, tensor in given.tensors().items():
        torch.testing.assert_close(stored.tensors()[name], tensor, rtol=1e-3, atol=1e-4)
    code, _, err = run("new", "--library", "lib", "--quiet")
    assert (code, "has an adapter `new`" in err) == (2, True)
    assert run("new", "--library", "lib", "--force", "--quiet")[0] == 0
    assert "`#new`" not in err


def test_the_library_is_left_alone_if_another_folder_is_named(library, run):
    Path("lib/start.json").write_text('{"sharpness": 3.0, "correct": 0.5, "examples": 9}')
    code, _, err = run("new", "--library", "lib", "--out", "more")
    assert (code, "saved in more: `more#new`" in err) == (0, True)
    trained_more = run("new", "--library", "more", "--out", "third")
    assert (trained_more[0], "has an adapter `new`" in trained_more[2]) == (2, True)
    assert not Path("third").exists()
    assert (names_in("lib"), names_in("more")) == (("a", "b"), ("a", "b", "new"))
    assert read_adapter("more#new").plan.is_library
    assert "sharpness 3 answers" in Path("more/README.md").read_text()


def test_adapters_that_lie_elsewhere_are_warned_of(library, trained, run):
    for name in ("other", "my lora"):
        trained("lora", name=name, seed=9, r=2)
    code, _, err = run("other", "--library", "lib", "--quiet")
    assert (code, "BS851" in err, "`other` is" in err) == (0, True, True)
    for words, said in (
        (("my lora", "--library", "lib"), "BS638"),
        (("other", "--library", "new"), "`new` is no library"),
        (("other", "--library", "lib#other"), "`lib` is one"),
        *(
            (("other", "--library", "lib", *more), "are for a new library")
            for more in (("--spec", "lora"), ("--set", "r=2"))
        ),
        (("other",), "give --spec and --out, or --library"),
    ):
        code, _, err = run(*words)
        assert (code, said in err) == (1 if "BS638" in err else 2, True), err
        assert names_in("lib") == ("a", "b", "other")


@pytest.mark.parametrize(("factor", "code"), [(1e30, "BS628"), (math.inf, "BS694")])
def test_updates_that_are_not_finite_are_refused(factor, code, here, trained, run):
    stored = trained("lora", r=2)
    tensors = {name: factor * tensor for name, tensor in stored.tensors().items()}
    save_adapter("bad", stored.plan, tensors, stored.spec_text, seed=0)
    answer = run("bad", "--spec", "lora", "--out", "new")
    assert (answer.code, f"error[{code}]" in answer.err) == (1, True), answer.err
    assert not Path("new").exists()


def test_an_adapter_without_an_update_is_infinitely_far_from_a_library_with_one(here, trained, run):
    text = "spec s\ntarget q_proj\nshare all per module rank 2\nshare own where layer == 1 per adapter, module rank 1\n"
    one = trained(text, name="one")
    save_library("lib", one.plan, {"one": one.tensors()}, text, seed=0)
    zero = {name: torch.zeros_like(tensor) for name, tensor in one.tensors().items()}
    save_adapter("zero", one.plan, zero, text, seed=0)
    assert "`zero` is infinitely far away" in run("zero", "--library", "lib")[2]
    _, out, _ = run("zero", "--library", "lib", "--force", "--json")
    found = json.loads(out, parse_constant=pytest.fail)  # JSON has no Infinity.
    assert found["error"] is found["adapters"]["zero"] is None


def test_what_a_fit_leaves_out_is_warned_of(checkpoint, run):
    """Parameters that PEFT trains in full have no low rank."""
    for name, how in {"plain": {}, "head": {"modules_to_save": ["model.norm"]}}.items():
        model = AutoModelForCausalLM.from_pretrained(checkpoint)
        config = LoraConfig(r=2, target_modules=["q_proj"], task_type="CAUSAL_LM", **how)
        get_peft_model(model, config).save_pretrained(name)
        words = ("--spec", "lora", "--out", f"{name}-new", "--model", checkpoint, "--json")
        code, out, _ = run(name, *words)
        problems = {found["code"]: found for found in json.loads(out)["problems"]}
        assert (code, "BS853" in problems) == (0, name == "head"), out
        if name == "head":
            assert "`model.norm.weight` of `head`" in problems["BS853"]["message"]
    shutil.copytree("head", "again")
    _, _, err = run("plain", "head", "again", *words[:3], "all", *words[4:-1])
    assert (err.count("BS853"), "of `head` and 1 more" in err) == (1, True), err


def test_adapters_of_bases_with_other_names_are_warned_of(library, checkpoint, run):
    """Their shapes agree, so nothing else tells."""
    for name in ("one", "two"):
        config = LoraConfig(r=2, target_modules=["q_proj"], task_type="CAUSAL_LM")
        shutil.copytree(checkpoint, f"base-{name}")
        model = AutoModelForCausalLM.from_pretrained(f"base-{name}")
        get_peft_model(model, config).save_pretrained(name)
    into = ("--spec", "lora", "--set", "r=2", "--out")
    for words, warned in (
        (("one", "two", *into, "x"), True),
        (("one", *into, "y"), False),
        (("one", "two", *into, "z", "--model", "base-one"), False),
        (("one", "--library", "lib"), True),
        (("two", "--library", "lib", "--model", "base-two"), False),
        (("new", "--library", "lib"), False),
    ):
        code, _, err = run(*words)
        assert (code, "warning[BS614]" in err) == (0, warned), err
