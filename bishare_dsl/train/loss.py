"""Logits where something is learnt, and nowhere else.

Most tokens of a prompt are not learnt, and the vocabulary is by far the widest layer: 2,048 tokens of which
300 are learnt need a seventh of its products, and of the memory of the logits.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from transformers import PreTrainedModel

IGNORED = -100


def only_learnt(inputs: Mapping[str, Any]) -> dict[str, Any]:
    """The same batch, with the columns of ``labels`` (batch, tokens) in which any row learns.

    ``logits_to_keep`` are the positions that predict them, and ``shift_labels`` (batch, positions) what is
    to be predicted. An index tensor: of a slice, the product with the vocabulary would be made row by row
    of the batch, from copies of the whole matrix.
    """
    if "labels" not in inputs:
        return dict(inputs)
    following = inputs["labels"][:, 1:]
    positions = (following != IGNORED).any(dim=0).nonzero().squeeze(1)
    if not len(positions):
        return dict(inputs)
    return {
        **inputs,
        "logits_to_keep": positions,
        "shift_labels": following[:, positions].contiguous(),
    }


@torch.no_grad()
def takes_only_learnt(model: PreTrainedModel) -> bool:
    """Whether a model gives the same loss for a batch as for `only_learnt` of it; tried on a few tokens.

    That needs a forward with ``logits_to_keep`` that hands ``shift_labels`` on to its loss.
    """
    if "logits_to_keep" not in inspect.signature(model.forward).parameters:
        return False
    device = "cpu" if model.device.type == "meta" else model.device
    ids = torch.tensor([[3, 1, 2, 3, 1, 2], [1, 3, 2, 2, 1, 3]], device=device)
    labels = ids.clone()
    labels[:, :3] = labels[0, 4] = IGNORED
    batch = {"input_ids": ids, "labels": labels, "use_cache": False}
    training = model.training
    model.eval()
    try:
        plain, kept = (model(**inputs).loss for inputs in (batch, only_learnt(batch)))
    except (TypeError, ValueError, RuntimeError, IndexError):
        return False
    finally:
        model.train(training)
    # Products of other shapes are summed in another order; another loss is another number altogether.
    return torch.allclose(plain.float(), kept.float(), rtol=1e-2, atol=1e-4)
