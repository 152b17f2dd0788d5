"""One Markdown page for each diagnostic code, written from the registry that the messages come from.

``python -m bishare_dsl.diagnostics.pages DIR`` writes them; with ``--check`` it only says whether they are
up to date (exit code 1 if not).
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path

from bishare_dsl.diagnostics.codes import registry
from bishare_dsl.diagnostics.problem import Code

_STAGES = {
    "1": "Reading a text",
    "2": "What a spec means",
    "3": "A spec against a model",
    "4": "Rewriting a model",
    "5": "Finding and loading models",
    "6": "Adapters",
    "7": "Training, its data first",
    "8": "Evaluating and generating",
    "9": "Using the command line",
}


def pages(codes: Mapping[str, Code]) -> dict[str, str]:
    """Write the text of each page, by its file name, the index (`README.md`) first.

    A code that only restates its message has a line in the index, and no page.
    """
    index = [
        "# Diagnostics",
        "",
        "Written by `python -m bishare_dsl.diagnostics.pages`; do not edit.",
        "",
    ]
    stage = ""
    for code in codes.values():
        if code.code[2] != stage:
            stage = code.code[2]
            index += ["", f"## BS{stage}xx: {_STAGES.get(stage, 'Others')}", ""]
        name = f"[{code.code}]({code.code}.md)" if code.explanation else code.code
        index.append(f"- {name}: {code.title}")
    return {
        "README.md": "\n".join(index) + "\n",
        **{f"{code.code}.md": _page(code) for code in codes.values() if code.explanation},
    }


def _page(code: Code) -> str:
    parts = [f"# {code.code}: {code.title}", f"*{code.severity}*", code.explanation]
    for title, example in (("This has the problem:", code.bad), ("This has not:", code.good)):
        if example:
            # A lone surrogate stands for a byte that is not text.
            shown = example.encode(errors="surrogateescape").decode(errors="replace").rstrip("\n")
            parts.append(f"{title}\n\n```{'console' if code.shell else 'share'}\n{shown}\n```")
    return "\n\n".join(parts) + "\n"


def main(arguments: list[str]) -> int:
    """Write or check the pages in a folder; returns the exit code."""
    check = "--check" in arguments
    folders = [argument for argument in arguments if argument != "--check"]
    if len(folders) != 1:
        sys.stderr.write("usage: python -m bishare_dsl.diagnostics.pages [--check] DIR\n")
        return 2
    folder = Path(folders[0])
    wanted = pages(registry())
    there = {path.name: path.read_text(encoding="utf-8") for path in folder.glob("*.md")}
    if check:
        stale = sorted(
            name for name in wanted.keys() | there.keys() if wanted.get(name) != there.get(name)
        )
        for name in stale:
            sys.stderr.write(f"{folder / name} is not up to date\n")
        return bool(stale)
    folder.mkdir(parents=True, exist_ok=True)
    for name in there.keys() - wanted.keys():
        if name.startswith("BS"):
            (folder / name).unlink()
    for name, text in wanted.items():
        (folder / name).write_text(text, encoding="utf-8", newline="\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
