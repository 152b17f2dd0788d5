"""Every door by which an adapter comes into a model, by every damage: refused, and the model is as it was."""

import copy
import json
import os
import re
import shutil
import struct
import sys
import tracemalloc
import warnings
import zlib
from base64 import b64encode
from collections import Counter
from functools import partial
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, PeftConfig, PeftModel, get_peft_model, set_peft_model_state_dict
from safetensors.torch import load_file, save, save_file

from bishare_dsl import compile_spec, load_adapter
from bishare_dsl.cli.main import main
from bishare_dsl.diagnostics import AdapterError, BishareError
from bishare_dsl.fit.pairs import read_pairs
from bishare_dsl.folder.config import record_digest, split_entries
from bishare_dsl.folder.contents import digest_of, entries_in, own_file
from bishare_dsl.folder.files import CONFIG, TENSORS, read_adapter, read_members, save_library
from bishare_dsl.models import architecture_of
from bishare_dsl.peft import BishareConfig
from bishare_dsl.serve.vllm.folder import is_ours, read_any
from bishare_dsl.testing.models import tiny_model
from tests.peft.conftest import logits
from tests.support.stored import import_peft

# A share with private factors, and one whose factors a seed draws.
LIBRARY = Path(__file__).parents[1] / "folder" / "of_0_5" / "library"
SPEC = """spec s
target q_proj, v_proj
share a per layer, kind rank 2
share b per model rank 3 via SS init A kaiming_normal, B kaiming_normal freeze A, B gain rank init 0.1, out init 0
"""
OTHER = "spec s\ntarget q_proj, v_proj\nshare a per layer, kind rank 2\n"
IDS = torch.arange(3, 15).view(2, 6)


def randomize(model, seed=0):
    """Move what trains."""
    random = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.copy_(torch.randn(parameter.shape, generator=random))


def saved(folder, spec=SPEC, seed=0, values=0):
    """Save an adapter of a tiny model by PEFT, with modules of the base beside it."""
    model = get_peft_model(tiny_model("llama"), BishareConfig(spec=spec, seed=seed))
    randomize(model, values)
    model.save_pretrained(folder)
    return folder


def reseal(folder):
    """Make the digests of a folder right again: a writer may be wrong, and know how to seal."""
    fields = json.loads((folder / CONFIG).read_text())
    own, beside = split_entries(entries_in((folder / TENSORS).read_bytes()))
    record = fields["bishare"]
    record["tensors"] = digest_of(own)
    if beside:
        record["beside"] = digest_of(beside)
    record["digest"] = record_digest(fields["spec"], fields["seed"], record)
    (folder / CONFIG).write_text(json.dumps(fields))


def tensors_in(folder, change, sealed):
    tensors = load_file(folder / TENSORS)
    change(tensors)
    save_file(tensors, folder / TENSORS, {"format": "pt"})
    if sealed:
        reseal(folder)


def a_key(tensors):
    return next(key for key in sorted(tensors) if len(tensors[key]))


def nan(tensors):
    tensors[a_key(tensors)][0, 0] = torch.nan


def misshapen(tensors):
    key = a_key(tensors)
    tensors[key] = tensors[key][:, :-1].contiguous()


def flip(folder):
    content = bytearray((folder / TENSORS).read_bytes())
    (size,) = struct.unpack("<Q", content[:8])
    content[8 + size + 2] ^= 4
    (folder / TENSORS).write_bytes(content)


def replaced(file, **other):
    """Take a file from the folder of another adapter."""

    def damage(folder):
        shutil.copy(saved(folder.with_name("other"), **other) / file, folder / file)

    return damage


def other_seed(folder):
    """Let the config say another seed than the one of which the tensors are."""
    fields = json.loads((folder / CONFIG).read_text())
    drawn = json.loads((saved(folder.with_name("other"), seed=1) / CONFIG).read_text())
    fields |= {"seed": 1}
    fields["bishare"]["entries"] = drawn["bishare"]["entries"]
    (folder / CONFIG).write_text(json.dumps(fields))
    reseal(folder)


