"""The layouts of plain LoRA files, as a table for reading and writing the files of any program.

Reading returns PEFT's names and shapes: ``PATH.lora_A.weight (rank, d_in)`` and ``PATH.lora_B.weight
(d_out, rank)``. A name that fits no row is an error.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from bishare_dsl.export import mlx
from bishare_dsl.export.experts import each_expert, shared_outer
from bishare_dsl.export.gguf import read_gguf, write_gguf
from bishare_dsl.export.lora import Lora
from bishare_dsl.export.peft import write_peft
from bishare_dsl.export.peft_config import PREFIX, TENSORS, PeftConfig, read_config, read_tensors
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
        AdapterError: it cannot be read (BS608).
    """
    tensors = read_tensors(folder, TENSORS, architecture)
    names = {name.removeprefix(PREFIX): tensor for name, tensor in tensors.items()}
    return read_config(folder), {_renamed(name): tensor for name, tensor in names.items()}


@dataclass(frozen=True)
class Layout:
    """A row of the table.

    Attributes:
        title: the programs that use it.
        tensors: the file of tensors in the folder; ``""`` if the path itself is the file.
        modules: the names of factors, from the names of modules.
        experts: the same for experts whose weights are one parameter.
        read: returns the config and the tensors of a path for a base, under PEFT's names without its prefix.
        write: writes a LoRA to a path, and returns its highest rank if vLLM can serve it; None if bishare
            does not write the layout.
    """

    title: str
    tensors: str
    modules: str
    experts: str
    read: Callable[[Path, Architecture, Base | None], tuple[PeftConfig, _Tensors]]
    write: Callable[[Path, Lora], int | None] | None


_MODULES = f"{PREFIX}PATH.lora_A.weight (rank, d_in), lora_B.weight (d_out, rank)"
LAYOUTS: Mapping[str, Layout] = {
    "peft": Layout(
        "PEFT, with `target_parameters` for experts",
        TENSORS,
        _MODULES,
        "EXPERTS.lora_A.weight (experts * rank, d_in), lora_B.weight (d_out, rank * experts)",
        read_peft_files,
        write_peft,
    ),
    "vllm": Layout(
        "vLLM, Megatron-Bridge's export with names of Hugging Face",
        TENSORS,
        _MODULES,
        "a module for each map of each expert, named as in checkpoints: EXPERTS.3.up_proj",
        read_peft_files,
        partial(write_peft, experts=each_expert),
    ),
    "sglang": Layout(
        "SGLang and Miles, with shared outer factors",
        TENSORS,
        _MODULES,
        "EXPERTS.w1, w2, w3 (gate, down, up): lora_A.weight (experts or 1, rank, d_in), "
        "lora_B.weight (experts or 1, d_out, rank)",
        read_peft_files,
        partial(write_peft, experts=shared_outer),
    ),
    "tinker": Layout(
        "Tinker",
        TENSORS,
        f"{_MODULES}; the head is `unembed_tokens`",
        "as in `sglang`",
        read_peft_files,
        None,
    ),
    "mlx": Layout(
        "mlx-lm",
        mlx.TENSORS,
        "PATH.lora_a (d_in, rank), lora_b (rank, d_out)",
        "none",
        mlx.read_mlx,
        mlx.write_mlx,
    ),
    "gguf": Layout(
        "llama.cpp",
        "",
        "NAME.weight.lora_a (rank, d_in), lora_b (d_out, rank), in llama.cpp's names and order of rows",
        "blk.N.ffn_gate_exps: lora_a (experts, rank, d_in), lora_b (experts, d_out, rank)",
        read_gguf,
        write_gguf,
    ),
}
"""The layouts, by the value of ``bishare convert --for``."""

_ALIASES = {"unembed_tokens": "lm_head", "model.unembed_tokens": "lm_head"}
"""Modules whose names in a layout differ from transformers'."""

FACTOR = re.compile(r"(.+)\.lora_(?:([AB])\.weight|embedding_([AB]))")
"""PEFT's name of a factor."""


def layout_of(path: str | os.PathLike[str]) -> str | None:
    """Return the layout of a plain LoRA's file or folder; all layouts with PEFT's files count as one.

    None if it has none, such as a folder of bishare.
    """
    path = Path(path)
    with suppress(OSError):  # Such as a name that is too long.
        if path.suffix == ".gguf" and path.is_file():
            return "gguf"
        if (path / mlx.TENSORS).is_file():
            return "mlx"
        if (path / TENSORS).is_file():
            return "peft"
    return None


def _renamed(name: str) -> str:
    factor = FACTOR.fullmatch(name)
    alias = _ALIASES.get(factor[1]) if factor else None
    return f"{alias}{name[len(factor[1]) :]}" if factor and alias else name
