"""Adapters trained in one pass, beside one after another: `python benchmarks/gpu/run.py --only many`."""

from __future__ import annotations

from collections.abc import Sequence

from harness import write
from many import Tasks
from speed import twin, with_peft

from gpu.subjects import arguments, base_model, settling, title


def main(given: Sequence[str] | None = None) -> None:
    options = arguments(__doc__, given)
    base = base_model(options)
    lora = with_peft(twin(base))
    tasks = Tasks(base, "bishare_ke", options.batch, 1)
    rows = tasks.table(lora, options.batch, options.rounds, settle=settling(options))
    write(title("many", options), rows, **vars(options))


if __name__ == "__main__":
    main()
