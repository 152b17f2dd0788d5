"""``adapter_names``: a call of a model, or `generate`, in which each row has an adapter of its own."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from bishare_dsl.diagnostics import AdapterError, Problem, nearest
from bishare_dsl.diagnostics.codes import adapter as codes
from bishare_dsl.models.inspect import ADAPTER
from bishare_dsl.plan import Plan, Term
from bishare_dsl.plan import Tensor as PlanTensor
from bishare_dsl.rewrite.compile_regions import RegionCompiler
from bishare_dsl.rewrite.ops import without_autocast
from bishare_dsl.rewrite.passes import OPTIMISATIONS
from bishare_dsl.rewrite.rewritten import RegionCode, forward_of, restore_forward
from bishare_dsl.serve.transformers.adapters import AdapterInMemory, Adapters
from bishare_dsl.serve.transformers.banks import Bank, kinds_of
from bishare_dsl.serve.transformers.read_rows import ReadRows
from bishare_dsl.serve.transformers.rows import (
    Grouping,
    RowBatch,
    RowFactor,
    accept_rows,
    open_batch,
    open_batches,
    set_batches,
)

if TYPE_CHECKING:
    from bishare_dsl.serve.transformers.handle import AdapterHandle

    Names = Sequence[str | None]

BASE = "__base__"
"""PEFT's name for no adapter; here None says so too."""


@dataclass(frozen=True)
class _Kept:
    """The batch that was made last, and what it was made of."""

    members: tuple[AdapterInMemory | None, ...]
    changes: int
    rows: list[tuple[Tensor, Tensor]]
    batch: RowBatch

    def holds(self, members: tuple[AdapterInMemory | None, ...], changes: int) -> bool:
        """Tell whether these are its members, and what it was made of has the same bytes as then."""
        return (
            members == self.members
            and changes == self.changes
            and all(torch.equal(row, copy) for row, copy in self.rows)
        )


