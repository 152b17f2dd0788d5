"""Who shares what, as a folder says it to other readers: it is there, small, and what the spec gives."""

import hashlib
import json
import re
import shutil
import zlib
from base64 import b64encode
from pathlib import Path

import jsonschema
import numpy
import pytest
from peft import PeftModel
from safetensors.torch import load_file, save_file

from bishare_dsl import compile_spec, parse_spec, plan_spec
from bishare_dsl.diagnostics import AdapterError
from bishare_dsl.folder.files import TENSORS, read_adapter, save_adapter
from bishare_dsl.folder.sharing import stacks_of
from bishare_dsl.initial.counter import fill
from bishare_dsl.initial.values import draw
from bishare_dsl.testing.models import tiny_model
from tests.folder.test_files import CONFIG, TEXT, config_of, refused, reseal, saved
from tests.support.checks import randomize
from tests.support.families import tiny_model as family_of


@pytest.fixture
def folder(tmp_path):
    return saved(tmp_path / "adapter")


def altered(source, folder, edit):
    """Copy an adapter, and change its `sharing` and tensors as if it had been saved so."""
    shutil.copytree(source, folder)
    sharing, tensors = config_of(folder)["bishare"]["sharing"], load_file(folder / TENSORS)
    edit(sharing, tensors)
    save_file(tensors, folder / TENSORS)
    reseal(folder, sharing=sharing)
    return folder


def test_it_has_every_tensor_and_every_term_once(folder):
    stored = read_adapter(folder)
    sharing, plan = config_of(folder)["bishare"]["sharing"], stored.plan
    stacks = [(stack.key, len(stack.tensors)) for stack in stacks_of(plan, {})]
    stated = [(entry["key"].rpartition(".")[2], entry["count"]) for entry in sharing["tensors"]]
    assert stated == stacks
    names = [t.name for stack in stacks_of(plan, {}) for t in stack.tensors]
    found = {}
    for m in sharing["modules"]:
        first, count = m.get("blocks", (0, 1))
        for k in range(count):
            refs = [
                [names[r if isinstance(r, int) else r[0] + k * r[1]] for r in refs]
                for _, *refs in m["terms"]
            ]
            found[m["module"].replace("{}", str(first + k))] = m["rank"], refs
    assert found == {
        path: (plan.rows(path), [[*term.tensors.values()] for term in terms])
        for path, terms in plan.terms_of.items()
    }
    assert len(sharing["modules"]) < len(found)
    [term] = [t for t in sharing["terms"] if t["transform"] == "SS"]
    assert term["options"] == {"slice": "centre"}  # A default, which a reader cannot know.
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
def test_one_that_its_spec_does_not_give_is_refused(folder, change):
    read_adapter(folder)  # That this one was right is remembered, and says nothing of the next.
    sharing = config_of(folder)["bishare"]["sharing"]
    change(sharing)
    reseal(folder, sharing=sharing)
    refused(folder, "BS607", "`sharing` is not what its spec gives")


def test_one_that_was_changed_by_hand_is_refused(folder):
    config = config_of(folder)
    config["bishare"]["sharing"]["terms"][0]["scale"] = 2.0
    (folder / CONFIG).write_text(json.dumps(config))
    refused(folder, "BS604", "the config was changed after saving")


def test_peft_writes_it_and_refuses_another(tmp_path):
    text, folder = TEXT.replace(" share", "\nshare"), tmp_path / "adapter"
    plan = plan_spec(parse_spec(text), tiny_model("llama"))
    save_adapter(folder, plan, draw(plan, 0), text, seed=0)
    model = PeftModel.from_pretrained(tiny_model("llama"), str(folder))
    model.save_pretrained(str(tmp_path / "again"))
    assert read_adapter(tmp_path / "again").config.sharing == read_adapter(folder).config.sharing
    sharing = config_of(folder)["bishare"]["sharing"]
    sharing["modules"].reverse()
    reseal(folder, sharing=sharing)
    with pytest.raises(AdapterError, match="BS607"):
        PeftModel.from_pretrained(tiny_model("llama"), str(folder))


@pytest.mark.parametrize(
    "wrong", ["%", b64encode(zlib.compress(b"{")).decode(), None, 7, [], [[]], {"tensors": 7}]
)
def test_what_is_no_sharing_is_refused(folder, wrong):
    reseal(folder, sharing=wrong)
    refused(folder, "BS607")


@pytest.mark.parametrize(
    "change",
    [
        lambda config: config["bishare"].update(format=4),
        lambda config: config["bishare"].pop("format"),
        lambda config: config.update(spec=""),
        lambda config: config.update(bishare={"sharing": config["bishare"]["sharing"]}),
    ],
    ids=["an older format", "no format", "no spec", "another program's"],
)
def test_a_folder_that_needs_another_version_says_which(folder, change):
    config = config_of(folder)
    change(config)
    (folder / CONFIG).write_text(json.dumps(config))
    refused(folder, "BS604", "pip install bishare==0.4.0")
    with pytest.raises(AdapterError, match=r"(?s)BS604.*pip install bishare==0\.4\.0"):
        PeftModel.from_pretrained(tiny_model("llama"), str(folder))


HERE = Path(__file__).parents[2] / "conformance"
SCHEMA = json.loads((HERE.parent / "docs" / "format.schema.json").read_text("utf-8"))


def test_the_line_of_numpy_on_the_page_gives_the_words():
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


@pytest.mark.parametrize("plain", [False, True])
def test_a_magnitude_is_stated_and_read(plain, tmp_path):
    text = f"spec m\ntarget q_proj, down_proj\nshare s per module rank 2\nmagnitude per module{' plain' * plain}\n"
    model = compile_spec(text, family_of("llama"))
    randomize(model, 1, frozen=False)
    model.bishare.save_pretrained(tmp_path / "ours")
    sharing = config_of(tmp_path / "ours")["bishare"]["sharing"]
    jsonschema.validate(config_of(tmp_path / "ours"), SCHEMA)
    assert "magnitude" in sharing["needs"]
    assert {"plain": plain} in [term["options"] for term in sharing["terms"]]
    assert not any("rank" in module for module in sharing["modules"])
