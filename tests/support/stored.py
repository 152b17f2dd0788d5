"""Read an adapter's folder."""

from pathlib import Path

import torch
from safetensors.torch import load_file

from bishare_dsl.adapter.config import attribute_in, is_seed
from bishare_dsl.adapter.files import TENSORS


def load_stored(folder: Path) -> dict[str, torch.Tensor]:
    """Return the tensors in an adapter's folder by their names in the plan."""
    stored = load_file(folder / TENSORS)
    found = {attribute_in(key): tensor for key, tensor in stored.items()}
    return {name.replace("__", "."): tensor for name, tensor in found.items() if not is_seed(name)}
