"""*200 adapters on one base* and *Many tasks, few examples each*: every command runs, and prints what the page
shows, but for numbers.

`python tests/docs/test_many_adapters.py` writes the outputs into the pages.
"""

import contextlib
import glob
import io
import os
import re
import shlex
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from bishare_dsl.cli.main import main
from bishare_dsl.testing.models import tiny_model
from bishare_dsl.testing.tokenizer import tiny_tokenizer

DOCS = Path(__file__).parents[2] / "docs"
MADE = {
    "many-adapters.md": (7, "adapters/acme", "imported/acme", "library/adapters/acme.safetensors"),
    "few-examples.md": (
        5,
        "alone",
        *(f"later/library/adapters/{n}.safetensors" for n in ("wonka", "umbrella")),
    ),
}
"""How many blocks of commands a page has, and some of what they make."""
BLOCK = re.compile(
    r"```(console|python) many\n(?P<text>.*?)```\n(?:\n```text\n(?P<out>.*?)```\n)?", re.DOTALL
)
SPEC = re.compile(r"```share file=(\S+)\n(.*?)```", re.DOTALL)


def outputs(text):
    """Run the page in an empty folder; yield each block with what it printed."""
    tiny_model("llama").save_pretrained("base")
    tiny_tokenizer().save_pretrained("base")
    for name, spec in SPEC.findall(text):
        Path(name).write_text(spec, encoding="utf-8")
    for block in BLOCK.finditer(text):
        if block[1] == "python":
            exec(compile(block["text"], "page", "exec"), {})
            yield block, ""
            continue
        out = io.StringIO()
        for line in block["text"].splitlines():
            command = line.removeprefix("$ ").replace("#", "\0")
            words = [
                found.replace("\0", "#")
                for word in shlex.split(command)[1:]
                for found in (sorted(glob.glob(word)) or [word])  # noqa: PTH207
            ]
            with contextlib.redirect_stdout(out):
                code = main(words)
            assert code == 0, line
        yield block, out.getvalue()


def masked(text):
    """Leave numbers out, which another machine may compute otherwise, and the widths of columns."""
    text = re.sub(r"[-+]?[\d.,]*\d%?|-{2,}", "0", re.sub(r"[ \t]+", " ", text))
    return sorted(text.split("\n"))  # Rows may be ordered by a number.


@pytest.mark.long
@pytest.mark.parametrize("page", MADE)
def test_every_command_prints_what_the_page_shows(tmp_path, monkeypatch, page):
    monkeypatch.chdir(tmp_path)
    text, count = (DOCS / page).read_text(encoding="utf-8"), 0
    for block, out in outputs(text):
        shown = (block["out"] or "").rstrip()
        if block[1] == "console":
            assert masked(shown) == masked(out.rstrip()), block["text"]
            count += 1
    blocks, *made = MADE[page]
    assert count == blocks
    assert all(Path(place).exists() for place in made)


def write(page):
    """Write the outputs into a page."""
    text = page.read_text(encoding="utf-8")
    with TemporaryDirectory() as folder, contextlib.chdir(folder):
        for block, out in [*outputs(text)]:
            if block[1] == "python":
                continue
            head = block[0].partition("\n```text\n")[0].rstrip("\n")
            shown = f"{head}\n\n```text\n{out.rstrip()}\n```\n" if out.strip() else f"{head}\n"
            text = text.replace(block[0], shown)
    page.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    sys.path.insert(0, os.fspath(DOCS.parent))
    for name in sys.argv[1:] or MADE:
        write(DOCS / name)
