"""What each share of an adapter is worth on some data."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from bishare_dsl.analyse.batches import on_device
from bishare_dsl.plan.names import without_start

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from bishare_dsl.adapter.handle import Handle


@dataclass(frozen=True)
class Worth:
    """The mean loss of a trained token: of the base, with the adapter, and without each of its shares."""

    base: float
    adapted: float
    without: Mapping[str, float]


@torch.no_grad()
def worth(handle: Handle, batches: Sequence[dict[str, torch.Tensor]]) -> Worth:
    """Measure what each share is worth: the loss without it, its tensors all zero for that time.

    Args:
        handle: ``model.bishare``; its tensors are as before afterwards.
        batches: with labels.
    """
    model = handle.model
    with handle.disable_adapter():
        base = _loss(model, batches)
    adapted, without = _loss(model, batches), {}
    for share in dict.fromkeys(without_start(term.share) for term in handle.plan.terms):
        with _left_out(handle, share):
            without[share] = _loss(model, batches)
    return Worth(base, adapted, without)


@contextmanager
def _left_out(handle: Handle, share: str) -> Iterator[None]:
    names = [tensor.name for tensor in handle.plan.tensors if without_start(tensor.share) == share]
    tensors = {name: handle.tensors()[name] for name in names}
    before = {name: tensor.detach().clone() for name, tensor in tensors.items()}
    try:
        for tensor in tensors.values():
            tensor.zero_()
        yield
    finally:
        for name, tensor in tensors.items():
            tensor.copy_(before[name])


def _loss(model: PreTrainedModel, batches: Sequence[dict[str, torch.Tensor]]) -> float:
    """Return the mean loss of a trained token."""
    total = tokens = 0.0
    for batch in batches:
        trained = float((batch["labels"][:, 1:] >= 0).sum())
        total += float(model(**on_device(batch, model)).loss) * trained
        tokens += trained
    return total / tokens
