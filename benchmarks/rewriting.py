"""How long a Llama-7B takes to adapt, beside `peft.get_peft_model`; shapes only, on the meta device.

bishare's time is that of `compile_spec`: reading the spec, planning, tracing, rewriting and installing.
PEFT draws the first values of its LoRA on the CPU even when the model is on the meta device, unless told
`low_cpu_mem_usage=True`; both ways are measured, and so is the first one twice, as the control.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable

import peft
import torch
from harness import interleave, write

from bishare_dsl import compile_spec
from bishare_dsl.models.load import meta_model

MODEL = "llama-7b"
SPECS = ("lora", "bishare_ss", "bishare_gt", "bishare_ke")
KINDS = ["q_proj", "k_proj", "v_proj", "up_proj", "down_proj"]
GOAL = 0.6
ROUNDS = 21


def ours(spec: str) -> Callable[[], object]:
    model = meta_model(MODEL)
    return lambda: compile_spec(spec, model)


def theirs(**options: bool) -> Callable[[], object]:
    model = meta_model(MODEL)
    config = peft.LoraConfig(r=8, target_modules=KINDS)
    return lambda: peft.get_peft_model(model, config, **options)


def main() -> None:
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    reference, control, lean = "PEFT LoRA", "PEFT LoRA again", "PEFT LoRA, low_cpu_mem_usage"
    timings = interleave(
        {
            reference: theirs,
            **{spec: lambda spec=spec: ours(spec) for spec in SPECS},
            lean: lambda: theirs(low_cpu_mem_usage=True),
            control: theirs,
        },
        ROUNDS,
    )
    rows = [
        {
            "adapted by": name,
            "median, s": round(timing.median, 4),
            "quartiles, s": " to ".join(f"{q:.3f}" for q in timing.quartiles),
            "x PEFT": round(timing.ratio(timings[reference]), 3),
            "x PEFT low_cpu_mem": round(timing.ratio(timings[lean]), 3),
            "goal": f"<= {GOAL}" if name in SPECS else "",
        }
        for name, timing in timings.items()
    ]
    write("rewriting", rows, model=MODEL, rounds=ROUNDS, threads=1)


if __name__ == "__main__":
    main()
