"""Decoding one sequence, token by token: `python benchmarks/gpu/run.py --only decode`."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from harness import interleave, write
from speed import BASE, PEFT, decode_of, ready

from gpu.subjects import adapted, arguments, base_model, compiled, settling, title

TOKENS = 20


def main(given: Sequence[str] | None = None) -> None:
    options = arguments(__doc__, given)
    models = compiled(adapted(base_model(options), options.specs), options.compile)
    ids = torch.randint(models[BASE].config.vocab_size, (1, 64), device=options.device)
    runs = {name: decode_of(model.eval(), ids, TOKENS) for name, model in models.items()}
    timings = interleave(ready(runs), options.rounds, settle=settling(options))
    rows = [
        {
            "decoding": name,
            "ms a token": round(1e3 * timing.median / TOKENS, 3),
            "x PEFT": round(timing.ratio(timings[PEFT]), 3),
            "x base": round(timing.ratio(timings[BASE]), 3),
        }
        for name, timing in timings.items()
    ]
    write(title("decode", options), rows, **vars(options))


if __name__ == "__main__":
    main()
