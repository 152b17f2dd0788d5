"""bishare: a small language and a compiler for low-rank adapters whose factors are shared.

    model = compile_spec("specs/bishare_ke.share", model, params={"r_inter": 32}, seed=0)

The public names are imported on first use, so that ``import bishare_dsl`` stays fast.
"""

import logging
from typing import TYPE_CHECKING

from bishare_dsl.lazy import lazy
from bishare_dsl.version import __version__

if TYPE_CHECKING:
    from bishare_dsl.api import compile_spec, load_adapter, plan_spec
    from bishare_dsl.compiler import parse_spec
    from bishare_dsl.peft.method import handle
    from bishare_dsl.plan import Plan
    from bishare_dsl.spec import Spec


def _leave_out(logger: str, text: str) -> None:
    """Leave warnings that contain ``text`` out of a logger."""
    logging.getLogger(logger).addFilter(lambda record: text not in record.getMessage())


# PEFT and Trainer import bitsandbytes, which asks the Hub for a kernel; both warn of it on a CPU.
_leave_out("bitsandbytes.backends.cpu.ops", "gemm_4bit_forward")
_leave_out("kernels._internals.hf_hub", "quantization-bitsandbytes")

__all__ = [
    "Plan",
    "Spec",
    "__version__",
    "compile_spec",
    "handle",
    "load_adapter",
    "parse_spec",
    "plan_spec",
]

__getattr__ = lazy(
    __name__,
    {
        "api": "compile_spec load_adapter plan_spec",
        "compiler": "parse_spec",
        "peft.method": "handle",
        "plan": "Plan",
        "spec": "Spec",
    },
)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
