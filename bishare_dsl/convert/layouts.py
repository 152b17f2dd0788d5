"""The layouts of plain LoRA files: one table for reading and writing the files of any program.

Reading returns PEFT's names and shapes: ``PATH.lora_A.weight (rank, d_in)`` and ``PATH.lora_B.weight
(d_out, rank)``. A name that fits no row is an error. The table of names is in `docs/layouts.md`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from bishare_dsl.convert.experts import each_expert
from bishare_dsl.convert.gguf import read_gguf, write_gguf
from bishare_dsl.convert.lora import Lora
from bishare_dsl.convert.peft import write_peft
from bishare_dsl.convert.peft_config import PREFIX, TENSORS, PeftConfig, read_config, read_tensors
from bishare_dsl.diagnostics import AdapterError
from bishare_dsl.diagnostics.codes import adapter as codes
from bishare_dsl.models.site import Architecture

if TYPE_CHECKING:
    import torch
    from torch import nn

Base = Callable[[], "nn.Module"]
_Tensors = dict[str, "torch.Tensor"]


def read_peft_files(
    folder: Path, architecture: Architecture, _: Base | None
) -> tuple[PeftConfig, _Tensors]:
    """Read a folder in one of the layouts with PEFT's files.

    Raises:
        AdapterError: it cannot be read, or two names are one in PEFT (BS608).
    """
    tensors = read_tensors(folder, TENSORS, architecture)
    names: _Tensors = {}
    for name, tensor in tensors.items():
        if PREFIX + name in tensors:
            reason = f"`{name}` is in it twice, the second time as `{PREFIX}{name}`"
            raise AdapterError(codes.BROKEN_FILE(path=folder / TENSORS, reason=reason))
        names[name.removeprefix(PREFIX)] = tensor
    return read_config(folder), names


class Layout(NamedTuple):
    """A row of the table.

    Attributes:
        read: returns the config and the tensors of a path for a base, under PEFT's names without its prefix.
        write: writes a LoRA to a path, and returns its highest rank if vLLM may serve it.
    """

    read: Callable[[Path, Architecture, Base | None], tuple[PeftConfig, _Tensors]]
    write: Callable[[Path, Lora], int | None]


LAYOUTS: Mapping[str, Layout] = {
    "peft": Layout(read_peft_files, write_peft),
    "vllm": Layout(read_peft_files, partial(write_peft, experts=each_expert)),
    "sglang": Layout(read_peft_files, partial(write_peft, experts=each_expert, one_rank=True)),
    "gguf": Layout(read_gguf, write_gguf),
}
"""The layouts, by the value of ``bishare convert --for``."""

FACTOR = re.compile(r"(.+)\.lora_(?:([AB])\.weight|embedding_([AB]))")
"""PEFT's name of a factor."""
