"""Convert a `LoraConfig` into a spec: the modules PEFT would adapt, with their ranks and scales."""

from __future__ import annotations

import copy
from dataclasses import replace
from itertools import chain
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from peft import LoraConfig, get_peft_model, get_peft_model_state_dict
from safetensors.torch import save_file
from torch import nn

from bishare_dsl.adapter.files import CONFIG, TENSORS
from bishare_dsl.diagnostics import AdapterError
from bishare_dsl.diagnostics.codes import adapter as codes
from bishare_dsl.export.from_peft import read_peft
from bishare_dsl.models import architecture_of
from bishare_dsl.resources import peft_words
from bishare_dsl.spec import Spec

_NAME = "LoraConfig"


def spec_of_lora(config: LoraConfig, model: nn.Module) -> Spec:
    """Translate a LoRA of PEFT into a spec, by letting PEFT apply the config to a copy of the model.

    Args:
        config: of a LoRA that adds a matrix to each module, and changes nothing else.
        model: not changed; a copy without values is adapted.

    Raises:
        AdapterError: the config uses more than plain LoRA, or other initial values (BS656).
        ValueError: PEFT finds nothing to adapt.
    """
    if config.init_lora_weights is not True:
        reason = f"`init_lora_weights` is {config.init_lora_weights!r}"
        help = f"write a spec: {peft_words()['init_lora_weights'].advice}"
        raise AdapterError(codes.NOT_PLAIN_LORA(folder=_NAME, reason=reason, help=help))
    originals = chain(model.parameters(), model.buffers())
    empty = {id(tensor): tensor.detach().to("meta") for tensor in originals}
    for parameter in model.parameters():
        empty[id(parameter)] = nn.Parameter(empty[id(parameter)], requires_grad=False)
    adapted = get_peft_model(copy.deepcopy(model, empty), copy.deepcopy(config))
    state = get_peft_model_state_dict(adapted, save_embedding_layers=False)
    with TemporaryDirectory() as scratch:
        (folder := Path(scratch, "lora")).mkdir()
        zeros = {key: torch.zeros(tensor.shape) for key, tensor in state.items()}
        save_file(zeros, Path(folder, TENSORS))
        adapted.peft_config["default"].save_pretrained(str(folder))
        assert Path(folder, CONFIG).is_file()
        try:
            return read_peft(folder, architecture_of(model), lambda: model)[0]
        except AdapterError as error:
            said = ((p, p.message.replace(str(folder), _NAME)) for p in error.problems)
            raise AdapterError([replace(p, message=text) for p, text in said]) from None
