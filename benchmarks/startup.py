"""Measure what a user waits for: commands, errors that need no torch, a wrong text, and adapting Llama-7B.

    python benchmarks/startup.py

Every run of a command is a fresh process, including its start. All bytecode is compiled before the first
measured run. A wrong text and adapting (on the meta device) are measured in this process.
"""

from __future__ import annotations

import copy
import json
import os
import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from resource import RUSAGE_CHILDREN, getrusage
from statistics import median
from tempfile import TemporaryDirectory

from harness import KINDS, interleave, write

from bishare_dsl import plan_spec
from bishare_dsl.diagnostics import BishareError
from bishare_dsl.language import parse_spec
from bishare_dsl.models.presets import config_of

SPEC = str(Path(__file__).parents[1] / "specs" / "bishare_ke.share")
BISHARE = str(Path(sys.executable).with_name("bishare"))
ROUNDS = 25
IMPORT = [sys.executable, "-c", "import lark, pydantic"]
SECOND = "<= 0.6 s of the processor"
COMMANDS = {
    'python -c "import lark, pydantic"': (IMPORT, ""),
    "bishare check FILE": ([BISHARE, "check", SPEC], "<= 1.8"),
    "bishare plan FILE --model llama-7b": (
        [BISHARE, "plan", SPEC, "--model", "llama-7b"],
        "<= 2.3",
    ),
    "bishare check FILE --model FOLDER": ([BISHARE, "check", SPEC, "--model", "base"], ""),
    "bishare fmt --check FILE": ([BISHARE, "fmt", "--check", SPEC], ""),
    "bishare --help": ([BISHARE, "--help"], ""),
    "bishare convert DAMAGED": (
        [BISHARE, "convert", "damaged", "--for", "peft", "-o", "out"],
        SECOND,
    ),
    "bishare train lora --wrong 1": ([BISHARE, "train", "lora", "--wrong", "1"], SECOND),
    'python -c "import lark, pydantic", again': (IMPORT, ""),
}
WRONG = {
    "a keyword": "spec a\ntarget q_proj\nshare s pre layer rank 4\n",
    "a name": "spec a\ntarget q_porj\nshare s per layer rank 4\n",
    "a bracket": "spec a\ntarget q_proj\nshare s per layer rank (4\n",
}


def process(command: list[str], folder: str, spent: list[float]) -> Callable[[], object]:
    """Run a command, and keep the seconds of the processor that it takes."""
    # As a user's shell would have it: with bytecode kept.
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONDONTWRITEBYTECODE"}

    def run() -> None:
        before = getrusage(RUSAGE_CHILDREN)
        subprocess.run(command, env=environment, cwd=folder, capture_output=True)
        after = getrusage(RUSAGE_CHILDREN)
        spent.append(after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime)

    return run


def commands() -> None:
    spent: dict[str, list[float]] = {name: [] for name in COMMANDS}
    with TemporaryDirectory() as folder:
        config = config_of("llama-7b") | {"architectures": ["LlamaForCausalLM"]}
        (base := Path(folder, "base")).mkdir()
        (base / "config.json").write_text(json.dumps(config))
        (damaged := Path(folder, "damaged")).mkdir()
        (damaged / "adapter_config.json").write_text('{"peft_type": "LORA", "r": 8}')
        (damaged / "adapter_model.safetensors").write_bytes(b"\x40\0\0\0\0\0\0\0{")
        subjects = {
            name: partial(process, words, folder, spent[name])
            for name, (words, _) in COMMANDS.items()
        }
        timings = interleave(subjects, ROUNDS)
    first = next(iter(COMMANDS))
    rows = [
        {
            "command": name,
            "median, s": round(timings[name].median, 4),
            "quartiles, s": timings[name].quartiles(),
            "x the imports": round(timings[name].ratio(timings[first]), 3),
            "processor, s": round(median(spent[name]), 4),
            "processor, x the imports": round(median(spent[name]) / median(spent[first]), 3),
            "goal": goal,
        }
        for name, (_, goal) in COMMANDS.items()
    ]
    write("startup", rows, file="specs/bishare_ke.share", rounds=ROUNDS)


def wrong_texts() -> None:
    def read(text: str) -> None:
        try:
            plan_spec(parse_spec(text), "llama-7b")
        except BishareError as error:
            str(error)  # Finds and tries the advice.

    subjects = {name: partial(partial, read, text) for name, text in WRONG.items()}
    timings = interleave(subjects, ROUNDS, clock=time.process_time)
    rows = [
        {
            "a wrong text": name,
            "median, ms": 1000 * t.median,
            "quartiles": t.quartiles(1000),
            "goal": "<= 3",
        }
        for name, t in timings.items()
    ]
    write("wrong", rows, rounds=ROUNDS)


def adapting() -> None:
    """Compare with `peft.get_peft_model`, which initialises on the CPU unless ``low_cpu_mem_usage=True``."""
    import peft
    import torch
    from transformers import AutoModelForCausalLM

    from bishare_dsl import compile_spec
    from bishare_dsl.models.load import meta_model

    torch.set_num_threads(1)

    def ready(spec: str) -> Callable[[], object]:
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(copy.deepcopy(meta_model("llama-7b").config))
        if not spec.startswith("PEFT"):
            return lambda: compile_spec(spec, model)
        config = peft.LoraConfig(r=8, target_modules=KINDS)
        return lambda: peft.get_peft_model(model, config, low_cpu_mem_usage="low" in spec)

    names = (
        "PEFT LoRA",
        "lora",
        "bishare_ss",
        "bishare_gt",
        "bishare_ke",
        "PEFT LoRA, low_cpu_mem_usage",
        "again: PEFT LoRA",
    )
    timings = interleave(
        {n: partial(ready, n.removeprefix("again: ")) for n in names}, 9, collect=True
    )
    rows = [
        {
            "adapted by": n,
            "median, s": t.median,
            "quartiles": t.quartiles(),
            "x PEFT": t.ratio(timings[names[0]]),
            "goal": "" if "PEFT" in n else "<= 0.4",
        }
        for n, t in timings.items()
    ]
    write("adapting", rows, model="llama-7b on the meta device", rounds=9)


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    commands()
    wrong_texts()
    adapting()
