"""Compile a plan to the code of each region of a model."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Hashable, Iterator, Mapping
from dataclasses import replace
from itertools import chain
from typing import cast

from torch import fx, nn

from bishare_dsl.diagnostics import ModelError
from bishare_dsl.diagnostics.codes import rewrite as codes
from bishare_dsl.models.inspect import linear_maps
from bishare_dsl.models.site import Site
from bishare_dsl.models.weights import Weight, linear_widths
from bishare_dsl.plan import Plan, Term
from bishare_dsl.plan.together import number_of
from bishare_dsl.rewrite.bypass import reads_tensors
from bishare_dsl.rewrite.capture import capture_region
from bishare_dsl.rewrite.experts_factors import ExpertsAssembly, experts_assembly, experts_code
from bishare_dsl.rewrite.fallback import linear_region
from bishare_dsl.rewrite.passes import ExpandTerms, run_passes
from bishare_dsl.rewrite.region import Lookup, Pass, RegionGraphs, Target, TermUse
from bishare_dsl.rewrite.rewritten import GraphCode, RegionCode, has_own_forward
from bishare_dsl.rewrite.structure import structure_key
from bishare_dsl.rewrite.trace import UntraceableRegion
from bishare_dsl.transforms import Transform, Width, load_transform

Observer = Callable[[str, str, RegionGraphs], None]
"""Called once for each distinct region and pass with its path, the pass that just ran, and its graphs."""

CONTAINERS = (nn.Sequential, nn.ModuleList, nn.ModuleDict)
"""Modules without a forward, or whose forward only calls their children in sequence."""


NO_MATRIX = "what the share adds to {} must be a matrix"


class RegionCompiler:
    """Compiles the regions of a plan, tracing and transforming each distinct region once."""

    def __init__(
        self,
        model: nn.Module,
        plan: Plan,
        observe: Observer | None,
        optimisations: tuple[Pass, ...],
    ):
        self.model = model
        self.modules = dict(model.named_modules())
        self.plan = plan
        self.observe = observe
        self.optimisations = optimisations
        self.notes: dict[str, None] = {}
        self._compiled: dict[Hashable, RegionCode | UntraceableRegion] = {}
        self._expert_code: dict[ExpertsAssembly, RegionCode] = {}
        self._transforms: dict[tuple[str, int], Transform] = {}

    def __iter__(self) -> Iterator[tuple[str, RegionCode, list[str]]]:
        """Yield each region's path, its code, and the names of the tensors it reads, by slot."""
        named = any(s.expert is not None or s.layer is None for s in self.plan.sites)
        maps = linear_maps(self.model) if named else {}
        experts: dict[str, list[tuple[Weight, Term]]] = {}
        parents = self._parents()
        by_parent: dict[str, dict[str, Width]] = {}
        for site in self.plan.sites:
            terms = self.plan.terms_of[site.path]
            if not terms:
                continue
            weight = maps.get(site.path)
            if site.layer is None:
                for path in site.paths:
                    yield self._outside(path, site, maps)
            elif weight is not None and weight.expert is not None:
                experts.setdefault(weight.owner, []).extend((weight, term) for term in terms)
            elif parents[id(self.modules[site.path])] > 1:
                # Terms must apply in each of its parents, but the plan lists only one.
                note = f"`{site.path}` is a layer of other modules, too, and adapted alone"
                self.notes[note] = None
                yield self._alone(site.path, site.path, Width(site.d_in, site.d_out))
            else:
                parent, _, child = site.path.rpartition(".")
                by_parent.setdefault(parent, {})[child] = Width(site.d_in, site.d_out)
        for owner, weights_and_terms in experts.items():
            yield owner, *self._experts(owner, weights_and_terms)
        for parent, children in by_parent.items():
            yield from self._region(parent, children)

    def _parents(self) -> Counter[int]:
        """Count the modules that each module is a child of, by its id."""
        parents: Counter[int] = Counter()
        for module in self.modules.values():
            parents.update(map(id, module._modules.values()))
        return parents

    def _region(
        self, parent: str, children: Mapping[str, Width]
    ) -> Iterator[tuple[str, RegionCode, list[str]]]:
        """Yield the region of a module with adapted linear layers; one for each if it cannot be traced."""
        slots: dict[str, int] = {}
        targets = tuple(
            Target(child, width, self._uses(f"{parent}.{child}", slots))
            for child, width in children.items()
        )
        compiled = self._compiled_region(parent, targets, slots)
        if isinstance(compiled, RegionCode):
            yield parent, compiled, list(slots)
            return
        kind = type(self.model.get_submodule(parent)).__name__
        self.notes[f"{kind} is adapted linear by linear: {compiled.reason}"] = None
        for child, width in children.items():
            yield self._alone(f"{parent}.{child}", f"{parent}.{child}", width)

    def _alone(
        self, path: str, site: str, width: Width, lookup: Lookup | None = None
    ) -> tuple[str, RegionCode, list[str]]:
        """Return the region of one linear layer or embedding, with the terms of a site, possibly tied."""
        slots: dict[str, int] = {}
        uses = self._uses(site, slots)
        compiled = self._compiled_region(path, (Target("", width, uses, lookup),), slots)
        if not isinstance(compiled, RegionCode):
            raise ModelError(codes.CANNOT_ADAPT(path=path, why=compiled.reason))
        return path, compiled, list(slots)

    def _outside(
        self, path: str, site: Site, maps: Mapping[str, Weight]
    ) -> tuple[str, RegionCode, list[str]]:
        """Return the region of a head or an embedding, whose site may be tied to others."""
        weight = maps[path]
        parent = path.rpartition(".")[0]
        if reads_tensors(self.model, parent, weight.path.removeprefix(f"{parent}.")):
            why = "its parent computes with its weight itself"
            raise ModelError(codes.CANNOT_ADAPT(path=path, why=why))
        terms = self.plan.terms_of[site.path]
        if weight.looks_up and any(not term.linear for term in terms):
            raise ModelError(codes.CANNOT_ADAPT(path=path, why=NO_MATRIX.format("an embedding")))
        lookup = None
        if weight.looks_up:
            embedding = cast(nn.Embedding, weight.module)
            scaled = hasattr(embedding, "embed_scale")
            lookup = Lookup(embedding.padding_idx, scaled, not maps[site.path].looks_up)
        return self._alone(path, site.path, Width(site.d_in, site.d_out), lookup)

    def _compiled_region(
        self, path: str, targets: tuple[Target, ...], slots: Mapping[str, int]
    ) -> RegionCode | UntraceableRegion:
        module = self.modules[path]
        expand = ExpandTerms(targets, tuple(self.plan.tensor[name].shape for name in slots))
        key = (structure_key(module), expand)
        if key not in self._compiled:
            try:
                self._compiled[key] = self._compile(path, module, expand)
            except UntraceableRegion as reason:
                for child in (target.path for target in targets if target.path):
                    # The source shows no read of a child under another name, and a graph does.
                    if child == reason.bypassed or reads_tensors(self.model, path, child):
                        why = f"the layer around it computes with the weight of {child} itself"
                        raise ModelError(
                            codes.CANNOT_ADAPT(path=f"{path}.{child}", why=why)
                        ) from reason
                self._compiled[key] = reason
        return self._compiled[key]

    def _experts(
        self, path: str, of_module: list[tuple[Weight, Term]]
    ) -> tuple[RegionCode, list[str]]:
        """Return the region of a module that stores all its experts' weights."""
        module = self.model.get_submodule(path)
        if has_own_forward(module):
            raise ModelError(codes.CANNOT_ADAPT(path=path, why="its forward was replaced"))
        slots: dict[str, int] = {}
        uses = []
        for weight, term in of_module:
            if not term.linear:
                raise ModelError(
                    codes.CANNOT_ADAPT(path=weight.path, why=NO_MATRIX.format("an expert"))
                )
            uses.append((weight, term.share, self._use(term, slots)))
        shapes = [self.plan.tensor[name].shape for name in slots]
        assembly = experts_assembly(module, uses, shapes)
        code = self._expert_code.setdefault(assembly, RegionCode(experts_code(assembly), assembly))
        return code, list(slots)

    def _uses(self, path: str, slots: dict[str, int]) -> tuple[TermUse, ...]:
        """Return the terms of a site; those of several combined plans follow each other plan by plan."""
        uses: list[TermUse] = []
        counts: Counter[str] = Counter()
        for term in self.plan.terms_of[path]:
            plan = number_of(term.share)
            use = self._use(term, slots)
            uses.append(replace(use, scaled=counts[plan]) if term.is_magnitude else use)
            counts[plan] += 1
        return tuple(uses)

    def _use(self, term: Term, slots: dict[str, int]) -> TermUse:
        key = (term.share, term.rank)
        if key not in self._transforms:
            self._transforms[key] = load_transform(term.transform, term.options)
        numbered = ((role, slots.setdefault(t, len(slots))) for role, t in term.tensors.items())
        return TermUse(
            self._transforms[key], term.rank, term.rows, term.scale, term.dropout, tuple(numbered)
        )

    def _compile(self, path: str, module: nn.Module, expand: ExpandTerms) -> RegionCode:
        linears = [name for name, child in module.named_modules() if name and linear_widths(child)]
        graph = _capture(module, expand.targets)
        region = RegionGraphs.start(graph, len(expand.shapes), linears)
        for step in chain(["capture"], run_passes(region, expand, self.optimisations)):
            if self.observe is not None:
                self.observe(path, step, region)
        return region_code(region)


def region_code(region: RegionGraphs) -> RegionCode:
    """Generate the code of a region's graphs."""
    forward = GraphCode.of(region.forward)
    assembly = GraphCode.of(region.assembly)
    return RegionCode(forward, assembly, tuple(region.constants))


def _capture(module: nn.Module, targets: tuple[Target, ...]) -> fx.Graph:
    if targets[0].path == "":
        return linear_region(module)
    if isinstance(module, CONTAINERS):
        raise UntraceableRegion("it only holds its children")
    return capture_region(module, [target.path for target in targets])
