"""The quality of bishare's specs and of PEFT's methods on real tasks; see notes/2026-11-27-quality.md.

    run.py [--tasks T,…] [--methods M,…] [--seeds N] [--workers N]
    run.py --ablations | --front | --many | --equal
    run.py --tables | --dry-run

Interrupt it as you like: a run is in the results file when it is over, and is not done again.
"""

from __future__ import annotations

import sys
import warnings
from pathlib import Path

HERE = Path(__file__).parent
sys.path.append(str(HERE.parent))

from sweep.methods import FRONT, MAIN, METHODS
from sweep.results import Results
from sweep.running import arguments, chains, names, sweep
from sweep.tasks import TASKS


def main() -> None:
    parser = arguments(__doc__, HERE)
    parser.add_argument("--methods", type=names, default=MAIN, help=", ".join(METHODS))
    parser.add_argument("--ablations", action="store_true", help="all of the paper's that fit")
    parser.add_argument("--front", action="store_true", help="accuracy against parameters")
    parser.add_argument("--many", action="store_true", help="twelve small tasks in one run")
    parser.add_argument("--equal", action="store_true", help="LoRA of equal bytes, and fewer bits")
    parser.add_argument("--dry-run", action="store_true", help="only say what there is to do")
    parser.add_argument("--tables", action="store_true", help="only write tables and plot again")
    options = parser.parse_args()
    if options.front:
        options.tasks, options.methods = ["headlines"], sum(FRONT.values(), ())
    if unknown := {*options.tasks, *options.methods} - {*TASKS, *METHODS}:
        parser.error(f"unknown: {', '.join(sorted(unknown))}")
    warnings.simplefilter("ignore")
    results = Results(options.results)
    if options.dry_run:
        if options.many:
            from sweep.together import left

            number = len([*left(results, options.seeds)])
        elif options.equal:
            from sweep.equal import left as left_of_equal

            number = len(left_of_equal(results))
        else:
            number = sum(number for _, number in chains(results, options))
        print(f"about {number} runs to do, {len(results)} are done")
    elif options.many:
        from harness.model import smollm2_folder
        from sweep.together import run_together

        base = smollm2_folder(options.cache)
        run_together(results, options.seeds, base, options.cache / "wheels")
    elif options.equal:
        from harness.model import smollm2_folder
        from sweep.equal import run_equal

        run_equal(results, smollm2_folder(options.cache), options.cache / "wheels")
    elif options.tables:
        from sweep.equal import equal_tables
        from sweep.tables import plot, tables, write

        page = HERE.parent / "notes" / "2026-11-27-quality.md"
        write(page, "tables", tables(results))
        write(page, "equal", equal_tables(results))
        plot(results, HERE / "front.svg")
    else:
        sweep(results, options)


if __name__ == "__main__":
    main()