class MixedBatches:
    """Makes the batches of a model, and opens them where a call has ``adapter_names``."""

    def __init__(self, adapters: Adapters) -> None:
        self.adapters = adapters
        self._codes: dict[tuple[int, ...], list[tuple[str, RegionCode, list[str]]]] = {}
        self._kept: _Kept | None = None
        model = adapters.model
        self._hooks = (
            model.register_forward_pre_hook(self.before_call, with_kwargs=True),
            model.register_forward_hook(self.after_call, always_call=True),
        )
        self._generates = hasattr(model, "generate")
        if self._generates:
            vars(model)["generate"] = Generate(self, vars(model).get("generate"))

    def leave(self) -> None:
        """Take off the model what was put on it."""
        model = self.adapters.model
        for module in model.modules():
            restore_forward(module)
        for hook in self._hooks:
            hook.remove()
        if self._generates:
            own = vars(model).pop("generate").own
            if own is not None:
                vars(model)["generate"] = own

    def refresh(self) -> None:
        """Forget the batch that is kept."""
        self._kept = None

    def batch(self, names: Names) -> RowBatch:
        """Make a batch for rows of some adapters, or give the last one, if that is what it was for.

        Raises:
            AdapterError: no names (BS671), no such adapter (BS670), a term that is not linear (BS673), or
                as `AdapterHandle.check_apart` does.
        """
        active = self._active()
        active.check_apart("run a mixed batch")
        members = self._members(names)
        with self.adapters.lock:
            # First, for it may move them. What cannot be in a bank is not kept either.
            settled = [self.adapters.settle(m) for m in dict.fromkeys(members) if m is not None]
            kept, changes = self._kept, self.adapters.changes
            if kept is None or not all(settled) or not kept.holds(members, changes):
                self._kept = None
                with torch.inference_mode(False), torch.no_grad():
                    rows = _rows(members)
                    kept = self._kept = _Kept(members, changes, rows, self._make(members, active))
            for region in kept.batch.forwards:
                accept_rows(region)
            return kept.batch

    def before_call(
        self, model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        """Open the batch that a call asks for; see that an open one has a name for each row."""
        names = kwargs.pop("adapter_names", None)
        if names is not None:
            self._open(names, args, kwargs)
            return args, kwargs
        if not torch.compiler.is_compiling():
            self._close()  # A call that was interrupted did not.
            if (batch := next(filter(self._is_mine, open_batches()), None)) is not None:
                self.check_call(batch, args, kwargs)
        return None

    def after_call(self, model: nn.Module, args: Any, output: Any) -> None:
        """Close the batch that `before_call` opened."""
        if any(batch.of_call for batch in open_batches()):
            self._close()

    # Not compiled: what belongs to which row is worked out before, so that it is not compiled anew for
    # each list of names.
    @torch.compiler.disable  # type: ignore[untyped-decorator]
    def _open(self, names: Names, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self._close()
        batch = replace(self.batch(names), of_call=True)
        self.check_call(batch, args, kwargs)
        set_batches((batch, *open_batches()))

    @torch.compiler.disable  # type: ignore[untyped-decorator]
    def _close(self) -> None:
        stack = open_batches()
        while stack and stack[0].of_call and self._is_mine(stack[0]):
            stack = stack[1:]
        set_batches(stack)

    def check_call(self, batch: RowBatch, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Check that a call has the rows that a batch has names for, and is not for training.

        Raises:
            AdapterError: it has others (BS671), or is (BS672).
        """
        if self.adapters.model.training:
            raise AdapterError(codes.MIXED_TRAINING())
        given = (*args[:1], *(kwargs.get(n) for n in ("input_ids", "inputs_embeds", "inputs")))
        rows = next((len(x) for x in given if isinstance(x, Tensor)), None)
        if rows is not None and (rows % batch.rows if batch.repeats else rows != batch.rows):
            raise AdapterError(codes.MIXED_ROWS(names=batch.rows, rows=rows))

    def check_closed(self, action: str) -> None:
        """Check that no batch of this model is open in this thread.

        Raises:
            AdapterError: one is (BS674).
        """
        if any(map(self._is_mine, open_batches())):
            raise AdapterError(codes.MIXED_OPEN(action=action))

    def _is_mine(self, batch: RowBatch) -> bool:
        return batch.owner is self

    def _active(self) -> AdapterHandle:
        return self.adapters.model.get_submodule(ADAPTER)  # type: ignore[return-value]

    def _members(self, names: Names) -> tuple[AdapterInMemory | None, ...]:
        if isinstance(names, str) or not len(names):
            raise AdapterError(codes.MIXED_ROWS(names=0, rows="some"))
        members: list[AdapterInMemory | None] = []
        problems: list[Problem] = []
        for row, name in enumerate(names):
            if name is None or name == BASE:
                members.append(None)
            elif name in self.adapters:
                members.append(self.adapters[name])
            else:
                help = nearest(str(name), self.adapters)
                problems.append(codes.MIXED_UNKNOWN(row=row, name=name, help=help))
        if problems:
            raise AdapterError(problems)
        active = self.adapters[self._active().name]
        for member in filter(None, dict.fromkeys((*members, active))):
            if member.plan.trained:
                path = member.plan.trained[0].parameter
                raise AdapterError(codes.MIXED_WHOLE(name=member.name, path=path))
        for member in filter(None, dict.fromkeys(members)):
            for site in member.plan.sites:
                if site.expert is not None and member.plan.terms_of[site.path]:
                    raise AdapterError(codes.MIXED_EXPERTS(name=member.name, path=site.path))
            for term in member.plan.terms:
                if not term.linear:
                    raise AdapterError(
                        codes.MIXED_NOT_LINEAR(
                            name=member.name, share=term.share, transform=term.transform
                        )
                    )
        return tuple(members)

    def _make(self, members: tuple[AdapterInMemory | None, ...], active: AdapterHandle) -> RowBatch:
        model = self.adapters.model
        unique = tuple(dict.fromkeys(members))
        number = {member: i for i, member in enumerate(unique)}
        grouping = Grouping.of([number[member] for member in members], _device(model))
        forwards: dict[nn.Module, Callable[..., Any]] = {
            region: forward_of(region, None) for region, _ in active.placement.regions
        }
        factors: dict[nn.Module, tuple[RowFactor, ...]] = {}
        plans = list({id(m.plan): m.plan for m in unique if m is not None}.values())
        bases = torch.tensor([i for i, m in enumerate(unique) if m is None], device=_device(model))
        tensors = {
            f"{i}:{name}": tensor
            for i, plan in enumerate(plans)
            for name, tensor in self._gather(plan, unique).items()
        }
        assemblies: dict[int, Callable[..., Any]] = {}
        for path, code, names in self._code(plans) if plans else ():
            region = model.get_submodule(path)
            if id(code) not in assemblies:
                assemblies[id(code)] = _of_many(code.assembly.function())
            sources = [tensors[name] for name in names]
            with without_autocast(sources[0].device):
                made = assemblies[id(code)](*sources)
            forwards[region] = forward_of(region, code.forward)
            dtype = next((p.dtype for p in region.parameters() if p.is_floating_point()), None)
            # Whatever a transform makes of zeros, a row of the base gets nothing.
            made = (
                tuple(f.index_fill(0, bases.to(f.device), 0) for f in made) if len(bases) else made
            )
            factors[region] = tuple(RowFactor(f.to(dtype), grouping) for f in made)
        return RowBatch(self, len(members), forwards, factors)

    def _code(self, plans: list[Plan]) -> list[tuple[str, RegionCode, list[str]]]:
        """Return the regions of some plans together, each with its code and the tensors it reads."""
        key = tuple(map(id, plans))
        if key not in self._codes:
            passes = (*OPTIMISATIONS, ReadRows())
            self._codes[key] = list(
                RegionCompiler(self.adapters.model, _together(plans), None, passes)
            )
        return self._codes[key]

    def _gather(self, plan: Plan, members: Sequence[AdapterInMemory | None]) -> dict[str, Tensor]:
        """Copy the tensors of a plan side by side, ``(members, *shape)``; zero for those not of it.

        What a linear term adds is zero where all of its tensors are.
        """
        ours = [m if m is not None and m.plan is plan else None for m in members]
        banks = [
            m.slot.bank if m.slot else Bank(plan, kinds_of(self.adapters.values(m)))
            for m in ours
            if m
        ]
        slots = [m.slot if m and m.slot and m.slot.bank is banks[0] else None for m in ours]
        empty, tensors = banks[0].gather(slots)
        for member, views in zip(ours, empty, strict=True):
            if member is not None and views is not None:
                for name, value in self.adapters.values(member).items():
                    views[name].copy_(value)
        return tensors

    def __getstate__(self) -> dict[str, Any]:
        return vars(self) | {"_kept": None, "_codes": {}}


class Generate:
    """`generate` of a model, which takes ``adapter_names`` too."""

    def __init__(self, batches: MixedBatches, own: Callable[..., Any] | None) -> None:
        self.batches, self.own = batches, own

    def __call__(self, *args: Any, adapter_names: Names | None = None, **kwargs: Any) -> Any:
        model: Any = self.batches.adapters.model
        generate = self.own or partial(type(model).generate, model)
        if adapter_names is None:
            return generate(*args, **kwargs)
        batch = self.batches.batch(adapter_names)
        self.batches.check_call(batch, args, kwargs)
        with open_batch(replace(batch, repeats=True)):
            return generate(*args, **kwargs)


def _together(plans: list[Plan]) -> Plan:
    """Make one plan with the terms of several, of which each has names of its own."""
    sites = {site.path: site for plan in plans for site in plan.sites}
    tensors: list[PlanTensor] = []
    terms: list[Term] = []
    for i, plan in enumerate(plans):
        for tensor in plan.tensors:
            own = {"name": f"{i}:{tensor.name}", "share": f"{i}:{tensor.share}"}
            tensors.append(tensor.model_copy(update=own))
        for term in plan.terms:
            names = {role: f"{i}:{name}" for role, name in term.tensors.items()}
            own_term = {"share": f"{i}:{term.share}", "tensors": names}
            terms.append(term.model_copy(update=own_term))
    return Plan(
        spec=plans[0].spec,
        params=plans[0].params,
        base=plans[0].base,
        sites=tuple(sites.values()),
        tensors=tuple(tensors),
        pools=(),
        terms=tuple(terms),
    )


def _of_many(assembly: Callable[..., Any]) -> Callable[..., tuple[Tensor, ...]]:
    """Return what makes the factors of one adapter, for tensors of many side by side."""
    many: Callable[..., tuple[Tensor, ...]] = torch.func.vmap(partial(assembly, None))
    return many


def _rows(members: tuple[AdapterInMemory | None, ...]) -> list[tuple[Tensor, Tensor]]:
    """Return the rows of members whose parameters somebody may write to, and copies of them."""
    return [
        (row, row.clone())
        for member in filter(None, dict.fromkeys(members))
        if member.handle is not None and member.slot is not None
        for row in member.slot.bytes()
    ]


def _device(model: nn.Module) -> torch.device:
    """Guess where a model's activations are most likely to be; not where accelerate offloads it."""
    here = (p.device for p in model.parameters() if not p.is_meta)
    return next(here, torch.device("cpu"))
