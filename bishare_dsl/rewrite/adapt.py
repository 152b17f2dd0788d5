"""Adapt a model: rewrite the forwards of a plan's regions, and add the plan's tensors."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import cast

from torch import Tensor, nn

from bishare_dsl.diagnostics import ModelError, raise_errors, render
from bishare_dsl.diagnostics.codes import rewrite as codes
from bishare_dsl.models.hooks import full_shape, is_sharded
from bishare_dsl.models.inspect import linear_maps
from bishare_dsl.models.site import ADAPTER, TENSORS
from bishare_dsl.plan import Plan
from bishare_dsl.rewrite.compile_regions import CONTAINERS, Observer, RegionCompiler
from bishare_dsl.rewrite.effective_factors import EffectiveFactors
from bishare_dsl.rewrite.owned import OwnedTensors
from bishare_dsl.rewrite.parts import AdapterParts, AdapterRoot, PlanCode
from bishare_dsl.rewrite.passes import OPTIMISATIONS
from bishare_dsl.rewrite.region import Pass
from bishare_dsl.rewrite.whole import TrainedInFull
from bishare_dsl.transforms import Width, check_term, load_transform

DEFAULT = "default"
"""The default name of an adapter, as in PEFT."""


def check_free(model: nn.Module) -> None:
    """Check that a model can take a first adapter.

    Raises:
        ModelError: the model is already adapted (BS401), or is a bare list of layers (BS406).
    """
    if any(isinstance(module, OwnedTensors) for module in model.modules()):
        raise ModelError(codes.ADAPTED_ALREADY())
    if isinstance(model, CONTAINERS):
        raise ModelError(codes.BARE_CONTAINER(kind=type(model).__name__))


def compile_plan(
    model: nn.Module,
    plan: Plan,
    observe: Observer | None = None,
    optimisations: tuple[Pass, ...] = OPTIMISATIONS,
) -> PlanCode:
    """Compile the rewritten forwards of a plan for a model, which may be adapted and is not changed.

    Args:
        model: must match the plan.
        plan: of the adapter.
        observe: receives each region's graph, as captured and after each pass.
        optimisations: the passes that run after `ExpandTerms`; they do not change the outputs.

    Returns:
        The code, with notes: which parents could not be traced, so that their linear layers were adapted one
        by one; and whether the model is already sharded (BS404).

    Raises:
        ModelError: the model does not match the plan (BS402), or runs in tensor parallelism (BS405).
        SpecError: a package's transform differs from the one in the plan (BS214).
    """
    if (count := getattr(model, "tp_size", None) or 1) > 1:
        raise ModelError(codes.TENSOR_PARALLEL(count=count))
    _check_sites(model, plan)
    check_terms(plan)
    regions = RegionCompiler(model, plan, observe, optimisations)
    compiled = tuple(regions)
    if any(map(is_sharded, regions.modules.values())):
        regions.notes[render(codes.SHARDED_ALREADY())] = None
    return PlanCode(plan, compiled, tuple(regions.notes))


def insert_first(
    model: nn.Module,
    compiled: PlanCode,
    tensors: Mapping[str, Tensor],
    root: type[AdapterRoot] = AdapterRoot,
    name: str = DEFAULT,
) -> None:
    """Insert a first adapter into a model, and freeze the base.

    Args:
        model: stays the same object of the same class.
        compiled: of the adapter, for this model.
        tensors: the plan's tensors by name; they become parameters of the model.
        root: the class of ``model.bishare``.
        name: of the adapter, part of its tensors' paths in the model.
    """
    top = root()
    top.parts = place(model, compiled, tensors)
    top.compiled = compiled
    parameters = dict(model.named_parameters())
    top.frozen = frozenset(path for path, p in parameters.items() if p.requires_grad)
    for parameter in parameters.values():
        parameter.requires_grad_(False)
    top.parts.join(name)
    top.parts.insert()
    model.add_module(ADAPTER, top.train(model.training))


def place(model: nn.Module, compiled: PlanCode, tensors: Mapping[str, Tensor]) -> AdapterParts:
    """Create the modules of an adapter and determine their owners, without adding them to the model.

    Args:
        tensors: the plan's tensors by name; the parameters use their memory.
    """
    owned: dict[str, dict[str, nn.Parameter]] = {}
    plan = compiled.plan
    modules = dict(model.named_modules(remove_duplicate=False))  # Faster than many `get_submodule`.
    homes = {owner: _home(modules, owner) for owner in {tensor.owner for tensor in plan.tensors}}
    for tensor in plan.tensors:
        parameter = nn.Parameter(tensors[tensor.name], requires_grad=tensor.trainable)
        owned.setdefault(homes[tensor.owner], {})[tensor.name] = parameter
    rising = sorted(plan.terms, key=lambda term: term.dropout)
    dropouts = {name: term.dropout for term in rising for name in term.tensors.values()}
    stores = {
        path: OwnedTensors(group, max(dropouts.get(name, 0.0) for name in group))
        for path, group in owned.items()
    }
    placed = tuple((modules[path], store) for path, store in stores.items())
    sources = AdapterParts(owned=placed).sources()
    return replace(connect(model, compiled, sources), owned=placed)


def connect(
    model: nn.Module, compiled: PlanCode, sources: Mapping[str, tuple[OwnedTensors, int]]
) -> AdapterParts:
    """Connect the code of a plan to tensors that are already in modules.

    Args:
        sources: the module of each tensor and its index there, by the tensor's name.
    """
    modules = dict(model.named_modules(remove_duplicate=False))
    return AdapterParts(
        regions=tuple(
            (modules[path], EffectiveFactors(code, [sources[name] for name in names]))
            for path, code, names in compiled.regions
        ),
        whole=tuple(_whole_tensors(model, compiled.plan, sources)),
    )


def _whole_tensors(
    model: nn.Module, plan: Plan, sources: Mapping[str, tuple[OwnedTensors, int]]
) -> Iterator[tuple[nn.Module, TrainedInFull]]:
    """Create a module that returns the trained tensors, for each module with parameters trained in full."""
    by_module: dict[str, dict[str, tuple[OwnedTensors, int]]] = {}
    for trained in plan.trained:
        for path in trained.paths:
            module, _, name = path.rpartition(".")
            by_module.setdefault(module, {})[name] = sources[trained.tensor]
    for module, tensors in by_module.items():
        yield model.get_submodule(module), TrainedInFull(tensors)


def check_terms(plan: Plan) -> None:
    """Check that the transforms agree with a plan about its tensors.

    Raises:
        SpecError: a package's transform does not agree (BS214).
    """
    distinct = {}
    for site in plan.sites:
        width = Width(site.d_in, site.d_out)
        for term in plan.terms_of[site.path]:
            if term.is_magnitude:
                continue
            shapes = {role: plan.tensor[name].shape for role, name in term.tensors.items()}
            distinct[term.share, term.rank, width, *shapes.values()] = term, width, shapes
    for term, width, shapes in distinct.values():
        check_term(load_transform(term.transform, term.options), term.rank, width, shapes)


def unadapt(model: nn.Module) -> None:
    """Undo `insert_first`, restoring the base."""
    top = cast(AdapterRoot, model.get_submodule(ADAPTER))
    top.parts.remove()
    for module in list(model.modules()):
        if TENSORS in module._modules:
            delattr(module, TENSORS)
    delattr(model, ADAPTER)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name in top.frozen)


def _home(modules: Mapping[str, nn.Module], owner: str) -> str:
    """Find a module to hold an owner's tensors: a container would treat them as one more child."""
    while isinstance(modules[owner], CONTAINERS):
        owner = owner.rpartition(".")[0]
    return owner


def _check_sites(model: nn.Module, plan: Plan) -> None:
    maps = linear_maps(model)
    problems = []
    for site in plan.sites:
        weight = maps.get(site.path)
        expected = f"{site.d_in} -> {site.d_out}"
        shape = f"{weight.d_in} -> {weight.d_out}" if weight else "no linear layer"
        if shape != expected:
            problems.append(codes.OTHER_MODEL(path=site.path, expected=expected, found=shape))
    named = dict(model.named_parameters(remove_duplicate=False)) if plan.trained else {}
    for trained in plan.trained:
        parameters = [named.get(path) for path in trained.paths]
        shapes = {None if k is None else full_shape(k) for k in parameters}
        if shapes != {trained.shape} or len(set(map(id, parameters))) > 1:
            expected = f"one parameter {trained.shape} under {len(parameters)} names"
            shape = ", ".join(map(str, shapes))
            problems.append(
                codes.OTHER_MODEL(path=trained.parameter, expected=expected, found=shape)
            )
    raise_errors(ModelError, problems[:5])
