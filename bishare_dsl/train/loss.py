"""Which loss a model is trained by: TRL's fused head, or the model's own where something is learned.

Most tokens of a prompt are not learned, and the vocabulary is by far the widest layer: 2,048 tokens of which
300 are learned need a seventh of its products. TRL's head makes use of that with Triton alone; elsewhere the
model is asked for fewer logits.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

import torch

from bishare_dsl.adapter.handle import Handle
from bishare_dsl.train.state import generators, set_generators

if TYPE_CHECKING:
    from transformers import PreTrainedModel

IGNORED = -100


def skips_prompts(model: PreTrainedModel) -> bool:
    """Tell whether TRL's fused head multiplies only the tokens that are learned."""
    return model.device.type != "cpu" and find_spec("triton") is not None


def only_learned(inputs: Mapping[str, Any]) -> dict[str, Any]:
    """Return the same batch, with the columns of ``labels`` (batch, tokens) in which any row learns.

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


def takes_only_learned(model: PreTrainedModel) -> bool:
    """Tell whether a model gives the same loss for a batch as for `only_learned` of it.

    That needs a forward with ``logits_to_keep`` that hands ``shift_labels`` on to its loss.
    """
    if "logits_to_keep" not in inspect.signature(model.forward).parameters:
        return False
    batch = _few_tokens(model)
    return _same_loss(model, batch, only_learned(batch))


def has_plain_head(model: PreTrainedModel) -> bool:
    """Tell whether the head has no adapter, which a loss computed by its weight would leave out."""
    head, adapter = model.get_output_embeddings(), getattr(model, "bishare", None)
    adapted = {t.site for t in adapter.plan.terms} if isinstance(adapter, Handle) else set()
    return head is not None and not any(
        m is head and n in adapted for n, m in model.named_modules()
    )


def fused_head_is_right(model: PreTrainedModel) -> bool:
    """Tell whether TRL's fused head gives the loss of the model.

    Some models scale their logits in their own way, or have the head's weight elsewhere (accelerate).
    """
    batch = _few_tokens(model)
    return _same_loss(model, batch, {**batch, "fused_lm_head": True})


def _few_tokens(model: PreTrainedModel) -> dict[str, Any]:
    device = "cpu" if model.device.type == "meta" else model.device
    ids = torch.tensor([[3, 1, 2, 3, 1, 2], [1, 3, 2, 2, 1, 3]], device=device)
    labels = ids.clone()
    labels[:, :3] = labels[0, 4] = IGNORED
    batch: dict[str, Any] = {"input_ids": ids, "labels": labels, "use_cache": False}
    if hasattr(model.config.get_text_config(), "output_router_logits"):
        batch["output_router_logits"] = False  # The trainer adds their loss by itself.
    return batch


@torch.no_grad()
def _same_loss(model: PreTrainedModel, *batches: dict[str, Any]) -> bool:
    device = batches[0]["input_ids"].device
    training, state, losses = model.training, generators(device), []
    model.train()  # In eval mode bitsandbytes repacks four bits for a CPU, and has no gradients any more.
    try:
        for batch in batches:
            set_generators(state, device)  # The same dropout.
            losses.append(model(**batch).loss)
    except (TypeError, ValueError, RuntimeError, IndexError, AttributeError, NotImplementedError):
        return False
    finally:
        set_generators(state, device)
        model.train(training)
    plain, other = losses
    # Products of other shapes are summed in another order; another loss is another number altogether.
    return torch.allclose(plain.float(), other.float(), rtol=1e-2, atol=1e-4)
