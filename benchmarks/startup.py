"""Measure the time of `bishare check` and `bishare plan`, compared with importing lark and pydantic alone.

Every run is a fresh process, including its start. All bytecode is compiled before the first measured run.
FOLDER is a checkpoint's folder, of which only the config is read.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from resource import RUSAGE_CHILDREN, getrusage
from statistics import median
from tempfile import TemporaryDirectory

from harness import interleave, write

from bishare_dsl.models.presets import config_of

SPEC = str(Path(__file__).parents[1] / "specs" / "bishare_ke.share")
BISHARE = str(Path(sys.executable).with_name("bishare"))
ROUNDS = 25
IMPORT = [sys.executable, "-c", "import lark, pydantic"]
FOLDER = "bishare check FILE --model FOLDER"
COMMANDS = {
    'python -c "import lark, pydantic"': (IMPORT, None),
    "bishare check FILE": ([BISHARE, "check", SPEC], 2.2),
    "bishare plan FILE --model llama-7b": ([BISHARE, "plan", SPEC, "--model", "llama-7b"], 3.0),
    FOLDER: ([BISHARE, "check", SPEC, "--model"], None),
    "bishare fmt --check FILE": ([BISHARE, "fmt", "--check", SPEC], None),
    "bishare --help": ([BISHARE, "--help"], None),
    'python -c "import lark, pydantic", again': (IMPORT, None),
}


def process(command: list[str], spent: list[float]) -> Callable[[], object]:
    """Run a command, and keep the seconds of the processor that it takes."""
    # As a user's shell would have it: with bytecode kept.
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONDONTWRITEBYTECODE"}

    def run() -> None:
        before = getrusage(RUSAGE_CHILDREN)
        subprocess.run(command, env=environment, capture_output=True, check=True)
        after = getrusage(RUSAGE_CHILDREN)
        spent.append(after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime)

    return run


def main() -> None:
    spent: dict[str, list[float]] = {name: [] for name in COMMANDS}
    with TemporaryDirectory() as folder:
        config = config_of("llama-7b") | {"architectures": ["LlamaForCausalLM"]}
        (Path(folder) / "config.json").write_text(json.dumps(config))
        commands = {name: [*words] for name, (words, _) in COMMANDS.items()}
        commands[FOLDER].append(folder)
        subjects = {
            name: lambda name=name: process(commands[name], spent[name]) for name in commands
        }
        timings = interleave(subjects, ROUNDS)
    first = next(iter(COMMANDS))
    reference = timings[first]
    rows = [
        {
            "command": name,
            "median, s": round(timings[name].median, 4),
            "quartiles, s": timings[name].quartiles(),
            "x the imports": round(timings[name].ratio(reference), 3),
            "processor, s": round(median(spent[name]), 4),
            "processor, x the imports": round(median(spent[name]) / median(spent[first]), 3),
            "goal": "<= 1 s of the processor" if name == FOLDER else f"<= {goal}" if goal else "",
        }
        for name, (_, goal) in COMMANDS.items()
    ]
    write("startup", rows, file="specs/bishare_ke.share", rounds=ROUNDS)


if __name__ == "__main__":
    main()
