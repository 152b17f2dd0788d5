import json
import os
from contextlib import suppress

import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

import bishare_dsl
from bishare_dsl import compile_spec, load_adapter, parse_spec, plan_spec
from bishare_dsl.diagnostics import AdapterError
from bishare_dsl.diagnostics.codes import registry
from bishare_dsl.folder.config import attribute_in, record_digest
from bishare_dsl.folder.contents import base_problems, digest_of, entries_in
from bishare_dsl.folder.files import CONFIG, TENSORS, read_adapter, save_adapter
from bishare_dsl.initial.values import draw
from bishare_dsl.language import read_file, spec_text
from bishare_dsl.models import preset
from bishare_dsl.resources import find_spec
from tests.support.families import tiny_model
from tests.support.reach import out_of_reach

TEXT = "spec s target q_proj, k_proj share x per layer rank 2 via SS share y per module rank 1"


def saved(folder, seed=0):
    plan = plan_spec(parse_spec(TEXT), tiny_model("llama"))
    save_adapter(folder, plan, draw(plan, seed), TEXT, seed=seed)
    return folder


@pytest.fixture
def folder(tmp_path):
    return saved(tmp_path / "adapter")


def config_of(folder):
    return json.loads((folder / CONFIG).read_text())


def reseal(folder, spec=None, **fields):
    """Make the config agree with the tensors again, and with `spec` and `fields`."""
    config = config_of(folder)
    record = config["bishare"] | fields
    if "tensors" not in fields:
        with suppress(SafetensorError):
            record["tensors"] = digest_of(entries_in((folder / TENSORS).read_bytes()))
    config |= {"spec": config["spec"] if spec is None else spec}
    record["digest"] = record_digest(config["spec"], config["seed"], record)
    (folder / CONFIG).write_text(json.dumps(config | {"bishare": record}))


def edit_tensors(folder, edit):
    """Edit the tensors by their names, which need no prefix to be read."""
    tensors = {attribute_in(key): t for key, t in load_file(folder / TENSORS).items()}
    edit(tensors)
    save_file(tensors, folder / TENSORS)
    reseal(folder)


def refused(folder, code, *words):
    """Reading fails with this code, and loading leaves the model as it was."""
    assert code in registry()
    model = tiny_model("llama")
    before = dict(model.named_parameters())
    with pytest.raises(AdapterError) as caught:
        load_adapter(folder, model)
    assert not hasattr(model, "bishare")
    assert dict(model.named_parameters()).keys() == before.keys()
    assert all(parameter.requires_grad for parameter in before.values())
    assert {problem.code for problem in caught.value.problems} == {code}
    for word in words:
        assert word in str(caught.value)
    return caught.value


def test_what_was_saved_is_read_and_what_is_alike_stands_together_and_once(folder):
    plan = plan_spec(parse_spec(TEXT), tiny_model("llama"))
    stored = read_adapter(folder)
    assert stored.plan == plan
    assert stored.spec_text == TEXT
    assert (stored.config.seed, stored.config.versions) == (0, {"bishare": bishare_dsl.__version__})
    want = draw(plan, 0)
    found = stored.tensors()
    assert found.keys() == want.keys()
    assert all(torch.equal(found[name], want[name]) for name in want)
    tensors = load_file(folder / "adapter_model.safetensors")
    assert tensors["base_model.model.bishare_tensors.x__A__2x32"].shape == (2, 2, 32)
    kinds = {(t.share, t.name.rpartition(".")[2], t.shape) for t in plan.tensors}
    assert len(tensors) == len(kinds) < len(plan.tensors)
    assert sum(t.numel() for t in tensors.values()) == plan.trainable


def test_the_folder_is_small_at_135m(tmp_path):
    spec = read_file(find_spec("bishare_ke"))[0].with_params({"size": 64})
    plan = plan_spec(spec, preset("smollm2-135m"))
    tensors = draw(plan, 0)
    save_adapter(tmp_path / "whole", plan, tensors, spec_text(spec), seed=0)
    save_adapter(tmp_path / "half", plan, tensors, spec_text(spec), seed=0, dtype="bfloat16")
    size = {f: sum(p.stat().st_size for p in (tmp_path / f).iterdir()) for f in ("whole", "half")}
    assert size["whole"] <= 1.05 * 4 * plan.trainable
    assert size["whole"] - size["half"] == pytest.approx(2 * plan.trainable, rel=0.001)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_tensors_keep_their_type(tmp_path, dtype):
    plan = plan_spec(parse_spec(TEXT), tiny_model("llama"))
    tensors = {name: t.to(dtype) for name, t in draw(plan, 0).items()}
    save_adapter(tmp_path, plan, tensors, TEXT, seed=0)
    found = read_adapter(tmp_path).tensors()
    assert all(torch.equal(found[name], tensors[name]) for name in tensors)
    assert {t.dtype for t in found.values()} == {dtype}