SEED = "base_model.model.bishare_tensors.seed_0"
OF_TENSORS = {
    "missing tensor": lambda t: t.pop(a_key(t)),
    "missing seed": lambda t: t.pop(SEED),
    "no tensors": dict.clear,
    "NaN": nan,
    "wrong shape": misshapen,
    "extra tensor": lambda t: t.update({a_key(t) + "2": torch.ones(2, 2)}),
    "weight of the base": lambda t: t.update(
        {"base_model.model.model.norm.weight": torch.ones(64)}
    ),
    "head of the base": lambda t: t.update({"lm_head.weight": torch.ones(64, 64)}),
}
DAMAGES = {
    f"{name}{', sealed' * sealed}": partial(tensors_in, change=change, sealed=sealed)
    for sealed in (False, True)
    for name, change in OF_TENSORS.items()
}
DAMAGES |= {
    "flipped bit": flip,
    "empty file": lambda f: (f / TENSORS).write_bytes(b""),
    "cut file": lambda f: (f / TENSORS).write_bytes((f / TENSORS).read_bytes()[:-40]),
    "no file": lambda f: (f / TENSORS).unlink(),
    "other training's tensors": replaced(TENSORS, values=1),
    "other training's config": replaced(CONFIG, values=1),
    "other seed": other_seed,
    "other seed's tensors": replaced(TENSORS, seed=1),
    "config of another plan": replaced(CONFIG, spec=OTHER),
    "tensors of another plan": replaced(TENSORS, spec=OTHER),
}


def snapshot(model):
    """Return all that a refusal leaves as it was."""
    base = model.get_base_model() if isinstance(model, PeftModel) else model
    with torch.no_grad():
        found = base(IDS).logits.clone()
    kinds = [(path, type(module)) for path, module in model.named_modules()]
    values = {key: value.clone() for key, value in model.state_dict().items()}
    configs = {name: str(c.to_dict()) for name, c in getattr(model, "peft_config", {}).items()}
    attributes = sorted(vars(base))
    trains = [p.requires_grad for p in model.parameters()]
    return found, kinds, values, configs, attributes, trains, getattr(base, "bishare", None) is None


def same(one, other):
    if isinstance(one, torch.Tensor):
        return torch.equal(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[k], other[k]) for k in one)
    if isinstance(one, (list, tuple)):
        return len(one) == len(other) and all(map(same, one, other))
    return bool(one == other)


def plain():
    return tiny_model("llama").eval()


def with_one(spec=SPEC):
    model = get_peft_model(plain(), BishareConfig(spec=spec))
    randomize(model, 9)
    return model.eval()


def by_state(model, folder):
    set_peft_model_state_dict(model, load_file(folder / TENSORS))


def in_memory(model, folder):
    """Let transformers make an adapter of a fresh config and the tensors of a file."""
    fields = json.loads((folder / CONFIG).read_text())
    config = BishareConfig(spec=fields["spec"], seed=fields["seed"])
    state = load_file(folder / TENSORS)
    model.load_adapter(None, adapter_state_dict=state, peft_config=config)


def with_config(model, folder):
    PeftModel.from_pretrained(model, folder, config=PeftConfig.from_pretrained(folder))


def fit(model, folder):
    read_pairs([("a", read_adapter(folder))])


def serve(model, folder):
    tensors = read_any(folder, architecture_of(model)).tensors
    tensors()


DOORS = {
    "load_adapter": (plain, lambda model, folder: load_adapter(folder, model)),
    "PeftModel.from_pretrained": (plain, lambda m, f: PeftModel.from_pretrained(m, f)),
    "PeftModel.from_pretrained(config=)": (plain, with_config),
    "PeftModel.load_adapter": (with_one, lambda m, f: m.load_adapter(f, "b")),
    "PeftModel.load_adapter, again": (with_one, lambda m, f: m.load_adapter(f, "default")),
    "transformers' load_adapter": (plain, lambda m, f: m.load_adapter(f)),
    "transformers' load_adapter, of a state": (plain, in_memory),
    "set_peft_model_state_dict": (with_one, by_state),
    "vLLM": (plain, serve),
    "fit": (plain, fit),
}

STATES = ("transformers' load_adapter, of a state", "set_peft_model_state_dict")
"""Doors that get tensors alone: what only the config of a folder tells from right ones is not damage there."""
FOR_FOLDERS = {"flipped bit", "other training's tensors", "other training's config"}
FOR_FOLDERS |= {"empty file", "cut file", "no file"}


