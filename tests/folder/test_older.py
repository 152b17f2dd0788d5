"""Folders that 0.4 and 0.5 wrote load, give the logits that they gave, and can grow; quantised ones say how to convert them."""

import shutil
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file

from bishare_dsl import load_adapter
from bishare_dsl.cli.main import main
from bishare_dsl.diagnostics import AdapterError
from bishare_dsl.folder.files import add_to_library, read_adapter
from bishare_dsl.testing.models import tiny_model
from tests.folder.test_files import config_of, reseal

HERE = Path(__file__).parent
WIDTHS = {"of_0_4": 64, "of_0_5": 32}
FOLDERS = [
    "of_0_4/vera-float32",
    "of_0_4/bishare_ss-bfloat16",
    "of_0_5/vera-float32",
    "of_0_5/bishare_ss-bfloat16",
    "of_0_5/tiny-base",
    "of_0_5/library#two",
]
QUANTISED = ["of_0_4/lora-int4", "of_0_5/lora-int4", "of_0_5/lora-int8"]


def base_of(name):
    return tiny_model("llama", seed=0, hidden_size=WIDTHS[name.partition("/")[0]]).eval()


def last_logits(model):
    tokens = torch.arange(12).view(1, 12)
    with torch.no_grad():
        return model.eval()(tokens).logits[0, -1]


def expected(name):
    version, _, adapter = name.partition("/")
    return load_file(HERE / version / "logits.safetensors")[adapter]


@pytest.mark.parametrize("name", FOLDERS)
def test_an_older_folder_gives_its_logits(name):
    model = load_adapter(f"{HERE}/{name}", base_of(name))
    torch.testing.assert_close(last_logits(model), expected(name), rtol=1e-5, atol=1e-6)
    assert not torch.allclose(last_logits(base_of(name)), expected(name), atol=1e-4)


@pytest.mark.parametrize("name", [name for name in FOLDERS if "#" not in name])
def test_peft_loads_an_older_folder_and_saves_it_in_the_new_format(name, tmp_path):
    model = PeftModel.from_pretrained(base_of(name), str(HERE / name))
    torch.testing.assert_close(last_logits(model), expected(name), rtol=1e-5, atol=1e-6)
    model.save_pretrained(str(tmp_path))
    record = config_of(tmp_path)["bishare"]
    assert (record["format"], "sharing" in record) == (7, False)
    again = load_adapter(tmp_path, base_of(name))
    torch.testing.assert_close(last_logits(again), expected(name), rtol=1e-5, atol=1e-6)


def test_an_older_library_grows_in_its_format(tmp_path):
    library = shutil.copytree(HERE / "of_0_5" / "library", tmp_path / "library")
    two = read_adapter(f"{library}#two")
    assert add_to_library(library, {"three": two.tensors()}) == ()
    config = config_of(library)["bishare"]
    assert config["format"] == 6
    assert config["sharing"] == config_of(HERE / "of_0_5" / "library")["bishare"]["sharing"]
    three = load_adapter(f"{library}#three", base_of("of_0_5/library"))
    torch.testing.assert_close(
        last_logits(three), expected("of_0_5/library#two"), rtol=1e-5, atol=1e-6
    )


@pytest.mark.parametrize("name", QUANTISED)
def test_a_quantised_folder_names_the_command_that_converts_it(name, capsys):
    form = name.rpartition("-")[2]
    wanted = f"bishare convert {HERE / name} --for bishare --out NEW"
    with pytest.raises(AdapterError, match=f"BS663.*{form}") as caught:
        load_adapter(HERE / name, base_of(name))
    assert "pip install bishare==0.5.0" in str(caught.value)
    assert wanted in str(caught.value)
    with pytest.raises(AdapterError, match="BS663"):
        PeftModel.from_pretrained(base_of(name), str(HERE / name))
    assert main(["inspect", str(HERE / name)]) == 1
    assert wanted in capsys.readouterr().err


def test_a_quantised_library_names_its_adapters(tmp_path):
    library = shutil.copytree(HERE / "of_0_5" / "library", tmp_path / "library")
    reseal(library, rounded="int4")
    with pytest.raises(AdapterError, match=f"convert '{library}#one' '{library}#two' --for"):
        read_adapter(f"{library}#one")


@pytest.mark.parametrize(
    "change",
    [
        lambda sharing: sharing["tensors"].pop(),
        lambda sharing: sharing.pop("tensors"),
        lambda sharing: sharing["tensors"].insert(0, 7),
        lambda sharing: sharing["tensors"][0].update(draw={"normal": 1.0}),
    ],
)
def test_a_list_of_tensors_that_the_spec_does_not_give_is_refused(change, tmp_path):
    folder = shutil.copytree(HERE / "of_0_5" / "bishare_ss-bfloat16", tmp_path / "adapter")
    sharing = config_of(folder)["bishare"]["sharing"]
    change(sharing)
    reseal(folder, sharing=sharing)
    with pytest.raises(AdapterError, match=r"BS607.*`sharing` is not what its spec gives"):
        read_adapter(folder)


@pytest.mark.parametrize(
    ("number", "change", "reason"),
    [
        (7, {"sharing": {}}, "format 7 has no `sharing`"),
        (6, {"entries": {}}, "format 6 has no `entries`"),
        (6, {"sharing": 7}, "it has no `sharing`"),
        (8, {}, "pip install --upgrade bishare"),
    ],
)
def test_a_config_of_two_formats_is_refused(number, change, reason, tmp_path):
    folder = shutil.copytree(HERE / "of_0_5" / "vera-float32", tmp_path / "adapter")
    reseal(folder, format=number, **change)
    with pytest.raises(AdapterError, match=f"BS604.*{reason}"):
        read_adapter(folder)


def test_a_trained_tensor_that_the_list_calls_random_is_refused(tmp_path):
    folder = shutil.copytree(HERE / "of_0_5" / "bishare_ss-bfloat16", tmp_path / "adapter")
    sharing = config_of(folder)["bishare"]["sharing"]
    sharing["tensors"][0].update(draw={"normal": 1.0}, dtype="float32", sha256="")
    reseal(folder, sharing=sharing)
    with pytest.raises(AdapterError, match=r"BS604.*must be in the file"):
        read_adapter(folder)
