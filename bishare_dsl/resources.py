"""Locate files that ship with bishare: the grammar, specs, the pages of error codes and tables of advice.

The first three are at the top of a checkout, or inside an installed package. Both are plain folders;
importing ``importlib.resources`` would take longer than a command.
"""

import itertools
import os
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import NamedTuple

_PACKAGE = Path(__file__).resolve().parent
_HOME = _PACKAGE if (_PACKAGE / "grammars").is_dir() else _PACKAGE.parent
_SUFFIX = ".share"


def cache_folder() -> Path:
    """Return the folder for downloads and the parser's tables: ``BISHARE_CACHE`` or ``~/.cache/bishare``."""
    return Path(os.environ.get("BISHARE_CACHE") or "~/.cache/bishare").expanduser()


def grammar(name: str) -> Path:
    """Return the path of a grammar, such as ``share.lark``."""
    return _HOME / "grammars" / name


def _lines(name: str) -> list[str]:
    """Return the lines of a table of `advice`, without its comments."""
    lines = (_PACKAGE / "advice" / name).read_text(encoding="utf-8").splitlines()
    return [line.strip() for line in lines if line and not line.startswith("#")]


def table(name: str) -> Iterator[tuple[str, str]]:
    """Yield the rows of a table. A row is two lines: a key and its text."""
    rows = _lines(name)
    return zip(rows[::2], rows[1::2], strict=True)


class PeftWord(NamedTuple):
    """A field of PEFT's `LoraConfig`, and what it is in a spec.

    Attributes:
        example: keyword arguments of a `LoraConfig`; empty if there is none.
        advice: what to write instead, as a phrase that begins with a verb.
        spec: a text that does what the example does; empty if there is none.
    """

    example: str
    advice: str
    spec: str


@cache
def peft_words() -> dict[str, PeftWord]:
    """Map the fields of `LoraConfig` to what they are in a spec, from `advice/peft.txt`."""
    rows = _lines("peft.txt")
    words: dict[str, PeftWord] = {}
    for head, advice, spec in zip(rows[::3], rows[1::3], rows[2::3], strict=True):
        names, _, example = head.partition(": ")
        text = "" if spec == "-" else "\n".join(["spec peft", "", *spec.split(" | "), ""])
        word = PeftWord("" if example == "-" else example, advice, text)
        words |= dict.fromkeys(names.split(" "), word)
    return words


def error_page(code: str) -> Path:
    """Return the path of the page of an error code, such as ``BS201``. Not every code has a page."""
    return _HOME / "docs" / "errors" / f"{code}.md"


@cache
def error_index() -> dict[str, tuple[str, str]]:
    """Map each error code to its title and its general remedy, from the index of the pages."""
    index = error_page("README").read_text(encoding="utf-8")
    row = r"^- \[?(BS\d{3})\b.*?: (.+)(?:\n    - (.+))?$"
    return {code: (title, help) for code, title, help in re.findall(row, index, re.MULTILINE)}


def shipped_specs() -> dict[str, Path]:
    """Map the names of shipped specs (``bishare_ke``) to their paths, in alphabetical order."""
    return {path.stem: path for path in sorted((_HOME / "specs").glob(f"*{_SUFFIX}"))}


def first_sentence(text: str) -> str:
    """Return the first sentence of the comment at the beginning of a spec, which describes it."""
    lines = itertools.takewhile(lambda line: line.startswith("#"), text.splitlines())
    comment = " ".join(line.lstrip("#").strip() for line in lines)
    end = re.search(r"\.(?=\s|$)", comment)
    return comment[: end.end()] if end else comment


def find_spec(name_or_path: str | Path) -> Path:
    """Return the path of a spec.

    An existing file wins. Otherwise ``bishare_ke``, ``bishare_ke.share`` and ``specs/bishare_ke.share``
    mean the shipped spec, in any current folder.

    Raises:
        FileNotFoundError: there is neither; its ``filename`` is the given name.
    """
    path = Path(name_or_path)
    if path.is_file():
        return path
    named = path.parent in (Path(), Path("specs")) and path.suffix in ("", _SUFFIX)
    shipped = _HOME / "specs" / f"{path.stem}{_SUFFIX}"
    if named and shipped.is_file():
        return shipped
    reason = "no such file, and no spec of that name ships (one in a text has several lines)"
    raise FileNotFoundError(2, reason, os.fspath(name_or_path))
