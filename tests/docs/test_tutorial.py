"""The tutorial, command by command, on a tiny model in the place of the one that it downloads."""

import shlex
from pathlib import Path

import pytest

from bishare_dsl.cli.main import main
from bishare_dsl.testing.models import tiny_model
from bishare_dsl.testing.tokenizer import tiny_tokenizer
from tests.docs.test_examples import BLOCKS, write_files

PAGE = Path(__file__).parents[2] / "docs" / "tutorial.md"
LINES = [
    line.removeprefix("$ ")
    for block in BLOCKS
    if block.page == PAGE and block.language == "console"
    for line in block.text.splitlines()
]
# The server is run by tests/serve_vllm/test_tutorial.py.
OTHERS = ("pip install ", "hf download ", "python -m vllm", "curl ")


def save_model(folder):
    """Save a tiny model as the one that the page downloads."""
    tiny_model("llama", num_hidden_layers=3).save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)


def test_every_command_succeeds(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    write_files(PAGE)
    save_model(Path("smollm2"))
    commands = [line for line in LINES if line.startswith("bishare ")]
    assert len(commands) + sum(line.startswith(OTHERS) for line in LINES) == len(LINES)
    for command in commands:
        capsys.readouterr()
        assert main(shlex.split(command)[1:]) == 0, (command, capsys.readouterr().err)
    said = capsys.readouterr()
    assert "error[" not in said.err
    [asked] = [b.text for b in BLOCKS if b.page == PAGE and b.language == "py"]
    exec(compile(asked, str(PAGE), "exec"), {})
    answers = capsys.readouterr().out.splitlines()
    assert answers[0].startswith("fox: ")
    for made in (
        "sharing.svg",
        "run/adapter_model.safetensors",
        "merged/config.json",
        "for-peft/adapter_config.json",
    ):
        assert Path(made).is_file(), made


@pytest.mark.parametrize("command", OTHERS)
def test_the_other_commands_are_there(command):
    assert [line for line in LINES if line.startswith(command)]
