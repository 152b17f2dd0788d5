"""Matrix products of bfloat16 for CPUs without instructions for them: computed in float32 and rounded once.

Instructions for bfloat16 sum in float32 and round once, too, so that the order of summation alone differs.
Without them torch's own kernels take up to forty times as long.
"""

from __future__ import annotations

from typing import Any

import torch

_LIBRARY: list[torch.library.Library] = []
# The weight in bfloat16, so that its memory is not used again, and in float32, by where the former begins.
_WEIGHTS: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}


def widen(model: torch.nn.Module) -> None:
    """Compute products of bfloat16 in float32 if the CPU needs it; keep this model's weights in float32."""
    if torch.ops.mkldnn._is_mkldnn_bf16_supported():
        return
    _WEIGHTS.clear()
    for weight in model.parameters():
        _WEIGHTS[weight.data_ptr()] = weight, weight.detach().float()
    if not _LIBRARY:
        library = torch.library.Library("aten", "IMPL")
        for name, kernel in (("mm", _mm), ("bmm", _bmm), ("addmm", _addmm), ("addmm_", _addmm_)):
            library.impl(name, kernel, "CPU", allow_override=True)
        _LIBRARY.append(library)


def _wide(tensor: torch.Tensor) -> torch.Tensor:
    if tensor.dtype is not torch.bfloat16:
        return tensor
    if (known := _WEIGHTS.get(tensor.data_ptr())) and known[0].numel() == tensor.numel():
        return known[1].as_strided(tensor.shape, tensor.stride())
    return tensor.float()


# Each writes into `out`, whose kernels are torch's own.
def _mm(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    made = torch.empty(a.shape[0], b.shape[1], dtype=_wide_dtype(a))
    return torch.mm(_wide(a), _wide(b), out=made).to(a.dtype)


def _bmm(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    made = torch.empty(a.shape[0], a.shape[1], b.shape[2], dtype=_wide_dtype(a))
    return torch.bmm(_wide(a), _wide(b), out=made).to(a.dtype)


def _addmm(c: torch.Tensor, a: torch.Tensor, b: torch.Tensor, **factors: Any) -> torch.Tensor:
    made = torch.empty(a.shape[0], b.shape[1], dtype=_wide_dtype(a))
    return torch.addmm(_wide(c), _wide(a), _wide(b), **factors, out=made).to(a.dtype)


def _addmm_(c: torch.Tensor, a: torch.Tensor, b: torch.Tensor, **factors: Any) -> torch.Tensor:
    return c.copy_(_addmm(c, a, b, **factors))


def _wide_dtype(tensor: torch.Tensor) -> torch.dtype:
    return torch.float32 if tensor.dtype is torch.bfloat16 else tensor.dtype
