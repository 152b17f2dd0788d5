"""The loss of tokens that are learned, from logits that are made for these alone.

Most tokens of a prompt are not learned, and the vocabulary is by far the widest layer: 2,048 tokens of which
300 are learned need a seventh of its products.
"""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING, Any, cast

import torch
from transformers.loss.loss_utils import ForCausalLMLoss

from bishare_dsl.train.data.batches import ALLOWED, IGNORED

if TYPE_CHECKING:
    from torch import nn
    from transformers import PreTrainedModel


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
    return loss_of(*learned_logits(model, forward, inputs), count)


def loss_of(
    logits: torch.Tensor, learned: torch.Tensor, count: torch.Tensor | None
) -> torch.Tensor:
    """Compute the mean cross-entropy of what `learned_logits` gives."""
    width = logits.shape[-1]
    return ForCausalLMLoss(logits, None, width, num_items_in_batch=count, shift_labels=learned)


def learned_logits(
    model: nn.Module, forward: Any, inputs: dict[str, Any]
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the logits (batch, positions, vocabulary) of tokens that are learned, and what these are.

    Tokens that are learned among options have logits (batch, positions, options) of these alone, and are
    numbers of options.

    Args are as for `loss_of_learned`.
    """
    labels, allowed = inputs["labels"][:, 1:], inputs.get(ALLOWED)
    positions = (labels != IGNORED).any(dim=0).nonzero().squeeze(1)
    inputs = {name: value for name, value in inputs.items() if name not in ("labels", ALLOWED)}
    if "logits_to_keep" in inspect.signature(forward).parameters and len(positions):
        inputs["logits_to_keep"] = positions
    else:
        positions = torch.arange(labels.shape[1], device=labels.device)
    logits = model(**inputs).logits[:, : len(positions)].contiguous()
    learned = labels[:, positions].contiguous()
    return (
        (logits, learned)
        if allowed is None
        else _among(logits, learned, allowed[:, 1:][:, positions])
    )


def among_options(examples: Any) -> bool:
    """Tell whether examples are learned among options."""
    return ALLOWED in (getattr(examples, "column_names", None) or ())


def are_likeliest(logits: torch.Tensor, learned: torch.Tensor) -> torch.Tensor:
    """Tell of each row whether all its learned tokens have the largest logits: among options, whether the
    right one would be written."""
    return ((logits.argmax(-1) == learned) | (learned == IGNORED)).all(1)


def _among(
    logits: torch.Tensor, learned: torch.Tensor, allowed: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the logits of the tokens that are allowed, and which of these are learned.

    Where an option ends or differs from the others, the loss is that among the options that are left. The sum
    over the tokens of a completion is then minus the logarithm of its probability among the options.
    """
    none = (learned == IGNORED).unsqueeze(-1)
    found = logits.gather(-1, allowed.clamp(min=0)).masked_fill(allowed < 0, -torch.inf)
    numbers = (allowed == learned.unsqueeze(-1)).int().argmax(-1)
    # Not infinite where nothing is learned, or gradients would be no numbers.
    return found.masked_fill(none, 0.0), numbers.masked_fill(none.squeeze(-1), IGNORED)
