"""Count the lines of code of each package, and fail if one has more than pyproject.toml allows.

A line counts if it contains part of an operator, a name, a number or a string other than a docstring.
"""

import sys
import tokenize
import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[1]
COUNTED = (tokenize.OP, tokenize.NAME, tokenize.NUMBER, tokenize.STRING)
# The packages and modules without a limit of their own share this one.
REST = "all else"


def code_lines(path):
    with tokenize.open(path) as file:
        tokens = [t for t in tokenize.generate_tokens(file.readline) if t.type in COUNTED]
    code = [
        t for t in tokens if not (t.type == tokenize.STRING and t.line.lstrip().startswith('"""'))
    ]
    return len({line for t in code for line in range(t.start[0], t.end[0] + 1)})


def counts(limits):
    """Count the lines of each part that has a limit. `fit + analyse` is one part of two packages."""
    part_of = {package: part for part in limits for package in part.split(" + ")}
    found = dict.fromkeys(limits, 0)
    for path in sorted((ROOT / "bishare_dsl").rglob("*.py")):
        package = path.relative_to(ROOT / "bishare_dsl").parts[0]
        found[part_of.get(package, REST)] += code_lines(path)
    return found


def main():
    limits = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["code-lines"]
    found = counts(limits)
    over = {part: count for part, count in found.items() if count > limits[part]}
    for part, count in found.items():
        if "--parts" in sys.argv or part in over:
            print(f"{count:6,} {part}, at most {limits[part]:,}")
    print(
        f"{sum(found.values()):6,} lines of code in bishare_dsl, at most {sum(limits.values()):,}"
    )
    if over:
        sys.exit(f"Too many lines in {', '.join(over)}: delete some. No commit raises a limit.")


if __name__ == "__main__":
    main()
