"""Adapters in 8 and 4 bits: what is lost is small and said, and what is damaged is refused."""

import errno
import os
import re
import shlex
import shutil
import warnings

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from peft import PeftModel, get_peft_model_state_dict, set_peft_model_state_dict
from safetensors.torch import load_file

from bishare_dsl import compile_spec, load_adapter
from bishare_dsl.cli.main import main
from bishare_dsl.convert.effective import delta
from bishare_dsl.diagnostics import AdapterError, BishareWarning
from bishare_dsl.folder.files import (
    CONFIG,
    TENSORS,
    add_to_library,
    names_in,
    read_adapter,
    save_library,
)
from bishare_dsl.folder.stored import dequantise, quantise
from bishare_dsl.plan import Tensor
from bishare_dsl.plan.bits import BITS, GROUP, SCALES, file_bytes
from tests.folder.test_sharing import HERE, altered
from tests.support.checks import randomize
from tests.support.families import tiny_model

TEXT = """spec q
target q_proj, down_proj
share a per layer rank 4 via KE(size = 16) gain out init 1
share b per module rank 2
"""
BANK = "spec v\ntarget q_proj\nshare s per model rank 2 via VectorBank(vectors = 12, length = 8, top_k = 3) start nonzero\n"
SHARDS = "spec m\ntarget q_proj\nshare s per kind rank 6 via Shards(rows = 3, shards = 4)\n"
LIBRARY = "spec l\ntarget q_proj\nshare s A per module B per adapter, module rank 3\n"
IDS = torch.arange(12).view(2, 6)
MOST = {"int8": 127, "int4": 7}


def adapted(text=TEXT):
    model = compile_spec(text, tiny_model("llama")).eval()
    randomize(model, 1, frozen=False)
    return model


def saved(folder, form, text=TEXT, **how):
    """Save an adapter, and return its model with what was said."""
    model = adapted(text)
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always", BishareWarning)
        model.bishare.save_pretrained(folder, dtype=form, **how)
    return model, "\n".join(str(warning.message) for warning in told)


@given(
    rows=st.integers(1, 5),
    columns=st.integers(1, 150),
    scale=st.sampled_from([1e-30, 1e-6, 1.0, 1e6, 1e30]),
    form=st.sampled_from([*BITS]),
    seed=st.integers(0, 99),
)
def test_each_number_is_as_near_as_its_group_allows(rows, columns, scale, form, seed):
    values = scale * torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed))
    how = {"name": "t", "share": "s", "init": "zeros", "fan_in": 1, "owner": ""}
    tensor = Tensor(shape=(rows, columns), **how)
    parts = quantise(values, form)
    again = dequantise(tensor, form, parts[form], parts[SCALES])
    largest = values.flatten().abs()
    for i, group in enumerate((again - values).flatten().abs().split(GROUP)):
        step = largest[i * GROUP : (i + 1) * GROUP].max() / MOST[form]
        assert group.max() <= 0.51 * step + MOST[form] * step * 2**-8
    twice = quantise(again, form)
    assert all(torch.equal(parts[label], twice[label]) for label in parts)
    none = quantise(torch.zeros(rows, columns), form)
    assert not dequantise(tensor, form, none[form], none[SCALES]).any()


@pytest.mark.parametrize(("form", "bits"), [("int8", 8.3), (torch.int8, 8.3), ("int4", 4.3)])
def test_what_is_saved_is_small_and_what_is_lost_is_said(form, bits, tmp_path):
    model, told = saved(tmp_path / "q", form)
    name = str(form).removeprefix("torch.")
    stored = read_adapter(tmp_path / "q")
    before, after = model.bishare.tensors(), stored.tensors()
    assert stored.config.rounded == name
    tensors = load_file(tmp_path / "q" / TENSORS)
    quantised = [tensor for key, tensor in tensors.items() if key.endswith(f":{name}")]
    size = {n: stored.plan.tensor[n].size for n in stored.config.ways(name)}
    stays = {n for n, t in stored.plan.tensor.items() if t.size < GROUP}
    assert stored.plan.tensor.keys() - size.keys() == stays != set()
    assert sum(map(len, quantised)) == len(size) > 5
    parts = [tensor for key, tensor in tensors.items() if ":" in key]
    assert 8 * sum(p.numel() * p.element_size() for p in parts) / sum(size.values()) < 1.1 * bits
    counted = sum(p.numel() * p.element_size() for p in tensors.values())
    assert counted == file_bytes(stored.plan)[name]
    for key, value in after.items():
        assert value.dtype == torch.float32
        if key in stays:
            assert torch.equal(value, before[key].bfloat16().float())
    for site in stored.plan.sites:
        was, now = (delta(stored.plan, values, site) for values in (before, after))
        assert 0 < (now - was).norm() / was.norm() < (0.02 if name == "int8" else 0.25)
    total = sum(tensor.size for tensor in stored.plan.tensors)
    assert f"{name} takes {8 * counted / total:.3g} bits a number" in told
    assert "BS690" in told


