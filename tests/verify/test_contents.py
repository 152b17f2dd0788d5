"""The files of an adapter against a model's modules, and what engines do not take."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file

from bishare_dsl import compile_spec
from bishare_dsl.diagnostics import AdapterError
from bishare_dsl.models.load import load_model, meta_model
from bishare_dsl.verify import ENGINES
from bishare_dsl.verify.contents import read_contents
from bishare_dsl.verify.engines import TESTS, engine_problems, facts
from tests.verify.served import CONFIG, KINDS, LAYERS, TENSORS, change

COUNT = LAYERS * len(KINDS)


@pytest.fixture
def copy(lora, tmp_path):
    return shutil.copytree(lora, tmp_path / "lora")


def found_in(folder, base):
    contents = read_contents(folder, meta_model(str(base)), "base")
    return contents, {problem.code: problem for problem in contents.problems}


def test_a_whole_lora_has_no_problem(base, lora, contents):
    assert contents.problems == []
    assert contents.complete
    assert (len(contents.named), contents.ranks) == (COUNT, [4])
    name = "model.layers.1.mlp.up_proj"
    tensors = load_file(lora / TENSORS)
    pair = contents.pairs[name]
    torch.testing.assert_close(pair.up, tensors[f"base_model.model.{name}.lora_B.weight"])
    assert pair.scale == 2


@pytest.mark.parametrize(
    ("old", "new", "count", "advice"),
    [
        # vLLM #34186: names of a wrapper, none of which the model has.
        ("model.model.layers", "model.model.language_model.layers", COUNT, "`model.language_model.` -> `model.`"),
        ("model.model.layers", "model.layers", COUNT, "`` is `model.` there"),
        (".layers.1.", ".layers.31.", len(KINDS), "the model has layers 0 to 3"),
        ("mlp.up_proj", "feed_forward.up_proj", LAYERS, "`model.layers.0.feed_forward.` -> `model.layers.0.mlp.`"),
        ("up_proj", "w3", LAYERS, "`up_proj`"),
    ],
)  # fmt: skip
def test_names_that_the_model_does_not_have(base, copy, old, new, count, advice):
    change(copy, lambda found: {n.replace(old, new): t for n, t in found.items()})
    contents, problems = found_in(copy, base)
    problem = problems["BS861"]
    assert problem.message.startswith(f"{count} of {COUNT} modules of the adapter are not in base")
    assert problem.severity == "error"
    assert len(contents.pairs) == COUNT - count
    ours, _, theirs = advice.partition(" -> ")
    help = problem.help.replace("*", "")
    assert (f"{ours} is {theirs} there" if theirs else ours) in help


def test_one_factor_a_shape_and_no_factor(base, copy):
    def spoil(found):
        found.pop("base_model.model.model.layers.0.mlp.up_proj.lora_A.weight")
        name = "base_model.model.model.layers.1.self_attn.q_proj.lora_B.weight"
        found[name] = found[name][:-1].contiguous()
        found["base_model.model.model.norm.weight"] = torch.ones(64)
        return found

    change(copy, spoil)
    contents, problems = found_in(copy, base)
    assert problems["BS862"].message == (
        f"1 of {COUNT} modules have only one of A and B: `model.layers.0.mlp.up_proj` first"
    )
    assert "`model.layers.1.self_attn.q_proj` first" in problems["BS863"].message
    assert (problems["BS865"].severity, "model.norm.weight" in problems["BS865"].message) == ("warning", True)  # fmt: skip
    assert len(contents.pairs) == COUNT - 2
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
    assert (
        f"{LAYERS} modules have values that are not finite"
        in found_in(copy, base)[1]["BS694"].message
    )


def test_another_method_is_told_and_its_names_are_compared(base, copy):
    change(copy, use_dora=True)
    contents, problems = found_in(copy, base)
    assert "`use_dora`" in problems["BS867"].message
    assert (contents.complete, len(contents.pairs)) == (False, COUNT)


def test_a_magnitude_is_refused(base, tmp_path):
    model, _ = load_model(str(base))
    compile_spec("dora", model).bishare.save_pretrained(tmp_path / "dora")
    with pytest.raises(AdapterError, match=r"BS675.*verify"):
        found_in(tmp_path / "dora", base)


def test_an_adapter_of_bishare_adds_what_its_merge_adds(base, tmp_path):
    model, _ = load_model(str(base))
    compile_spec("bishare_ke", model, params={"size": 4})
    with torch.no_grad():
        for tensor in model.bishare.tensors().values():
            tensor.normal_(0, 0.1)
    model.bishare.save_pretrained(tmp_path / "shared")
    contents = read_contents(tmp_path / "shared", meta_model(str(base)), "base")
    before = {p: model.get_submodule(p).weight.clone() for p in contents.pairs}
    model.bishare.merge()
    for path, pair in contents.pairs.items():
        added = model.get_submodule(path).weight - before[path]
        torch.testing.assert_close(pair.scale * pair.up @ pair.down, added, rtol=1e-4, atol=1e-5)
    assert contents.config is None
    assert [p.code for p in engine_problems(contents, "mlx")] == ["BS868"]
    assert [*engine_problems(contents, "vllm")] == []


@pytest.mark.parametrize("row", facts(), ids=lambda row: f"{row['engine']}-{row['when']}")
def test_every_fact_has_a_test_a_source_and_something_to_do(row):
    assert row["engine"] in ENGINES
    assert row["when"] in TESTS
    assert row["does"] in ("refuses", "ignores", "misreads")
    assert row["source"] and row["help"] and row["what"]  # noqa: PT018


def test_the_command_names_and_counts(bishare, base, lora, tmp_path):
    run = bishare("verify", lora, "--model", base, "--for", "vllm")
    assert (run.code, run.err) == (0, "")
    assert run.out == f"files     {COUNT} modules, rank 4\nverdict   the files fit the model\n"
    wrong = shutil.copytree(lora, tmp_path / "wrong")
    change(wrong, lambda found: {n.replace("mlp.", "ffn."): t for n, t in found.items()})
    run = bishare("verify", wrong, "--model", base, "--json")
    assert run.code == 1
    data = json.loads(run.out)
    assert [problem["code"] for problem in data["problems"]] == ["BS861"]
    assert data["modules"] == COUNT
    assert bishare("verify", lora, "--model", base, "--copies").code == 2
    assert bishare("verify", tmp_path / "nothing", "--model", base).code == 2
    config = json.loads((wrong / CONFIG).read_text())
    (wrong / CONFIG).write_text(json.dumps(config | {"r": "many"}))
    run = bishare("verify", wrong, "--model", base)
    assert (run.code, "BS608" in run.err) == (1, True)