def refusals(door, folder):
    """Yield each damage with what the door answers."""
    make, enter = DOORS[door]
    saved(folder / "whole")
    model = make()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        enter(make(), folder / "whole")
    before = snapshot(model)
    for name, damage in DAMAGES.items():
        if door in STATES and name in FOR_FOLDERS:
            continue
        if door == "set_peft_model_state_dict" and name in ("other seed", "config of another plan"):
            continue  # It reads no config.
        shutil.rmtree(folder / "damaged", ignore_errors=True)
        shutil.copytree(folder / "whole", folder / "damaged")
        damage(folder / "damaged")
        try:
            enter(model, folder / "damaged")
        except AdapterError as error:
            answer = error.problems[0].code
        else:
            answer = "TAKEN"
        if answer == "TAKEN" or not same(before, snapshot(model)):
            answer += "" if answer == "TAKEN" else " AND THE MODEL CHANGED"
            model, before = make(), snapshot(make())
        yield name, answer


@pytest.mark.parametrize("door", DOORS)
def test_what_is_damaged_is_refused_and_the_model_stays_as_it_was(door, tmp_path):
    answers = dict(refusals(door, tmp_path))
    # Of a folder the seed is in the config; bishare 0.3 has it there alone.
    allowed = set() if door in STATES else {"missing seed, sealed"}
    wrong = {n: a for n, a in answers.items() if not a.startswith("BS") or " " in a}
    assert {n: a for n, a in wrong.items() if n not in allowed} == {}
    assert len(answers) >= (18 if door in STATES else len(DAMAGES))


COMMANDS = {
    "inspect": "inspect {folder}",
    "convert": "convert {folder} --for peft --model {base} --out {out}",
    "convert, fewer bits": "convert {folder} --for bishare --dtype bfloat16 --out {out}",
    "merge": "merge {folder} --model {base} --out {out}",
    "verify": "verify {folder} --model {base}",
    "eval": "eval {folder} --model {base} --data {rows}",
    "fit": "fit {folder} --spec lora --out {out}",
    "train": "train {folder} --model {base} --data {rows} --output_dir {out}",
}
"""Each command that reads an adapter."""


@pytest.mark.long
@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_refuses_what_is_damaged_and_writes_nothing(command, tmp_path, capsys):
    tiny_model("llama").save_pretrained(tmp_path / "base")
    (tmp_path / "rows.jsonl").write_text('{"prompt": "a", "completion": "b"}\n')
    saved(tmp_path / "whole")
    places = {"base": tmp_path / "base", "out": tmp_path / "out", "rows": tmp_path / "rows.jsonl"}
    # A seed is in the config too, and `inspect` looks at no values.
    taken = {"missing seed, sealed", *(["NaN, sealed"] if command == "inspect" else [])}
    wrong = {}
    for name, damage in ((n, d) for n, d in DAMAGES.items() if n not in taken):
        shutil.rmtree(folder := tmp_path / "damaged", ignore_errors=True)
        shutil.copytree(tmp_path / "whole", folder)
        damage(folder)
        code = main([word.format(folder=folder, **places) for word in COMMANDS[command].split()])
        said = capsys.readouterr().err
        # Values come last: the tiny base has no tokenizer.
        late = "|805" if name == "NaN, sealed" else ""
        refused = code in (1, 2) and re.search(rf"error\[BS(6\d\d{late})\]", said)
        if not refused or places["out"].exists():
            wrong[name] = code, said[:300]
    assert wrong == {}


LORA_DAMAGES = {
    "a factor is missing": ("BS613", lambda t: t.pop(a_key(t))),
    "a module is missing": ("BS609", lambda t: [t.pop(key) for key in sorted(t)[:2]]),
    "no tensors": ("BS608", dict.clear),
    "NaN": ("BS694", nan),
    "wrong shape": ("BS613", misshapen),
    "extra module": (
        "BS613",
        lambda t: t.update({a_key(t).replace("q_proj", "q_prog"): torch.ones(2, 64)}),
    ),
    "extra tensor": ("BS656", lambda t: t.update({"base_model.model.norm2": torch.ones(2)})),
}


