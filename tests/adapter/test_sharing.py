"""Who shares what, as a folder says it to other readers: it is there, small, and what the spec gives."""

from __future__ import annotations

import hashlib
import json
import math
import re
import shutil
import zlib
from base64 import b64encode
from pathlib import Path
from typing import Any

import jsonschema
import numpy
import pytest
import torch
from safetensors.torch import load_file, save_file

from bishare_dsl import compile_spec, load_adapter, parse_spec, plan_spec
from bishare_dsl.adapter import counter
from bishare_dsl.adapter.config import AdapterConfig, key_of, record_digest
from bishare_dsl.adapter.counter import fill
from bishare_dsl.adapter.files import pack, read_adapter, save_adapter
from bishare_dsl.adapter.initial import draw
from bishare_dsl.adapter.old_draws import draw_by_torch
from bishare_dsl.adapter.sharing import sharing_of
from bishare_dsl.cli.main import main
from bishare_dsl.diagnostics import AdapterError
from bishare_dsl.models import preset, site
from bishare_dsl.resources import find_spec
from bishare_dsl.testing.models import tiny_model
from tests.adapter.test_files import CONFIG, TEXT, config_of, refused, saved
from tests.support.checks import randomize
from tests.support.families import tiny_model as family_of
from tests.support.parts import quick


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    saved(tmp_path / "adapter")
    return tmp_path / "adapter"


def rewrite(folder: Path, sharing: Any) -> None:
    """Put another `sharing` into a config, as if it had been saved so."""
    config = config_of(folder)
    record = config["bishare"] | {"sharing": sharing}
    record["digest"] = record_digest(config["spec"], config["seed"], record)
    (folder / CONFIG).write_text(json.dumps(config | {"bishare": record}))


def test_it_has_every_tensor_and_every_term(folder: Path) -> None:
    stored = read_adapter(folder)
    sharing, plan = config_of(folder)["bishare"]["sharing"], stored.plan
    keys = [key_of(plan, tensor.name) for tensor in plan.tensors]
    assert [tensor["key"] for tensor in sharing["tensors"]] == keys
    assert {m["module"]: len(m["terms"]) for m in sharing["modules"]} == {
        path: len(terms) for path, terms in plan.terms_of.items()
    }
    assert {m["module"]: m["rank"] for m in sharing["modules"]} == {
        site.path: plan.rows(site.path) for site in plan.sites
    }
    [term] = [t for t in sharing["terms"] if t["transform"] == "SS"]
    assert term["options"] == {"slice": "centre"}  # A default, which a reader cannot know.


def test_a_term_is_stated_once(folder: Path) -> None:
    sharing = config_of(folder)["bishare"]["sharing"]
    texts = [json.dumps(term) for term in sharing["terms"]]
    assert len(texts) == len({*texts}) < sum(len(m["terms"]) for m in sharing["modules"])


@pytest.mark.parametrize(
    "change",
    [
        lambda s: s["modules"].pop(),
        lambda s: s["terms"][0].update(scale=2.0),
        lambda s: s["modules"][0]["terms"][0].__setitem__(1, 1),
        lambda s: s["tensors"][0].update(key="base_model.model.x"),
        lambda s: s["tensors"].pop(),
        lambda s: s["needs"].append("base"),
        lambda s: s.update(full=7),
    ],
)
def test_one_that_its_spec_does_not_give_is_refused(folder: Path, change: Any) -> None:
    read_adapter(folder)  # That this one was right is remembered, and says nothing of the next.
    sharing = config_of(folder)["bishare"]["sharing"]
    change(sharing)
    rewrite(folder, sharing)
    refused(folder, "BS607", "`sharing` is not what its spec gives")


def test_one_that_was_changed_by_hand_is_refused(folder: Path) -> None:
    config = config_of(folder)
    config["bishare"]["sharing"]["terms"][0]["scale"] = 2.0
    (folder / CONFIG).write_text(json.dumps(config))
    refused(folder, "BS604", "it is not what was saved")


