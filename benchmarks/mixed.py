"""Mixed batches in transformers, compared with PEFT's `adapter_names`; and many adapters in memory.

    python benchmarks/mixed.py decode                       # 16 rows of 16 adapters of SmolLM2-135M
    python benchmarks/mixed.py resident --adapters 10000    # 22 GB in float32; --dtype bfloat16: half

Weights and adapters are random, for nothing here depends on their values. All subjects of `decode` run in
turn, every other round backwards; ratios are medians over rounds, and "again" is the control.
"""

from __future__ import annotations

import argparse
import copy
import gc
import time
import warnings
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import peft
import torch
from harness import KINDS, interleave, write
from speed import twin
from transformers import AutoModelForCausalLM, LlamaConfig, logging

from bishare_dsl import compile_spec, plan_spec
from bishare_dsl.peft import BishareConfig

SMOLLM2 = {
    "hidden_size": 576,
    "intermediate_size": 1536,
    "num_hidden_layers": 30,
    "num_attention_heads": 9,
    "num_key_value_heads": 3,
    "vocab_size": 49152,
    "tie_word_embeddings": True,
}
PARAMS = {"bishare_ke": {"r_local": 2, "r_intra": 4, "r_inter": 16, "size": 64}}
"""KE {2, 4, 16} with the size that divides SmolLM2's widths, as in the quality runs."""

BASE, PEFT, PEFT_AGAIN = "base", "PEFT LoRA r=8, adapter_names", "PEFT again"
GOAL = 5.0
TOKENS, STEPS = 32, 4


def main() -> None:
    warnings.simplefilter("ignore")
    logging.set_verbosity_error()
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("measure", choices=["decode", "resident"])
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--adapters", type=int, default=10000, help="of `resident`")
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16"])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=15)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    config = LlamaConfig(**SMOLLM2)
    base = AutoModelForCausalLM.from_config(config, dtype=getattr(torch, options.dtype)).eval()
    if options.measure == "decode":
        rows = decode(base.requires_grad_(False), options.batch, options.rounds, PARAMS)
    else:
        rows = resident(base, options)
    write(f"mixed-{options.measure}-{options.dtype}", rows, **vars(options))


def decode(
    base: Any,
    batch: int,
    rounds: int,
    params: Mapping[str, Mapping[str, int]],
    settle: Callable[[], object] = lambda: None,
) -> list[dict[str, Any]]:
    """Decode one token for each row of a batch, whose rows have different adapters."""
    names = [f"a{i}" for i in range(batch)]
    models: dict[str, tuple[Any, dict[str, Any]]] = {BASE: (base, {})}
    config = peft.LoraConfig(r=8, target_modules=KINDS, init_lora_weights=False)
    theirs = peft.get_peft_model(twin(base), config, adapter_name="a0")
    for name in names[1:]:
        theirs.add_adapter(name, config)
    models[PEFT] = (theirs.eval(), {"adapter_names": names})
    for spec in ("lora", "bishare_ke"):
        configs = [
            BishareConfig(spec=spec, params=dict(params.get(spec, {})), seed=seed)
            for seed in range(batch)
        ]
        model = peft.get_peft_model(twin(base), configs[0], adapter_name="a0")
        for name, config in zip(names[1:], configs[1:], strict=True):
            model.add_adapter(name, config)
        model.eval()
        models[f"{spec}, one adapter"] = (model, {})
        models[f"{spec}, adapter_names"] = (model, {"adapter_names": names})
    models["bishare_ke, adapter_names again"] = models["bishare_ke, adapter_names"]
    models[PEFT_AGAIN] = models[PEFT]
    ids = torch.randint(base.config.vocab_size, (batch, TOKENS + 1), device=base.device)
    subjects = {
        name: partial(decoding, model, kwargs, ids) for name, (model, kwargs) in models.items()
    }
    timings = interleave(subjects, rounds, settle=settle)
    beyond = timings[PEFT].median - timings[BASE].median
    return [
        {
            "decoding": name,
            "ms a step": round(1e3 * timing.median / STEPS, 2),
            "quartiles, ms": timing.quartiles(1e3 / STEPS, 1),
            "x base": round(timing.ratio(timings[BASE]), 3),
            "PEFT's is x this": round(1 / timing.ratio(timings[PEFT]), 2),
            "beyond the base, PEFT's is x this": (
                round(beyond / (timing.median - timings[BASE].median), 2)
                if name.endswith("adapter_names")
                else ""
            ),
            "goal": f">= {GOAL}" if name == "bishare_ke, adapter_names" else "",
        }
        for name, timing in timings.items()
    ]


def decoding(model: Any, kwargs: dict[str, Any], ids: torch.Tensor) -> Callable[[], None]:
    # As `generate` does, a batch of ours is opened once for some tokens.
    ours = hasattr(model, "bishare") and "adapter_names" in kwargs
    block = partial(model.bishare.rows, kwargs["adapter_names"]) if ours else nullcontext
    given = {} if ours else kwargs
    with torch.inference_mode(), block():
        cache = model(ids[:, :TOKENS], use_cache=True, **given).past_key_values

    def run() -> None:
        with torch.inference_mode(), block():
            for _ in range(STEPS):
                model(ids[:, TOKENS:], past_key_values=cache, use_cache=True, **given)
        cache.crop(-STEPS)

    return run


def resident(base: Any, options: argparse.Namespace) -> list[dict[str, Any]]:
    """Load one saved adapter under many names, each time from disk, and run a batch of some of them."""
    params = PARAMS["bishare_ke"]
    size = sum(t.size for t in plan_spec("bishare_ke", base, params).tensors)
    width = torch.finfo(base.dtype).bits // 8
    with TemporaryDirectory() as folder:
        made = compile_spec("bishare_ke", copy.deepcopy(base), params)
        for parameter in made.bishare.parameters():
            parameter.data.normal_(0, 0.1)
        if base.dtype is not torch.float32:
            for tensor in made.bishare.tensors().values():
                tensor.data = tensor.data.to(base.dtype)
        made.bishare.save_pretrained(folder)
        del made
        as_saved = {"autocast_adapter_dtype": False}
        model = peft.PeftModel.from_pretrained(base, folder, "a0", **as_saved)
        model.load_adapter(folder, "a1", **as_saved)
        model.eval()
        gc.collect()
        before, start = memory(), time.perf_counter()
        for i in range(2, options.adapters):
            model.load_adapter(folder, f"a{i}", **as_saved)
        loading = time.perf_counter() - start
        gc.collect()
        grown = memory() - before
    ids = torch.randint(SMOLLM2["vocab_size"], (options.batch, 8))
    step = options.adapters // options.batch
    names = [f"a{i * step}" for i in range(options.batch)]
    with torch.no_grad():
        start = time.perf_counter()
        tokens = model.generate(
            input_ids=ids, adapter_names=names, max_new_tokens=8, do_sample=False
        )
        generating = time.perf_counter() - start
    tensors = (options.adapters - 2) * size * width
    return [
        {
            "adapters": options.adapters,
            "bytes of an adapter's tensors": size * width,
            "resident memory grew by, bytes": grown,
            "x the tensors": round(grown / tensors, 4),
            "goal": "<= 1.02",
            "loading, ms an adapter": round(1e3 * loading / (options.adapters - 2), 1),
            "tokens of the mixed batch": tokens.numel() - ids.numel(),
            "in s": round(generating, 2),
        }
    ]


def memory() -> int:
    """The resident memory of this process, in bytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmRSS"))


if __name__ == "__main__":
    main()
