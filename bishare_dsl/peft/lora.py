"""Convert a `LoraConfig` into a spec: the modules PEFT would adapt, with their ranks and scales."""

from __future__ import annotations

import copy
from itertools import chain
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from peft import LoraConfig, get_peft_model, get_peft_model_state_dict
from safetensors.torch import save_file
from torch import nn

from bishare_dsl.adapter.files import CONFIG, TENSORS
from bishare_dsl.export.from_peft import read_peft
from bishare_dsl.models import architecture_of
from bishare_dsl.spec import Spec


def spec_of_lora(config: LoraConfig, model: nn.Module) -> Spec:
    """Translate a LoRA of PEFT into a spec, by letting PEFT apply the config to a copy of the model.

    Args:
        config: of a LoRA that adds a matrix to each module, and changes nothing else.
        model: not changed; a copy without values is adapted.

    Raises:
        AdapterError: the config uses more than plain LoRA (BS656).
        ValueError: PEFT finds nothing to adapt.
    """
    originals = chain(model.parameters(), model.buffers())
    empty = {id(tensor): tensor.detach().to("meta") for tensor in originals}
    for parameter in model.parameters():
        empty[id(parameter)] = nn.Parameter(empty[id(parameter)], requires_grad=False)
    adapted = get_peft_model(copy.deepcopy(model, empty), copy.deepcopy(config))
    state = get_peft_model_state_dict(adapted, save_embedding_layers=False)
    with TemporaryDirectory() as folder:
        zeros = {key: torch.zeros(tensor.shape) for key, tensor in state.items()}
        save_file(zeros, Path(folder, TENSORS))
        adapted.peft_config["default"].save_pretrained(folder)
        assert Path(folder, CONFIG).is_file()
        return read_peft(folder, architecture_of(model), lambda: model)[0]
