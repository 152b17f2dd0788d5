"""Files of strangers: what is not a plain file of its folder is refused by every door, and nobody waits."""

import ast
import os
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

import bishare_dsl
from bishare_dsl import compile_spec, load_adapter
from bishare_dsl.diagnostics import AdapterError
from bishare_dsl.reading import MAX_CONFIG, MAX_VALUES, parse_json, read_file
from bishare_dsl.testing.models import tiny_model

pytestmark = pytest.mark.skipif(os.name == "nt", reason="pipes and links of POSIX")


def elsewhere(path):
    other = path.parent.parent / "elsewhere"
    other.write_bytes(b"{}")
    path.symlink_to(other)


HOSTILE = {
    "pipe": os.mkfifo,
    "device": lambda path: path.symlink_to("/dev/zero"),
    "link elsewhere": elsewhere,
    "link to itself": lambda path: path.symlink_to(path),
    "folder": Path.mkdir,
}


@pytest.mark.parametrize("make", HOSTILE.values(), ids=HOSTILE)
def test_what_is_not_a_plain_file_of_the_folder(make, tmp_path):
    folder = tmp_path / "folder"
    folder.mkdir()
    make(folder / "file")
    with pytest.raises(OSError, match=r"somewhere else|not a plain file|symbolic links"):
        read_file(folder, "file", 100)


def test_plain_files_and_links_inside(tmp_path):
    (tmp_path / "file").write_bytes(b"12345")
    (tmp_path / "link").symlink_to("file")
    assert read_file(tmp_path, "link", 5) == b"12345"
    with pytest.raises(OSError, match="5 bytes, and may have 4"):
        read_file(tmp_path, "file", 4)
    with pytest.raises(FileNotFoundError):
        read_file(tmp_path, "nothing", 4)


def test_a_snapshot_of_the_hubs_cache(tmp_path):
    repository = tmp_path / "models--me--shared"
    for name in ("blobs", "snapshots/commit/adapters"):
        (repository / name).mkdir(parents=True)
    (repository / "blobs" / "0a").write_bytes(b"12345")
    (repository / "secret").write_bytes(b"12345")
    snapshot = repository / "snapshots" / "commit"
    (snapshot / "adapters" / "one").symlink_to("../../../blobs/0a")
    (snapshot / "two").symlink_to("../../secret")
    assert read_file(snapshot, "adapters/one", 5) == b"12345"
    with pytest.raises(OSError, match="somewhere else"):
        read_file(snapshot, "two", 5)


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """Adapters that load: bishare's, and PEFT's."""
    root = tmp_path_factory.mktemp("saved")
    compile_spec("lora", tiny_model("llama")).bishare.save_pretrained(root / "ours")
    module = "base_model.model.model.layers.0.self_attn.q_proj.lora_"
    pair = {"A.weight": torch.ones(2, 32), "B.weight": torch.ones(40, 2)}
    (root / "theirs").mkdir()
    save_file(
        {module + name: value for name, value in pair.items()},
        root / "theirs/adapter_model.safetensors",
    )
    (root / "theirs/adapter_config.json").write_text('{"peft_type": "LORA", "r": 2}')
    for folder in ("ours", "theirs"):
        load_adapter(root / folder, tiny_model("llama"))
    return root


@pytest.mark.parametrize("folder", ["ours", "theirs"])
@pytest.mark.parametrize("file", ["adapter_config.json", "adapter_model.safetensors"])
@pytest.mark.parametrize("make", HOSTILE.values(), ids=HOSTILE)
def test_every_door(saved, folder, file, make, tmp_path):
    shutil.copytree(saved, tmp_path, dirs_exist_ok=True)
    (tmp_path / folder / file).unlink()
    make(tmp_path / folder / file)
    with pytest.raises(AdapterError, match="BS60"):
        load_adapter(tmp_path / folder, tiny_model("llama"))


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("[" * 100_000 + "]" * 100_000, "nested too deep"),
        ("[" + "1," * MAX_VALUES + "1, 1]", "more than 1,048,576 values"),
        (" " * MAX_CONFIG + "1", "more than 67,108,864 characters"),
        ("{", "Expecting"),
    ],
    ids=["deep", "many", "long", "cut"],
)
@pytest.mark.parametrize("kind", [str, str.encode])
def test_json_that_is_refused(text, reason, kind):
    with pytest.raises(ValueError, match=reason):
        parse_json(kind(text))


PARSES_ITSELF = {
    "reading.py": "it is the reader",
    "diagnostics/tried.py": "a row that the reader has refused, as it would stand after a mend",
    "language/syntax.py": "a name in quotes of a spec, which is a JSON string",
    "train/data/load.py": "a row that the reader has read, again for names that stand twice in it",
}
_PARSERS = ("load", "loads", "json", "model_validate_json", "validate_json", "raw_decode")


def test_json_has_one_reader():
    """Which limits its size, depth and number of values."""
    package, found = Path(bishare_dsl.__file__).parent, set()
    for path in package.rglob("*.py"):
        calls = (n for n in ast.walk(ast.parse(path.read_text("utf-8"))) if isinstance(n, ast.Call))
        for called in (call.func for call in calls):
            if isinstance(called, ast.Attribute) and called.attr in _PARSERS:
                owner = ast.unparse(called.value)
                if owner == "json" or called.attr not in ("load", "loads"):
                    found.add(path.relative_to(package).as_posix())
    assert found == PARSES_ITSELF.keys()
