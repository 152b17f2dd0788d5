"""The measured models: a Llama with random weights, dense or 4-bit, with several adapters."""

from __future__ import annotations

import argparse
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import torch
from speed import BASE, PEFT, PEFT_AGAIN, SPECS, compiler, train_a_little, twin, with_peft
from transformers import AutoModelForCausalLM, LlamaConfig, PreTrainedModel, logging

from bishare_dsl import compile_spec
from bishare_dsl.models.presets import config_of

TINY = {
    "hidden_size": 128,
    "intermediate_size": 256,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 256,
}
"""So small that a test runs it on a CPU; bitsandbytes takes no narrower layers there."""


def arguments(about: str | None, given: Sequence[str] | None) -> argparse.Namespace:
    """Read the flags that the scripts have in common."""
    warnings.simplefilter("ignore")
    logging.set_verbosity_error()
    parser = argparse.ArgumentParser(
        description=about, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument(
        "--size", default="8b", choices=["8b", "tiny"], help="of Llama 3.1, or tiny"
    )
    parser.add_argument("--precision", default="bfloat16", choices=["bfloat16", "float32", "4bit"])
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--tokens", type=int, default=2048, help="of a step, in two sequences")
    parser.add_argument("--batch", type=int, default=16, help="rows of a mixed batch")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--specs", nargs="+", default=SPECS, metavar="SPEC")
    parser.add_argument("--compile", metavar="BACKEND", help="torch.compile, such as inductor")
    options = parser.parse_args(given)
    options.gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else "none"
    return options


def base_model(options: argparse.Namespace) -> PreTrainedModel:
    """Make a frozen model with random weights on the device; four bits are bitsandbytes' NF4."""
    torch.manual_seed(0)
    shapes = TINY if options.size == "tiny" else config_of("llama-3-8b")
    config = LlamaConfig(**{**shapes, "tie_word_embeddings": False})
    dtype = torch.float32 if options.precision == "float32" else torch.bfloat16
    with torch.device(options.device):
        model = AutoModelForCausalLM.from_config(config, dtype=dtype)
    if options.precision == "4bit":
        quantise(model, options.device)
    return model.requires_grad_(False)


def quantise(model: PreTrainedModel, device: str) -> None:
    """Replace every linear layer but the head by NF4, one after the other."""
    import bitsandbytes as bnb

    for path, module in list(model.named_modules()):
        if type(module) is torch.nn.Linear and path != "lm_head":
            small = bnb.nn.Linear4bit(
                module.in_features,
                module.out_features,
                bias=False,
                compute_dtype=model.dtype,
                quant_type="nf4",
                device="meta",
            )
            weight = module.weight.detach()
            small.weight = bnb.nn.Params4bit(weight, requires_grad=False, quant_type="nf4")
            model.set_submodule(path, small.to(device))
    model.is_loaded_in_4bit = True  # by which PEFT knows


def adapted(base: PreTrainedModel, specs: Sequence[str]) -> dict[str, Any]:
    """Adapt the base, whose weights all subjects share: PEFT's LoRA of rank 8, and each spec."""
    models: dict[str, Any] = {BASE: base, PEFT: with_peft(base)}
    models |= {spec: compile_spec(spec, twin(base)) for spec in specs}
    train_a_little(models)
    return {**models, PEFT_AGAIN: models[PEFT]}


def compiled(models: dict[str, Any], backend: str | None) -> dict[str, Any]:
    """Compile each model, where a backend is given; its first call takes the time."""
    made = compiler(backend)
    return {name: made(model) for name, model in models.items()}


def settling(options: argparse.Namespace) -> Callable[[], object]:
    """Return what waits for the device."""
    return torch.cuda.synchronize if options.device.startswith("cuda") else lambda: None


def title(part: str, options: argparse.Namespace) -> str:
    """Name the file of a result."""
    name = f"gpu-{part}-{options.size}-{options.precision}"
    return f"{name}-compile" if options.compile else name
