"""DoRA here and in PEFT, on SmolLM2-135M-Instruct in float32: the loss curve, the time of a step, and memory.

    python benchmarks/dora.py curve
    python benchmarks/dora.py time [--rounds 6]
    python benchmarks/dora.py memory

`curve`: 20 steps of AdamW from the same values. PEFT trains the lengths m, and bishare `mu = m / |W| - 1`; so
PEFT takes part twice, as it is, and with m written as `(1 + mu) |W|`. `time`: a forward and backward of each
in turn, with LoRA and a second copy of both DoRAs as controls. `memory`: the peak of the resident set of a
process that takes three steps, with a separate process for each way.
"""

import argparse
import copy
import resource
import subprocess
import sys
import time
import warnings

import torch
from harness import KINDS, interleave
from harness.model import smollm2_folder
from peft import LoraConfig, get_peft_model
from torch import nn
from torch.nn.utils import parametrize

from bishare_dsl import compile_spec
from bishare_dsl.models import load_model

RANK, TOKENS = 8, 64
WAYS = ("peft lora", "bishare lora", "peft dora", "bishare dora", "bishare shared")
SPECS = {"bishare lora": "lora", "bishare dora": "dora", "bishare shared": None}
SHARED = (
    f"spec shared\ntarget {', '.join(KINDS)}\nalpha 16\nshare local per module rank 8\n"
    "magnitude per kind"
)


class Relative(nn.Module):
    """PEFT's m as bishare has it."""

    def __init__(self, norms: torch.Tensor) -> None:
        super().__init__()
        self.norms = norms

    def forward(self, mu: torch.Tensor) -> torch.Tensor:
        return (1 + mu) * self.norms

    def right_inverse(self, m: torch.Tensor) -> torch.Tensor:
        return m / self.norms - 1


def base():
    return load_model(str(smollm2_folder()), dtype=torch.float32)[0].requires_grad_(False)


def peft_model(model, *, dora: bool):
    config = LoraConfig(r=RANK, lora_alpha=2 * RANK, target_modules=KINDS, use_dora=dora)
    return get_peft_model(model, config).train()


def model_of(way: str, model):
    if way.startswith("peft"):
        return peft_model(model, dora=way == "peft dora")
    return compile_spec(SPECS[way] or SHARED, model).train()


def ids(rows: int = 1, tokens: int = TOKENS) -> torch.Tensor:
    random = torch.Generator().manual_seed(0)
    return torch.randint(100, 40_000, (rows, tokens), generator=random)


def step(model, x: torch.Tensor) -> float:
    model.zero_grad()
    loss = model(input_ids=x, labels=x).loss
    loss.backward()
    return loss.item()


def curve(steps: int, rate: float) -> None:
    plain = base()
    theirs = [peft_model(copy.deepcopy(plain), dora=True) for _ in range(2)]
    ours = compile_spec("dora", copy.deepcopy(plain)).train()
    plan, tensors = ours.bishare.plan, ours.bishare.tensors()
    with torch.no_grad():
        for site in plan.sites:
            a = tensors[plan.terms_of[site.path][0].tensors["A"]]
            for model in theirs:
                model.base_model.model.get_submodule(site.path).lora_A["default"].weight.copy_(a)
            vector = theirs[1].base_model.model.get_submodule(site.path).lora_magnitude_vector
            norms = vector["default"].weight.detach().clone()
            parametrize.register_parametrization(vector["default"], "weight", Relative(norms))
    models = [ours, theirs[1], theirs[0]]
    optimizers = [
        torch.optim.AdamW([p for p in m.parameters() if p.requires_grad], rate) for m in models
    ]
    x = ids()
    print("| step | bishare | PEFT, `m = (1 + mu) abs(W)` | PEFT |\n|---:|---:|---:|---:|")
    worst = [0.0, 0.0]
    for i in range(1, steps + 1):
        losses = [step(model, x) for model in models]
        for optimizer in optimizers:
            optimizer.step()
        worst = [max(w, abs(losses[0] - other)) for w, other in zip(worst, losses[1:], strict=True)]
        if i in (1, 2, 5, 10, 15, 20):
            print(f"| {i} | {' | '.join(f'{loss:.6f}' for loss in losses)} |", flush=True)
    print(f"\nlargest difference: {worst[0]:.1e} and {worst[1]:.1e}")


def times(rounds: int) -> None:
    plain = base()
    names = [*WAYS, "peft dora, again", "bishare dora, again"]
    models = [model_of(n.removesuffix(", again"), copy.deepcopy(plain)) for n in names]
    x = ids()
    subjects = {n: lambda m=m: lambda: step(m, x) for n, m in zip(names, models, strict=True)}
    # The time of the process: others may use the machine.
    found = interleave(subjects, rounds, clock=time.process_time)
    print("| way | median, s | quartiles, s | relative to PEFT's DoRA |\n|---|---:|---:|---:|")
    for name, timing in found.items():
        ratio = timing.ratio(found["peft dora"])
        print(f"| {name} | {timing.median:.3f} | {timing.quartiles()} | {ratio:.3f} |", flush=True)


def memory(way: str | None) -> None:
    if way is None:
        print("| way | peak of the process, MiB | above its start, MiB |\n|---|---:|---:|")
        for one in WAYS:
            command = [sys.executable, __file__, "memory", "--way", one]
            made = subprocess.run(command, check=True, capture_output=True, text=True)
            print(made.stdout.strip(), flush=True)
        return
    model = model_of(way, base())
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], 1e-4)
    for _ in range(3):
        step(model, ids())
        optimizer.step()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(f"| {way} | {peak:,.0f} | {peak - before:,.0f} |")


if __name__ == "__main__":
    warnings.filterwarnings("ignore")
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("what", choices=["curve", "time", "memory"])
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--rate", type=float, default=1e-3)
    parser.add_argument("--way", choices=WAYS)
    given = parser.parse_args()
    torch.manual_seed(0)
    match given.what:
        case "curve":
            curve(given.steps, given.rate)
        case "time":
            times(given.rounds)
        case "memory":
            memory(given.way)