# What is wrong with a folder ----------------------------------------------------------------------


def test_not_an_adapter(tmp_path):
    refused(tmp_path, "BS602", "adapter_config.json")


@pytest.mark.parametrize("part", ["sites", "outside", "others", "left_out"])
@pytest.mark.parametrize("value", [-1, [1], {"blocks": 1}])
def test_a_base_with_something_else_in_it(folder, part, value):
    base = config_of(folder)["bishare"]["base"]
    reseal(folder, base={**base, part: [*base.get(part, []), value]})
    refused(folder, "BS604")


def test_a_transform_that_is_not_installed(folder):
    reseal(folder, TEXT.replace("via SS", "via ZZ"))
    error = refused(folder, "BS619", "`ZZ`", "import what registers it first")
    assert len(error.problems) == 1
    reseal(folder, packages={"ZZ": "zz-package 1.2"})
    refused(folder, "BS619", "install what it was saved with: zz-package 1.2")


def test_a_tensor_of_another_type(folder):
    zeros = torch.zeros(2, 2, 32, dtype=torch.int64)
    edit_tensors(folder, lambda tensors: tensors.update({"x__A__2x32": zeros}))
    refused(folder, "BS612", "x.A.2x32", "I64")


def test_everything_that_is_wrong_with_the_tensors_is_said_at_once(folder):
    def edit(tensors):
        tensors["other"] = tensors.pop("x__A__2x32")
        tensors["x__B__2x40"] = torch.zeros(1, 1)

    edit_tensors(folder, edit)
    with pytest.raises(AdapterError) as caught:
        read_adapter(folder)
    assert [p.code for p in caught.value.problems] == ["BS609", "BS611", "BS610"]


def test_a_base_that_was_edited(folder):
    base = config_of(folder)["bishare"]["base"]
    [run] = base["sites"]
    for edit, code in (
        ({"count": 1}, "BS661"),
        ({"count": 10**12}, "BS604"),
        ({"linears": [["self_attn.q_proj", [32, 0]]]}, "BS604"),
        ({"linears": [["up", [1, 1]]]}, "BS608"),
    ):
        reseal(folder, base=base | {"sites": [run | edit]})
        refused(folder, code)


def test_every_flipped_bit_of_the_config_is_noticed(folder):
    """But for what the base is called, and those that mean the same: a space that is another space."""
    path = folder / "adapter_config.json"
    content = path.read_bytes()
    config = read_adapter(folder).config.model_dump()
    for place in range(0, len(content), 7):
        path.write_bytes(
            content[:place] + bytes([content[place] ^ 1 << place % 8]) + content[place + 1 :]
        )
        try:
            found = read_adapter(folder).config.model_dump()
            assert found == config | {"base_model": found["base_model"]}
        except AdapterError:
            continue


def test_an_adapter_that_would_fill_the_memory(folder):
    text = f"spec s target q_proj share x per layer rank {10**8} freeze A"
    plan = plan_spec(parse_spec(text), tiny_model("llama"))
    [problem] = base_problems(plan, plan.base)
    assert (problem.code, "and the adapter 14,400,000,000" in problem.message) == ("BS613", True)
    # `diff` knows no other base than the config's; what the seed gives is in no file.
    for more in ("freeze A", ""):
        text = f"spec s target q_proj share x per layer rank {10**8} {more}"
        plan = plan_spec(parse_spec(text), tiny_model("llama"))
        reseal(folder, text, plan=plan.digest)
        with pytest.raises(
            AdapterError, match=r"BS608.*numbers in memory, and may take 2,147,483,648"
        ):
            read_adapter(folder)


def test_values_that_are_not_finite_are_told(folder):
    model = load_adapter(folder, tiny_model("llama"))
    with torch.no_grad():
        model.bishare.tensors()["x.layer_0.A"][0, 0] = torch.nan
    with pytest.warns(UserWarning, match=r"BS660.*1 of.*x.layer_0.A"):
        model.bishare.save_pretrained(folder)
    with pytest.raises(AdapterError, match=r"BS694.*adapter`.*1 of.*x__A"):
        read_adapter(folder).tensors()
    with pytest.raises(AdapterError, match="BS694"):
        load_adapter(folder, tiny_model("llama"))


