"""How long `bishare analyse` takes for a LoRA of Llama-7B, of random tensors, and its memory.

    python benchmarks/analysing.py [--rank 8] [--model llama-7b]

Time and peak memory are those of the command in a separate process, from
its start to its end. Where other programs run too, the processor time says what it would take alone.
"""

import argparse
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch

from bishare_dsl import plan_spec
from bishare_dsl.adapter.files import save_adapter
from bishare_dsl.adapter.initial import draw

SPEC = """spec lora
target parent self_attn, parent mlp
share local  per module  rank {rank}
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rank", type=int, default=8)
    parser.add_argument("--model", default="llama-7b")
    asked = parser.parse_args()
    text = SPEC.format(rank=asked.rank)
    plan = plan_spec(text, asked.model)
    torch.manual_seed(0)
    tensors = draw(plan, 0)
    tensors = {name: tensor + 0.01 * torch.randn(tensor.shape) for name, tensor in tensors.items()}
    with tempfile.TemporaryDirectory() as folder:
        save_adapter(Path(folder, "adapter"), plan, tensors, text, seed=0)
        del tensors
        what = ["analyse", "adapter", "--model", asked.model]
        command = [sys.executable, "-m", "bishare_dsl.cli.main", *what]
        began = time.monotonic()
        subprocess.run(command, cwd=folder, check=True)
        seconds = time.monotonic() - began
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    print(
        f"{len(plan.sites)} modules, {plan.trainable:,} parameters: {seconds:.1f} s, "
        f"{used.ru_utime + used.ru_stime:.1f} s of processor time, {used.ru_maxrss / 1024:,.0f} MiB"
    )


if __name__ == "__main__":
    main()
