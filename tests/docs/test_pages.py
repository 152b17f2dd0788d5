"""Each page's commands succeed in its order, in a folder that has what a reader brings and nothing else.

The README's, the tutorial's, those of two pages with outputs and of a transform's page have tests of their own. Commands for a server, for
several processes or for another program are left out here: their engines' tests run them.
"""

import glob
import json
import shlex
from pathlib import Path

import pytest
import torch

from bishare_dsl.adapter.files import save_adapter
from bishare_dsl.api import plan_spec
from bishare_dsl.cli.main import main
from bishare_dsl.testing.models import tiny_model
from bishare_dsl.testing.tokenizer import tiny_tokenizer
from tests.docs.test_examples import BLOCKS, PAGES, write_files

ELSEWHERE = (
    "README.md",
    "tutorial.md",
    "many-adapters.md",
    "few-examples.md",
    "write-a-transform.md",
)
LEFT_OUT = ("http:", "checkpoint-300")
CHECKPOINTS = ("base", "my-checkpoint")
SPEC = "spec mine\ntarget q_proj, v_proj\nshare own  per module  rank 2\n"


def commands_of(page):
    """Return the words of a page's commands of bishare, in order."""
    texts = [
        b.text.replace("\\\n", " ") for b in BLOCKS if b.page == page and b.language == "console"
    ]
    lines = [line.removeprefix("$ ") for text in texts for line in text.splitlines()]
    return [
        shlex.split(line.replace("#", "\0").replace(" \0", "   # "), comments=True)[1:]
        for line in lines
        if line.startswith("bishare ") and not any(part in line for part in LEFT_OUT)
    ]


COMMANDS = {page: commands_of(page) for page in PAGES if page.name not in ELSEWHERE}


def adapter(place, seed):
    """Save an adapter that does something."""
    plan = plan_spec(SPEC, "base")
    random = torch.Generator().manual_seed(seed)
    tensors = {t.name: 0.1 * torch.randn(t.shape, generator=random) for t in plan.tensors}
    save_adapter(place, plan, tensors, SPEC, seed=0)


def rows(place, *, options=False):
    chosen = [{"prompt": f"{i}: ", "completion": "ab"[i % 2]} for i in range(12)]
    more = {"options": ["a", "b"]} if options else {}
    place.parent.mkdir(exist_ok=True)
    place.write_text("\n".join(json.dumps(row | more) for row in chosen), encoding="utf-8")


def bring(words):
    """Make what the words of a page's commands take for granted."""
    model = tiny_model("llama", max_position_embeddings=128)
    for name in CHECKPOINTS:
        model.save_pretrained(name)
        tiny_tokenizer().save_pretrained(name)
    rows(Path("rows.jsonl"))
    rows(Path("held-out.jsonl"), options=True)
    config = {"model": "./my-checkpoint", "data": "rows.jsonl", "output_dir": "configured"}
    Path("train.yaml").write_text(json.dumps(config), encoding="utf-8")
    adapters = ("my-adapter", "other-adapter", "lora-seed-0", "lora-seed-1", "new-customer")
    for seed, name in enumerate((*adapters, "tasks/law", "tasks/med")):
        if any(name == word or f"{name.partition('/')[0]}/*" == word for word in words):
            adapter(Path(name), seed)
    for name in {"my-lora", "./lora"} & {*words}:
        adapter(Path("of-bishare"), 0)
        assert main(["convert", "of-bishare", "--model", "./base", "--out", name, "--quiet"]) == 0
    if "tasks/*.jsonl" in words:
        rows(Path("tasks/poems.jsonl"))
        rows(Path("tasks/news.jsonl"))


@pytest.mark.long
@pytest.mark.parametrize(
    "page", [page for page in COMMANDS if COMMANDS[page]], ids=lambda p: p.name
)
def test_the_commands_of_a_page_run_in_its_order(page, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    bring([word for command in COMMANDS[page] for word in command])
    write_files(page)
    for command in COMMANDS[page]:
        found = [
            name.replace("\0", "#")
            for word in command
            for name in sorted(glob.glob(word)) or [word]  # noqa: PTH207
        ]
        assert main(found) == 0, (command, capsys.readouterr().err)