@pytest.mark.parametrize("form", BITS)
@pytest.mark.filterwarnings("ignore::bishare_dsl.diagnostics.BishareWarning")
def test_it_loads_trains_and_is_saved_again_through_every_door(form, tmp_path):
    saved(tmp_path / "q", form)
    ours = load_adapter(tmp_path / "q", tiny_model("llama"))
    wanted = ours.eval()(IDS).logits
    theirs = PeftModel.from_pretrained(tiny_model("llama"), str(tmp_path / "q"), is_trainable=True)
    assert torch.equal(theirs.eval()(IDS).logits, wanted)
    theirs.save_pretrained(str(tmp_path / "again"))
    for file in (TENSORS, CONFIG):
        assert (tmp_path / "q" / file).read_bytes() == (tmp_path / "again" / file).read_bytes()
    wanted_tensors = {n: t.clone() for n, t in theirs.base_model.model.bishare.tensors().items()}
    set_peft_model_state_dict(theirs, get_peft_model_state_dict(theirs))  # G2b
    for name, tensor in theirs.base_model.model.bishare.tensors().items():
        assert torch.equal(tensor, wanted_tensors[name])
    theirs.load_adapter(str(tmp_path / "q"), "lean", low_cpu_mem_usage=True)
    theirs.set_adapter("lean")
    assert torch.equal(theirs(IDS).logits, wanted)
    base = tiny_model("llama").eval()
    base.load_adapter(str(tmp_path / "q"))
    assert torch.equal(base(IDS).logits, wanted)
    theirs.set_adapter("default")
    theirs.train()(IDS).logits.sum().backward()
    with torch.no_grad():
        for parameter in theirs.parameters():
            if parameter.requires_grad:
                parameter -= 0.01 * parameter.grad
    wanted = theirs.eval()(IDS).logits
    theirs.save_pretrained(str(tmp_path / "trained"), selected_adapters=["default"])
    assert read_adapter(tmp_path / "trained").config.rounded is None  # With all bits.
    assert torch.equal(
        load_adapter(tmp_path / "trained", tiny_model("llama")).eval()(IDS).logits, wanted
    )


@pytest.mark.parametrize("form", BITS)
@pytest.mark.parametrize(
    ("text", "how"), [(BANK, {}), (SHARDS, {"frozen": "tensors"})], ids=["bank", "shards"]
)
@pytest.mark.filterwarnings("ignore::bishare_dsl.diagnostics.BishareWarning")
def test_what_is_selected_stays(form, text, how, tmp_path):
    model, _ = saved(tmp_path / "q", form, text, **how)
    stored = read_adapter(tmp_path / "q")
    before, after = model.bishare.tensors(), stored.tensors()
    chosen = [n for n in before if n.rpartition(".")[2] in ("L_A", "L_B", "I_A", "I_B")]
    assert chosen
    for name in chosen:
        assert torch.equal(after[name], before[name])
    assert stored.config.ways(form)


def cut(e, t, part, columns):
    t[e[part]] = t[e[part]][:, columns].clone()


def cast(e, t, part, dtype):
    t[e[part]] = t[e[part]].to(dtype)


def overflow(e, t):
    t[e["scales"]] = torch.full(t[e["scales"]].shape, 3e38)


