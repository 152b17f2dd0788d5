"""The grammar of `.share` for editors that read TextMate's, such as VS Code.

``python -m bishare_dsl.highlight.textmate FILE`` writes it.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from bishare_dsl.highlight.rules import Rule, rules


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


if __name__ == "__main__":
    Path(sys.argv[1]).write_text(grammar(), encoding="utf-8", newline="\n")
