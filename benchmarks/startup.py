"""How long a user waits for `bishare check` and `bishare plan`, beside importing lark and pydantic alone.

Every run is a fresh process, with its start; the bytecode of all is compiled before the first that counts.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from harness import interleave, write

SPEC = str(Path(__file__).parents[1] / "specs" / "bishare_ke.share")
BISHARE = str(Path(sys.executable).with_name("bishare"))
ROUNDS = 25
IMPORT = [sys.executable, "-c", "import lark, pydantic"]
COMMANDS = {
    'python -c "import lark, pydantic"': (IMPORT, None),
    "bishare check FILE": ([BISHARE, "check", SPEC], 2.0),
    "bishare plan FILE --model llama-7b": ([BISHARE, "plan", SPEC, "--model", "llama-7b"], 3.0),
    "bishare fmt --check FILE": ([BISHARE, "fmt", "--check", SPEC], None),
    "bishare --help": ([BISHARE, "--help"], None),
    'python -c "import lark, pydantic", again': (IMPORT, None),
}


def process(command: list[str]) -> Callable[[], object]:
    # As a user's shell would have it: with bytecode kept.
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONDONTWRITEBYTECODE"}
    return lambda: subprocess.run(command, env=environment, capture_output=True, check=True)


def main() -> None:
    subjects = {
        name: lambda command=command: process(command) for name, (command, _) in COMMANDS.items()
    }
    timings = interleave(subjects, ROUNDS)
    reference = next(iter(timings.values()))
    rows = [
        {
            "command": name,
            "median, s": round(timings[name].median, 4),
            "quartiles, s": timings[name].quartiles(),
            "x the imports": round(timings[name].ratio(reference), 3),
            "goal": "" if goal is None else f"<= {goal}",
        }
        for name, (_, goal) in COMMANDS.items()
    ]
    write("startup", rows, file="specs/bishare_ke.share", rounds=ROUNDS)


if __name__ == "__main__":
    main()