def test_peft_writes_it_and_refuses_another(tmp_path: Path) -> None:
    from peft import PeftModel

    import bishare_dsl.peft  # noqa: F401
    from bishare_dsl.diagnostics import AdapterError

    text, folder = TEXT.replace(" share", "\nshare"), tmp_path / "adapter"
    plan = plan_spec(parse_spec(text), tiny_model("llama"))
    save_adapter(folder, plan, draw(plan, 0), text, seed=0)
    model = PeftModel.from_pretrained(tiny_model("llama"), str(folder))
    model.save_pretrained(str(tmp_path / "again"))
    assert read_adapter(tmp_path / "again").config.sharing == read_adapter(folder).config.sharing
    size = (tmp_path / "again" / CONFIG).stat().st_size
    assert size < 1.1 * (folder / CONFIG).stat().st_size  # PEFT would give each number a line.
    sharing = config_of(folder)["bishare"]["sharing"]
    sharing["modules"].reverse()
    rewrite(folder, sharing)
    with pytest.raises(AdapterError, match="BS607"):
        PeftModel.from_pretrained(tiny_model("llama"), str(folder))


@pytest.mark.parametrize(("name", "most"), [("bishare_ke", 160_000), ("lora", 60_000)])
def test_that_of_a_large_model_is_not_large(name: str, most: int) -> None:
    plan = plan_spec(name, preset("llama-7b"))
    values = {tensor.name: torch.zeros(()).expand(tensor.shape) for tensor in plan.tensors}
    _, config, _ = pack(plan, values, find_spec(name).read_text(), seed=0)
    assert len(config.text()) <= most
    assert json.loads(config.text())["bishare"]["sharing"] == json.loads(sharing_of(plan, config))


@pytest.mark.parametrize(
    ("packed", "code"),
    [("%", "BS604"), (b64encode(zlib.compress(b"{")).decode(), "BS607"), (None, "BS607")],
)
def test_what_is_no_sharing_is_refused(folder: Path, packed: str | None, code: str) -> None:
    rewrite(folder, packed)
    refused(folder, code)


def test_what_is_kept_of_a_config_nobody_changes(folder: Path) -> None:
    """Thousands of adapters have one config but for their tensors, which is kept once it was found right."""
    before = read_adapter(folder).config
    kept = before.model_copy(deep=True)
    for value in (v for _, v in before if isinstance(v, dict)):
        value.clear()
    after = read_adapter(folder).config
    assert after == kept
    assert after.versions
    assert after.base is before.base, "it was not read again"


def test_a_small_text_that_unpacks_to_a_large_one_is_refused(folder: Path) -> None:
    rewrite(folder, b64encode(zlib.compress(b" " * 2**27)).decode())
    refused(folder, "BS604")


def test_what_torch_drew_stays_torchs(tmp_path: Path) -> None:
    """What bishare 0.2 drew, and 0.3 saved, is loaded bit for bit and saved with its generator."""
    text = TEXT.replace("via SS", "via SS freeze A")
    plan = plan_spec(parse_spec(text), tiny_model("llama"))
    old = {
        name: draw_by_torch(plan.tensor[name], 0) if not plan.tensor[name].trainable else tensor
        for name, tensor in draw(plan, 0).items()
    }
    save_adapter(tmp_path, plan, old, text, seed=0)
    new = read_adapter(tmp_path)
    assert {drawn.generator for drawn in new.config.drawn.values()} == {"torch"}
    assert "x.layer_0.A" in new.config.drawn
    sharing = config_of(tmp_path)["bishare"]["sharing"]
    assert sharing["tensors"][0]["draw"].keys() == {"torch"}
    assert "torch" in sharing["needs"]
    for name, tensor in old.items():
        assert torch.equal(new.tensors()[name], tensor)


def test_what_is_drawn_is_said(tmp_path: Path) -> None:
    text = TEXT.replace("via SS", "via SS freeze A")
    plan = plan_spec(parse_spec(text), tiny_model("llama"))
    save_adapter(tmp_path, plan, draw(plan, 0), text, seed=0)
    entry = config_of(tmp_path)["bishare"]["sharing"]["tensors"][0]
    fan_in = plan.tensor["x.layer_0.A"].fan_in
    assert len(entry.pop("sha256")) == 8
    assert entry == {
        "shape": list(plan.tensor["x.layer_0.A"].shape),
        "dtype": "float32",
        "draw": {"uniform": [-1 / math.sqrt(fan_in), 1 / math.sqrt(fan_in)]},
        "text": "0:x.layer_0.A",
    }


