"""Measure PEFT's `set_adapter` between two adapters of bishare in memory, and between two LoRAs.

The time depends on the number of modules and tensors, not on their sizes. So the base is a Llama with as
many layers as the 7B, or five times as many, and small real weights. PEFT switches between two rank-8
LoRAs, bishare between two adapters of each spec. PEFT is measured again as a control.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from itertools import cycle
from typing import Any

import peft
import torch
from harness import KINDS, interleave, write
from transformers import LlamaConfig, LlamaForCausalLM

from bishare_dsl.peft import BishareConfig

SPECS = ("lora", "bishare_ss", "bishare_gt", "bishare_ke")
LAYERS = (32, 160)
GOAL = 0.5
ROUNDS = 21
SWITCHES = 10


def base(layers: int) -> Any:
    sizes = {
        "hidden_size": 64,
        "intermediate_size": 172,
        "num_attention_heads": 4,
        "vocab_size": 64,
    }
    return LlamaForCausalLM(LlamaConfig(num_hidden_layers=layers, **sizes))


def adapters(config: peft.PeftConfig, layers: int) -> Callable[[], None]:
    model = peft.get_peft_model(base(layers), config, adapter_name="a")
    model.add_adapter("b", config)
    return switching(model.set_adapter)


def switching(switch: Callable[[str], None]) -> Callable[[], None]:
    names = cycle("ba")

    def run() -> None:
        for _ in range(SWITCHES):
            switch(next(names))

    return run


def main() -> None:
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    reference, control = "PEFT LoRA", "PEFT LoRA again"
    runs = {
        (name, layers): adapters(
            peft.LoraConfig(r=8, target_modules=KINDS)
            if name in (reference, control)
            else BishareConfig(spec=name),
            layers,
        )
        for layers in LAYERS
        for name in (reference, *SPECS, control)
    }
    timings = interleave({key: lambda run=run: run for key, run in runs.items()}, ROUNDS)
    rows = [
        {
            "adapters": name,
            "layers": layers,
            "median of a switch, ms": round(1e3 * timing.median / SWITCHES, 3),
            "quartiles, ms": timing.quartiles(1e3 / SWITCHES, 2),
            "x PEFT": round(timing.ratio(timings[reference, layers]), 3),
            "goal": f"<= {GOAL}" if name in SPECS else "",
            f"x its {LAYERS[0]} layers": round(timing.ratio(timings[name, LAYERS[0]]), 2),
        }
        for (name, layers), timing in timings.items()
    ]
    write("switching", rows, rounds=ROUNDS, switches=SWITCHES, threads=1)


if __name__ == "__main__":
    main()
