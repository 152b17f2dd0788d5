"""The files of an adapter against a model's modules, and the answers of a model with any update."""

import json
import shutil

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file

from bishare_dsl.models.inspect import inspect_model
from bishare_dsl.models.load import load_model
from bishare_dsl.testing.tokenizer import tiny_tokenizer
from bishare_dsl.verify.judge import ADAPTER, BASE
from bishare_dsl.verify.reference import Pair, Reference, read_contents, ways
from bishare_dsl.verify.server import TEXTS
from tests.support.families import tiny_model
from tests.support.served import (
    CONFIG,
    KINDS,
    LAYERS,
    TENSORS,
    change,
    contents_of,
    save_base,
    save_compiled,
    save_lora,
    without,
)

COUNT = LAYERS * len(KINDS)
LACKS = f"it lacks {{}} of the {COUNT} adapted modules, such as"


@pytest.fixture
def copy(lora, tmp_path):
    return shutil.copytree(lora, tmp_path / "lora")


def test_a_whole_lora_has_no_problem(lora, contents):
    assert (contents.problems, contents.complete) == ([], True)
    assert (len(contents.pairs), str(contents)) == (COUNT, f"{COUNT} modules, rank 4")
    name = "model.layers.1.mlp.up_proj"
    up = load_file(lora / TENSORS)[f"base_model.model.{name}.lora_B.weight"]
    torch.testing.assert_close(contents.pairs[name].up, up)
    assert contents.pairs[name].scale == 2


def renamed(old, new):
    return lambda found: {name.replace(old, new): tensor for name, tensor in found.items()}


def times(factor, *words):
    """Multiply tensors whose names have one of these words."""
    return lambda found: {
        n: t * (factor if any(word in n for word in words) else 1) for n, t in found.items()
    }


def more(name, shape, **of_file):
    return lambda found: found | {f"base_model.model.{name}": torch.ones(shape)}


LAYER = "base_model.model.model.layers.1.self_attn.q_proj.lora_B.weight"


@pytest.mark.parametrize(
    ("tensors", "config", "code", "severity", "said"),
    [
        # vLLM #34186: names of a wrapper, none of which the model has.
        (renamed("model.model.layers", "model.language_model.layers"), {}, "BS613", "error", LACKS.format(COUNT)),
        (renamed("base_model.model.model.layers", "base_model.model.layers"), {}, "BS613", "error", LACKS.format(COUNT)),
        (renamed(".layers.1.", ".layers.31."), {}, "BS613", "error", LACKS.format(len(KINDS))),
        (renamed("mlp.up_proj", "mlp.w3"), {}, "BS613", "error", LACKS.format(LAYERS)),
        (without("layers.0.mlp.up_proj.lora_A"), {}, "BS613", "error", "`model.layers.0.mlp.up_proj` maps 64 features"),
        (lambda found: found | {LAYER: found[LAYER][:-1].contiguous()}, {}, "BS613", "error", "maps 64 features"),
        (more("something", 64), {}, "BS656", "error", "`something` is neither a factor"),
        (more("model.norm.weight", 64), {"modules_to_save": ["norm"]}, "BS865", "warning", "`model.norm.weight`"),
        (more("model.layers.0.mlp.up_proj.base_layer.weight", (2, 2)), {}, "BS865", "warning", "base_layer"),
        (times(0, "up_proj.lora_B"), {}, "BS864", "warning", f"A or B is all zero in {LAYERS} of {COUNT}"),
        (times(0, "lora_B"), {}, "BS864", "error", f"A or B is all zero in {COUNT} of {COUNT}"),
        (times(torch.inf, "q_proj.lora_A"), {}, "BS694", "error", "not finite"),
        (without(".layers.3."), {"target_modules": KINDS}, "BS609", "error", "`model.layers.3."),
        (dict, {"peft_type": "LOHA"}, "BS656", "error", ""),
        (dict, {"alora_invocation_tokens": [1]}, "BS656", "error", ""),
        (dict, {"use_qalora": True}, "BS656", "error", ""),
    ],
)  # fmt: skip
def test_what_is_wrong_with_the_files_is_a_problem(
    base, copy, tensors, config, code, severity, said
):
    change(copy, tensors, **config)
    contents = contents_of(copy, base)
    [problem] = {problem.code: problem for problem in contents.problems}.values()
    assert (problem.code, problem.severity) == (code, severity)
    assert said in problem.message
    assert contents.complete == (code == "BS864")
    assert (str(contents) == "they do not fit") == (severity == "error" and code != "BS864")
    if said.startswith("it lacks"):
        assert "`model.layers." in problem.help


@pytest.mark.parametrize("kind", ["DoRA", "bishare"])
def test_the_pairs_add_what_a_merge_adds(base, tmp_path, kind):
    folder = tmp_path / "adapter"
    (save_compiled if kind == "bishare" else save_lora)(folder, base, **{"use_dora": True} if kind == "DoRA" else {})  # fmt: skip
    if kind == "DoRA":
        shapes = contents_of(folder, base)
        assert (shapes.problems, shapes.complete) == ([], False)
        assert str(shapes) == "no low-rank update, or a DoRA without weights"
    model, _ = load_model(str(base), dtype="float32")
    contents = read_contents(folder, model, inspect_model(model))
    assert (contents.problems, contents.complete) == ([], True)
    expected = PeftModel.from_pretrained(load_model(str(base))[0], folder).merge_and_unload()
    for path, pair in contents.pairs.items():
        weight = model.get_submodule(path).weight.detach()
        given = weight + pair.scale * pair.up @ pair.down
        if pair.changes is not None:
            given = given + pair.changes(weight, given).unsqueeze(1) * given
        torch.testing.assert_close(given, expected.get_submodule(path).weight, rtol=1e-4, atol=1e-5)