@pytest.mark.parametrize("damage", LORA_DAMAGES)
def test_a_damaged_lora_is_not_imported(damage, tmp_path):
    code, change = LORA_DAMAGES[damage]
    model = get_peft_model(plain(), LoraConfig(r=2, target_modules=["q_proj", "v_proj"]))
    randomize(model)
    model.save_pretrained(folder := tmp_path / "lora")
    import_peft(folder, plain(), tmp_path / "whole")
    tensors = load_file(folder / TENSORS)
    change(tensors)
    (folder / TENSORS).write_bytes(save(tensors))
    with pytest.raises(AdapterError, match=code):
        import_peft(folder, plain(), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_peft_does_not_save_over_a_library(tmp_path):
    """Its adapters would lose the tensors that they share."""
    library = shutil.copytree(LIBRARY, tmp_path / "library")
    before = {path: path.read_bytes() for path in library.rglob("*") if path.is_file()}
    model = get_peft_model(tiny_model("llama"), BishareConfig(spec=SPEC))
    with pytest.raises(AdapterError, match="BS615"):
        model.save_pretrained(str(library))
    assert {path: path.read_bytes() for path in library.rglob("*") if path.is_file()} == before


def test_a_pipe_in_the_place_of_a_file_is_not_waited_for(tmp_path):
    """Of the config, which vLLM's own resolver would open, of a LoRA's tensors, and of the card."""
    for name in ("config", "zero"):
        saved(tmp_path / name)
        (tmp_path / name / CONFIG).unlink()
    os.mkfifo(tmp_path / "config" / CONFIG)
    (tmp_path / "zero" / CONFIG).symlink_to("/dev/zero")
    for name in ("config", "zero"):
        assert is_ours(tmp_path / name)
        with pytest.raises(AdapterError, match="BS608"):
            serve(plain(), tmp_path / name)
    (tmp_path / "card").mkdir()
    os.mkfifo(tmp_path / "card" / "README.md")
    with pytest.raises(AdapterError, match="BS615"):
        with_one().save_pretrained(tmp_path / "card")
    with pytest.raises(AdapterError, match="BS615"):
        compile_spec(SPEC, plain()).bishare.save_pretrained(tmp_path / "card")


@pytest.mark.parametrize(
    "name", ["spec", "params", "params of a NaN", "modules_to_save", "seed", "bishare"]
)
def test_a_field_of_another_kind_has_a_code(name):
    value = {"params of a NaN": {"r": float("nan")}, "seed": "x"}.get(name, 5)
    with pytest.raises(BishareError, match=r"BS604|BS211"):
        BishareConfig(**{"spec": "lora", name.split()[0]: value})


def record_with(folder, **fields):
    config = json.loads((folder / CONFIG).read_text())
    config["bishare"] |= fields
    (folder / CONFIG).write_text(json.dumps(config))
    reseal(folder)


MANY_KEYS = "{" + ",".join(f'"{i}":{{}}' for i in range(600_000)) + "}"


@pytest.mark.parametrize(
    "text", ["[" * 100_000, MANY_KEYS, "[" + "{}," * 2**22], ids=["deep", "keys", "values"]
)
def test_a_small_field_that_would_fill_the_memory_is_refused_before_it_is_read(text, tmp_path):
    saved(tmp_path)
    record_with(tmp_path, drawn=b64encode(zlib.compress(text.encode())).decode())
    tracemalloc.start()
    with pytest.raises(AdapterError, match="BS604"):
        read_adapter(tmp_path)
    assert tracemalloc.get_traced_memory()[1] < 2**27
    tracemalloc.stop()
    with pytest.raises(AdapterError, match="BS604"):
        PeftModel.from_pretrained(plain(), tmp_path)


def test_a_wrong_config_reports_its_first_ten_problems(tmp_path):
    saved(tmp_path)
    record_with(tmp_path, packages={f"t{i}": {} for i in range(20)})
    with pytest.raises(AdapterError) as caught:
        read_adapter(tmp_path)
    assert [problem.code for problem in caught.value.problems] == ["BS604"] * 10
    base = json.loads((tmp_path / CONFIG).read_text())["bishare"]["base"]
    base["sites"][0]["linears"] = [1, 2]
    record_with(tmp_path, packages={}, base=base)
    with pytest.raises(AdapterError, match="BS604"):
        read_adapter(tmp_path)


def test_the_table_of_a_grown_vocabulary_is_loaded_and_no_other_weight(tmp_path):
    """PEFT saves it beside the adapter; its digest stands in the config."""
    model = with_one()
    model.get_base_model().resize_token_embeddings(70)
    model.save_pretrained(tmp_path, save_embedding_layers=True)
    base = plain()
    base.resize_token_embeddings(70)
    again = PeftModel.from_pretrained(copy.deepcopy(base), tmp_path).eval()
    assert torch.equal(again(IDS).logits, model(IDS).logits)
    with pytest.raises(AdapterError, match="BS610"):
        load_adapter(tmp_path, base)
    flip_beside = load_file(tmp_path / TENSORS)
    key = next(key for key in flip_beside if "embed_tokens" in key)
    flip_beside[key][0, 0] += 1
    save_file(flip_beside, tmp_path / TENSORS)
    with pytest.raises(AdapterError, match="BS607"):
        PeftModel.from_pretrained(base, tmp_path)


OPENED = Counter()


def _count(event, arguments):
    if event == "open" and isinstance(arguments[0], str):
        OPENED[arguments[0]] += 1


@pytest.mark.parametrize(
    "door",
    ["load_adapter", "from_pretrained", "from_pretrained(config=)", "of PEFT", "of transformers"],
)
def test_a_load_reads_each_file_once(door, tmp_path):
    """What the check has read is what is loaded, whoever writes into the folder meanwhile (G37)."""
    folder = saved(tmp_path / "a")
    model = with_one() if door == "of PEFT" else plain()
    config = PeftConfig.from_pretrained(folder)
    if not OPENED:
        sys.addaudithook(_count)  # It stays for good.
    OPENED.clear()
    if door == "load_adapter":
        load_adapter(folder, model)
    elif door == "from_pretrained":
        PeftModel.from_pretrained(model, folder)
    elif door == "from_pretrained(config=)":
        PeftModel.from_pretrained(model, folder, config=config)
    else:
        model.load_adapter(str(folder), adapter_name="new")
    assert [OPENED[str(path)] for path in (folder / CONFIG, folder / TENSORS)] == [1, 1]


def test_members_of_a_library_are_read_with_what_they_share_once(tmp_path):
    model = compile_spec("library_core", plain(), params={"r": 3})
    values = {}
    for number, name in enumerate(("a", "b", "c")):
        randomize(model, number)
        values[name] = {n: t.detach().clone() for n, t in model.bishare.tensors().items()}
        values[name] |= {n: values["a"][n] for n in model.bishare.plan.common}
    library = tmp_path / "library"
    save_library(library, model.bishare.plan, values, model.bishare.spec_text, seed=0)
    if not OPENED:
        sys.addaudithook(_count)
    OPENED.clear()
    read = [*read_members(library, ("c", "a", "b"))]
    files = (CONFIG, TENSORS, *map(own_file, "abc"))
    assert {file: OPENED[str(library / file)] for file in files} == dict.fromkeys(files, 1)
    for stored, name in zip(read, "cab", strict=True):
        assert stored.folder == Path(f"{library}#{name}")
        found = stored.tensors()
        assert found.keys() == values[name].keys()
        assert all(torch.equal(found[n], tensor) for n, tensor in values[name].items())
    (library / own_file("b")).write_bytes((library / own_file("a")).read_bytes())
    with pytest.raises(AdapterError, match=r"BS607.*adapters/b"):
        [*read_members(library, "ab")]


def test_modules_to_save_are_matched_by_their_ends(tmp_path):
    """G7: PEFT trained and saved these, and the folder could not be loaded."""
    config = BishareConfig(spec=OTHER, modules_to_save=["norm"])
    model = get_peft_model(plain(), config).eval()
    randomize(model)
    model.save_pretrained(tmp_path)
    names = load_file(tmp_path / TENSORS)
    assert any("input_layernorm" in name for name in names)
    again = PeftModel.from_pretrained(plain(), tmp_path).eval()
    assert torch.equal(logits(again, IDS), logits(model, IDS))


def test_tensors_of_another_training_do_not_go_with_the_config_of_a_folder(tmp_path):
    """A config that a folder gave has the digest of its tensors, and PEFT may get others, as of a pickle."""
    folder, other = saved(tmp_path / "a"), saved(tmp_path / "b", values=1)
    config = PeftConfig.from_pretrained(folder)
    with pytest.raises(AdapterError, match="BS607"):
        plain().load_adapter(
            None, adapter_state_dict=load_file(other / TENSORS), peft_config=config
        )
    (folder / TENSORS).unlink()
    torch.save(load_file(other / TENSORS), folder / "adapter_model.bin")
    with pytest.raises(AdapterError, match="BS607"):
        PeftModel.from_pretrained(plain(), folder)
