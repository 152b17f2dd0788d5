"""Frozen tensors that start from the base's weights, left out of the file: loading makes them again.

Of each row the config has two marks, its products with two random vectors. Another machine may turn the sign
of a direction, which the marks turn back. Another base gives other marks.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch

from bishare_dsl.adapter.counter import fill
from bishare_dsl.diagnostics import AdapterError
from bishare_dsl.diagnostics.codes import adapter as codes
from bishare_dsl.plan import Plan

Marks = tuple[tuple[float, float], ...]
"""Of each row: its products with the random vectors."""

_NEAR = 2e-3
"""How far marks may be apart, of a row's norm; they have four digits.

What is left out is first made in float64 and must be a tenth of this near. So float32 determines it, on
another machine too: directions of almost equal singular values, which are any in their plane, are stored.
"""


def marks_of(tensor: torch.Tensor) -> Marks:
    """Return the marks of a tensor."""
    return tuple((float(f"{a:.4g}"), float(f"{b:.4g}")) for a, b in _products(tensor).tolist())


def find_remade(
    plan: Plan, tensors: Mapping[str, torch.Tensor], remade: Mapping[str, torch.Tensor]
) -> dict[str, Marks]:
    """Find the frozen tensors that the base gives again, with their marks.

    Args:
        plan: names the tensors.
        tensors: the adapter's.
        remade: what the base gives, in float64.
    """
    found = {}
    for name in (t.name for t in plan.tensors if t.name in remade and not t.trainable):
        marks = marks_of(tensors[name])
        again = _aligned(remade[name], marks)
        value = tensors[name].cpu().double()
        if again is not None and (again.cpu() - value).norm() <= _NEAR / 10 * value.norm():
            found[name] = marks
    return found


def check_remade(
    marks: Mapping[str, Marks], tensors: Mapping[str, torch.Tensor]
) -> dict[str, torch.Tensor]:
    """Return tensors that were made again, with the signs that they had.

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
    random = torch.empty(tensor.shape[1], 2, dtype=torch.float32, device="cpu")
    fill(random.numpy(), {"normal": 1.0}, 0, "marks")
    return tensor.detach().cpu().double() @ random.double()


def _aligned(tensor: torch.Tensor, marks: Marks) -> torch.Tensor | None:
    """Return a tensor with the signs that give its marks; None where none do, or both."""
    found, saved = _products(tensor), torch.tensor(marks, dtype=torch.float64)
    if found.shape != saved.shape:
        return None
    signs = torch.where((found * saved).sum(1, keepdim=True) < 0, -1.0, 1.0)
    near = _NEAR * tensor.detach().cpu().double().norm(dim=1, keepdim=True)
    certain = saved.norm(dim=1, keepdim=True) >= 4 * near
    if not (certain & ((found * signs - saved).abs() <= near)).all():
        return None
    return tensor * signs.to(tensor)
