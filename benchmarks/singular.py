"""How near the directions of a large weight come to those of its whole decomposition, and what either takes.

    python benchmarks/singular.py MODEL [--rank 8 16] [--layers 3 25]
    python benchmarks/singular.py --plan tiny_lora --shapes llama-7b

Of the weights of these layers whose directions are not computed exactly: the most that is lost of the energy
of the largest singular values, the most by which that part of a weight differs, and the seconds of all.

With ``--plan`` the seconds that loading (float32) and saving (float64) take to make all starts of a spec on
a preset: those of one random weight of each shape, times how many there are.
"""

import argparse
import time
from collections import Counter

import torch
from transformers import AutoModelForCausalLM

from bishare_dsl import plan_spec
from bishare_dsl.initial import singular
from bishare_dsl.initial.singular import directions, is_exact
from bishare_dsl.models.inspect import linear_maps


def seconds_of_all(spec: str, shapes: str) -> None:
    plan = plan_spec(spec, shapes)
    random = torch.Generator().manual_seed(0)
    wanted = Counter(
        (site.d_out, site.d_in, plan.terms_of[site.path][0].rank)
        for site in plan.sites
        if plan.terms_of[site.path]
    )
    for name, dtype in (("loading", torch.float32), ("saving", torch.float64)):
        seconds = 0.0
        for (d_out, d_in, rank), count in wanted.items():
            weight = torch.randn(d_out, d_in, generator=random).to(dtype)
            start = time.process_time()
            directions(weight, rank)
            seconds += count * (time.process_time() - start)
        print(f"{name}  {wanted.total()} weights  {seconds:.0f} s")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", nargs="?")
    parser.add_argument("--plan")
    parser.add_argument("--shapes", default="llama-7b")
    parser.add_argument("--rank", type=int, nargs="+", default=[8, 16])
    parser.add_argument("--layers", type=int, nargs="+", default=[3, 25])
    asked = parser.parse_args()
    if asked.plan:
        seconds_of_all(asked.plan, asked.shapes)
        return
    singular._DIRECT_SIDE = 0  # Small weights are iterated too.
    model = AutoModelForCausalLM.from_pretrained(asked.model, dtype=torch.float32)
    chosen = [f".layers.{layer}." for layer in asked.layers]
    maps = linear_maps(model).items()
    weights = [w.matrix() for path, w in maps if any(part in path for part in chosen)]
    for rank in asked.rank:
        lost = part = ours = whole = 0.0
        large = [weight for weight in weights if not is_exact(weight, rank)]
        for weight in large:
            start = time.perf_counter()
            found = directions(weight, rank)
            between = time.perf_counter()
            u, s, vh = torch.linalg.svd(weight, full_matrices=False)
            whole += time.perf_counter() - between
            ours += between - start
            exact = u[:, :rank] * s[:rank] @ vh[:rank]
            difference = found.left.T * found.values @ found.right - exact
            lost = max(lost, float(1 - found.values.square().sum() / s[:rank].square().sum()))
            part = max(part, float(difference.norm() / exact.norm()))
        print(
            f"rank {rank}, {len(large)} weights: {lost:.1e} of the energy lost, the part differs by "
            f"{part:.1e}; {ours:.2f} s, the whole decomposition {whole:.2f} s"
        )


if __name__ == "__main__":
    main()