DAMAGES = {
    "a number that int4 lacks": (lambda e, t: t[e["int4"]][0].__setitem__(3, 0), "BS608", "are not int4"),
    "half a byte too many": (lambda e, t: t[e["int4"]][0].__setitem__(-1, 255), "BS608", "are not int4"),
    "a byte too few": (lambda e, t: cut(e, t, "int4", slice(-1)), "BS611", "int4"),
    "another type": (lambda e, t: cast(e, t, "int4", torch.float32), "BS612", "int4` is F32"),
    "a scale too few": (lambda e, t: cut(e, t, "scales", slice(1, None)), "BS611", "scales"),
    "no number": (lambda e, t: t[e["scales"]].fill_(float("nan")), "BS694", "not finite"),
    "scales whose multiples overflow": (overflow, "BS608", "too large"),
    "scales of 64 bits": (lambda e, t: cast(e, t, "scales", torch.float64), "BS612", "scales` is F64"),
    "no scales": (lambda e, t: t.pop(e["scales"]), "BS609", "is missing"),
    "no word": (lambda e, t: (t.pop(e["scales"]), e.pop("scales")), "BS607", "`sharing`"),
    "two words": (lambda e, t: e.update(key=e["int4"]), "BS607", "`sharing`"),
}  # fmt: skip


@pytest.mark.parametrize("damage", DAMAGES)
def test_what_is_damaged_is_refused_at_every_door(damage, tmp_path):
    edit, code, reason = DAMAGES[damage]
    folder = altered(HERE / "int4", tmp_path / "it", lambda s, t: edit(s["tensors"][0], t))
    doors = (
        lambda: load_adapter(folder, tiny_model("llama")),
        lambda: PeftModel.from_pretrained(tiny_model("llama"), str(folder)),
        lambda: tiny_model("llama").load_adapter(str(folder)),
    )
    for door in doors:
        with pytest.raises(AdapterError, match=rf"(?s){code}.*{reason}"):
            door()


def test_a_library_is_quantised_and_grows(tmp_path):
    handle = adapted(LIBRARY).bishare
    plan, first = handle.plan, dict(handle.tensors())
    second = {n: t if n in plan.common else t + 1 for n, t in first.items()}
    problems = save_library(
        tmp_path / "lib", plan, {"one": first, "two": second}, LIBRARY, seed=0, dtype="int4"
    )
    assert [problem.code for problem in problems] == ["BS690"]
    problems = add_to_library(tmp_path / "lib", {"three": second})
    assert [problem.code for problem in problems] == ["BS690"]
    two, three = (read_adapter(f"{tmp_path / 'lib'}#{name}").tensors() for name in ("two", "three"))
    assert all(torch.equal(two[name], three[name]) for name in two)
    assert all(key.endswith((":int4", ":scales")) for key in load_file(tmp_path / "lib" / TENSORS))


def save_one(library, **how):
    """Save a library of one adapter; return its plan and the adapter's values."""
    handle = adapted(LIBRARY).bishare
    plan, values = handle.plan, dict(handle.tensors())
    save_library(library, plan, {"one": values}, LIBRARY, seed=0, **how)
    return plan, values


def test_nothing_is_added_to_a_library_that_could_not_be_read(tmp_path, monkeypatch):
    """Its config says which tensors are quantised, and a later version may choose others."""
    _, values = save_one(tmp_path / "lib", dtype="int4")
    monkeypatch.setattr("bishare_dsl.folder.stored.quantisable", lambda plan: set())
    with pytest.raises(AdapterError, match=r"BS609(.|\n)*BS610"):
        add_to_library(tmp_path / "lib", {"two": values})
    assert [path.name for path in (tmp_path / "lib" / "adapters").iterdir()] == ["one.safetensors"]
    assert names_in(tmp_path / "lib") == ("one",)


