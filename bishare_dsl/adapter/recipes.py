"""Frozen tensors that start from the base's weights, left out of the file: loading makes them again.

The config has their `Marks`, of the products of each row with two random vectors of its own. Another machine
may turn the sign of a direction, which the signs of the products turn back. Another base gives other sums of
them.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch

from bishare_dsl.adapter.config import Marks
from bishare_dsl.adapter.counter import fill
from bishare_dsl.adapter.singular import fitted
from bishare_dsl.diagnostics import AdapterError
from bishare_dsl.diagnostics.codes import adapter as codes
from bishare_dsl.plan import Plan

_NEAR = 2e-3
"""How far sums may be apart, of the tensor's norm; they have four digits.

What is left out is first made in float64 and must be a tenth of this near. So float32 determines it, on
another machine too: directions of almost equal singular values, which are any in their plane, are stored.
"""


def marks_of(tensor: torch.Tensor) -> Marks:
    """Return the marks of a tensor."""
    products = _products(tensor)
    signs = "".join(str(2 * (a < 0) + (b < 0)) for a, b in products.tolist())
    a, b = products.sum(0).tolist()
    return Marks(signs=signs, sums=(float(f"{a:.4g}"), float(f"{b:.4g}")))


def find_reproduced(
    plan: Plan, tensors: Mapping[str, torch.Tensor], reproduced: Mapping[str, torch.Tensor]
) -> dict[str, Marks]:
    """Find the frozen tensors that the base gives again, with their marks; but for those that are fitted.

    Args:
        plan: names the tensors.
        tensors: the adapter's.
        reproduced: what the base gives, in float64.
    """
    found, stored = {}, fitted(plan)
    frozen = [t for t in plan.tensors if t.name in reproduced and not t.trainable]
    for name in (t.name for t in frozen if (t.like or t.name) not in stored):
        marks = marks_of(tensors[name])
        again = _aligned(reproduced[name], marks)
        value = tensors[name].cpu().double()
        if again is not None and (again.cpu() - value).norm() <= _NEAR / 10 * value.norm():
            found[name] = marks
    return found


def check_reproduced(
    marks: Mapping[str, Marks], tensors: Mapping[str, torch.Tensor]
) -> dict[str, torch.Tensor]:
    """Return tensors that were reproduced, with the signs that they had.

    Args:
        marks: of those that were saved.
        tensors: as the base gives them here.

    Raises:
        AdapterError: one is another (BS699).
    """
    found = {}
    for name, saved in marks.items():
        aligned = tensors[name] if tensors[name].is_meta else _aligned(tensors[name], saved)
        if aligned is None:
            raise AdapterError(codes.OTHER_WEIGHTS(name=name))
        found[name] = aligned
    return found


def _products(tensor: torch.Tensor) -> torch.Tensor:
    rows, columns = tensor.shape
    random = torch.empty(rows, 2, columns, dtype=torch.float32, device="cpu")
    fill(random.numpy(), {"normal": 1.0}, 0, "marks")
    return (random.double() @ tensor.detach().cpu().double().unsqueeze(2)).squeeze(2)


def _aligned(tensor: torch.Tensor, marks: Marks) -> torch.Tensor | None:
    """Return a tensor with the signs that give its marks; None where none do, or both."""
    if len(marks.signs) != len(tensor):
        return None
    products, norms = _products(tensor), tensor.detach().cpu().double().norm(dim=1)
    saved = torch.tensor([[1 - int(sign) // 2 * 2, 1 - int(sign) % 2 * 2] for sign in marks.signs])
    along = (products * saved).sum(1)
    signs = torch.where(along < 0, -1.0, 1.0)
    apart = (signs.double() @ products) - torch.tensor(marks.sums, dtype=torch.float64)
    if (along.abs() < 4 * _NEAR * norms).any() or (apart.abs() > _NEAR * norms.norm()).any():
        return None
    return tensor * signs.unsqueeze(1).to(tensor)
