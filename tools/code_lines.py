"""Count the lines of code in bishare_dsl, and fail if there are more than pyproject.toml allows.

A line counts if it contains part of an operator, a name, a number or a string other than a docstring.
"""

import sys
import tokenize
import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[1]
COUNTED = (tokenize.OP, tokenize.NAME, tokenize.NUMBER, tokenize.STRING)


def code_lines(path):
    with tokenize.open(path) as file:
        tokens = [t for t in tokenize.generate_tokens(file.readline) if t.type in COUNTED]
    code = [
        t for t in tokens if not (t.type == tokenize.STRING and t.line.lstrip().startswith('"""'))
    ]
    return len({line for t in code for line in range(t.start[0], t.end[0] + 1)})


def main():
    allowed = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["code-lines"]["most"]
    counts = {path: code_lines(path) for path in sorted((ROOT / "bishare_dsl").rglob("*.py"))}
    found = sum(counts.values())
    parts = {}
    for path, count in counts.items():
        part = path.relative_to(ROOT / "bishare_dsl").parts[0]
        parts[part] = parts.get(part, 0) + count
    if "--parts" in sys.argv:
        for part, count in sorted(parts.items(), key=lambda item: -item[1]):
            print(f"{count:6,} {part}")
    print(f"{found:,} lines of code in bishare_dsl, at most {allowed:,}")
    if found > allowed:
        sys.exit(
            "more than [tool.code-lines] allows: delete some, or raise it and say why in the commit"
        )


if __name__ == "__main__":
    main()
