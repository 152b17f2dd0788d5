"""A library: adapters of one plan in one folder, which has the tensors that they share once."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from pathlib import Path

import torch
from safetensors.torch import save

from bishare_dsl.adapter.card import model_card
from bishare_dsl.adapter.config import LIBRARY
from bishare_dsl.adapter.files import CARD, SPEC, TENSORS, config_of, write_files
from bishare_dsl.adapter.replan import plan_of_text
from bishare_dsl.adapter.stored import Rounded, find_drawn, round_tensor
from bishare_dsl.diagnostics import AdapterError
from bishare_dsl.diagnostics.codes import adapter as codes
from bishare_dsl.plan import Plan


def save_library(
    folder: str | os.PathLike[str],
    plan: Plan,
    adapters: Mapping[str, Mapping[str, torch.Tensor]],
    spec_text: str,
    *,
    seed: int,
    base_revision: str | None = None,
    dtype: Rounded = None,
) -> None:
    """Write a library, or replace the one in a folder, in one step.

    Args:
        folder: made with its parents where it does not exist.
        plan: of each adapter. Those of its tensors that are `Plan.common` are taken from the first one.
        adapters: the tensors of each by their names in the plan, by the name of the adapter.
        spec_text: what the plan was made from.
        seed: that drew what is frozen.
        base_revision: the commit of the base on the Hub, where it is known.
        dtype: ``"bfloat16"`` rounds float32 tensors to it, for files of half the size.

    Raises:
        AdapterError: something else is in the folder (BS615), the system refuses (BS616), or the text does
            not give the plan (BS661).
    """
    if plan_of_text(spec_text, plan.base).digest != plan.digest:
        raise AdapterError(codes.OTHER_COMPILER(help="this is a mistake of whoever saves it"))
    first = next(iter(adapters.values()))
    left_out = find_drawn(plan, first, seed)
    shared = [t.name for t in plan.tensors if t.name in plan.common and t.name not in left_out]
    own = [t.name for t in plan.tensors if t.name not in plan.common]

    def written(tensors: Mapping[str, torch.Tensor], names: Iterable[str]) -> bytes:
        values = {name: round_tensor(tensors[name].cpu(), dtype).contiguous() for name in names}
        content: bytes = save(values, {"format": "pt"})
        return content

    config = config_of(
        plan,
        format=LIBRARY,
        seed=seed,
        base_revision=base_revision,
        drawn=left_out,
        rounded=dtype,
    )
    files = {
        TENSORS: written(first, shared),
        SPEC: spec_text.encode(),
        CARD: model_card(plan, spec_text, tuple(adapters)).encode(),
    }
    members = {name: written(tensors, own) for name, tensors in adapters.items()}
    write_files(Path(folder), files, config, members)
