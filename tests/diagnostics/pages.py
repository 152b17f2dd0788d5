"""Read the pages of `docs/errors`, with their examples."""

import re
import shlex
from dataclasses import dataclass
from functools import cache

from bishare_dsl.cli.main import main
from bishare_dsl.diagnostics.codes import registry
from bishare_dsl.resources import error_page

FORM = re.compile(
    r"# (?P<code>BS\d{3}): (?P<title>.+)\n\n\*(?P<severity>\w+)\*\n\n(?P<explanation>.+?)\n"
    r"(\nWrong:\n\n```(share|console)\n(?P<bad>.*?)```\n)?"
    r"(\nRight:\n\n```(share|console)\n(?P<good>.*?)```\n)?",
    re.DOTALL,
)


@dataclass(frozen=True)
class Page:
    """`bad` and `good` are whole specs, or commands; not every page has them."""

    code: str
    title: str
    severity: str
    explanation: str
    bad: str | None
    good: str | None


@cache
def page(code):
    found = FORM.fullmatch(error_page(code).read_text(encoding="utf-8"))
    assert found, f"the page of {code} has another form"
    return Page(**found.groupdict())


def shown(language, *prefixes):
    """Return the pages of codes that begin so, and have an example in a language."""
    codes = [
        code for code in registry() if code.startswith(prefixes) and error_page(code).is_file()
    ]
    return [
        page(code) for code in codes if f"```{language}\n" in error_page(code).read_text("utf-8")
    ]


def run(commands):
    """Run commands as a shell does, until one fails; the last one's exit code."""
    for line in commands.splitlines():
        program, *arguments = shlex.split(line)
        assert program == "bishare"
        if code := main(arguments):
            return code
    return 0
