"""No link of a page leads nowhere: neither to a file nor to a heading."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FOLDERS = ("docs", "benchmarks", "editors/vscode", "examples")
PAGES = [
    *sorted(ROOT.glob("*.md")),
    *(
        page
        for folder in FOLDERS
        for page in sorted((ROOT / folder).rglob("*.md"))
        if not {"node_modules", "notes"} & {*page.parts}  # Nobody edits dated notes.
    ),
]
LINK = re.compile(r"\]\(([^)#\s]*)(?:#([^)\s]*))?\)")
CODE = re.compile(r"^( *)(```|~~~).*?^\1\2$|`[^`\n]*`", re.MULTILINE | re.DOTALL)


def headings(page):
    """The anchors of a page, as GitHub makes them: a heading that comes again has a number."""
    text = re.sub(
        r"^( *)```.*?^\1```$", "", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL
    )
    found = []
    for title in re.findall(r"^#+ (.*)$", text, re.MULTILINE):
        slug = re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-")
        again = sum(
            re.fullmatch(rf"{re.escape(slug)}(-\d+)?", other) is not None for other in found
        )
        found.append(f"{slug}-{again}" if again else slug)
    return found


def broken(page):
    """The links of a page that lead nowhere."""
    for target, heading in LINK.findall(CODE.sub("", page.read_text(encoding="utf-8"))):
        if "://" in target:
            continue
        path = (page.parent / target).resolve() if target else page
        if not path.exists():
            yield target
        elif heading and heading not in headings(path):
            yield f"{target}#{heading}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_link_leads_somewhere(page):
    assert not [*broken(page)]


def test_what_leads_nowhere_is_found(tmp_path):
    page = tmp_path / "page.md"
    page.write_text(
        "# One\n# One\n[a](other.md) [b](#two) [c](#one-1) `[d](x.md)`\n```\n[e](y.md)\n```\n"
    )
    assert [*broken(page)] == ["other.md", "#two"]
