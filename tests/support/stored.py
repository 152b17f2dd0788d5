"""What stands in the folder of an adapter."""

from pathlib import Path

import torch
from safetensors.torch import load_file

from bishare_dsl.adapter.contents import attribute_in
from bishare_dsl.adapter.files import TENSORS


def load_stored(folder: Path) -> dict[str, torch.Tensor]:
    """Return the tensors in an adapter's folder by their names in the plan."""
    stored = load_file(folder / TENSORS)
    return {attribute_in(key).replace("__", "."): tensor for key, tensor in stored.items()}
