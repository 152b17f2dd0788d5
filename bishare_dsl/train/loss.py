"""The loss of tokens that are learned, from logits that are made for these alone.

Most tokens of a prompt are not learned, and the vocabulary is by far the widest layer: 2,048 tokens of which
300 are learned need a seventh of its products.
"""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING, Any, cast

import torch
from transformers.loss.loss_utils import ForCausalLMLoss

if TYPE_CHECKING:
    from torch import nn
    from transformers import PreTrainedModel

IGNORED = -100


def head_is_plain(model: PreTrainedModel) -> bool:
    """Tell whether the head has no adapter, which TRL's product with its weight would leave out."""
    head, handle = model.get_output_embeddings(), cast("Any", model).bishare
    adapted = {term.site for term in handle.plan.terms}
    return not any(m is head and name in adapted for name, m in model.named_modules())


def loss_of_learned(
    model: nn.Module, forward: Any, inputs: dict[str, Any], count: torch.Tensor | None
) -> torch.Tensor:
    """Compute the mean cross-entropy of a batch's ``labels`` (batch, tokens).

    Where the model takes ``logits_to_keep``, it makes logits of the columns alone in which any row learns.
    They are an index tensor: of a slice, the product with the vocabulary would be made row by row of the
    batch, from copies of the whole matrix.

    Args:
        model: what is called; it may be wrapped.
        forward: of the model itself, whose signature is read.
        inputs: of the model.
        count: learned tokens in all of an optimizer step; by default this batch's.
    """
    logits, learned = learned_logits(model, forward, inputs)
    width = logits.shape[-1]
    return ForCausalLMLoss(logits, None, width, num_items_in_batch=count, shift_labels=learned)


def learned_logits(
    model: nn.Module, forward: Any, inputs: dict[str, Any]
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the logits (batch, positions, vocabulary) of tokens that are learned, and what these are.

    Args are as for `loss_of_learned`.
    """
    labels = inputs["labels"][:, 1:]
    positions = (labels != IGNORED).any(dim=0).nonzero().squeeze(1)
    inputs = {name: value for name, value in inputs.items() if name != "labels"}
    if "logits_to_keep" in inspect.signature(forward).parameters and len(positions):
        inputs["logits_to_keep"] = positions
    else:
        positions = torch.arange(labels.shape[1], device=labels.device)
    logits = model(**inputs).logits[:, : len(positions)].contiguous()
    return logits, labels[:, positions].contiguous()
