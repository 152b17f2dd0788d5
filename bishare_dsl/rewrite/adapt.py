"""Adapt a model: put a plan's tensors where they belong and rewrite the forwards that use them."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Mapping
from dataclasses import dataclass
from typing import TypeVar, cast

from torch import Tensor, fx, nn

from bishare_dsl.diagnostics import ModelError, render
from bishare_dsl.diagnostics.codes import rewrite as codes
from bishare_dsl.models.inspect import ADAPTER, linear_widths
from bishare_dsl.plan import Plan, Term
from bishare_dsl.rewrite.attachment import Attachment
from bishare_dsl.rewrite.capture import capture_region
from bishare_dsl.rewrite.factors import Factors
from bishare_dsl.rewrite.fallback import linear_region
from bishare_dsl.rewrite.install import Program, install_program, uninstall
from bishare_dsl.rewrite.passes import OPTIMISATIONS, ExpandTerms, run_passes
from bishare_dsl.rewrite.program import FACTORS, Pass, RegionProgram, Target, TermUse
from bishare_dsl.rewrite.store import Store
from bishare_dsl.rewrite.structure import structure_key
from bishare_dsl.rewrite.trace import BypassedTarget, UntraceableRegion
from bishare_dsl.transforms import Transform, Width, check_term, load_transform

S = TypeVar("S", bound=Store)

Observer = Callable[[str, str, RegionProgram], None]
"""Is shown, once for each distinct region, its path, the pass that just ran, and the program."""


_CONTAINERS = (nn.Sequential, nn.ModuleList, nn.ModuleDict)


@dataclass(frozen=True)
class _Compiled:
    """The code of a region and of what makes its factors, shared by all regions alike."""

    forward: Program
    assembly: Program


def adapt(
    model: nn.Module,
    plan: Plan,
    tensors: Mapping[str, Tensor],
    root: type[Store] = Store,
    observe: Observer | None = None,
    optimisations: tuple[Pass, ...] = OPTIMISATIONS,
) -> tuple[str, ...]:
    """Give a model the adapter of a plan; the base's parameters stop training.

    Args:
        model: the model that the plan was made for; it stays the same object of the same class.
        tensors: the plan's tensors by name; they become parameters where they are.
        root: the class of the store at the model itself, ``model.bishare``.
        optimisations: the passes that run behind `ExpandTerms`; what is computed does not depend on them.

    Returns:
        Notes: which parents could not be traced, so that their linears were adapted one by one; and that
        the model is sharded already (BS404).

    Raises:
        ModelError: the model is adapted already (BS401), or is another than the plan's (BS402).
        SpecError: a package's transform is not what the plan was made with (BS214).
        Nothing is changed in any case.
    """
    if any(isinstance(module, Store) for module in model.modules()):
        raise ModelError(codes.ADAPTED_ALREADY())
    store, notes = prepare(model, plan, tensors, root, observe, optimisations)
    store.frozen = tuple(name for name, p in model.named_parameters() if p.requires_grad)
    model.requires_grad_(False)
    store.attachment.attach()
    return notes


def prepare(
    model: nn.Module,
    plan: Plan,
    tensors: Mapping[str, Tensor],
    root: type[S],
    observe: Observer | None = None,
    optimisations: tuple[Pass, ...] = OPTIMISATIONS,
) -> tuple[S, tuple[str, ...]]:
    """Make an adapter for a model, which may have another one, and change nothing in the model.

    Returns:
        The store that will be ``model.bishare``, with an attachment that puts the adapter in; and notes, as
        `adapt` does.

    Raises:
        ModelError, SpecError: as `adapt` does, but for BS401.
    """
    _check_sites(model, plan)
    check_terms(plan)
    regions = _Regions(model, plan, observe, optimisations)
    prepared = list(regions)
    owned: dict[str, dict[str, nn.Parameter]] = {"": {}}
    homes = {owner: _home(model, owner) for owner in {tensor.owner for tensor in plan.tensors}}
    for tensor in plan.tensors:
        parameter = nn.Parameter(tensors[tensor.name], requires_grad=tensor.trainable)
        owned.setdefault(homes[tensor.owner], {})[tensor.name] = parameter
    top = root(owned.pop(""))
    stores: dict[str, Store] = {"": top} | {path: Store(group) for path, group in owned.items()}
    place = {name: (s, number) for s in stores.values() for number, name in enumerate(s.names)}
    top.attachment = Attachment(
        tuple((model.get_submodule(path), store) for path, store in stores.items()),
        tuple(
            (
                model.get_submodule(path),
                Factors(compiled.assembly, compiled.forward, [place[name] for name in names]),
            )
            for path, compiled, names in prepared
        ),
    )
    if any(getattr(module, "_is_fsdp_managed_module", False) for module in model.modules()):
        regions.notes[render(codes.SHARDED_ALREADY())] = None
    return top, tuple(regions.notes)


def check_terms(plan: Plan) -> None:
    """See that the transforms do with a plan's tensors what the plan says.

    Raises:
        SpecError: a package's transform does not (BS214).
    """
    distinct: dict[Hashable, tuple[Term, Width, dict[str, tuple[int, int]]]] = {}
    for site in plan.sites:
        width = Width(site.d_in, site.d_out)
        for term in plan.terms_of[site.path]:
            shapes = {role: plan.tensor[name].shape for role, name in term.tensors.items()}
            alike = (term.share, term.rank, width, *shapes.values())
            distinct.setdefault(alike, (term, width, shapes))
    for term, width, shapes in distinct.values():
        check_term(load_transform(term.transform, term.options), term.rank, width, shapes)


def unadapt(model: nn.Module) -> None:
    """Take everything out again that `adapt` put in: the model is its base, as it was."""
    store = cast(Store, model.get_submodule(ADAPTER))
    store.attachment.detach()
    trained = set(store.frozen)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name in trained)


def set_enabled(model: nn.Module, enabled: bool) -> None:
    """Let the regions run their rewritten forwards, or the base's own, as if there were no adapter."""
    for _, region in regions(model):
        if enabled:
            install_program(region, cast(Factors, region.get_submodule(FACTORS)).region)
        else:
            uninstall(region)


