"""Every measurement on a GPU, each part in a separate process, within half an hour of one H100.

    python benchmarks/gpu/run.py                          # Llama 3.1 8B's shapes, random weights
    python benchmarks/gpu/run.py --only step decode       # some parts
    python benchmarks/gpu/run.py --dry-run                # what would be run
    python benchmarks/gpu/run.py --size tiny --device cpu # to see that it runs

Results are written beside the others. A part that fails, or that takes longer than it has, is told, and the
next one is run. `--size`, `--device` and `--rounds` are handed on.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

BENCHMARKS = Path(__file__).parents[1]

PARTS: tuple[tuple[str, tuple[str, ...], int], ...] = (
    ("step", (), 240),
    ("step", ("--precision", "4bit"), 300),
    ("step", ("--compile", "inductor", "--specs", "lora", "bishare_ke"), 420),
    ("decode", (), 180),
    ("decode", ("--precision", "4bit"), 240),
    ("decode", ("--compile", "inductor", "--specs", "lora", "bishare_ke"), 300),
    ("mixed_batch", (), 240),
)
"""Of each part its module, its flags, and the seconds that it may take, if `--minutes` leaves them."""


def main(given: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--only", nargs="+", choices=sorted({part for part, _, _ in PARTS}))
    parser.add_argument("--minutes", type=float, default=28, help="of all parts together")
    parser.add_argument("--dry-run", action="store_true")
    options, handed_on = parser.parse_known_args(given)
    paths = [str(BENCHMARKS), os.environ.get("PYTHONPATH", "")]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths))}
    started, failed = time.monotonic(), 0
    for part, flags, seconds in PARTS:
        if options.only and part not in options.only:
            continue
        command = [sys.executable, "-m", f"gpu.{part}", *flags, *handed_on]
        print("==", *command[1:], flush=True)
        if options.dry_run:
            continue
        left = 60 * options.minutes - (time.monotonic() - started)
        if left <= 0:
            print("   not begun: no time is left")
            failed += 1
            continue
        try:
            limit = min(seconds, left)
            failed += subprocess.run(command, env=environment, timeout=limit).returncode != 0
        except subprocess.TimeoutExpired:
            print(f"   stopped after {limit:.0f} s")
            failed += 1
    return min(failed, 1)


if __name__ == "__main__":
    sys.exit(main())
