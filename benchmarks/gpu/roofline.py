"""Bound the speed of an adapter on a GPU, without having one.

    python benchmarks/gpu/roofline.py bishare_ke --model llama-7b --card h100
    python benchmarks/gpu/roofline.py lora --set r=2 --model llama-3-8b --card rtx-4090 --json

A training step, a decoded token and a mixed batch run on the meta device, where tensors have shapes but no
values. The script records the bytes and the FLOPs of each operation that launches a kernel. Its least time is
``max(bytes / bandwidth, FLOPs / peak)``, the roofline model of Williams et al. (2009), and the step's is the
sum. Launch overhead is left out, because recorded graphs hide it: eager code pays microseconds a kernel,
so the number of kernels stands next to the bound. Nothing here is measured.
"""

from __future__ import annotations

import argparse
import json
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from unittest.mock import patch

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

# Bandwidth in bytes a second, and dense bfloat16 FLOPs a second, from the vendor's data sheets.
CARDS = {
    "a100": (2.039e12, 312e12),
    "h100": (3.35e12, 989e12),
    "h200": (4.8e12, 989e12),
    "l40s": (0.864e12, 362e12),
    "rtx-4090": (1.008e12, 165e12),
}

# Operations that launch no kernel: they give a view, or metadata.
FREE = {
    "detach",
    "alias",
    "view",
    "_unsafe_view",
    "empty",
    "empty_like",
    "empty_strided",
    "lift_fresh",
}


@dataclass
class Cost:
    """What one step takes: bytes read and written, FLOPs, kernels, and the least seconds on the card."""

    bytes: int = 0
    flops: int = 0
    kernels: int = 0
    seconds: float = 0.0


class Recorder(TorchDispatchMode):
    """Add up what each dispatched operation costs on a card."""

    def __init__(self, bandwidth: float, peak: float) -> None:
        super().__init__()
        self.cost, self.bandwidth, self.peak = Cost(), bandwidth, peak
        self.formulas = FlopCounterMode(display=False).flop_registry

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if func.is_view or func._schema.name.removeprefix("aten::") in FREE:
            return out
        tensors = _tensors((args, kwargs, out))
        moved = sum(t.untyped_storage().nbytes() if _is_small(t) else t.nbytes for t in tensors)
        # `addmm_` multiplies as `addmm` does.
        name = func._schema.name.removeprefix("aten::").rstrip("_")
        formula = self.formulas.get(getattr(torch.ops.aten, name, None))
        flops = formula(*args, **(kwargs or {}), out_val=out) if formula else 0
        self.cost.bytes += moved
        self.cost.flops += flops
        self.cost.kernels += 1
        self.cost.seconds += max(moved / self.bandwidth, flops / self.peak)
        return out


def _is_small(tensor: torch.Tensor) -> bool:
    """Tell whether a tensor is a broadcast view: only what its storage holds is read."""
    return tensor.untyped_storage().nbytes() < tensor.nbytes


def _tensors(value: Any) -> list[torch.Tensor]:
    """Return the distinct tensors in nested arguments and results."""
    found: dict[int, torch.Tensor] = {}
    stack = [value]
    while stack:
        item = stack.pop()
        if isinstance(item, torch.Tensor):
            found[id(item)] = item
        elif isinstance(item, dict):
            stack.extend(item.values())
        elif isinstance(item, (list, tuple)):
            stack.extend(item)
    return list(found.values())


@contextmanager
def recording(card: str) -> Iterator[Cost]:
    """Record the block on a card of `CARDS`, and give its cost."""
    # transformers reads the values of positions to find packed sequences; the meta device has no values.
    with (
        patch("transformers.masking_utils.find_packed_sequence_indices", return_value=None),
        Recorder(*CARDS[card]) as recorder,
    ):
        yield recorder.cost


def train_step(model: Any, card: str, rows: int, tokens: int) -> Cost:
    """One forward and backward of ``rows`` sequences of ``tokens`` tokens; the optimizer is left out."""
    model.train()
    ids = torch.zeros(rows, tokens, dtype=torch.long, device="meta")
    with recording(card) as cost:
        model(ids, labels=ids, use_cache=False).loss.backward()
    model.zero_grad()
    return cost