def regions(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """The regions of an adapted model, with their paths; a disabled one is a region too."""
    for path, module in model.named_modules():
        if isinstance(getattr(module, FACTORS, None), Factors):
            yield path, module


def _home(model: nn.Module, owner: str) -> str:
    """Where a store can be: an `nn.Sequential` or a list would take one more child for one of its own."""
    while isinstance(model.get_submodule(owner), _CONTAINERS):
        owner = owner.rpartition(".")[0]
    return owner


def _check_sites(model: nn.Module, plan: Plan) -> None:
    modules = dict(model.named_modules())
    wrong = []
    for site in plan.sites:
        module = modules.get(site.path)
        widths = linear_widths(module) if module is not None else None
        if widths != (site.d_in, site.d_out):
            found = f"{widths[0]} -> {widths[1]}" if widths else "no linear layer"
            wrong.append(
                codes.OTHER_MODEL(
                    path=site.path, expected=f"{site.d_in} -> {site.d_out}", found=found
                )
            )
    if wrong:
        raise ModelError(wrong[:5])


class _Regions:
    """Works out the regions of a plan: each distinct one is traced and transformed once."""

    def __init__(
        self,
        model: nn.Module,
        plan: Plan,
        observe: Observer | None,
        optimisations: tuple[Pass, ...],
    ):
        self.model = model
        self.plan = plan
        self.observe = observe
        self.optimisations = optimisations
        self.notes: dict[str, None] = {}
        self._compiled: dict[Hashable, _Compiled | UntraceableRegion] = {}
        self._transforms: dict[tuple[str, int], Transform] = {}

    def __iter__(self) -> Iterator[tuple[str, _Compiled, list[str]]]:
        """Each region: its path, its code, and the names of the tensors it reads, by slot."""
        by_parent: dict[str, dict[str, Width]] = {}
        for site in self.plan.sites:
            if self.plan.terms_of[site.path]:
                parent, _, child = site.path.rpartition(".")
                by_parent.setdefault(parent, {})[child] = Width(site.d_in, site.d_out)
        for parent, children in by_parent.items():
            compiled, names = self._region(parent, children)
            if isinstance(compiled, _Compiled):
                yield parent, compiled, names
                continue
            if isinstance(compiled, BypassedTarget):
                path = f"{parent}.{compiled.target}"
                raise ModelError(codes.CANNOT_ADAPT(path=path, why=compiled.reason))
            kind = type(self.model.get_submodule(parent)).__name__
            self.notes[f"{kind} is adapted linear by linear: {compiled.reason}"] = None
            for child, width in children.items():
                path = f"{parent}.{child}"
                alone, names = self._region(path, {"": width})
                if not isinstance(alone, _Compiled):
                    raise ModelError(codes.CANNOT_ADAPT(path=path, why=alone.reason))
                yield path, alone, names

    def _region(
        self, path: str, children: Mapping[str, Width]
    ) -> tuple[_Compiled | UntraceableRegion, list[str]]:
        module = self.model.get_submodule(path)
        slots: dict[str, int] = {}
        targets = tuple(
            Target(child, width, tuple(self._use(term, slots) for term in self._terms(path, child)))
            for child, width in children.items()
        )
        expand = ExpandTerms(targets, tuple(self.plan.tensor[name].shape for name in slots))
        key = (structure_key(module), expand)
        if key not in self._compiled:
            try:
                self._compiled[key] = self._compile(path, module, expand)
            except UntraceableRegion as reason:
                self._compiled[key] = reason
        return self._compiled[key], list(slots)

    def _terms(self, path: str, child: str) -> tuple[Term, ...]:
        return self.plan.terms_of[f"{path}.{child}" if child else path]

    def _use(self, term: Term, slots: dict[str, int]) -> TermUse:
        alike = (term.share, term.rank)
        if alike not in self._transforms:
            self._transforms[alike] = load_transform(term.transform, term.options)
        transform = self._transforms[alike]
        numbered = ((role, slots.setdefault(t, len(slots))) for role, t in term.tensors.items())
        return TermUse(transform, term.rank, term.scale, term.dropout, tuple(numbered))

    def _compile(self, path: str, module: nn.Module, expand: ExpandTerms) -> _Compiled:
        linears = [name for name, child in module.named_modules() if name and linear_widths(child)]
        graph = self._capture(module, expand.targets)
        program = RegionProgram.start(graph, len(expand.shapes), linears)
        observe = None
        if (told := self.observe) is not None:
            told(path, "capture", program)

            def observe(step: str, program: RegionProgram) -> None:
                told(path, step, program)

        run_passes(program, expand, self.optimisations, observe)
        return _Compiled(Program.of(program.forward), Program.of(program.assembly))

    @staticmethod
    def _capture(module: nn.Module, targets: tuple[Target, ...]) -> fx.Graph:
        if targets[0].path == "":
            return linear_region(module)
        if isinstance(module, _CONTAINERS):
            raise UntraceableRegion("it only holds its children")
        return capture_region(module, [target.path for target in targets])
