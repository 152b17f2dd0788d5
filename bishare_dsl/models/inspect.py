"""Find the sites of a model by inspecting its modules."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from math import prod
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from bishare_dsl.diagnostics import ModelError, one_line
from bishare_dsl.diagnostics.codes.models import BAD_SIZES, NO_SITES, NOT_CAUSAL
from bishare_dsl.models.hooks import full_shape
from bishare_dsl.models.site import Architecture, LeftOut, Parameter, Site, block_of, in_adapter
from bishare_dsl.models.source import Source, resolve
from bishare_dsl.models.weights import Weight, linear_widths, weights_in

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel


def inspect_model(model: nn.Module, name: str | None = None) -> Architecture:
    """Return the architecture of a model, which may be on the meta device, quantised, or adapted by bishare.

    A site is a linear-like module (``nn.Linear`` and its subclasses, GPT-2's ``Conv1D``, a quantised
    linear). Modules inside a block (below a number in their path) are ``sites``; all others, and embeddings,
    are ``outside``, each weight once. A quantised weight counts as ``d_in * d_out`` parameters.

    Args:
        model: any module. ``model.config``, if present, determines the family and the name.
        name: by default the model's id on the Hub, the name of its folder or file, or its family.

    Raises:
        ModelError: the model has neither a linear layer nor an embedding (BS514).
    """
    config = getattr(model, "config", None)
    family = getattr(config, "model_type", None) or type(model).__name__
    source = _source(model)
    model_id = source.place if source is not None and source.kind == "hub" else None
    name = name or (family if source is None else source.name)
    inventory = _Inventory()
    for path, module, weights in _base_modules(model):
        inventory.weights[module] = weights
        inventory.add_weights(module, weights)
        inventory.add_others(path, module, weights)
    sites = inventory.sites
    outside = inventory.outside
    if not sites and not outside:
        raise ModelError(NO_SITES(name=name))
    return Architecture(
        name=name,
        family=family,
        model_id=model_id,
        layers=max((1 + (site.layer or 0) for site in sites), default=0),
        parameters=sum(inventory.sizes.values()),
        sites=tuple(sites),
        outside=tuple(map(_outside, outside.values())),
        others=tuple(
            Parameter(path=paths[0], shape=inventory.shapes[key], tied=tuple(paths[1:]))
            for key, paths in inventory.others.items()
            if all(inventory.shapes[key])
        ),
        head=_head(model, {key: paths[0] for key, paths in inventory.others.items()}),
        left_out=tuple(_left_out(model, inventory.weights)),
    )


@dataclass
class _Inventory:
    """What the modules of a model hold; keys are ids of parameters, or of modules that hide their weight.

    Attributes:
        weights: the linear maps whose weights each module holds.
        sites: the linear maps in blocks.
        outside: the linear maps outside of blocks, by their weight.
        sizes: how many numbers each weight or parameter counts as.
        others: the paths of each parameter that is no weight of a site.
        shapes: of these.
    """

    weights: dict[nn.Module, list[Weight]] = field(default_factory=dict)
    sites: list[Site] = field(default_factory=list)
    outside: dict[int, list[Weight]] = field(default_factory=dict)
    sizes: dict[int, int] = field(default_factory=dict)
    others: dict[int, list[str]] = field(default_factory=dict)
    shapes: dict[int, tuple[int, ...]] = field(default_factory=dict)

    def add_weights(self, module: nn.Module, weights: list[Weight]) -> None:
        """Add the linear maps of a module, and count its parameters."""
        counted = list(module._parameters.values())
        for weight in weights:
            site = Site.at(weight.path, weight.d_in, weight.d_out)
            if site is not None:
                self.sites.append(site)
            if weight.expert is not None:
                continue  # Its parameter counts as it is.
            stored = module._parameters.get(weight.parameter)
            key = id(module if stored is None else stored)
            if weight.path and block_of(weight.path) is None:
                self.outside.setdefault(key, []).append(weight)
            self.sizes.setdefault(key, weight.d_in * weight.d_out)
            # A quantised linear's other tensors (scales, zero points) encode its weight.
            counted = [module._parameters.get("bias")]
        for parameter in counted:
            if parameter is not None:
                self.sizes.setdefault(id(parameter), prod(full_shape(parameter)))

    def add_others(self, path: str, module: nn.Module, weights: list[Weight]) -> None:
        """Add the parameters of a module that are no weights of sites in blocks."""
        in_block = {weight.parameter for weight in weights if block_of(weight.path) is not None}
        is_linear = bool(weights) and weights[0].owner == weights[0].path
        for attribute, parameter in module._parameters.items():
            if parameter is None or attribute in in_block or not parameter.is_floating_point():
                continue
            if is_linear and attribute not in (weights[0].parameter, "bias"):
                continue
            self.others.setdefault(id(parameter), []).append(
                f"{path}.{attribute}".removeprefix(".")
            )
            self.shapes.setdefault(id(parameter), full_shape(parameter))


def _outside(uses: list[Weight]) -> Site:
    """Return the site of a weight that modules outside of blocks use. A head takes precedence."""
    first, *others = sorted(uses, key=lambda weight: weight.looks_up)
    return Site.outside(first.path, first.d_in, first.d_out, [other.path for other in others])


def inspect_config(config: PreTrainedConfig, name: str | None = None) -> Architecture:
    """Return the architecture that a config describes, without creating weights.

    Raises:
        ModelError: see `model_on_meta` and `inspect_model`.
    """
    return inspect_model(model_on_meta(config, name), name)


def model_on_meta(config: PreTrainedConfig, name: str | None = None) -> PreTrainedModel:
    """Return the language model that a config describes, on the meta device: shapes without weights.

    Raises:
        ModelError: the config is not of a language model (BS508), or of no model (BS509).
    """
    name = name or config.name_or_path or config.model_type
    auto = auto_class(config, name)
    try:
        with torch.device("meta"):
            return auto.from_config(config).eval()  # type: ignore[no-any-return]
    except Exception as error:  # the family's code may raise anything
        raise ModelError(BAD_SIZES(name=name, reason=one_line(error))) from error


def auto_class(config: PreTrainedConfig, name: str, *, causal: bool = False) -> Any:
    """Return the transformers class that builds the language model of a config, with or without an encoder.

    Args:
        config: of the model.
        name: of the model, for messages.
        causal: whether to require a decoder-only model.

    Raises:
        ModelError: there is no such class (BS508).
    """
    from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM

    has_encoder = getattr(config, "is_encoder_decoder", False)
    autos: list[Any] = [AutoModelForCausalLM]
    if (
        has_encoder and not causal
    ):  # The decoder of an encoder-decoder may exist as a causal model too.
        autos.insert(0, AutoModelForSeq2SeqLM)
    for auto in autos:
        if type(config) in auto._model_mapping:
            return auto
    help = _SEQ2SEQ if has_encoder else None
    raise ModelError(NOT_CAUSAL(name=name, family=config.model_type, help=help))


_SEQ2SEQ = (
    "train an encoder-decoder with transformers' `Seq2SeqTrainer`, adapted by `compile_spec(spec, model)`; "
    "`check`, `plan`, `show`, `compile`, `merge` and `export` take it"
)


def other_task(model: nn.Module) -> str | None:
    """Return the class name of a model if transformers does not use it for causal language models."""
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    classes = [
        cls for cls in type(model).__mro__ if cls.__module__.startswith("transformers.models.")
    ]
    causal_classes: Mapping[str, str | tuple[str, ...]] = MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
    causal = {name for v in causal_classes.values() for name in ([v] if isinstance(v, str) else v)}
    return None if not classes or causal & {c.__name__ for c in classes} else classes[0].__name__


def linear_maps(model: nn.Module) -> dict[str, Weight]:
    """Map paths to the linear maps of a model's base. Each is a site, or tied to one."""
    return {weight.path: weight for *_, weights in _base_modules(model) for weight in weights}


