"""Compile the kernels for GPUs, which Triton can do without one, and print what ptxas says of each, as JSON lines."""

import contextlib
import io
import json
import re

import torch
from triton import knobs
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource, compile

from bishare_dsl.batched import kernels

TYPES = {
    **dict.fromkeys(("z", "scales"), "*fp32"),
    **dict.fromkeys(("order", "tiles"), "*i32"),
    **dict.fromkeys(("table", "parts"), "*i64"),
}
STORED = {"bfloat16": "*bf16", "float32": "*fp32"}
CARDS = (80, 90, 100, 120)

knobs.compilation.always_compile = knobs.nvidia.dump_ptxas_log = True


def compiled(kernel, card, dtype):
    """What a kernel takes on a card."""
    types = TYPES | dict.fromkeys(("memory", "x", "y"), STORED[dtype])
    sizes = kernels.sizes(getattr(torch, dtype))
    warps = sizes.pop("num_warps")
    given = {name: types.get(name, "i32") for name in kernel.arg_names}
    source = ASTSource(kernel, given | dict.fromkeys(sizes, "constexpr"), sizes)
    with contextlib.redirect_stdout(io.StringIO()) as said:
        target = GPUTarget("cuda", card, 32)
        made = compile(source, target=target, options={"num_warps": warps})
    spills = re.findall(r"(\d+) bytes (?:stack frame|spill stores|spill loads)", said.getvalue())
    return {
        "kernel": kernel.__name__.removeprefix("_"),
        "card": f"sm_{card}",
        "dtype": dtype,
        "registers": int(re.search(r"Used (\d+) registers", said.getvalue())[1]),
        "spilled": sum(map(int, spills)),
        "shared": made.metadata.shared,
        "mma": "mma" in made.asm["ptx"],
    }


if __name__ == "__main__":
    for kernel in (kernels._down, kernels._up):
        for card in CARDS:
            for dtype in STORED:
                print(json.dumps(compiled(kernel, card, dtype)))  # noqa: T201
