"""Train seven specs at one budget, at three learning rates and five seeds. See notes/2026-12-03-grid.md.

    run.py DIR [NAME]    # NAME is one of the sets of data.py; by default sentiment

The runs are those of ``bishare train SPEC... --learning_rate 1e-3,4e-3,1.6e-2 --seed 0,1,2,3,4``, but
that each spec has params of its own. Interrupt it as you like: the same command goes on.
``bishare inspect DIR/runs-NAME`` shows the table.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

# Before torch is loaded: one thread.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
HERE = Path(__file__).parent
sys.path[:0] = [str(HERE.parents[1]), str(HERE.parents[1] / "examples")]

from smollm2 import smollm2_folder

from bishare_dsl.train.grid import Design, draft_cells, plan_grid
from bishare_dsl.train.reporter import Reporter
from bishare_dsl.train.run_grid import run_grid

DESIGNS = (
    Design("lora", {"r": 2}),
    Design("bishare_ke", {"r_local": 1, "r_intra": 7, "r_inter": 11}),
    Design("bishare_ss", {"r_local": 1, "r_intra": 2, "r_inter": 8}),
    Design("lily", {"r": 30}),
    Design("vera", {"r": 2150}),
    Design("tied_lora", {"r": 237}),
    Design(str(HERE / "stretched_core.share"), {"r": 32}),
)
"""Specs, with the params that ``bishare plan SPEC -m smollm2-135m --match lora:r=2 --free ...`` finds."""
RATES = (1e-3, 4e-3, 1.6e-2)
SEEDS = (0, 1, 2, 3, 4)
ARGUMENTS: dict[str, Any] = {
    "max_steps": 16,
    "per_device_train_batch_size": 8,
    "per_device_eval_batch_size": 64,
    "gradient_accumulation_steps": 1,
    "save_strategy": "no",
    "logging_steps": 4,
}


def main() -> None:
    """Run the cells that are not done."""
    folder = Path(sys.argv[1])
    name = sys.argv[2] if len(sys.argv) > 2 else "sentiment"
    given = {
        **ARGUMENTS,
        "model": str(smollm2_folder()),
        "data": str(folder / f"{name}-train.jsonl"),
        "eval_data": str(folder / f"{name}-held.jsonl"),
        "output_dir": str(folder / f"runs-{name}"),
    }
    reporter = Reporter().once()
    drafts = draft_cells(given, None, designs=DESIGNS, rates=RATES, seeds=SEEDS)
    run_grid(plan_grid(drafts, reporter), reporter)


if __name__ == "__main__":
    main()
