"""Each page's commands succeed in its order, in a folder that has what a reader brings and nothing else.

Of the pages in `MADE`, outputs are those that the page shows, but for numbers; `UPDATE_GOLDEN=1` writes them there.
A transform's page has a test of its own. Commands for a server, for several
processes or for another program are left out here: their engines' tests run them.
"""

import contextlib
import glob
import io
import json
import os
import re
import shlex
from pathlib import Path

import pytest
import torch

from bishare_dsl.api import plan_spec
from bishare_dsl.cli.main import main
from bishare_dsl.folder.files import save_adapter
from bishare_dsl.testing.models import tiny_model
from bishare_dsl.testing.tokenizer import tiny_tokenizer
from tests.docs.test_examples import BLOCKS, PAGES, ROOT, write_files

MADE = {
    "many-adapters.md": (7, "adapters/acme", "imported/acme", "library/adapters/acme.safetensors"),
    "few-examples.md": (
        *(5, "alone"),
        *(f"later/library/adapters/{n}.safetensors" for n in ("wonka", "umbrella")),
    ),
}
"""How many blocks of commands a page has, and some of what they make."""
ELSEWHERE = ("tutorial.md", "write-a-transform.md", *MADE)
LEFT_OUT = ("http:", "checkpoint-300")
SPEC = "spec mine\ntarget q_proj, v_proj\nshare own  per module  rank 2\n"
BLOCK = re.compile(
    r"```(console|python) many\n(?P<text>.*?)```\n(?:\n```text\n(?P<out>.*?)```\n)?", re.DOTALL
)


def lines_of(page):
    """Return the command lines of a page that succeed, in order."""
    blocks = [b for b in BLOCKS if b.page == page and b.language == "console"]
    texts = [b.text for b in blocks if not b.values("exit")]
    lines = [line for text in texts for line in text.replace("\\\n", " ").splitlines()]
    return [line.removeprefix("$ ") for line in lines]


def run(line):
    """Run a command as a shell would, in which a `#` behind a space alone begins a comment."""
    words = shlex.split(line.replace("#", "\0").replace(" \0", "   # "), comments=True)[1:]
    found = [f for word in words for f in sorted(glob.glob(word)) or [word]]  # noqa: PTH207
    return main([word.replace("\0", "#") for word in found])


def exit_code(page, line):
    """Return the exit code that a page says a command has."""
    for block in BLOCKS:
        if block.page == page and block.language == "console" and f"$ {line}\n" in block.text:
            return int((block.values("exit") or ["0"])[0])
    return 0


COMMANDS = {
    page: [
        line
        for line in lines_of(page)
        if line.startswith("bishare ") and not any(part in line for part in LEFT_OUT)
    ]
    for page in PAGES
}


def save_base(folder, **settings):
    tiny_model("llama", **settings).save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)


def adapter(place, seed):
    """Save an adapter that does something."""
    plan = plan_spec(SPEC, "base")
    random = torch.Generator().manual_seed(seed)
    tensors = {t.name: 0.1 * torch.randn(t.shape, generator=random) for t in plan.tensors}
    save_adapter(place, plan, tensors, SPEC, seed=0)


def rows(place, *, options=False):
    chosen = [{"prompt": f"{i}: ", "completion": "ab"[i % 2]} for i in range(12)]
    more = {"options": ["a", "b"]} if options else {}
    Path(place).parent.mkdir(exist_ok=True)
    Path(place).write_text("\n".join(json.dumps(row | more) for row in chosen), encoding="utf-8")