def decode_step(
    model: Any, card: str, rows: int, context: int, names: list[str] | None = None
) -> Cost:
    """One new token for each of ``rows`` sequences that have ``context`` tokens in the cache."""
    from transformers import DynamicCache

    model.eval()
    cache = DynamicCache(config=model.config)
    config = model.config.get_text_config()
    heads = config.num_key_value_heads
    width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    for layer in range(config.num_hidden_layers):
        empty = torch.empty(rows, heads, context, width, device="meta", dtype=model.dtype)
        cache.update(empty, empty.clone(), layer)
    ids = torch.zeros(rows, 1, dtype=torch.long, device="meta")
    given = {"adapter_names": names} if names else {}
    with torch.no_grad(), recording(card) as cost:
        model(ids, past_key_values=cache, **given)
    return cost


def subjects(spec: str, model: str, params: dict[str, Any], adapters: int) -> dict[str, Any]:
    """Return models on the meta device: the base, PEFT's LoRA, the spec, and the spec with many adapters."""
    from peft import LoraConfig, get_peft_model

    from bishare_dsl.models import meta_model
    from bishare_dsl.peft import BishareConfig

    def base() -> Any:
        return meta_model(model).to(torch.bfloat16).requires_grad_(False)

    kinds = ["q_proj", "k_proj", "v_proj", "up_proj", "down_proj"]
    with torch.device("meta"):
        lora = get_peft_model(
            base(), LoraConfig(r=8, target_modules=kinds), autocast_adapter_dtype=False
        )
        config = BishareConfig(spec=spec, params=params)
        one = get_peft_model(base(), config, autocast_adapter_dtype=False)
        many = get_peft_model(base(), config, adapter_name="row_0", autocast_adapter_dtype=False)
        for index in range(1, adapters):
            many.add_adapter(f"row_{index}", BishareConfig(spec=spec, params=params))
    return {"base": base(), "PEFT LoRA r=8": lora, spec: one, f"{spec} x {adapters}": many}


def bounds(options: argparse.Namespace) -> list[dict[str, Any]]:
    """Return a row for each step and subject: bytes, FLOPs, kernels, least time, and the base's over it."""
    made = subjects(options.spec, options.model, options.params, options.adapters)
    steps: dict[str, Callable[[Any, str], Cost]] = {
        "training step": lambda m, _: train_step(m, options.card, options.rows, options.tokens),
        "decoded token": lambda m, _: decode_step(m, options.card, 1, options.context),
        "mixed batch": lambda m, name: decode_step(
            m, options.card, options.adapters, options.context, _names(name, options)
        ),
    }
    rows = []
    for step, run in steps.items():
        base = None
        for name, model in made.items():
            if (" x " in name) == (step != "mixed batch") and name != "base":
                continue
            if step == "training step" and name == "base":  # A backward without trained weights.
                model.enable_input_require_grads()
            cost = run(model, name)
            base = base or cost
            rows.append(
                {
                    "step": step,
                    "of": name,
                    "GB": cost.bytes / 1e9,
                    "GFLOP": cost.flops / 1e9,
                    "kernels": cost.kernels,
                    "least ms": 1e3 * cost.seconds,
                    "at best, x base's speed": base.seconds / cost.seconds,
                }
            )
    return rows


def _names(name: str, options: argparse.Namespace) -> list[str] | None:
    return [f"row_{index}" for index in range(options.adapters)] if name != "base" else None


def main(given: Sequence[str] | None = None) -> int:
    """Print the table, or JSON."""
    warnings.simplefilter("ignore")
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("spec", help="a .share file, or the name of a spec that ships")
    parser.add_argument("--model", default="llama-7b", help="a preset, a folder or a config.json")
    parser.add_argument("--set", nargs="+", default=[], metavar="NAME=VALUE", help="params")
    parser.add_argument("--card", choices=sorted(CARDS), default="h100")
    parser.add_argument("--rows", type=int, default=2, help="sequences in a training step")
    parser.add_argument("--tokens", type=int, default=1024, help="of each sequence")
    parser.add_argument("--context", type=int, default=1024, help="tokens in the cache")
    parser.add_argument("--adapters", type=int, default=16, help="of a mixed batch, a row each")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args(given)
    options.params = {k: int(v) for k, v in (text.split("=") for text in options.set)}
    rows = bounds(options)
    if options.json:
        print(
            json.dumps(
                {"card": options.card, "model": options.model, "measured": False, "rows": rows}
            )
        )
        return 0
    from rich.console import Console
    from rich.table import Table

    table = Table(title=f"{options.spec} on {options.model}, {options.card}: bounds, not measured")
    for column in rows[0]:
        table.add_column(column, justify="left" if column in ("step", "of") else "right")
    for row in rows:
        table.add_row(*(f"{v:,.3f}" if isinstance(v, float) else str(v) for v in row.values()))
    Console(width=120).print(table)
    return 0


if __name__ == "__main__":
    sys.exit(main())
