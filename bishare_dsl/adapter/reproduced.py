"""Omit frozen tensors that are computed from the base's weights; loading recomputes them.

The config stores their `SignFingerprint`: products of each row with two random vectors. SVD signs differ
between machines: stored signs restore them, and stored sums detect another base.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch

from bishare_dsl.adapter.config import SignFingerprint
from bishare_dsl.adapter.counter import fill
from bishare_dsl.adapter.singular import fitted
from bishare_dsl.diagnostics import AdapterError
from bishare_dsl.diagnostics.codes import adapter as codes
from bishare_dsl.plan import Plan

_SUM_TOLERANCE = 2e-3
"""Tolerance of the sums, relative to the tensor's norm; they have four digits.

A tensor is omitted only if float64 reproduces it ten times closer, so that float32 on another machine
determines it too. Directions with almost equal singular values are ambiguous, and are stored.
"""


def marks_of(tensor: torch.Tensor) -> SignFingerprint:
    """Return the fingerprint of a tensor."""
    products = _products(tensor)
    signs = "".join(str(2 * (a < 0) + (b < 0)) for a, b in products.tolist())
    a, b = products.sum(0).tolist()
    return SignFingerprint(signs=signs, sums=(float(f"{a:.4g}"), float(f"{b:.4g}")))


def find_reproduced(
    plan: Plan, tensors: Mapping[str, torch.Tensor], reproduced: Mapping[str, torch.Tensor]
) -> dict[str, SignFingerprint]:
    """Find frozen tensors that can be recomputed from the base, except fitted tensors, with their marks.

    Args:
        plan: of the adapter.
        tensors: of the adapter.
        reproduced: the tensors computed from the base, in float64.
    """
    marks_by_name, stored = {}, fitted(plan)
    frozen = [t for t in plan.tensors if t.name in reproduced and not t.trainable]
    for name in (t.name for t in frozen if (t.like or t.name) not in stored):
        marks = marks_of(tensors[name])
        match = _aligned(reproduced[name], marks)
        value = tensors[name].cpu().double()
        if match is not None and (match.cpu() - value).norm() <= _SUM_TOLERANCE / 10 * value.norm():
            marks_by_name[name] = marks
    return marks_by_name


def check_reproduced(
    marks: Mapping[str, SignFingerprint], tensors: Mapping[str, torch.Tensor]
) -> dict[str, torch.Tensor]:
    """Check recomputed tensors, and restore the signs of their rows.

    Args:
        marks: of the saved tensors.
        tensors: as computed from this base.

    Raises:
        AdapterError: a tensor differs (BS699).
    """
    restored = {}
    for name, saved in marks.items():
        aligned = tensors[name] if tensors[name].is_meta else _aligned(tensors[name], saved)
        if aligned is None:
            raise AdapterError(codes.OTHER_WEIGHTS(name=name))
        restored[name] = aligned
    return restored


def _products(tensor: torch.Tensor) -> torch.Tensor:
    rows, columns = tensor.shape
    random = torch.empty(rows, 2, columns, dtype=torch.float32, device="cpu")
    fill(random.numpy(), {"normal": 1.0}, 0, "marks")
    return (random.double() @ tensor.detach().cpu().double().unsqueeze(2)).squeeze(2)


def _aligned(tensor: torch.Tensor, marks: SignFingerprint) -> torch.Tensor | None:
    """Return a tensor with the signs that match its marks; None if they are ambiguous or do not match."""
    if len(marks.signs) != len(tensor):
        return None
    products, norms = _products(tensor), tensor.detach().cpu().double().norm(dim=1)
    saved = torch.tensor([[1 - int(sign) // 2 * 2, 1 - int(sign) % 2 * 2] for sign in marks.signs])
    along = (products * saved).sum(1)
    signs = torch.where(along < 0, -1.0, 1.0)
    apart = (signs.double() @ products) - torch.tensor(marks.sums, dtype=torch.float64)
    if (along.abs() < 4 * _SUM_TOLERANCE * norms).any() or (
        apart.abs() > _SUM_TOLERANCE * norms.norm()
    ).any():
        return None
    return tensor * signs.unsqueeze(1).to(tensor)