def test_the_command_names_and_counts(bishare, base, lora, copy, tmp_path):
    run = bishare("verify", lora, "--model", base)
    assert (run.code, run.err) == (0, "")
    assert run.out == f"files       {COUNT} modules, rank 4\nverdict     fits\n"
    change(copy, renamed("mlp.", "ffn."))
    run = bishare("verify", copy, "--model", base, "--json")
    data = json.loads(run.out)
    assert (run.code, [problem["code"] for problem in data["problems"]]) == (1, ["BS613"])
    assert data["rows"][0]["files"] == "they do not fit"
    assert bishare("verify", "--model", base).code == 2
    assert bishare("verify", tmp_path / "nothing", "--model", base).code == 2
    change(copy, r="many")
    run = bishare("verify", copy, "--model", base)
    assert (run.code, "BS608" in run.err) == (1, True)


def test_many_folders_are_a_table(bishare, base, lora, tmp_path):
    root = tmp_path / "loras"
    for name in ("a", "b", "c", "d"):
        shutil.copytree(lora, root / name)
    change(root / "b", without(".layers.3."), target_modules=KINDS)
    (root / "c" / CONFIG).write_text("{")
    change(root / "d", times(0, "up_proj"))
    run = bishare("verify", root, "--model", base)
    assert run.code == 1
    assert "error[BS869]: the files of 2 of 4 adapters do not fit base" in run.err
    rows = {line.split()[0]: line for line in run.out.splitlines()[2:]}
    assert rows["a"].split() == ["a", "fits"]
    assert all(code in rows[name] for name, code in (("b", "BS609 "), ("c", "BS604 "), ("d", "BS864 ")))  # fmt: skip
    run = bishare("verify", root / "a", root / "d", "--model", base)
    assert (run.code, [line.split()[1] for line in run.out.splitlines()[2:]]) == (0, 2 * ["fits"])


def test_strict_refuses_the_files_of_another_base(bishare, base, lora, tmp_path):
    """Without it nothing is loaded, and so nothing is compared."""
    ours, other = save_compiled(tmp_path / "ours", base), save_base(tmp_path / "other", seed=1)
    for model, how, code in ((base, ["--strict"], 0), (other, ["--strict"], 1), (other, [], 0)):
        run = bishare("verify", ours, "--model", model, *how)
        assert (run.code, "error[BS620]" in run.err) == (code, code == 1), run.err
    run = bishare("verify", ours, "--model", base / "config.json", "--strict")
    assert (run.code, "BS512" in run.err) == (2, True)
    run = bishare("verify", ours, lora, "--model", other, "--strict")
    assert (run.code, "error[BS869]: the files of 1 of 2 adapters" in run.err) == (1, True)
    assert "does not fit" in run.out


@pytest.fixture(scope="module")
def experts():
    """A reference with experts that are one parameter, and an update of each map."""
    model = tiny_model("mixtral").eval()
    reference = Reference(model, tiny_tokenizer(), TEXTS)
    random = torch.Generator().manual_seed(0)
    pairs = {
        path: Pair(*(0.3 * torch.randn(s, generator=random) for s in ((2, m.d_in), (m.d_out, 2))))
        for path, m in reference.maps.items()
        if ".layers." in path
    }
    assert any(m.expert is not None for m in reference.maps.values())
    return reference, pairs


def test_names_of_base_layers_are_of_the_base_unless_they_are_factors(tmp_path):
    """PEFT wraps a module of experts once for each parameter, so that factors have such names too."""
    model = tiny_model("mixtral")
    parameters = ["mlp.experts.gate_up_proj", "mlp.experts.down_proj"]
    config = LoraConfig(r=2, target_modules=["q_proj"], target_parameters=parameters)
    get_peft_model(model, config).save_pretrained(tmp_path)
    change(tmp_path, lambda found: {n: torch.ones_like(t) for n, t in found.items()})
    assert any(".base_layer.lora_A" in name for name in load_file(tmp_path / TENSORS))
    whole = tiny_model("mixtral")
    contents = read_contents(tmp_path, whole, inspect_model(whole))
    assert (contents.problems, contents.complete) == ([], True)


def test_no_update_is_answered_on_the_weights_of_another(experts):
    """The weights of experts are written to, and so must be as before, bit for bit."""
    reference, pairs = experts
    before = {name: tensor.clone() for name, tensor in reference.model.state_dict().items()}
    answers = reference.expect(pairs).answers
    for name, tensor in reference.model.state_dict().items():
        assert torch.equal(tensor, before[name]), name
    for words, update in ways(pairs).items():
        assert (answers[words] == reference.answer(update).numpy()).all(), words
    assert abs(answers[ADAPTER] - answers[BASE]).max() > 1e-3


def test_an_update_of_experts_is_that_of_their_weights(experts):
    reference, pairs = experts
    given = reference.answer(pairs)
    before = {name: tensor.clone() for name, tensor in reference.model.state_dict().items()}
    with torch.no_grad():
        for path, pair in pairs.items():
            reference.maps[path].matrix().add_(pair.scale * pair.up @ pair.down)
        expected = reference.answer({})
        reference.model.load_state_dict(before)
    torch.testing.assert_close(given, expected, rtol=1e-4, atol=1e-4)