def test_a_library_is_not_copied_into_itself_and_a_copy_that_fails_says_why(tmp_path, monkeypatch):
    library = tmp_path / "lib"
    plan, values = save_one(library)
    for write in (
        lambda: add_to_library(library, {"my task": values}),
        lambda: save_library(tmp_path / "new", plan, {"a/b": values}, LIBRARY, seed=0),
    ):
        with pytest.raises(AdapterError, match="BS638"):
            write()
    assert names_in(library) == ("one",)
    with pytest.raises(AdapterError, match=r"BS616.*it lies in the library"):
        add_to_library(library, {"two": values}, library / "later" / "library")
    assert not (library / "later").exists()

    def full(*_, **__):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(shutil.copytree, "__defaults__", (False, None, full, False, False))
    with pytest.raises(AdapterError, match=r"BS616.*No space left on device"):
        add_to_library(library, {"two": values}, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_the_commands(capsys, tmp_path):
    model = adapted()
    base = tmp_path / "base"
    tiny_model("llama").save_pretrained(base)
    model.bishare.save_pretrained(tmp_path / "a")
    words = ["convert", str(tmp_path / "a"), "--for", "bishare", "--model", str(base)]
    assert main([*words, "--dtype", "int4", "--out", str(tmp_path / "q")]) == 0
    assert "BS690" in capsys.readouterr().err
    assert read_adapter(tmp_path / "q").config.rounded == "int4"
    assert main([*words, "--out", str(tmp_path / "whole")]) == 0
    whole = read_adapter(tmp_path / "whole").tensors()
    assert all(torch.equal(whole[n], t) for n, t in model.bishare.tensors().items())
    to_peft = [*words[:3], "peft", *words[4:], "--dtype", "int8", "--out", str(tmp_path / "p")]
    assert main(to_peft) == 2
    assert "BS646" in capsys.readouterr().err
    refused = {
        ("--rank", "2"): (2, "fit a LoRA to it: `(.+)`"),
        ("--dtype", "float16"): (1, "did you mean `(bfloat16)`"),
    }
    remedies = {}
    for more, (code, remedy) in refused.items():
        assert main([*words, *more, "--out", str(tmp_path / "r")]) == code
        err = capsys.readouterr().err
        found = re.search(remedy, err)
        assert found is not None, err
        remedies[more[0]] = shlex.split(found[1])
    assert main(remedies["--rank"][1:]) == 0
    assert {term.rank for term in read_adapter(tmp_path / "r").plan.terms} == {2}
    assert main([*words, "--dtype", *remedies["--dtype"], "--out", str(tmp_path / "half")]) == 0
    assert read_adapter(tmp_path / "half").config.rounded == "bfloat16"
    (tmp_path / "q.share").write_text(TEXT)
    words = ["compile", str(tmp_path / "q.share"), "--model", str(base), "--dtype", "int8"]
    assert main([*words, "--out", str(tmp_path / "c")]) == 0
    assert read_adapter(tmp_path / "c").config.rounded == "int8"


@pytest.mark.parametrize("name", ["vera", "ia3", "tied_lora"])
@pytest.mark.parametrize("form", BITS)
@pytest.mark.filterwarnings("ignore::bishare_dsl.diagnostics.BishareWarning")
def test_few_bits_are_few_for_every_method(name, form, tmp_path):
    """G4: gains and magnitudes are quantised too, and what is too small is in bfloat16."""
    model = compile_spec(name, tiny_model("llama"))
    randomize(model, 1, frozen=False)
    model.bishare.save_pretrained(tmp_path, dtype=form)
    stored = load_file(tmp_path / TENSORS)
    assert {tensor.dtype for key, tensor in stored.items() if ":" not in key} <= {
        torch.bfloat16,
        torch.float32,
    }
    whole = [t for key, t in stored.items() if ":" not in key and t.numel()]
    assert all(tensor.dtype == torch.bfloat16 for tensor in whole)


@pytest.mark.filterwarnings("ignore::bishare_dsl.diagnostics.BishareWarning")
def test_a_value_is_rounded_again_only_if_nothing_is_lost(tmp_path):
    """G2, G2b: from bfloat16, trained by small steps, and saved by PEFT or kept in memory."""
    saved(tmp_path / "half", "bfloat16")
    model = PeftModel.from_pretrained(
        tiny_model("llama"), str(tmp_path / "half"), is_trainable=True
    )
    model.save_pretrained(str(tmp_path / "untouched"))
    assert read_adapter(tmp_path / "untouched").config.rounded == "bfloat16"
    handle = model.base_model.model.bishare
    with torch.no_grad():
        for tensor in handle.tensors().values():
            tensor.add_(1e-3)
    model.save_pretrained(str(tmp_path / "trained"))
    found = read_adapter(tmp_path / "trained")
    assert found.config.rounded is None
    for name, tensor in handle.tensors().items():
        assert torch.equal(found.tensors()[name], tensor)
    kept = {key: tensor.clone() for key, tensor in get_peft_model_state_dict(model).items()}
    wanted = {name: tensor.detach().clone() for name, tensor in handle.tensors().items()}
    with torch.no_grad():
        for tensor in handle.tensors().values():
            tensor.zero_()
    set_peft_model_state_dict(model, kept)
    assert all(torch.equal(handle.tensors()[name], tensor) for name, tensor in wanted.items())
