"""What the site adds to the pages of `docs`: those of the repository's other files that they link to.

MkDocs calls the `on_` functions. Pages have the links that GitHub follows; here they lead into the site.
"""

from __future__ import annotations

import inspect
import re
from os.path import relpath
from pathlib import Path

import click
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

from bishare_dsl.cli.main import COMMANDS, bishare
from bishare_dsl.cli.report import Report

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
# Texts of the repository that are pages of their own.
PAGES = {
    "README.md": "index.md",
    "CONTRIBUTING.md": "contributing.md",
    "CHANGELOG.md": "changelog.md",
}
LANGUAGES = {".py": "python", ".share": "share", ".json": "json", ".mjs": "js", ".js": "js"}
AS_THEY_ARE = (".svg", ".png", ".ipynb")
_FENCED = re.compile(r"^( *)```.*?^\1```$", re.MULTILINE | re.DOTALL)
_LINK = re.compile(r"(!?\[[^\]]*\]\()([^)#\s]+)(#[^)\s]*)?(\))")
# Behind the language stands what the tests do with a block.
_MARKS = re.compile(r"^( *```\w+) .*$", re.MULTILINE)


def place_of(path: Path) -> str:
    """Tell where in the site a file or folder of the repository stands."""
    if path.is_relative_to(DOCS):
        return path.relative_to(DOCS).as_posix()
    name = path.relative_to(ROOT).as_posix()
    shown_as_it_is = path.suffix in AS_THEY_ARE
    return PAGES.get(name) or (f"source/{name}" if shown_as_it_is else f"source/{name}.md")


def rewritten(text: str, source: Path, place: str) -> tuple[str, set[Path]]:
    """Lead the links of a text to the site, and give the files outside of `docs` that they lead to."""
    found: set[Path] = set()

    def link(match: re.Match[str]) -> str:
        opening, target, anchor, closing = match.groups()
        if "://" in target or target.startswith("mailto:"):
            return match[0]
        path = (source.parent / target).resolve()
        if "benchmarks/notes" in str(source) and not path.exists():
            return opening.lstrip("!")[1:-2]  # A dated note names code of its own commit.
        if not path.is_relative_to(DOCS):
            found.add(path)
        there = relpath(place_of(path), Path(place).parent).replace("\\", "/")
        return f"{opening}{there}{anchor or ''}{closing}"

    parts, end = [], 0
    for fence in _FENCED.finditer(text):
        parts += [_LINK.sub(link, text[end : fence.start()]), fence[0]]
        end = fence.end()
    parts.append(_LINK.sub(link, text[end:]))
    return _MARKS.sub(r"\1", "".join(parts)), found


def page_of(path: Path) -> tuple[str, set[Path]]:
    """Write the page of a file or folder outside of `docs`, and find what it leads to."""
    name, place = path.relative_to(ROOT).as_posix(), place_of(path)
    if path.is_dir():
        inside = sorted(p for p in path.iterdir() if p.suffix in (*LANGUAGES, ".txt", ".scm"))
        lines = [f"- [`{p.name}`]({relpath(place_of(p), Path(place).parent)})" for p in inside]
        return f"# `{name}/`\n\n" + "\n".join(lines), set(inside)
    text = path.read_text(encoding="utf-8")
    if name in PAGES or path.suffix == ".md":
        return rewritten(text, path, place)
    language = LANGUAGES.get(path.suffix, "text")
    return f"# `{name}`\n\n~~~~{language}\n{text}\n~~~~\n", set()


def command_line() -> str:
    """Return the page of the command line: usage, help and options of every command, as click has them."""
    parts = [
        "# The command line",
        "All commands and options of `bishare`. `bishare COMMAND --help` prints them with examples.",
        "| command | |\n|---|---|\n"
        + "\n".join(f"| [`{name}`](#bishare-{name}) | {line} |" for name, line in COMMANDS.items()),
    ]
    settings = bishare.context_settings
    with click.Context(bishare, info_name="bishare", obj=Report(), **settings) as context:
        for name in COMMANDS:
            command = bishare.get_command(context, name)
            assert command is not None
            with click.Context(command, parent=context, info_name=name, obj=context.obj) as own:
                usage = command.get_usage(own).removeprefix("Usage: ")
                rows = [param.get_help_record(own) for param in command.get_params(own)]
            about = inspect.cleandoc(command.help or "").replace("\b\n", "")
            options = [
                f"| `{_one_line(o)}` | {_one_line(text)} |"
                for o, text in filter(None, rows)
                if text
            ]
            parts += [
                f"## `bishare {name}`",
                about,
                f"```console\n$ {' '.join(usage.split())}\n```",
            ]
            if options:
                parts.append("| option | |\n|---|---|\n" + "\n".join(options))
    return "\n\n".join(parts) + "\n"


def _one_line(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages of all that pages link to."""
    waiting = {ROOT / name for name in PAGES}
    for page in DOCS.rglob("*.md"):
        waiting |= rewritten(page.read_text(encoding="utf-8"), page, place_of(page))[1]
    done: set[Path] = set()
    while waiting - done:
        path = (waiting - done).pop()
        done.add(path)
        if path.suffix in AS_THEY_ARE:
            files.append(File.generated(config, place_of(path), abs_src_path=str(path)))
            continue
        text, found = page_of(path)
        waiting |= found
        files.append(File.generated(config, place_of(path), content=text))
    files.append(File.generated(config, "cli.md", content=command_line()))
    return files


def on_page_markdown(markdown: str, page: object, config: MkDocsConfig, files: Files) -> str:
    """Lead the links of a page of `docs` to the site."""
    source = page.file.abs_src_path
    if source is None or not Path(source).is_relative_to(DOCS):
        return markdown
    return rewritten(markdown, Path(source), place_of(Path(source)))[0]
