"""Training steps, their peak memory, decoding and prefill of adapted models, relative to PEFT and the base.

    python benchmarks/speed.py                                   # a Llama of hidden size 1024, float32
    python benchmarks/speed.py --model smollm2-135m --dtype bfloat16 --tokens 1024 --threads 1
    python benchmarks/speed.py --measure step --passes           # what each pass buys
    python benchmarks/speed.py --threads 1 --layers 4 --rounds 9 --measure step    # also memory, decode

All subjects share one set of base weights and run interleaved, every other round backwards; ratios are
medians over rounds, beside their quartiles. "again" is the control: as far as it is from 1, so far may be
the others.

One measure of the last command, alone, takes at most 400 seconds on an idle machine: of a step a round
takes about 60, and `--seconds` (by default 340) ends the rounds early; decoding takes 20 times ROUNDS of
a second each, and memory two steps of each model.
"""

from __future__ import annotations

import argparse
import copy
import sys
import time
import warnings
from collections.abc import Callable, Mapping
from functools import cache, partial
from typing import Any
from unittest import mock

import peft
import torch
from harness import KINDS, Timing, interleave, write
from harness.model import smollm2_folder
from transformers import AutoModelForCausalLM, LlamaConfig, PreTrainedModel, logging

from bishare_dsl import compile_spec, plan_spec
from bishare_dsl.initial.values import draw
from bishare_dsl.rewrite import compile_regions
from bishare_dsl.rewrite.adapt import compile_plan, insert_first
from bishare_dsl.rewrite.passes import OPTIMISATIONS
from bishare_dsl.rewrite.region import Pass
from bishare_dsl.rewrite.trace import UntraceableRegion

SPECS = ("lora", "bishare_ss", "bishare_gt", "bishare_ke")


def llama(hidden: int, layers: int) -> LlamaConfig:
    return LlamaConfig(
        num_hidden_layers=layers,
        hidden_size=hidden,
        intermediate_size=hidden * 11 // 4,
        num_attention_heads=hidden // 64,
        num_key_value_heads=hidden // 64,
        # Neither method touches the vocabulary; a small one leaves the layers to be seen.
        vocab_size=1024,
    )


BASE, BASE_AGAIN, BASE_COPY = "base", "base again", "base, a copy"
PEFT, PEFT_AGAIN = "PEFT LoRA", "PEFT LoRA again"
MEASURES = ("flops", "bytes", "memory", "step", "prefill", "decode")

Models = Mapping[str, PreTrainedModel]
Compile = Callable[[Any], Any]
Subjects = dict[str, Callable[[], Callable[[], object]]]


