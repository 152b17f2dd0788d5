"""How near the directions of a large weight come to those of its whole decomposition, and what either takes.

    python benchmarks/singular.py MODEL [--rank 8 16] [--layers 3 25]

Of the weights of these layers whose directions are not computed exactly: the most that is lost of the energy
of the largest singular values, the most by which that part of a weight differs, and the seconds of all.
"""

import argparse
import time

import torch
from transformers import AutoModelForCausalLM

from bishare_dsl.adapter.singular import directions, is_exact
from bishare_dsl.models.inspect import linear_maps


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model")
    parser.add_argument("--rank", type=int, nargs="+", default=[8, 16])
    parser.add_argument("--layers", type=int, nargs="+", default=[3, 25])
    asked = parser.parse_args()
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
