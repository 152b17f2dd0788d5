"""Training steps and their peak memory: `python benchmarks/gpu/run.py --only step`."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from harness import interleave, write
from speed import BASE, PEFT, peak, ready, step_of

from gpu.subjects import adapted, arguments, base_model, compiled, settling, title


def main(given: Sequence[str] | None = None) -> None:
    options = arguments(__doc__, given)
    models = compiled(adapted(base_model(options), options.specs), options.compile)
    vocabulary = models[BASE].config.vocab_size
    ids = torch.randint(vocabulary, (2, options.tokens // 2), device=options.device)
    steps = {name: step_of(model.train(), ids) for name, model in models.items()}
    timings = interleave(ready(steps), options.rounds, settle=settling(options))
    bytes_held = {name: peak(step, ids.device) for name, step in steps.items()}
    rows = [
        {
            "step": name,
            "ms": round(1e3 * timing.median, 2),
            "tokens a second": round(ids.numel() / timing.median),
            "x PEFT": round(timing.ratio(timings[PEFT]), 3),
            "x base": round(timing.ratio(timings[BASE]), 3),
            "peak, MiB": round(bytes_held[name] / 2**20),
            "peak, x PEFT": round(bytes_held[name] / bytes_held[PEFT], 3),
        }
        for name, timing in timings.items()
    ]
    write(title("step", options), rows, **vars(options))


if __name__ == "__main__":
    main()
