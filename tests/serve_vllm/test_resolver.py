"""Thousands of adapters by their names: no folder is searched, and no engine is started."""

import asyncio
import os
import warnings

import pytest

from bishare_dsl import compile_spec
from bishare_dsl.folder.config import AdapterConfig
from bishare_dsl.folder.contents import own_file
from bishare_dsl.folder.files import CONFIG, parse_json, save_library
from bishare_dsl.serve.vllm import resolver
from bishare_dsl.testing.models import tiny_model

COUNT = 10_000


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """A library of 10,000 adapters, which are links to one file, beside as many folders."""
    root, model = tmp_path_factory.mktemp("many"), tiny_model("llama")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        compile_spec("library_core", model, params={"r": 2})
    library = root / "library"
    tensors = {name: tensor.detach() for name, tensor in model.bishare.tensors().items()}
    save_library(library, model.bishare.plan, {"c0": tensors}, model.bishare.spec_text, seed=0)
    config = AdapterConfig.of(parse_json((library / CONFIG).read_bytes()))
    names = [f"c{i}" for i in range(COUNT)]
    for name in names[1:]:
        os.link(library / own_file("c0"), library / own_file(name))
    digest = config.adapters["c0"]
    config = config.model_copy(update={"adapters": dict.fromkeys(names, digest)})
    (library / CONFIG).write_text(config.text(), encoding="utf-8")
    for i in range(COUNT):
        (root / f"folder-{i}").mkdir()
    model.bishare.save_pretrained(root / "folder-77")
    return root


@pytest.fixture
def checked(monkeypatch):
    """The folders that were checked before vLLM has their requests; whoever lists a folder fails."""

    def searched(*_):
        raise AssertionError("a folder is searched")

    for name in ("scandir", "listdir", "walk"):
        monkeypatch.setattr(os, name, searched)
    return []


def resolve(folder, name, checked):
    def place(*given):
        checked.append(given)
        return str(given[1])

    return asyncio.run(resolver.FolderResolver(str(folder), place).resolve_lora("base", name))


def test_a_library_of_ten_thousand(root, checked):
    for name in ("c0", "c9999"):
        request = resolve(root / "library", name, checked)
        assert (request.lora_name, request.lora_path) == (name, f"{root}/library#{name}")
    assert resolve(root, "library#c5000", checked).lora_path == f"{root}/library#c5000"
    assert [given[0] for given in checked] == ["c0", "c9999", "library#c5000"]


@pytest.mark.parametrize(
    "name", ["c10000", "../library/adapters/c1", "adapters/c1", "", ".", "c1\0"]
)
def test_what_no_adapter_of_it_is_called(root, checked, name):
    assert resolve(root / "library", name, checked) is None
    assert checked == []


def test_a_folder_of_ten_thousand(root, checked):
    assert resolve(root, "folder-77", checked).lora_path == f"{root}/folder-77"
    assert resolve(root, "folder-78", checked) is None
    assert len(checked) == 1