# In half the size ---------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["bfloat16", torch.bfloat16])
def test_bfloat16(tmp_path, dtype):
    model = compile_spec(parse_spec(TEXT + " freeze A"), tiny_model("llama"))
    model.bishare.save_pretrained(tmp_path, dtype=dtype)
    before, after = model.bishare.tensors(), read_adapter(tmp_path).tensors()
    stored = load_file(tmp_path / "adapter_model.safetensors")
    assert stored.pop("base_model.model.bishare_tensors.seed_0").numel() == 0
    assert {tensor.dtype for tensor in stored.values()} == {torch.bfloat16}
    assert len(stored) < len(after)
    for name, tensor in before.items():
        want = tensor.bfloat16().float() if tensor.requires_grad else tensor
        assert torch.equal(after[name], want)
        assert after[name].dtype == torch.float32
    wrong = {
        "valid here: `bfloat16`": ("dtype", "bf16"),
        "valid here: `bfloat16`, `float32`": ("dtype", "int4"),
        "int16": ("dtype", torch.int16),
        "did you mean `seed`": ("frozen", "seeds"),
        "valid here: `base`, `seed`, `tensors`": ("frozen", None),
    }
    for said, (option, value) in wrong.items():
        with pytest.raises(AdapterError, match=f"BS662.*`{option}=(?s:.*){said}"):
            model.bishare.save_pretrained(tmp_path, **{option: value})


# Format 1 -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("sizes", "words"),
    [
        ({"hidden_size": 64}, "32 to 40 in the adapter's base"),
        ({"num_hidden_layers": 1}, "no linear layer `model.layers.1"),
        ({"num_hidden_layers": 3}, "3 layers"),
    ],
)
def test_another_base(folder, sizes, words):
    model = tiny_model("llama", **sizes)
    with pytest.raises(AdapterError, match="BS613") as caught:
        load_adapter(folder, model)
    assert words in str(caught.value)
    assert not hasattr(model, "bishare")


# Saving -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [TENSORS, CONFIG])
def test_a_foreign_file_is_not_overwritten(tmp_path, name):
    (tmp_path / name).write_text("mine")
    with pytest.raises(AdapterError, match="BS615"):
        saved(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == [name]
    assert (tmp_path / name).read_text() == "mine"


@pytest.mark.parametrize("broken", [False, True])
def test_an_adapter_is_replaced_if_it_is_broken_too_and_other_files_are_left_alone(folder, broken):
    """But for what a killed writer had begun (G39): its name began with two dots, and no later writer found it."""
    (folder / "optimizer.pt").write_text("mine")
    (folder / "..adapter_config.json.01234567.new.89abcdef.new").touch()
    if broken:
        (folder / "adapter_config.json").write_text("{")
    saved(folder, seed=1)
    assert (folder / "optimizer.pt").read_text() == "mine"
    assert not [*folder.glob(".*.new")]
    assert read_adapter(folder).config.seed == 1


def test_tensors_without_values_are_refused(tmp_path):
    with torch.device("meta"):
        model = tiny_model("llama")
    compile_spec(parse_spec(TEXT), model)
    with pytest.raises(AdapterError, match=r"BS617.*meta"):
        model.bishare.save_pretrained(tmp_path)
    assert not list(tmp_path.iterdir())


def test_what_was_read_is_what_is_loaded(folder):
    stored = read_adapter(folder)
    before = stored.tensors()
    saved(folder, 1)  # Another adapter, before the values are asked for.
    after = stored.tensors()
    assert (stored.config.seed, stored.config.versions) == (0, {"bishare": bishare_dsl.__version__})
    assert all(torch.equal(before[name], after[name]) for name in before)


@pytest.mark.skipif(os.name == "nt", reason="permissions of POSIX")
def test_a_folder_that_is_out_of_reach_is_an_error_with_a_code(folder):
    model, said = tiny_model("llama"), r"BS60\d.*Permission denied"
    load_adapter(folder, tiny_model("llama"))
    with out_of_reach(folder.parent), pytest.raises(AdapterError, match=said):
        load_adapter(folder, model)


def test_one_flipped_bit_is_not_said_to_be_of_another_config(folder):
    content = bytearray((folder / TENSORS).read_bytes())
    content[-1] ^= 1
    (folder / TENSORS).write_bytes(content)
    refused(folder, "BS607", "its bytes differ from those that were saved")
