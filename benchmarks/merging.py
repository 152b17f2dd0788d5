"""What merging keeps of an update, and what cycles of merging and unmerging leave of the base.

    python benchmarks/merging.py survival MODEL ADAPTER...
    python benchmarks/merging.py cycles [--cycles 1000]

`survival`: the size of the update, the median of |dW| / |W|, and the share <W' - W, dW> / |dW|^2 that each
type and way of rounding keeps. `cycles`: a bfloat16 Llama of width 128, every linear layer of its two blocks
with a LoRA of rank 8; the largest change of a weight after so many cycles, relative to the mean weight.
"""

import argparse
import warnings

import torch

from bishare_dsl import compile_spec, load_adapter
from bishare_dsl.convert.effective import delta
from bishare_dsl.models import load_model
from bishare_dsl.models.inspect import linear_maps
from bishare_dsl.testing.models import tiny_model

KINDS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
WAYS = ["bfloat16", "float16", "float32"]


def survival(model: str, adapters: list[str]) -> None:
    print("| adapter | |dW| / |W|, median | bfloat16 | float16 | float32 |")
    print("|---|---:|---:|---:|---:|")
    for adapter in adapters:
        cells, kinds = [], ""
        for dtype in WAYS:
            base, _ = load_model(model, dtype=dtype)
            load_adapter(adapter, base)
            handle = base.bishare
            if not cells:
                maps, tensors = linear_maps(base), handle.tensors()
                sizes = [
                    delta(handle.plan, tensors, site).norm()
                    / maps[site.path].matrix().float().norm()
                    for site in handle.plan.sites
                    if handle.plan.rows(site.path)
                ]
                cells.append(f"{torch.stack(sizes).median():.1e}")
            found = handle.merge(keep_base=False).survival
            kinds = kinds or str(found)
            cells.append(str(found).partition(" ")[0])
        print(f"| {adapter} | {' | '.join(cells)} |", flush=True)
        print(f"<!-- {kinds} -->", flush=True)


def cycles(count: int) -> None:
    from peft import LoraConfig, get_peft_model

    print("| after | PEFT's LoRA | bishare |")
    print("|---|---:|---:|")
    sizes = {"hidden_size": 128, "head_dim": 32, "intermediate_size": 256}
    models = [tiny_model("llama", **sizes).bfloat16() for _ in range(2)]
    kept = {n: p.detach().clone() for n, p in models[0].named_parameters() if p.dim() == 2}
    peft = get_peft_model(models[0], LoraConfig(r=8, target_modules=KINDS, init_lora_weights=False))
    compile_spec(f"spec s\ntarget {', '.join(KINDS)}\nshare lora  per module  rank 8", models[1])
    with torch.no_grad():
        for tensor in models[1].bishare.tensors().values():
            tensor.normal_(0, 0.1)
    ways = [
        (models[0], peft.merge_adapter, peft.unmerge_adapter),
        (models[1], models[1].bishare.merge, models[1].bishare.unmerge),
    ]
    for done in range(1, count + 1):
        for _, merge, unmerge in ways:
            merge()
            unmerge()
        if done in (1, 10, 100, 1000, count):
            drifts = []
            for model, *_ in ways:
                now = {n.replace(".base_layer", ""): p for n, p in model.named_parameters()}
                moved = max(float((now[n] - w).abs().max()) for n, w in kept.items() if n in now)
                drifts.append(
                    moved / float(torch.cat([w.flatten() for w in kept.values()]).abs().mean())
                )
            print(f"| {done:,} | {drifts[0]:.3f} | {drifts[1]:.3f} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    commands = parser.add_subparsers(dest="what", required=True)
    of_survival = commands.add_parser("survival")
    of_survival.add_argument("model")
    of_survival.add_argument("adapters", nargs="+")
    commands.add_parser("cycles").add_argument("--cycles", type=int, default=1000)
    asked = parser.parse_args()
    warnings.simplefilter("ignore")
    if asked.what == "survival":
        survival(asked.model, asked.adapters)
    else:
        cycles(asked.cycles)


if __name__ == "__main__":
    main()