# Folders that other programs write ----------------------------------------------------------------------

HERE = Path(__file__).parents[2] / "conformance"
SCHEMA = json.loads((HERE.parent / "docs" / "format.schema.json").read_text("utf-8"))
FAMILIES = {"experts": "mixtral", "head_and_full": "gemma2", "gpt_oss": "gpt_oss"}
OTHERS = [folder.relative_to(HERE) for folder in sorted(HERE.glob("**/adapter_config.json"))]
NOW = [path for path in OTHERS if "format_1" not in path.parts]


def by_others(source: Path, folder: Path, keys: str = "tensors/{}") -> str:
    """Copy an adapter as another program would write it: without a spec, and with other keys."""
    shutil.copytree(source, folder)
    config = json.loads((source / CONFIG).read_text())
    stored = AdapterConfig.of(config)
    sharing = json.loads(stored.sharing or "")
    tensors = sharing["tensors"]
    entries = tensors.values() if isinstance(tensors, dict) else tensors
    new: dict[str, str] = {}
    for entry in entries:
        for place in (entry, entry.get("parts", {})):
            for word in ("key", "vectors", "below", "int8", "int4", "scales"):
                if word in place:
                    new[place[word]] = place[word] = keys.format(len(new))
    for file in (folder / "adapter_model.safetensors", *folder.glob("adapters/*")):
        values = {key: value for key, value in load_file(file).items() if key in new}
        save_file({new[key]: value for key, value in values.items()}, file)
    record = {"sharing": sharing}
    if members := config["bishare"].get("adapters"):
        record["adapters"] = {member: {} for member in members}
    said = {"peft_type": "BISHARE", "seed": config["seed"], "bishare": record}
    (folder / CONFIG).write_text(json.dumps(said))
    return f"{folder}#law" if members else str(folder)


@pytest.mark.filterwarnings("ignore::bishare_dsl.diagnostics.BishareWarning")
@pytest.mark.parametrize("path", quick(OTHERS, NOW), ids=lambda path: str(path.parent))
def test_what_another_program_writes_is_loaded_and_saved(path: Path, tmp_path: Path) -> None:
    source = HERE / path.parent
    family = FAMILIES.get(source.name, "llama")
    ours = load_adapter(f"{source}#law" if source.name == "library" else source, family_of(family))
    theirs = load_adapter(by_others(source, tmp_path / "theirs"), family_of(family))
    ids = torch.arange(12).view(2, 6)
    wanted = ours.eval()(ids).logits
    assert torch.equal(theirs.eval()(ids).logits, wanted)
    theirs.bishare.save_pretrained(tmp_path / "again")
    again = load_adapter(tmp_path / "again", family_of(family)).eval()
    assert torch.equal(again(ids).logits, wanted)
    assert again.bishare.plan == load_adapter(tmp_path / "again", family_of(family)).bishare.plan


def test_keys_of_another_program_may_end_alike(tmp_path: Path) -> None:
    """As those in the page's example do, if each layer has such a tensor."""
    keys = "base_model.model.model.layers.{}.self_attn.bishare_tensors.local__A"
    folder = by_others(HERE / "int8", tmp_path / "theirs", keys)
    ids = torch.arange(12).view(2, 6)
    wanted = load_adapter(HERE / "int8", family_of("llama")).eval()(ids).logits
    assert torch.equal(load_adapter(folder, family_of("llama")).eval()(ids).logits, wanted)


def test_the_line_of_numpy_on_the_page_gives_the_words() -> None:
    """Also where one integer of the key is below 2^63 and the other is not, as of `0:s.A`."""
    page = (HERE.parent / "docs" / "format.md").read_text("utf-8")
    [line] = re.findall(r"`(numpy\.random\.Philox\(.*?random_raw\(n\))`", page)
    for text in ("0:inter.A", "0:s.A", "1:s.A", "2:s.A", "3:s.A"):
        digest = hashlib.sha256(text.encode()).digest()
        first, second = (int.from_bytes(digest[i : i + 8], "little") for i in (0, 8))
        names = {"numpy": numpy, "k0": first, "k1": second, "n": 3}
        raw = eval(line.replace("k₀", "k0").replace("k₁", "k1"), names)
        values = numpy.empty((1, 6), numpy.float32)
        fill(values, {"uniform": [0, 1]}, *text.split(":"))
        words = raw.astype("<u8").view("<u4")
        assert ((words + 0.5) * 2.0**-32).astype("f4").tolist() == values[0].tolist()


