"""Batches whose rows have different adapters: `python benchmarks/gpu/run.py --only mixed_batch`."""

from __future__ import annotations

from collections.abc import Sequence

from harness import write
from mixed import decode

from gpu.subjects import arguments, base_model, settling, title


def main(given: Sequence[str] | None = None) -> None:
    options = arguments(__doc__, given)
    base = base_model(options).eval()
    rows = decode(base, options.batch, options.rounds, {}, settling(options))
    write(title("mixed_batch", options), rows, **vars(options))


if __name__ == "__main__":
    main()