def main() -> None:
    warnings.simplefilter("ignore")
    logging.set_verbosity_error()
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument(
        "--model",
        default="llama-1024",
        help="llama-N of hidden size N, smollm2-135m or a folder",
    )
    parser.add_argument("--layers", type=int, default=2, help="of llama-N")
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16", "float16"])
    parser.add_argument("--tokens", type=int, default=2048, help="of a step and a prefill")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument(
        "--rounds",
        type=int,
        default=9,
        help="at most (and at least 2), of steps; 20 times as many of decoding",
    )
    parser.add_argument(
        "--seconds",
        type=float,
        default=340,
        help="that each measure may take before its last round begins; two rounds always count",
    )
    parser.add_argument("--device", default="cpu")
    parser.add_argument(
        "--clock",
        default="perf_counter",
        choices=["perf_counter", "process_time"],
        help="seconds that pass, or those of the processor, where others use it too",
    )
    parser.add_argument("--specs", nargs="+", default=SPECS, metavar="SPEC")
    parser.add_argument("--measure", nargs="+", default=MEASURES, choices=MEASURES)
    parser.add_argument(
        "--passes", action="store_true", help="each spec also without each of the passes"
    )
    parser.add_argument("--compile", metavar="BACKEND", help="torch.compile, such as inductor")
    options = parser.parse_args()
    if options.dtype != "float32":
        GOALS["step"] = {name: (HALF_GOAL, goal) for name, (_, goal) in GOALS["step"].items()}
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    base = base_model(options)
    models = {BASE: base, PEFT: with_peft(base)}
    for spec in options.specs:
        models[spec] = compile_spec(spec, twin(base))
        if options.passes:
            for step in OPTIMISATIONS:
                models[f"{spec} - {type(step).__name__}"] = without(step, spec, base)
            models[f"{spec} - all, linear by linear"] = linear_by_linear(spec, base)
    train_a_little(models)
    compiled = compiler(options.compile)

    ids = torch.randint(base.config.vocab_size, (2, options.tokens // 2), device=options.device)
    rows: list[dict[str, Any]] = []
    counted: dict[str, int] = {}
    for measure in options.measure:
        print(f"== {measure}", file=sys.stderr)
        if measure in COUNTS:
            rows += COUNTS[measure](models, ids, compiled)
            continue
        subjects = SUBJECTS[measure](models, ids, compiled)
        rounds = max(2, options.rounds * (20 if measure == "decode" else 1))
        clock = getattr(time, options.clock)
        settle = torch.cuda.synchronize if ids.is_cuda else lambda: None
        timings = interleave(subjects, rounds, settle=settle, clock=clock, limit=options.seconds)
        rows += timing_rows(measure, timings)
        counted[f"rounds of {measure}"] = len(timings[BASE].seconds)
    settings = {
        k: v
        for k, v in vars(options).items()
        if k in ("model", "layers", "dtype", "tokens", "threads", "clock", "compile")
    }
    parts = ["speed", options.model.rpartition("/")[2], options.dtype]
    if tuple(options.measure) != MEASURES:  # A part takes the place of no whole.
        parts += options.measure
    if options.passes:
        parts.append("passes")
    if options.compile:
        parts.append("compile")
    write("-".join(parts), rows, **settings, **counted)


def compiler(backend: str | None) -> Compile:
    """What compiles a model, once, so that a control runs what it controls; None leaves it as it is."""
    # All models have one forward, whose programs are counted together: beyond the limit it runs as it is.
    torch._dynamo.config.recompile_limit = 64
    return cache(partial(torch.compile, backend=backend, disable=backend is None))


def base_model(options: argparse.Namespace) -> PreTrainedModel:
    dtype = getattr(torch, options.dtype)
    name, _, hidden = options.model.rpartition("-")
    if name == "llama" and hidden.isdecimal():
        config = llama(int(hidden), options.layers)
        model = AutoModelForCausalLM.from_config(config, dtype=dtype)
    else:
        folder = smollm2_folder() if options.model == "smollm2-135m" else options.model
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype)
    return model.requires_grad_(False).to(options.device)


def twin(base: PreTrainedModel) -> PreTrainedModel:
    """Another model with the same weights, not copied."""
    return copy.deepcopy(base, {id(p): p for p in base.parameters()})


def with_peft(base: PreTrainedModel) -> Any:
    config = peft.LoraConfig(r=8, lora_alpha=16, target_modules=KINDS)
    # In half precision PEFT's adapters are in it too: the fairer baseline, for casts cost.
    return peft.get_peft_model(
        twin(base), config, autocast_adapter_dtype=base.dtype is torch.float32
    )


def without(step: Pass, spec: str, base: PreTrainedModel) -> PreTrainedModel:
    """The base adapted by all passes but one."""
    model, plan = twin(base), plan_spec(spec, base)
    tensors = {name: tensor.to(base.device) for name, tensor in draw(plan, 0).items()}
    others = tuple(p for p in OPTIMISATIONS if p != step)
    insert_first(model, compile_plan(model, plan, optimisations=others), tensors)
    return model


def linear_by_linear(spec: str, base: PreTrainedModel) -> PreTrainedModel:
    """The base with each linear layer adapted separately: nothing is traced, and no pass finds siblings."""
    with mock.patch.object(compile_regions, "capture_region", side_effect=UntraceableRegion("-")):
        return compile_spec(spec, twin(base))


def train_a_little(models: Models) -> None:
    """No factor is zero, as after training."""
    for model in models.values():
        for parameter in model.parameters():
            if parameter.requires_grad:
                with torch.no_grad():
                    parameter.add_(torch.randn_like(parameter), alpha=1e-3)


def controls(models: Models) -> dict[str, Any]:
    return {**models, BASE_AGAIN: models[BASE], PEFT_AGAIN: models[PEFT]}


def step_of(model: Any, ids: torch.Tensor) -> Callable[[], object]:
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=0.0) if trained else None

    def step() -> None:
        # The base trains nothing: its step goes down to its first layer's input all the same.
        x = model.get_input_embeddings()(ids).detach().requires_grad_(not trained)
        model(inputs_embeds=x, labels=ids).loss.backward()
        if optimizer is not None:
            optimizer.step()
            optimizer.zero_grad()

    return step


def steps(models: Models, ids: torch.Tensor, compiled: Compile) -> Subjects:
    subjects = controls(models)
    return ready({name: step_of(compiled(m.train()), ids) for name, m in subjects.items()})


def prefills(models: Models, ids: torch.Tensor, compiled: Compile) -> Subjects:
    @torch.no_grad()
    def prefill(model: Any) -> None:
        model(input_ids=ids, logits_to_keep=1)

    subjects = controls(models)
    return ready({name: partial(prefill, compiled(m.eval())) for name, m in subjects.items()})


def decodes(models: Models, ids: torch.Tensor, compiled: Compile) -> Subjects:
    """One token after 64 others; the cache is cut back to these each time.

    A merged model has separate weights, so its control is a copy of the base.
    """
    subjects = {**controls(models), BASE_COPY: copy.deepcopy(models[BASE])}
    merged = compile_spec("lora", copy.deepcopy(models[BASE]))
    train_a_little({"": merged})
    subjects["merged"] = merged.bishare.merge_and_unload()
    return ready({name: decode_of(compiled(m.eval()), ids) for name, m in subjects.items()})


