"""What `website/hooks.py` does to pages; `make docs` builds the site itself, strictly, in CI."""

import importlib
import importlib.util
import inspect
import re
from pathlib import Path

import pytest

import bishare_dsl
from bishare_dsl.adapted.handle import Handle

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def hooks():
    spec = importlib.util.spec_from_file_location("hooks", ROOT / "website" / "hooks.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_every_page_is_in_the_navigation():
    """`make docs` refuses what is not."""
    text = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    pages = [page.name for page in (ROOT / "docs").glob("*.md")]
    assert not [name for name in pages if f"- {name}\n" not in text]


@pytest.mark.parametrize(
    ("page", "text", "wanted", "outside"),
    [
        (
            "docs/why.md",
            "[a](../specs/lora.share) [b](training.md#x) [c](../README.md) [d](https://x.y) ![e](images/a.svg)",
            "[a](source/specs/lora.share.md) [b](training.md#x) [c](index.md) [d](https://x.y) ![e](images/a.svg)",
            {ROOT / "specs" / "lora.share", ROOT / "README.md"},
        ),
        (
            "README.md",
            "[a](docs/why.md) ![b](docs/images/sharing.svg) [c](CONTRIBUTING.md)",
            "[a](why.md) ![b](images/sharing.svg) [c](contributing.md)",
            None,
        ),
        (
            "docs/why.md",
            "```share fragment error=BS305\n[x](y)\n```\n```console run\n```\n```text\n```\n",
            "```share\n[x](y)\n```\n```console\n```\n```text\n```\n",
            set(),
        ),
    ],
    ids=["links", "links of the README", "marks of blocks"],
)
def test_pages_are_rewritten_for_the_site(hooks, page, text, wanted, outside):
    found, left = hooks.rewritten(
        text, ROOT / page, page.replace("docs/", "").replace("README", "index")
    )
    assert found == wanted
    assert outside in (None, left)


def test_a_folder_lists_its_files(hooks):
    text, inside = hooks.page_of(ROOT / "specs")
    assert "[`lora.share`](specs/lora.share.md)" in text
    assert ROOT / "specs" / "lora.share" in inside


def test_the_reference_has_every_public_name_and_each_is_there():
    text = (ROOT / "docs" / "reference.md").read_text(encoding="utf-8")
    named = re.findall(r"^::: (\S+)$", text, re.MULTILINE)
    assert {f"bishare_dsl.{name}" for name in bishare_dsl.__all__} - {*named} == {
        "bishare_dsl.__version__"
    }
    for name in named:
        module, _, attribute = name.rpartition(".")
        assert inspect.getdoc(getattr(importlib.import_module(module), attribute)), name
    for member in re.findall(r"^        - (\w+)$", text, re.MULTILINE):
        assert inspect.getdoc(getattr(Handle, member)), member


def test_the_command_line_page_has_every_command_and_option(hooks):
    import click

    text = hooks.command_line()
    for name in hooks.COMMANDS:
        section = text.partition(f"## `bishare {name}`")[2].partition("\n## ")[0]
        context = click.Context(hooks.bishare, obj=hooks.Report())
        command = hooks.bishare.get_command(context, name)
        assert f"$ bishare {name}" in section
        for param in command.params:
            if isinstance(param, click.Option) and not param.hidden:
                assert param.opts[-1] in section, (name, param.opts)
