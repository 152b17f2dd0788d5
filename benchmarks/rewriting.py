"""Measure the time to adapt Llama-7B and a model of 160 layers, compared with `peft.get_peft_model`, on the
meta device.

bishare's time is that of `compile_spec`: parsing the spec, planning, tracing, rewriting and installing.
PEFT initialises its LoRA on the CPU even for a meta model, unless `low_cpu_mem_usage=True`. Both ways are
measured, the first one twice as a control. ``rewriting.py 32`` measures only Llama-7B.
"""

from __future__ import annotations

import copy
import sys
import warnings
from collections.abc import Callable
from functools import partial

import peft
import torch
from harness import KINDS, interleave, write
from transformers import AutoModelForCausalLM, PreTrainedModel

from bishare_dsl import compile_spec
from bishare_dsl.models.load import meta_model

MODEL = "llama-7b"
SPECS = ("lora", "bishare_ss", "bishare_gt", "bishare_ke")
LAYERS = tuple(map(int, sys.argv[1:])) or (32, 160)
GOAL = 0.45
ROUNDS = 11


def base(layers: int) -> PreTrainedModel:
    config = copy.deepcopy(meta_model(MODEL).config)
    config.num_hidden_layers = layers
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(config)


def ours(spec: str, layers: int) -> Callable[[], object]:
    model = base(layers)
    return lambda: compile_spec(spec, model)


def theirs(layers: int, **options: bool) -> Callable[[], object]:
    model = base(layers)
    config = peft.LoraConfig(r=8, target_modules=KINDS)
    return lambda: peft.get_peft_model(model, config, **options)


def main() -> None:
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    reference, control, lean = "PEFT LoRA", "PEFT LoRA again", "PEFT LoRA, low_cpu_mem_usage"
    subjects: dict[str, Callable[[int], Callable[[], object]]] = {
        reference: theirs,
        **{spec: partial(ours, spec) for spec in SPECS},
        lean: partial(theirs, low_cpu_mem_usage=True),
        control: theirs,
    }
    timings = interleave(
        {
            (name, layers): partial(prepare, layers)
            for layers in LAYERS
            for name, prepare in subjects.items()
        },
        ROUNDS,
        collect=True,
    )
    rows = [
        {
            "adapted by": name,
            "layers": layers,
            "median, s": round(timing.median, 4),
            "quartiles, s": timing.quartiles(),
            "x PEFT": round(timing.ratio(timings[reference, layers]), 3),
            "x PEFT low_cpu_mem": round(timing.ratio(timings[lean, layers]), 3),
            "goal": f"<= {GOAL}" if name in SPECS else "",
            f"x its {LAYERS[0]} layers": round(timing.ratio(timings[name, LAYERS[0]]), 2),
        }
        for (name, layers), timing in timings.items()
    ]
    write("rewriting", rows, model=MODEL, rounds=ROUNDS, threads=1)


if __name__ == "__main__":
    main()
