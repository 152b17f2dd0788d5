"""The loss of trained tokens, without computing the logits of other tokens, and the accuracy among options.

Most tokens of a prompt have no loss, and the output layer is by far the widest. If 300 of 2,048 tokens have
a loss, it needs a seventh of the operations.
"""

from __future__ import annotations

import inspect
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import nn
from torch.nn import functional
from transformers.loss.loss_utils import ForCausalLMLoss

from bishare_dsl.diagnostics import DataError
from bishare_dsl.diagnostics.codes.data import MISSING_FIELD
from bishare_dsl.train.data.batches import ALLOWED, IGNORED
from bishare_dsl.train.data.encoding import encode
from bishare_dsl.train.data.formats import OPTIONS
from bishare_dsl.train.trunk import replaced_forward


def loss_of(
    logits: torch.Tensor, learned: torch.Tensor, count: torch.Tensor | None
) -> torch.Tensor:
    """Compute the mean cross-entropy of the result of `learned_logits`.

    Args:
        logits: from `learned_logits`, and so are the labels ``learned``.
        count: trained tokens per optimizer step; by default, those of this batch.
    """
    width = logits.shape[-1]
    return ForCausalLMLoss(logits, None, width, num_items_in_batch=count, shift_labels=learned)


def learned_logits(
    model: nn.Module, forward: Any, inputs: dict[str, Any]
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the logits (batch, positions, vocabulary) of trained tokens, and their labels.

    For examples with options, the logits are (batch, positions, options) and the labels are option numbers.

    If the model supports ``logits_to_keep``, it computes logits only for columns with a loss in any row.
    They are given as an index tensor: with a slice, the output layer would copy its whole matrix for each
    row.

    Args:
        model: the model to call, perhaps wrapped.
        forward: the unwrapped model's forward, for its signature.
        inputs: the model's inputs.
    """
    labels = inputs["labels"][:, 1:]
    allowed = inputs.get(ALLOWED)
    positions = (labels != IGNORED).any(dim=0).nonzero().squeeze(1)
    inputs = {name: value for name, value in inputs.items() if name not in ("labels", ALLOWED)}
    if "logits_to_keep" in inspect.signature(forward).parameters and len(positions):
        inputs["logits_to_keep"] = positions
    else:
        positions = torch.arange(labels.shape[1], device=labels.device)
    learned = labels[:, positions].contiguous()
    if allowed is None:
        return model(**inputs).logits[:, : len(positions)].contiguous(), learned
    allowed = allowed[:, 1:][:, positions]
    with _computing(model, allowed.clamp(min=0)):
        logits = model(**inputs).logits[:, : len(positions)]
    return _among(logits, learned, allowed)


def _computing(model: nn.Module, tokens: torch.Tensor) -> AbstractContextManager[None]:
    """Let a plain output layer compute the logits of these tokens alone, (batch, positions, tokens)."""
    head: Any = getattr(model, "get_output_embeddings", lambda: None)()

    def forward(states: torch.Tensor) -> torch.Tensor:
        rows = functional.embedding(tokens, head.weight)
        return torch.einsum("bpd,bptd->bpt", states[:, : tokens.shape[1]], rows)

    if type(head) is not nn.Linear or "forward" in vars(head) or head._forward_hooks:
        return nullcontext()
    few = tokens.shape[-1] * head.in_features < len(head.weight)
    plain = few and head._parameters["bias"] is None
    return replaced_forward(head, forward) if plain else nullcontext()


def among_options(examples: Any) -> bool:
    """Return whether examples have options."""
    return ALLOWED in (getattr(examples, "column_names", None) or ())


def are_likeliest(logits: torch.Tensor, learned: torch.Tensor) -> torch.Tensor:
    """Return for each row whether all its trained tokens have the largest logits: with options, whether the
    correct one would be decoded. A logit that is not finite is not the largest.
    """
    largest, tokens = logits.max(-1)
    is_largest = (tokens == learned) & largest.isfinite()
    return (is_largest | (learned == IGNORED)).all(1)


def row_losses(logits: torch.Tensor, learned: torch.Tensor) -> torch.Tensor:
    """Return the loss of each row, ``(batch,)``: the mean over its trained tokens."""
    losses = functional.cross_entropy(
        logits.transpose(1, 2).float(), learned, ignore_index=IGNORED, reduction="none"
    )
    return losses.sum(1) / (learned != IGNORED).sum(1).clamp(min=1)


def _among(
    logits: torch.Tensor, learned: torch.Tensor, allowed: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the logits (batch, positions, options) where there is an option, and the correct one's index.

    Where an option ends or diverges, the loss is over the remaining options. Summed over the tokens of a
    completion, it is minus the log-probability of the completion among the options.
    """
    none = (learned == IGNORED).unsqueeze(-1)
    if logits.shape[-1] != allowed.shape[-1]:
        logits = logits.gather(-1, allowed.clamp(min=0))
    among = logits.masked_fill(allowed < 0, -torch.inf)
    numbers = (allowed == learned.unsqueeze(-1)).int().argmax(-1)
    # Not infinite where there is no loss, or gradients would be NaN.
    return among.masked_fill(none, 0.0), numbers.masked_fill(none.squeeze(-1), IGNORED)


def encode_choices(rows: Any, tokenizer: Any) -> Any:
    """Encode rows that have options, without truncation.

    Raises:
        DataError: see `encode`; or rows have no options (BS711).
    """
    examples = encode(rows, tokenizer, max_length=2**31 - 1).examples
    if not among_options(examples):
        help = "to be judged, each row has a list `options`, with its `completion` in it"
        raise DataError(MISSING_FIELD(place=rows.places[0], field=OPTIONS, help=help))
    return examples


@torch.no_grad()
def choice_accuracy(model: Any, examples: Any, collator: Any, batch: int = 16) -> float:
    """Return the fraction of examples whose correct option is decoded greedily among the options.

    Args:
        model: in eval mode.
        examples: from `encode_choices`.
        collator: makes batches.
        batch: the batch size.
    """
    correct = 0
    device = next(model.parameters()).device
    for start in range(0, len(examples), batch):
        part: Any = [examples[i] for i in range(start, min(start + batch, len(examples)))]
        inputs = {name: tensor.to(device) for name, tensor in collator(part).items()}
        correct += int(are_likeliest(*learned_logits(model, model.forward, inputs)).sum())
    return correct / len(examples)
