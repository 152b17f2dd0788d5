"""Compile the kernels for a GPU, which Triton can do without one, and say which product each has."""

from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource, compile

from bishare_dsl.batched import kernels

TYPES = {
    **dict.fromkeys(("memory", "x", "y"), "*bf16"),
    **dict.fromkeys(("z", "scales"), "*fp32"),
    **dict.fromkeys(("order", "tiles"), "*i32"),
    **dict.fromkeys(("table", "parts"), "*i64"),
}
SIZES = {"M": 16, "R": 16, "C": kernels.COLUMNS}

for kernel in (kernels._down, kernels._up):
    types = {name: TYPES.get(name, "i32") for name in kernel.arg_names}
    source = ASTSource(kernel, types | dict.fromkeys(SIZES, "constexpr"), SIZES)
    made = compile(source, target=GPUTarget("cuda", 90, 32))
    print("mma" if "mma.sync" in made.asm["ptx"] else "none", len(made.asm["cubin"]))  # noqa: T201