@pytest.mark.filterwarnings("ignore::bishare_dsl.diagnostics.BishareWarning")
@pytest.mark.parametrize("name", ["slice_sharing", "random_basis", "vector_bank", "head_and_full"])
def test_peft_loads_what_another_program_writes(name: str, tmp_path: Path) -> None:
    from peft import PeftModel

    family = FAMILIES.get(name, "llama")
    folder = by_others(HERE / name, tmp_path / "theirs")
    ids = torch.arange(12).view(2, 6)
    wanted = load_adapter(HERE / name, family_of(family)).eval()(ids).logits
    model = PeftModel.from_pretrained(family_of(family), folder).eval()
    assert torch.equal(model(ids).logits, wanted)
    model.load_adapter(folder, "second")
    model.set_adapter("second")
    assert torch.equal(model(ids).logits, wanted)
    model.save_pretrained(str(tmp_path / "again"))
    again = read_adapter(tmp_path / "again" / "second")
    assert again.config.tensors
    assert not again.config.spec
    if name != "vector_bank":  # transformers loads no compact adapter (BS666).
        base = family_of(family).eval()
        base.load_adapter(folder)
        assert torch.equal(base(ids).logits, wanted)


def test_a_sum_of_adapters_without_a_spec_is_refused(tmp_path: Path) -> None:
    from peft import PeftModel

    from bishare_dsl.diagnostics import AdapterError

    folder = by_others(HERE / "slice_sharing", tmp_path / "theirs")
    model = PeftModel.from_pretrained(family_of("llama"), folder)
    model.load_adapter(folder, "second")
    with pytest.raises(AdapterError, match=r"BS672.*no spec"):
        model.base_model.add_weighted_adapter(["default", "second"], [1.0, 0.5], "sum")
    model.base_model.model.bishare.export(tmp_path / "lora")  # The remedy.
    load_adapter(tmp_path / "lora", family_of("llama")).bishare.save_pretrained(tmp_path / "ours")
    model = PeftModel.from_pretrained(family_of("llama"), str(tmp_path / "ours"))
    model.load_adapter(str(tmp_path / "ours"), "second")
    model.base_model.add_weighted_adapter(["default", "second"], [1.0, 0.5], "sum")


def test_peft_loads_what_was_saved_of_it(tmp_path: Path) -> None:
    from peft import PeftModel

    source = by_others(HERE / "random_basis", tmp_path / "theirs")
    theirs = load_adapter(source, family_of("llama")).eval()
    theirs.bishare.save_pretrained(tmp_path / "again")
    model = PeftModel.from_pretrained(family_of("llama"), str(tmp_path / "again")).eval()
    ids = torch.arange(12).view(2, 6)
    assert torch.equal(model(ids).logits, theirs(ids).logits)
    model.save_pretrained(str(tmp_path / "by_peft"))
    once_more = load_adapter(tmp_path / "by_peft", family_of("llama")).eval()
    assert torch.equal(once_more(ids).logits, theirs(ids).logits)


@pytest.mark.parametrize("plain", [False, True])
def test_a_magnitude_is_stated_and_read(plain: bool, tmp_path: Path) -> None:
    text = f"spec m\ntarget q_proj, down_proj\nshare s per module rank 2\nmagnitude per module{' plain' * plain}\n"
    model = compile_spec(text, family_of("llama"))
    randomize(model, 1, frozen=False)
    model.bishare.save_pretrained(tmp_path / "ours")
    sharing = config_of(tmp_path / "ours")["bishare"]["sharing"]
    jsonschema.validate(config_of(tmp_path / "ours"), SCHEMA)
    assert "magnitude" in sharing["needs"]
    assert {"plain": plain} in [term["options"] for term in sharing["terms"]]
    assert not any("rank" in module for module in sharing["modules"])
    theirs = load_adapter(by_others(tmp_path / "ours", tmp_path / "theirs"), family_of("llama"))
    ids = torch.arange(12).view(2, 6)
    assert torch.equal(theirs.eval()(ids).logits, model.eval()(ids).logits)


