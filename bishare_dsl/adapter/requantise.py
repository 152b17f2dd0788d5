"""Quantise a merged checkpoint, and measure how much of the update remains."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from bishare_dsl.adapter.merge import Survival
from bishare_dsl.export.effective import delta
from bishare_dsl.models.inspect import linear_maps
from bishare_dsl.models.load import load_model
from bishare_dsl.models.source import Source
from bishare_dsl.plan.plan import Plan

if TYPE_CHECKING:
    from transformers import PreTrainedModel

BITS = {"int8": 8, "nf4": 4}
"""Quantised types of bitsandbytes, and their bits."""


def requantise(
    merged: Path, base: Source, form: str, plan: Plan, tensors: Mapping[str, torch.Tensor]
) -> tuple[PreTrainedModel, Survival]:
    """Quantise a merged checkpoint and its base in the same way, and compare the two.

    The change of a weight is the difference of the two dequantised values, which excludes the base's own
    quantisation error.

    Args:
        merged: the folder of a dense checkpoint.
        base: the base model of the merge.
        form: one of `BITS`.
        plan: of the adapter.
        tensors: the adapter's tensors by name, with values.

    Returns:
        The quantised model, and the fraction of the update that it keeps.

    Raises:
        ModelError: bitsandbytes is not installed, or cannot quantise this model (BS513).
        AdapterError: a layer cannot be dequantised (BS623).
    """
    before = linear_maps(load_model(base, bits=BITS[form], causal=False)[0])
    model, _ = load_model(str(merged), bits=BITS[form], causal=False)
    after, survival = linear_maps(model), Survival(form)
    for site in plan.sites:
        if plan.terms_of[site.path]:
            was = before[site.path].values().float()
            update = delta(plan, tensors, site, was)
            change = after[site.path].values().float() - was
            survival.add(site.kind, change.to(update.device), update)
    return model, survival