def _head(model: Any, names: Mapping[int, str]) -> tuple[str, ...]:
    """Find the parameters of a task's head, in a model without a vocabulary."""
    base = getattr(model, getattr(model, "base_model_prefix", None) or "", None)
    try:
        if base is None or model.get_output_embeddings() is not None:
            return ()
    except (AttributeError, NotImplementedError):
        return ()
    inner = {id(parameter) for parameter in base.parameters()}
    return tuple(name for key, name in names.items() if key not in inner)


def _base_modules(model: nn.Module) -> Iterator[tuple[str, nn.Module, list[Weight]]]:
    """Yield the modules of a model's base, each with the linear maps whose weights it holds."""
    inside = None  # the enclosing linear layer: a wrapped linear has parts
    for path, module in model.named_modules():
        if in_adapter(path) or (inside is not None and path.startswith(inside)):
            continue
        weights = weights_in(path, module)
        if any(weight.owner == weight.path for weight in weights):
            inside = f"{path}."
        yield path, module, weights


def _left_out(model: nn.Module, held: Mapping[nn.Module, list[Weight]]) -> Iterator[LeftOut]:
    """Find modules that look like sites: stacked matrices, and linear layers under a second name.

    ``held`` has the linear maps whose weights the modules of the base hold.
    """
    first: dict[nn.Module, str] = {}
    for path, module in model.named_modules(remove_duplicate=False):
        if in_adapter(path):
            continue
        first_path = first.setdefault(module, path)
        if first_path != path:
            if (widths := linear_widths(module)) is not None:
                yield LeftOut(path=path, parameters=prod(widths), why=f"it is `{first_path}` again")
        elif not (held[module] if module in held else weights_in(path, module)):
            for name, parameter in module._parameters.items():
                if parameter is not None and len(shape := full_shape(parameter)) == 3:
                    why = "it is several matrices in one parameter"
                    yield LeftOut(path=f"{path}.{name}", parameters=prod(shape), why=why)


def _source(model: nn.Module) -> Source | None:
    """Return the source that a model was loaded from, if known."""
    config = getattr(model, "config", None)
    try:
        return resolve(getattr(config, "name_or_path", ""))
    except ModelError:
        return None