@pytest.mark.parametrize(
    ("change", "code", "reason"),
    [
        (lambda s: s["needs"].append("Fold"), "BS604", "it needs `Fold`"),
        (lambda s: s["terms"][0].update(transform="Fold"), "BS619", "Fold"),
        (lambda s: s["terms"][0]["roles"].append("gain_in"), "BS604", "the roles of SS"),
        (lambda s: s["modules"][0]["terms"][0].__setitem__(1, 9), "BS604", "entry 9 of 2"),
        (lambda s: s["modules"][0].update(rank=9), "BS604", "has rank 4, and not 9"),
        (lambda s: s["modules"][0].update(expert=3), "BS604", "is not a path of expert 3"),
        (lambda s: s["modules"][0].update(shape=[99, 48]), "BS604", "do not fit SS"),
        (lambda s: s["terms"][0].update(rank=9), "BS604", "do not fit SS"),
        (lambda s: s["terms"][0]["options"].update(slice="middle"), "BS604", "middle"),
        (
            lambda s: s["terms"][0]["options"].clear(),
            "BS604",
            "the option `slice` of SS is missing",
        ),
        (lambda s: s["terms"][0].update(rank="4"), "BS604", "rank"),
        (lambda s: s["tensors"][0].update(key="nowhere"), "BS608", "no tensor `nowhere`"),
        (lambda s: s["tensors"][0].update(draw={"normal": 1}), "BS604", "one of `key`"),
        (lambda s: s["tensors"][0].update(shape=[9, 9]), "BS604", "do not fit SS"),
        (lambda s: s["tensors"][0].update(shape=[2**40, 2**40]), "BS604", "less than"),
        (lambda s: s["modules"][0].update(shape=[2**70, 64]), "BS604", "less than"),
        (lambda s: s["tensors"].append({"shape": [1, 1], "key": "x"}), "BS608", "no tensor `x`"),
        (lambda s: s.update(more=1), "BS604", "more"),
    ],
)
def test_what_is_wrong_in_such_a_folder_is_named(
    change: Any, code: str, reason: str, tmp_path: Path
) -> None:
    folder = Path(by_others(HERE / "slice_sharing", tmp_path / "theirs"))
    config = config_of(folder)
    change(config["bishare"]["sharing"])
    (folder / CONFIG).write_text(json.dumps(config))
    refused(folder, code, reason)


@pytest.mark.parametrize("plain", ["no", 0, 1, None])
def test_an_option_of_another_type_is_refused(plain: Any, tmp_path: Path) -> None:
    folder = Path(by_others(HERE / "plain_magnitude", tmp_path / "theirs"))
    config = config_of(folder)
    term = next(t for t in config["bishare"]["sharing"]["terms"] if t["transform"] == "magnitude")
    term["options"]["plain"] = plain
    (folder / CONFIG).write_text(json.dumps(config))
    assert not jsonschema.Draft202012Validator(SCHEMA).is_valid(config)
    refused(folder, "BS604", "plain")


def test_a_tensor_that_it_does_not_name_is_refused(tmp_path: Path) -> None:
    folder = Path(by_others(HERE / "slice_sharing", tmp_path / "theirs"))
    file = folder / "adapter_model.safetensors"
    save_file(load_file(file) | {"more": torch.ones(2)}, file)
    refused(folder, "BS608", "does not name the tensor `more`")


