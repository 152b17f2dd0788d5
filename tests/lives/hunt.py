"""Draw lives for as long as one likes, and print what was done and what was found.

    python tests/lives/hunt.py --minutes 60 --seed 1

Each round has a seed of its own and prints a line. A round that finds something prints the smallest life that
shows it, and the hunt goes on. What was found is listed again at the end, and the hunt then exits with 1.
"""

import argparse
import sys
import time
import traceback
import warnings
from collections import defaultdict
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

from hypothesis import HealthCheck, Phase, settings
from hypothesis import seed as seeded
from hypothesis.stateful import run_state_machine_as_test
from transformers.utils import logging

from tests.lives.life import COUNTS, Life


def asked():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--minutes", type=float, default=60)
    parser.add_argument(
        "--seed", type=int, default=0, help="of the first round; the next has the next"
    )
    parser.add_argument("--lives", type=int, default=20, help="in a round")
    parser.add_argument("--steps", type=int, default=20, help="of a life, at most")
    parser.add_argument("--no-shrink", action="store_true", help="print lives as they were drawn")
    return parser.parse_args()


def main():
    options = asked()
    warnings.simplefilter("ignore")
    logging.set_verbosity_error()
    profile = settings(
        max_examples=options.lives,
        stateful_step_count=options.steps,
        deadline=None,
        database=None,
        phases=[Phase.generate] if options.no_shrink else [Phase.generate, Phase.shrink],
        report_multiple_bugs=False,
        suppress_health_check=list(HealthCheck),
    )
    found = defaultdict(list)
    seed, began, minutes = options.seed, time.monotonic(), 0.0
    while minutes < options.minutes:
        try:
            # A class of its own: a machine keeps the seed that it was given.
            run_state_machine_as_test(seeded(seed)(type("Life", (Life,), {})), settings=profile)
        except Exception as error:  # noqa: BLE001 - whatever it is, the hunt goes on
            last = traceback.extract_tb(error.__traceback__)[-1]
            where = f"{Path(last.filename).name}:{last.lineno}"
            what = f"{type(error).__name__} at {where}: {str(error)[:150]}"
            found[what].append(seed)
            frames = traceback.format_tb(error.__traceback__)[-3:]
            print(f"--- found by seed {seed}: {what}", *frames, *error.__notes__, sep="\n")
        minutes = (time.monotonic() - began) / 60
        print(
            f"seed {seed}: {COUNTS['lives']} lives, {COUNTS['steps']} steps, "
            f"{len(found)} found, {minutes:.1f} minutes",
            flush=True,
        )
        seed += 1
    for what, count in sorted(COUNTS.items()):
        print(f"{count:7} {what}")
    for what, seeds in found.items():
        print(f"found by seeds {', '.join(map(str, seeds))}: {what}")
    return bool(found)


if __name__ == "__main__":
    sys.exit(main())
