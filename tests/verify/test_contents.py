"""The files of an adapter against a model's modules."""

import json
import shutil

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file

from bishare_dsl import compile_spec
from bishare_dsl.models.inspect import inspect_model
from bishare_dsl.models.load import load_model
from bishare_dsl.verify.contents import read_contents
from tests.support.families import tiny_model
from tests.verify.served import (
    CONFIG,
    KINDS,
    LAYERS,
    TENSORS,
    change,
    contents_of,
    save_lora,
    without,
)

COUNT = LAYERS * len(KINDS)


@pytest.fixture
def copy(lora, tmp_path):
    return shutil.copytree(lora, tmp_path / "lora")


def found_in(folder, base):
    contents = contents_of(folder, base)
    return contents, {problem.code: problem for problem in contents.problems}


def test_a_whole_lora_has_no_problem(base, lora, contents):
    assert contents.problems == []
    assert contents.complete
    assert (len(contents.pairs), str(contents)) == (COUNT, f"{COUNT} modules, rank 4")
    name = "model.layers.1.mlp.up_proj"
    tensors = load_file(lora / TENSORS)
    pair = contents.pairs[name]
    torch.testing.assert_close(pair.up, tensors[f"base_model.model.{name}.lora_B.weight"])
    assert pair.scale == 2


NAMES = {
    # vLLM #34186: names of a wrapper, none of which the model has.
    "model.model.layers": ("model.model.language_model.layers", COUNT, "`model.layers."),
    "base_model.model.model.layers": ("base_model.model.layers", COUNT, "`model.layers."),
    ".layers.1.": (".layers.31.", len(KINDS), "`model.layers.1."),
    "mlp.up_proj": ("mlp.w3", LAYERS, ".mlp.up_proj`"),
}


@pytest.mark.parametrize(("old", "how"), NAMES.items(), ids=NAMES)
def test_names_that_the_model_does_not_have(base, copy, old, how):
    new, count, advice = how
    change(copy, lambda found: {n.replace(old, new): t for n, t in found.items()})
    contents, problems = found_in(copy, base)
    assert f"it lacks {count} of the {COUNT} adapted modules, such as" in problems["BS613"].message
    assert advice in problems["BS613"].help
    assert (contents.complete, str(contents)) == (False, "they do not fit")


def one_factor(found):
    found.pop("base_model.model.model.layers.0.mlp.up_proj.lora_A.weight")
    return found


def other_shape(found):
    name = "base_model.model.model.layers.1.self_attn.q_proj.lora_B.weight"
    return found | {name: found[name][:-1].contiguous()}


def no_factor(found):
    return found | {"base_model.model.something": torch.ones(64)}


@pytest.mark.parametrize(
    ("spoil", "code", "module"),
    [
        (one_factor, "BS613", "`model.layers.0.mlp.up_proj` maps 64 features"),
        (other_shape, "BS613", "`model.layers.1.self_attn.q_proj` maps 64 features"),
        (no_factor, "BS656", "`something` is neither a factor"),
    ],
)
def test_what_the_reader_of_exports_refuses_is_a_problem(base, copy, spoil, code, module):
    change(copy, spoil)
    contents, problems = found_in(copy, base)
    assert list(problems) == [code]
    assert module in problems[code].message
    assert not contents.complete


def test_modules_trained_in_full_are_not_judged(base, copy):
    def more(found):
        return found | {"base_model.model.model.norm.weight": torch.ones(64)}

    change(copy, more, modules_to_save=["norm"])
    contents, problems = found_in(copy, base)
    assert (list(problems), problems["BS865"].severity) == (["BS865"], "warning")
    assert "`model.norm.weight`" in problems["BS865"].message
    assert not contents.complete


def test_zeros_and_what_is_no_number(base, copy):
    change(
        copy, lambda found: {n: t * ("lora_A" in n or "up_proj" not in n) for n, t in found.items()}
    )
    problem = found_in(copy, base)[1]["BS864"]
    assert (problem.severity, problem.message.startswith(f"A or B is all zero in {LAYERS} of {COUNT}")) == ("warning", True)  # fmt: skip
    change(copy, lambda found: {n: t * 0 if "lora_B" in n else t for n, t in found.items()})
    assert found_in(copy, base)[1]["BS864"].severity == "error"
    change(copy, lambda found: {n: t / 0 if "q_proj.lora_A" in n else t for n, t in found.items()})
    assert list(found_in(copy, base)[1]) == ["BS694"]


def test_modules_without_tensors(base, copy):
    change(copy, without(".layers.3."), target_modules=KINDS)
    contents, problems = found_in(copy, base)
    assert list(problems) == ["BS609"]
    assert "`model.layers.3." in problems["BS609"].message
    assert not contents.complete


@pytest.mark.parametrize(
    "config", [{"peft_type": "LOHA"}, {"alora_invocation_tokens": [1]}, {"use_qalora": True}]
)
def test_another_method_is_told(base, copy, config):
    change(copy, **config)
    contents, problems = found_in(copy, base)
    assert list(problems) == ["BS656"]
    assert not contents.complete


