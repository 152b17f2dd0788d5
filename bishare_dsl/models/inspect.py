"""A model's sites, found by looking at its modules."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from bishare_dsl.diagnostics import ModelError, one_line
from bishare_dsl.diagnostics.codes.models import BAD_SIZES, NO_SITES, NOT_CAUSAL
from bishare_dsl.models.site import Architecture, Site
from bishare_dsl.models.source import Source, resolve

if TYPE_CHECKING:
    from torch import nn
    from transformers import PreTrainedConfig, PreTrainedModel

ADAPTER = "bishare"
"""The name under which an adapter's own modules hang in a model; what is below it is not the base's."""


def inspect_model(model: nn.Module, name: str | None = None) -> Architecture:
    """Give the architecture of a model: real, on the meta device, quantised, or adapted by bishare.

    A site is a linear-like module (``nn.Linear`` and its subclasses, GPT-2's ``Conv1D``, a quantised
    linear) that is inside a block, which is to say below a number in its module path. A quantised
    weight counts as the ``d_in * d_out`` parameters that it stands for.

    Args:
        model: any module; ``model.config`` tells the family and the name where there is one.
        name: what to call it; by default its id on the Hub, the name of its folder or file, or its family.

    Raises:
        ModelError: no block has a linear layer (BS514).
    """
    config = getattr(model, "config", None)
    family = getattr(config, "model_type", None) or type(model).__name__
    source = _source(model)
    model_id = source.place if source is not None and source.kind == "hub" else None
    name = name or (family if source is None else source.name)
    sites: list[Site] = []
    counted: set[int] = set()
    parameters = 0
    inside = None  # the linear that encloses what is being looked at: a wrapped one has parts
    for path, module in _base_modules(model):
        if inside is not None and path.startswith(inside):
            continue
        widths = linear_widths(module)
        if widths is not None:
            inside = f"{path}."
            if site := Site.at(path, *widths):
                sites.append(site)
            weight = module._parameters.get("weight")
            key = id(module if weight is None else weight)
            if key not in counted:
                counted.add(key)
                parameters += widths[0] * widths[1]
            # A quantised linear's other tensors (scales, zero points) encode its weight.
            owned = [module._parameters.get("bias")]
        else:
            owned = list(module._parameters.values())
        for parameter in owned:
            if parameter is not None and id(parameter) not in counted:
                counted.add(id(parameter))
                parameters += parameter.numel()
    if not sites:
        raise ModelError(NO_SITES(name=name))
    return Architecture(
        name=name,
        family=family,
        model_id=model_id,
        layers=1 + max(site.layer for site in sites),
        parameters=parameters,
        sites=tuple(sites),
    )


def inspect_config(config: PreTrainedConfig, name: str | None = None) -> Architecture:
    """Give the architecture that a config describes; no weights are made.

    Raises:
        ModelError: as `model_on_meta` and `inspect_model` do.
    """
    return inspect_model(model_on_meta(config, name), name)


def model_on_meta(config: PreTrainedConfig, name: str | None = None) -> PreTrainedModel:
    """Give the causal language model that a config describes, on the meta device: shapes without weights.

    Raises:
        ModelError: not a causal language model (BS508), or no model at all (BS509).
    """
    import torch
    from transformers import AutoModelForCausalLM

    name = name or config.name_or_path or config.model_type
    try:
        causal = type(config) in AutoModelForCausalLM._model_mapping
        if causal:
            with torch.device("meta"):
                return AutoModelForCausalLM.from_config(config).eval()  # type: ignore[no-any-return]
    except Exception as error:  # whatever a family's own code raises on a config it cannot build
        raise ModelError(BAD_SIZES(name=name, reason=one_line(error))) from error
    raise ModelError(NOT_CAUSAL(name=name, family=config.model_type))


def linear_widths(module: nn.Module) -> tuple[int, int] | None:
    """Give ``(d_in, d_out)`` of a linear-like module, or None for any other."""
    from transformers.pytorch_utils import Conv1D

    if isinstance(module, Conv1D):
        return module.weight.shape[0], module.weight.shape[1]
    d_in, d_out = getattr(module, "in_features", None), getattr(module, "out_features", None)
    if not (isinstance(d_in, int) and isinstance(d_out, int)):
        return None
    return (d_in, d_out) if _is_linear(module, d_in, d_out) else None


def _is_linear(module: nn.Module, d_in: int, d_out: int) -> bool:
    """Tell whether what has the widths of a linear layer gives what one gives.

    A model's own class may call itself one and give a tuple (a router), or take its input in groups. A
    quantiser's, which may run on its device only, is believed.
    """
    import torch
    from torch import nn

    kind = getattr(type(module), "bishare_base", type(module))  # without an adapter
    if kind.forward is nn.Linear.forward:
        return True
    models_own = kind.__module__.startswith(("transformers.models.", "transformers_modules."))
    if not models_own and not isinstance(module, nn.Linear):
        return True
    twin = nn.Module.__new__(kind)  # without values, so that it costs nothing to run
    twin.__dict__ = dict(vars(module))
    for kept in ("_parameters", "_buffers"):
        tensors = vars(module)[kept].items()
        twin.__dict__[kept] = {n: t if t is None else t.to("meta") for n, t in tensors}
    dtype = next((t.dtype for t in twin.parameters() if t.is_floating_point()), None)
    try:
        with torch.no_grad():
            y = kind.forward(twin, torch.empty(1, 1, d_in, device="meta", dtype=dtype))
    except Exception:  # noqa: BLE001 - whatever a class does with what it does not expect
        return not models_own
    return isinstance(y, torch.Tensor) and tuple(y.shape) == (1, 1, d_out)


def _base_modules(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    for path, module in model.named_modules():
        if ADAPTER not in path.split("."):
            yield path, module


def _source(model: nn.Module) -> Source | None:
    """Tell what a model was loaded from, if that can be told."""
    config = getattr(model, "config", None)
    try:
        return resolve(getattr(config, "name_or_path", ""))
    except ModelError:
        return None