def bring(words):
    """Make what the words of a page's commands take for granted."""
    for name in ("base", "my-checkpoint"):
        save_base(name, max_position_embeddings=128)
    rows("rows.jsonl")
    rows("held-out.jsonl", options=True)
    config = {"model": "./my-checkpoint", "data": "rows.jsonl", "output_dir": "configured"}
    Path("train.yaml").write_text(json.dumps(config), encoding="utf-8")
    adapters = ("my-adapter", "other-adapter", "lora-seed-0", "lora-seed-1", "new-customer")
    for seed, name in enumerate((*adapters, "tasks/law", "tasks/med")):
        if any(name == word or f"{name.partition('/')[0]}/*" == word for word in words):
            adapter(name, seed)
    for name in {"my-lora", "./lora"} & {*words}:
        adapter("of-bishare", 0)
        assert main(["convert", "of-bishare", "--model", "./base", "--out", name, "--quiet"]) == 0
    if "customers" in words:
        for name in ("acme", "customers/globex", "customers/initech", "customers/hooli"):
            rows(f"{name}.jsonl", options=True)
    if "tasks/*.jsonl" in words:
        rows("tasks/poems.jsonl")
        rows("tasks/news.jsonl")


@pytest.mark.long
@pytest.mark.parametrize(
    "page",
    [page for page in PAGES if page.name not in ELSEWHERE and COMMANDS[page]],
    ids=lambda page: page.name,
)
def test_the_commands_of_a_page_run_in_its_order(page, here, capsys):
    bring([word for line in COMMANDS[page] for word in shlex.split(line, comments=True)])
    write_files(page)
    for line in COMMANDS[page]:
        assert run(line) == exit_code(page, line), (line, capsys.readouterr().err)


def masked(text):
    """Leave numbers out, which another machine may compute otherwise, and the widths of columns."""
    text = re.sub(r"[-+]?[\d.,]*\d%?|-{2,}", "0", re.sub(r"[ \t]+", " ", text))
    return sorted(text.split("\n"))  # Rows may be ordered by a number.


@pytest.mark.long
@pytest.mark.parametrize("name", MADE)
def test_every_command_prints_what_the_page_shows(name, here):
    page, (blocks, *made) = ROOT / "docs" / name, MADE[name]
    text = updated = page.read_text(encoding="utf-8")
    save_base("base")
    write_files(page)
    for block in BLOCK.finditer(text):
        if block[1] == "python":
            exec(compile(block["text"], "page", "exec"), {})
            continue
        blocks -= 1
        with contextlib.redirect_stdout(io.StringIO()) as out:
            for line in block["text"].splitlines():
                assert run(line.removeprefix("$ ")) == 0, line
        said = out.getvalue().rstrip()
        if os.environ.get("UPDATE_GOLDEN"):
            head = block[0].partition("\n```text\n")[0].rstrip("\n")
            shown = f"{head}\n\n```text\n{said}\n```\n" if said else f"{head}\n"
            updated = updated.replace(block[0], shown)
        else:
            assert masked((block["out"] or "").rstrip()) == masked(said), block["text"]
    if updated != text:
        page.write_text(updated, encoding="utf-8")
    assert blocks == 0
    assert all(Path(place).exists() for place in made)


TUTORIAL = ROOT / "docs" / "tutorial.md"
# The server is run by tests/serve_vllm/test_tutorial.py.
OTHERS = ("pip install ", "hf download ", "python -m vllm", "curl ")


def test_every_command_of_the_tutorial_succeeds(here, capsys):
    """On a tiny model in the place of the one that it downloads."""
    write_files(TUTORIAL)
    save_base("smollm2", num_hidden_layers=3)
    others = [line for line in lines_of(TUTORIAL) if not line.startswith("bishare ")]
    assert all(line.startswith(OTHERS) for line in others)
    assert all(any(line.startswith(other) for line in others) for other in OTHERS)
    for line in COMMANDS[TUTORIAL]:
        capsys.readouterr()
        assert main(shlex.split(line)[1:]) == 0, (line, capsys.readouterr().err)
    assert "error[" not in capsys.readouterr().err
    [asked] = [b.text for b in BLOCKS if b.page == TUTORIAL and b.language == "py"]
    exec(compile(asked, str(TUTORIAL), "exec"), {})
    assert capsys.readouterr().out.startswith("fox: ")
    tensors = "run/adapter_model.safetensors"
    for made in ("sharing.svg", tensors, "merged/config.json", "for-peft/adapter_config.json"):
        assert Path(made).is_file(), made