def merged(folder, base):
    """The weights that an adapter gives, by bishare's merge or PEFT's."""
    from peft import PeftModel

    model, _ = load_model(str(base), dtype="float32")
    adapted = PeftModel.from_pretrained(model, folder)
    return adapted.merge_and_unload()


def test_a_dora_is_read_with_its_magnitude(base, tmp_path):
    folder = save_lora(tmp_path / "dora", base, use_dora=True)
    shapes = contents_of(folder, base)
    assert (shapes.problems, shapes.complete) == ([], False)
    assert str(shapes) == "no low-rank update, or a DoRA without weights"
    model, _ = load_model(str(base), dtype="float32")
    contents = read_contents(folder, model, inspect_model(model))
    assert (contents.problems, contents.complete) == ([], True)
    expected = merged(folder, base)
    for path, pair in contents.pairs.items():
        weight = model.get_submodule(path).weight.detach()
        whole = weight + pair.scale * pair.up @ pair.down
        given = whole + pair.changes(weight, whole).unsqueeze(1) * whole
        torch.testing.assert_close(given, expected.get_submodule(path).weight, rtol=1e-4, atol=1e-5)


def test_an_adapter_of_bishare_adds_what_its_merge_adds(base, tmp_path):
    model, _ = load_model(str(base))
    compile_spec("bishare_ke", model, params={"size": 4})
    with torch.no_grad():
        for tensor in model.bishare.tensors().values():
            tensor.normal_(0, 0.1)
    model.bishare.save_pretrained(tmp_path / "shared")
    contents = contents_of(tmp_path / "shared", base)
    before = {p: model.get_submodule(p).weight.clone() for p in contents.pairs}
    model.bishare.merge()
    for path, pair in contents.pairs.items():
        added = model.get_submodule(path).weight - before[path]
        torch.testing.assert_close(pair.scale * pair.up @ pair.down, added, rtol=1e-4, atol=1e-5)


def test_the_command_names_and_counts(bishare, base, lora, tmp_path):
    run = bishare("verify", lora, "--model", base)
    assert (run.code, run.err) == (0, "")
    assert run.out == f"files     {COUNT} modules, rank 4\nverdict   fits\n"
    wrong = shutil.copytree(lora, tmp_path / "wrong")
    change(wrong, lambda found: {n.replace("mlp.", "ffn."): t for n, t in found.items()})
    run = bishare("verify", wrong, "--model", base, "--json")
    assert run.code == 1
    data = json.loads(run.out)
    assert [problem["code"] for problem in data["problems"]] == ["BS613"]
    assert data["rows"][0]["files"] == "they do not fit"
    assert bishare("verify", "--model", base).code == 2
    assert bishare("verify", tmp_path / "nothing", "--model", base).code == 2
    broken = shutil.copytree(lora, tmp_path / "broken")
    change(broken, r="many")
    run = bishare("verify", broken, "--model", base)
    assert (run.code, "BS608" in run.err) == (1, True)


def test_many_folders_are_a_table(bishare, base, lora, tmp_path):
    root = tmp_path / "loras"
    for name in ("a", "b", "c", "d"):
        shutil.copytree(lora, root / name)
    change(root / "b", without(".layers.3."), target_modules=KINDS)
    (root / "c" / CONFIG).write_text("{")
    change(root / "d", lambda found: {n: t * ("up_proj" not in n) for n, t in found.items()})
    run = bishare("verify", root, "--model", base)
    assert run.code == 1
    assert "error[BS869]: the files of 2 of 4 adapters do not fit base" in run.err
    rows = {line.split()[0]: line for line in run.out.splitlines()[2:]}
    assert rows["a"].split() == ["a", "fits"]
    assert "BS609 " in rows["b"]
    assert "BS604 " in rows["c"]
    assert "BS864 " in rows["d"]
    run = bishare("verify", root / "a", root / "d", "--model", base)
    assert (run.code, [line.split()[1] for line in run.out.splitlines()[2:]]) == (0, 2 * ["fits"])


def test_names_of_base_layers_are_of_the_base_unless_they_are_factors(base, copy, tmp_path):
    """PEFT wraps a module of experts once for each parameter, so that factors have such names too."""
    model = tiny_model("mixtral")
    parameters = ["mlp.experts.gate_up_proj", "mlp.experts.down_proj"]
    config = LoraConfig(r=2, target_modules=["q_proj"], target_parameters=parameters)
    get_peft_model(model, config).save_pretrained(tmp_path / "experts")
    change(tmp_path / "experts", lambda found: {n: torch.ones_like(t) for n, t in found.items()})
    assert any(".base_layer.lora_A" in name for name in load_file(tmp_path / "experts" / TENSORS))
    whole = tiny_model("mixtral")
    contents = read_contents(tmp_path / "experts", whole, inspect_model(whole))
    assert (contents.problems, contents.complete) == ([], True)

    def table(found):
        name = "base_model.model.model.layers.0.mlp.up_proj.base_layer.weight"
        return found | {name: torch.ones(2, 2)}

    change(copy, table)
    contents, problems = found_in(copy, base)
    assert ([*problems], contents.complete) == (["BS865"], False)
