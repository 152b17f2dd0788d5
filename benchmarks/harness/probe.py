"""The outputs of a model for fixed inputs."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch

from bishare_dsl.diagnostics import one_line

if TYPE_CHECKING:
    from transformers import PreTrainedModel

Inputs = torch.Tensor | Mapping[str, torch.Tensor]


@dataclass(frozen=True)
class Probe:
    """A model's output, float32 on the CPU, in eval mode.

    Attributes:
        inputs: by keyword.
        name: of the output: ``logits``, or else the first that is a tensor of floats.
        output: None where there is none, for the ``reason``.
    """

    inputs: Mapping[str, torch.Tensor] = field(default_factory=dict)
    name: str = ""
    output: torch.Tensor | None = None
    reason: str = ""


def probe(model: PreTrainedModel, inputs: Inputs | None = None) -> Probe:
    """Run a model on what it is given, or else, where it reads text, on random tokens.

    Args:
        inputs: by keyword, or the model's main one. What the model raises for these is raised.
    """
    main = getattr(model, "main_input_name", None) or next(iter(_parameters(model)))
    if inputs is not None:
        return _run(model, {main: inputs} if isinstance(inputs, torch.Tensor) else inputs)
    config: Any = getattr(model, "config", None)
    if main != "input_ids" or config is None:
        return Probe(reason=f"no inputs are known for `{main}`: give some")
    random = torch.Generator().manual_seed(0)
    ids = torch.randint(config.get_text_config().vocab_size, (2, 16), generator=random)
    made = {main: ids} | ({"decoder_input_ids": ids} if config.is_encoder_decoder else {})
    try:
        return _run(model, made)
    except Exception as error:  # noqa: BLE001 - a model's own code raises what it likes
        reason = f"the model does not run on {', '.join(made)} alone: {one_line(error)}"
    return Probe(reason=reason)


def _run(model: PreTrainedModel, inputs: Mapping[str, torch.Tensor]) -> Probe:
    weight = next(parameter for parameter in model.parameters() if parameter.is_floating_point())
    device = torch.device("cpu") if weight.is_meta else weight.device
    settings = {"use_cache": False} if "use_cache" in _parameters(model) else {}
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        with torch.no_grad():
            found: Any = model(
                **{
                    name: value.to(device, weight.dtype if value.is_floating_point() else None)
                    for name, value in inputs.items()
                },
                **settings,
            )
    finally:
        for module, training in modes.items():
            module.training = training
    outputs = found.items() if isinstance(found, Mapping) else [("the output", found)]
    floats = {
        name: value
        for name, value in outputs
        if isinstance(value, torch.Tensor) and value.is_floating_point()
    }
    if not floats:
        return Probe(inputs, reason="the model gives no tensor of floats")
    name = "logits" if "logits" in floats else next(iter(floats))
    return Probe(inputs, name, floats[name].float().cpu())


def _parameters(model: PreTrainedModel) -> Mapping[str, inspect.Parameter]:
    return inspect.signature(model.forward).parameters
