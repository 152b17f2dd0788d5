"""Which tensors a folder stacks and which it leaves out; its config says the latter alone."""

import hashlib
import json
import re
from pathlib import Path

import numpy
import pytest
from peft import PeftModel
from safetensors.torch import load_file

from bishare_dsl.diagnostics import AdapterError
from bishare_dsl.folder.files import TENSORS, read_adapter
from bishare_dsl.folder.stacks import stacks_of
from bishare_dsl.initial.counter import fill
from bishare_dsl.testing.models import tiny_model
from tests.folder.test_files import CONFIG, config_of, refused, reseal, saved


@pytest.fixture
def folder(tmp_path):
    return saved(tmp_path / "adapter")


def test_the_file_has_each_stack_and_the_config_no_list_of_them(folder):
    plan = read_adapter(folder).plan
    shapes = {key.rpartition(".")[2]: t.shape for key, t in load_file(folder / TENSORS).items()}
    assert shapes == {stack.key: stack.shape for stack in stacks_of(plan, ())}
    assert [t.name for stack in stacks_of(plan, ()) for t in stack.tensors].sort() == [
        *plan.tensor
    ].sort()
    record = config_of(folder)["bishare"]
    assert record["entries"] == {}
    assert "sharing" not in record


@pytest.mark.parametrize(
    ("entry", "code"),
    [
        ({"way": "seed"}, "BS604"),
        ({"way": "base"}, "BS604"),
        ({"way": "base", "marks": {"signs": "0", "sums": [1.0, 1.0]}}, "BS604"),
        ({"way": "int4"}, "BS604"),
        ({"way": "seed", "sha256": "x"}, "BS604"),
        (7, "BS604"),
    ],
)
@pytest.mark.parametrize("name", ["y.layers.0.self_attn.q_proj.A", "no such tensor"])
def test_an_entry_of_a_trained_tensor_is_refused(folder, entry, code, name):
    reseal(folder, entries={name: entry})
    refused(folder, code)


def test_one_that_was_changed_by_hand_is_refused(folder):
    config = config_of(folder)
    config["bishare"]["entries"]["x"] = {"way": "base"}
    (folder / CONFIG).write_text(json.dumps(config))
    refused(folder, "BS604", "the config was changed after saving")


@pytest.mark.parametrize(
    "change",
    [
        lambda config: config["bishare"].update(format=4),
        lambda config: config["bishare"].pop("format"),
        lambda config: config.update(spec=""),
        lambda config: config.update(bishare={"sharing": {}}),
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


def test_the_line_of_numpy_on_the_page_gives_the_words():
    """Also where one integer of the key is below 2^63 and the other is not, as of `0:s.A`."""
    page = (Path(__file__).parents[2] / "docs" / "format.md").read_text("utf-8")
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