def decode_of(model: Any, ids: torch.Tensor, tokens: int = 5) -> Callable[[], object]:
    """Some tokens, each after the same 64 others."""
    with torch.no_grad():
        cache = model(input_ids=ids[:1, :64], use_cache=True).past_key_values

    @torch.no_grad()
    def decode() -> None:
        model(input_ids=ids[:1, :1], past_key_values=cache, use_cache=True)
        cache.crop(-1)

    def several() -> None:
        for _ in range(tokens):
            decode()

    decode()
    return several


def ready(runs: Mapping[str, Callable[[], object]]) -> Subjects:
    """Runs that need no preparation before each round."""
    return {name: (lambda run=run: run) for name, run in runs.items()}


SUBJECTS = {"step": steps, "prefill": prefills, "decode": decodes}
HALF_GOAL = 0.98
"""Of a step beside PEFT's, in half precision."""

GOALS: dict[str, dict[str, tuple[float | None, float | None]]] = {
    "flops": {},
    "bytes": {},
    # measure: (relative to PEFT, relative to the base), by spec
    "step": {
        "lora": (0.92, 1.02),
        "bishare_ss": (0.94, 1.04),
        "bishare_gt": (0.92, 1.02),
        "bishare_ke": (0.92, 1.02),
    },
    "prefill": dict.fromkeys(SPECS, (None, 1.03)),
    "decode": {**dict.fromkeys(SPECS, (None, 1.04)), "lora": (None, 1.02), "merged": (None, 1.0)},
    "memory": dict.fromkeys(SPECS, (0.78, None)),
}


def timing_rows(measure: str, timings: Mapping[str, Timing]) -> list[dict[str, Any]]:
    peft, base = timings[PEFT], timings[BASE]
    return [
        row(
            measure,
            name,
            t.median,
            "s",
            t.ratio(peft),
            t.ratio(base),
            (t.by(peft).quartiles(), t.by(base).quartiles()),
        )
        for name, t in timings.items()
    ]


def row(
    measure: str,
    name: str,
    value: float,
    unit: str,
    by_peft: float,
    by_base: float,
    quartiles: tuple[str, str] = ("", ""),
) -> dict[str, Any]:
    peft_goal, base_goal = GOALS[measure].get(name, (None, None))
    return {
        "measure": measure,
        "model": name,
        "value": f"{value:.4g} {unit}",
        "x PEFT": round(by_peft, 3),
        "quartiles": quartiles[0],
        "goal": f"<= {peft_goal}" if peft_goal else "",
        "x base": round(by_base, 3),
        "quartiles ": quartiles[1],
        "goal ": f"<= {base_goal}" if base_goal else "",
    }


def values(models: Models) -> dict[str, tuple[int, int]]:
    """Of each model how many values its linear layers hold, and how many the effective factors."""
    linears = [m for _, m in models[BASE].named_modules() if isinstance(m, torch.nn.Linear)]
    weights = sum(linear.weight.numel() for linear in linears)
    found = {BASE: (weights, 0)}
    for name in models:
        if name != BASE:
            plan = plan_spec("lora" if name == PEFT else name.partition(" - ")[0], models[BASE])
            widths = {site.path: site.d_in + site.d_out for site in plan.sites}
            found[name] = (weights, sum(t.rows * widths[t.site] for t in plan.terms))
    return found


def flops_rows(models: Models, ids: torch.Tensor, compiled: Compile) -> list[dict[str, Any]]:
    """What the linear layers and the adapter multiply in a step; attention and the rest are alike for all.

    The frozen base has two products of each weight with the tokens, a factor has three.
    """
    flops = {n: 2 * ids.numel() * (2 * w + 3 * f) for n, (w, f) in values(models).items()}
    base, peft = flops[BASE], flops[PEFT]
    return [row("flops", n, f / 1e9, "GFLOP", f / peft, f / base) for n, f in flops.items()]


def bytes_rows(models: Models, ids: torch.Tensor, compiled: Compile) -> list[dict[str, Any]]:
    """What one token reads of the linear layers and the factors, where no cache holds any of it."""
    size = models[BASE].dtype.itemsize
    read = {name: size * sum(counts) for name, counts in values(models).items()}
    base, peft = read[BASE], read[PEFT]
    return [row("bytes", n, r / 2**20, "MiB", r / peft, r / base) for n, r in read.items()]


def memory_rows(models: Models, ids: torch.Tensor, compiled: Compile) -> list[dict[str, Any]]:
    peaks = {
        name: peak(step_of(compiled(model.train()), ids), ids.device) / 2**20
        for name, model in controls(models).items()
    }
    return [
        row("memory", name, mib, "MiB", mib / peaks[PEFT], mib / peaks[BASE])
        for name, mib in peaks.items()
    ]


def peak(step: Callable[[], object], device: torch.device) -> int:
    """The most bytes that a step holds at once, beyond what is held before it."""
    step()
    if device.type == "cuda":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        step()
        return torch.cuda.max_memory_allocated() - before
    with torch.profiler.profile(profile_memory=True) as profile:
        step()
    held = most = 0
    for event in profile.profiler.kineto_results.events():
        if event.name() == "[memory]":
            held += event.nbytes()
            most = max(most, held)
    return most


COUNTS = {"flops": flops_rows, "bytes": bytes_rows, "memory": memory_rows}

if __name__ == "__main__":
    main()