@pytest.mark.parametrize(
    "draw",
    [
        *({"constant": 10**400}, {"normal": math.nan}, {"uniform": [0, 1e39]}),
        *({"choice": 2**40}, {"torch": {"choice": 2**40}}, {"choice": 1}),
    ],
    ids=str,
)
def test_no_draw_is_larger_than_its_numbers(draw: Any, tmp_path: Path) -> None:
    """A few letters in a config cannot ask for all memory."""
    folder = Path(by_others(HERE / "random_basis", tmp_path / "theirs"))
    config = config_of(folder)
    entry = next(t for t in config["bishare"]["sharing"]["tensors"] if "draw" in t)
    entry |= {"text": "my own:text", "draw": draw, "shape": [2, 2]}
    (folder / CONFIG).write_text(json.dumps(config))
    refused(folder, "BS604", "a draw cannot be")


def test_no_sum_of_draws_is_larger_than_its_base(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The shapes of the base are claims of the folder. Nothing is allocated for the sum."""
    folder = Path(by_others(HERE / "random_basis", tmp_path / "theirs"))
    config = config_of(folder)
    entries = [t for t in config["bishare"]["sharing"]["tensors"] if "draw" in t]
    assert len(entries) > 1
    for number, entry in enumerate(entries):
        entry["text"] = f"my own:{number}"
        entry.pop("sha256", None)
    (folder / CONFIG).write_text(json.dumps(config))
    read_adapter(folder)
    most = sum(math.prod(entry["shape"]) for entry in entries)
    monkeypatch.setattr(site, "_ALWAYS_FITS", most)
    read_adapter(folder)
    monkeypatch.setattr(site, "_ALWAYS_FITS", most - 1)
    monkeypatch.setattr(counter, "fill", None)
    with pytest.raises(AdapterError, match=f"BS60[48].*random tensors have {most:,} numbers"):
        read_adapter(folder)
    monkeypatch.undo()
    monkeypatch.setattr(site, "_ALWAYS_FITS", most - 1)
    load_adapter(folder, tiny_model("llama"))  # The model itself is large enough.


def test_what_is_too_large_to_generate_is_not_measured(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn = read_adapter(HERE / "random_basis")
    most = sum(drawn.plan.tensor[name].size for name in drawn.config.drawn)
    assert most > 0
    for limit, shown in ((most, True), (most - 1, False)):
        monkeypatch.setattr(site, "_ALWAYS_FITS", limit)
        assert main(["inspect", str(HERE / "random_basis")]) == 0
        said = capsys.readouterr().out
        assert (f"not stored have {most:,} numbers, more than" in said) != shown
        assert ("norms of updates, by layer" in said) == shown


def test_factors_that_are_too_large_to_expand_are_not_measured(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Small kernels and one shared factor may stand for modules of any claimed width."""
    plan = read_adapter(HERE / "kronecker").plan
    most = max(plan.rows(s.path) * (s.d_in + s.d_out) for s in plan.sites)
    for limit, shown in ((most, True), (most - 1, False)):
        monkeypatch.setattr(site, "_ALWAYS_FITS", limit)
        assert main(["inspect", str(HERE / "kronecker")]) == 0
        said = capsys.readouterr().out
        assert (f"factors of a module have {most:,} numbers, more than" in said) != shown
        assert ("norms of updates, by layer" in said) == shown


def test_a_text_that_unpacks_to_deep_nesting_is_refused(tmp_path: Path) -> None:
    folder = Path(by_others(HERE / "slice_sharing", tmp_path / "theirs"))
    config = config_of(folder)
    config["bishare"]["sharing"] = b64encode(zlib.compress(b"[" * 100_000)).decode()
    (folder / CONFIG).write_text(json.dumps(config))
    refused(folder, "BS604", "nested too deep")


def test_draws_that_no_spec_gives_are_drawn_and_then_stored(tmp_path: Path) -> None:
    folder = Path(by_others(HERE / "random_basis", tmp_path / "theirs"))
    config = config_of(folder)
    entry = next(t for t in config["bishare"]["sharing"]["tensors"] if "draw" in t)
    entry |= {"text": "my own:text", "draw": {"uniform": [0.25, 0.5]}}
    entry.pop("sha256")
    (folder / CONFIG).write_text(json.dumps(config))
    stored = read_adapter(folder)
    drawn = stored.tensors()[stored.plan.tensors[0].name]
    wanted = torch.empty(*drawn.shape)
    fill(wanted.numpy(), {"uniform": [0.25, 0.5]}, "my own", "text")
    assert torch.equal(drawn, wanted)
