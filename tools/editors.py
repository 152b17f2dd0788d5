"""Write files for editors and other tools from the package, as part of `make docs`.

These are a TextMate grammar of `.share` for editors such as VS Code, and the JSON schema of a spec for
tools that write or check specs as JSON.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from bishare_dsl.highlight.rules import Rule, rules
from bishare_dsl.spec.spec import Spec

EDITORS = Path(__file__).parents[1] / "editors"


def grammar() -> str:
    """Write the text of ``share.tmLanguage.json``."""
    content = {
        "$schema": "https://raw.githubusercontent.com/martinring/tmlanguage/master/tmlanguage.json",
        "name": "bishare",
        "scopeName": "source.share",
        "fileTypes": ["share"],
        "patterns": [_pattern(rule) for rule in rules()],
    }
    return f"{json.dumps(content, indent=2)}\n"


def _pattern(rule: Rule) -> dict[str, Any]:
    names = [f"{part.scope}.share" for part in rule.parts]
    if len(names) == 1:
        return {"match": rule.pattern, "name": names[0]}
    captures = {str(i): {"name": name} for i, name in enumerate(names, start=1)}
    return {"match": rule.pattern, "captures": captures}


def schema() -> str:
    """Write the text of ``spec.schema.json``."""
    head = {"$schema": "https://json-schema.org/draft/2020-12/schema"}
    return f"{json.dumps(head | Spec.model_json_schema(), indent=2)}\n"


if __name__ == "__main__":
    for name, text in (
        ("vscode/syntaxes/share.tmLanguage.json", grammar()),
        ("spec.schema.json", schema()),
    ):
        (EDITORS / name).write_text(text, encoding="utf-8", newline="\n")
