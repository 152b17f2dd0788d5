"""Create the mixed batches of a model, and apply the open batch to its calls."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import cache, partial
from typing import Any, NamedTuple, Protocol
from weakref import WeakSet

import torch
from torch import Tensor, nn

from bishare_dsl.batched.bank import Bank
from bishare_dsl.batched.experts import run_experts
from bishare_dsl.batched.read_rows import ReadRows
from bishare_dsl.batched.recomputed import Make, Recomputed
from bishare_dsl.batched.rows import (
    Factors,
    Lease,
    RowBatch,
    Stack,
    open_batch,
    open_batches,
    reopen_batches,
    route_to_open_batch,
    set_batches,
)
from bishare_dsl.diagnostics import AdapterError, Problem, advise, nearest
from bishare_dsl.diagnostics.codes import adapter as codes
from bishare_dsl.models.hooks import forget_recompute, recompute_within
from bishare_dsl.models.site import TENSORS
from bishare_dsl.names import BASE
from bishare_dsl.plan import Plan
from bishare_dsl.plan.together import name_of, plan_together
from bishare_dsl.rewrite.compile_regions import RegionCompiler
from bishare_dsl.rewrite.effective_factors import assembly_function, promote_to_one_dtype
from bishare_dsl.rewrite.experts_factors import ExpertsAssembly
from bishare_dsl.rewrite.grouped_rows import Call, Grouping, Place, numbers_on
from bishare_dsl.rewrite.ops import without_autocast
from bishare_dsl.rewrite.passes import OPTIMISATIONS
from bishare_dsl.rewrite.rewritten import RegionCode, forward_of, is_rewritten, restore_forward
from bishare_dsl.transforms import stack_or_share, vmap_factors
from bishare_dsl.transforms.described import transform_text
from bishare_dsl.transforms.factor import Dense, Factor, map_tensors

Names = Iterable[str | None]

ASIDE = frozenset({"vision", "audio", "connector"})
"""Towers that read images or sound, which have placeholders in the text, if there is text."""

MOST_CODES = 64
"""Maximum number of cached sets of plans with compiled regions, before the cache is cleared."""

_TEXTS = ("input_ids", "inputs_embeds")
_DECODED = ("decoder_input_ids", "decoder_inputs_embeds")


class Member(Protocol):
    """An adapter that rows can use."""

    @property
    def plan(self) -> Plan: ...

    @property
    def bank(self) -> tuple[Bank, int] | None:
        """The bank and row of its tensors while it trains together with others."""
        ...

    @property
    def dropout_active(self) -> bool:
        """Whether dropout is active in its terms."""
        ...

    def tensors(self) -> Mapping[str, Tensor]:
        """Return the current tensors of the plan by name."""


class _Region(NamedTuple):
    """A region of several combined plans, with its code and the names of the tensors it reads."""

    place: Place
    code: RegionCode
    names: list[str]


class MixedBatches:
    """Creates the mixed batches of a model, and applies the open batch to its calls.

    Args:
        model: whose rewritten forwards run the active adapter.
        members: the model's adapters by name.
        check: raises an error if the model cannot run a mixed batch of the named adapters now.
    """

    def __init__(
        self,
        model: nn.Module,
        members: Mapping[str, Member],
        check: Callable[[Iterable[str]], None],
    ) -> None:
        self.model = model
        self.members = members
        self._check = check
        self._hooks = (
            model.register_forward_pre_hook(self.before_call, with_kwargs=True),
            model.register_forward_hook(self.after_call, always_call=True),
        )
        self._generates = hasattr(model, "generate")
        if self._generates:
            vars(model)["generate"] = Generate(self, vars(model).get("generate"))
        self._start()

    def _start(self) -> None:
        self._codes: dict[tuple[str, ...], list[_Region]] = {}
        self._lock = threading.RLock()
        # Weak references: batches of a thread end with the thread.
        self._leases: WeakSet[Lease] = WeakSet()

    def leave(self) -> None:
        """Remove the hooks and overrides from the model."""
        for module in self.model.modules():
            restore_forward(module)
        forget_recompute(self.model)
        for hook in self._hooks:
            hook.remove()
        if self._generates:
            own = vars(self.model).pop("generate").own
            if own is not None:
                vars(self.model)["generate"] = own

    def batch(self, names: Names) -> RowBatch:
        """Create a batch for rows with the named adapters; it keeps the model locked until `end`.

        Raises:
            AdapterError: no names (BS671), no such adapter (BS670), an adapter that does not support
                mixed batches (BS673, BS679), or an error of ``check``.
        """
        with self._lock:
            rows = self._rows(names)
            self._check(name for name in rows if name is not None)
            lease = Lease()
            self._leases.add(lease)
        try:
            trains = self.model.training and torch.is_grad_enabled()
            with torch.inference_mode(False), torch.set_grad_enabled(trains):
                return self._make(rows, lease, trains=trains)
        except BaseException:
            self._leases.discard(lease)
            raise

    def end(self, batch: RowBatch) -> None:
        """Release the batch, so that the model can be changed again."""
        self._leases.discard(batch.lease)

    @contextmanager
    def open(self, names: Names) -> Iterator[None]:
        """Open a batch in this thread inside the block.

        Raises:
            AdapterError: see `batch`.
        """
        batch = self.batch(names)
        try:
            with open_batch(batch):
                yield
        finally:
            self.end(batch)

    @contextmanager
    def closed(self, action: str) -> Iterator[None]:
        """Prevent all threads from opening a batch inside the block, while the running adapter is replaced.

        Raises:
            AdapterError: some thread has an open batch of this model (BS674).
        """
        with self._lock:
            if self._leases:
                raise AdapterError(codes.MIXED_OPEN(action=action))
            yield

    def before_call(self, model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Check that an open batch has a name for each row of a call."""
        if not torch.compiler.is_compiling():
            self._close()  # An interrupted call has not closed its batch.
            batch = self.last_open()
            if batch is not None:
                call = self.check_call(batch, args, kwargs)
                if batch.trains:
                    recompute_within(model, reopen_batches)
                stacks = batch.stacks()  # Once for a call, in which thousands of tensors are read.
                of_call = replace(batch, of_call=True, call=call, stacks=lambda: stacks)
                set_batches((of_call, *open_batches()))

    def after_call(self, model: nn.Module, args: Any, output: Any) -> None:
        """Discard the call that `before_call` recorded."""
        if any(batch.of_call for batch in open_batches()):
            self._close()

    @torch.compiler.disable  # type: ignore[untyped-decorator]
    def _close(self) -> None:
        stack = open_batches()
        while stack and stack[0].of_call and self._is_mine(stack[0]):
            stack = stack[1:]
        set_batches(stack)

    def check_call(self, batch: RowBatch, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Call:
        """Check that the rows of a call match the names of a batch.

        Raises:
            AdapterError: they do not match (BS671).
        """
        call = _read_call(self.model, args, kwargs)
        rows = call.rows
        if rows is not None and (rows % batch.rows if batch.repeats else rows != batch.rows):
            raise AdapterError(codes.MIXED_ROWS(names=batch.rows, rows=rows))
        return call

    def last_open(self) -> RowBatch | None:
        """Return the batch of this model that this thread opened last, if one is open."""
        return next(filter(self._is_mine, open_batches()), None)

    def _is_mine(self, batch: RowBatch) -> bool:
        return batch.owner is self

    def _rows(self, names: Iterable[object]) -> dict[str | None, list[int]]:
        """Return the rows of each adapter by its name, None for the base."""
        rows: dict[str | None, list[int]] = {}
        problems: list[Problem] = []
        for row, name in enumerate(() if isinstance(names, str) else names):
            if name is None or name == BASE:
                rows.setdefault(None, []).append(row)
            elif isinstance(name, str) and name in self.members:
                rows.setdefault(name, []).append(row)
            else:
                help = advise("row", str(name)) or nearest(str(name), [*self.members, BASE])
                problems.append(codes.MIXED_UNKNOWN(row=row, name=name, help=help))
        if not rows and not problems:
            problems.append(codes.MIXED_ROWS(names=0, rows="some"))
        for name in rows:
            if name is not None and not problems:
                problems += mixed_batch_problems(name, self.members[name].plan)
        if problems:
            raise AdapterError(problems)
        return rows

    def _make(self, rows: dict[str | None, list[int]], lease: Lease, *, trains: bool) -> RowBatch:
        device = _device(self.model)
        names, grouping = _grouped(rows, device, trains=trains)
        members = [None if name is None else self.members[name] for name in names]
        of_digest = {member.plan.digest: member.plan for member in members if member is not None}
        plans = dict(sorted(of_digest.items()))  # So that any order shares one code.
        stacks = partial(_stacks, list(plans.values()), members)
        current_stacks = {} if trains else stacks()

        @cache
        def stacked(name: str) -> Tensor:
            stack, tensors = current_stacks[name]
            return stack(tensors)

        rewritten = filter(is_rewritten, _running(self.model))
        forwards: dict[nn.Module, Any] = {module: forward_of(module, None) for module in rewritten}
        factors: dict[nn.Module, Factors] = {}
        places: dict[nn.Module, Place] = {}
        bases = numbers_on(device, [i for i, member in enumerate(members) if member is None])
        assemblies: dict[int, Callable[..., Any]] = {}
        regions = self._regions(plans) if plans else []
        for region in regions:
            module = self.model.get_submodule(region.place.path)
            code = region.code
            places[module] = region.place
            forwards[module] = _forward_of(module, region)
            if id(code) not in assemblies:
                assemblies[id(code)] = assembly_function(code)
            make = partial(_factors, assemblies[id(code)], bases, grouping.adapters)
            if trains:
                # Trained tensors change while the batch is open, and each backward needs a new graph.
                factors[module] = partial(_recomputed, make, region.names)
            else:
                factors[module] = make([stacked(name) for name in region.names])
        for module in forwards:
            route_to_open_batch(module)
        dropout_active = any(member is not None and member.dropout_active for member in members)
        return RowBatch(
            owner=self,
            grouping=grouping,
            forwards=forwards,
            factors=factors,
            places=places,
            lease=lease,
            call=Call(text=getattr(self.model, "main_input_name", None) in _TEXTS),
            trains=trains,
            stacks=stacks if trains else dict,
            dropout_active=trains and dropout_active,
        )

    def _regions(self, plans: Mapping[str, Plan]) -> list[_Region]:
        """Return the regions of combined plans, which are passed by digest."""
        key = tuple(plans)
        with self._lock:
            if key not in self._codes:
                # Sets of plans may be gone, such as those of other scales.
                if len(self._codes) == MOST_CODES:
                    self._codes.clear()
                together = plan_together([*plans.values()])
                places = _places(together)
                passes = (*OPTIMISATIONS, ReadRows())
                self._codes[key] = [
                    _Region(places[path], code, names)
                    for path, code, names in RegionCompiler(self.model, together, None, passes)
                ]
            return self._codes[key]

    def __getstate__(self) -> dict[str, Any]:
        left = {"_codes", "_lock", "_leases"}
        return {name: value for name, value in vars(self).items() if name not in left}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self._start()


def _grouped(
    rows: Mapping[str | None, Sequence[int]], device: torch.device, *, trains: bool
) -> tuple[list[str | None], Grouping]:
    """Return the names of the adapters of a batch, and the grouping of its rows by these.

    Args:
        rows: the rows of each adapter by its name, None for the base.
        device: of the grouping.
        trains: whether the adapters receive gradients.
    """
    names = list(rows)
    owners = {row: number for number, own_rows in enumerate(rows.values()) for row in own_rows}
    in_order = [owners[row] for row in sorted(owners)]
    grouping = Grouping.of(in_order, device)
    if trains and grouping.order is not None:
        # Give each row separate factors: their gradients add up, and no activation has to be sorted.
        names = [names[owner] for owner in in_order]
        grouping = Grouping(len(names), len(names))
    return names, grouping


def _forward_of(module: nn.Module, region: _Region) -> Callable[..., Any]:
    """Return the forward of a module that applies the adapters of rows.

    Raises:
        AdapterError: it is in an expert, whose rows are unknown (BS679).
    """
    code = region.code
    if isinstance(code.assembly, ExpertsAssembly):
        return partial(run_experts, code.assembly.parts)
    if region.place.in_expert:
        raise AdapterError(codes.MIXED_EXPERTS(path=region.place.path))
    return forward_of(module, code.forward)


class Generate:
    """Wraps `generate` of a model, because beam search repeats each row of an open batch."""

    def __init__(self, batches: MixedBatches, own: Callable[..., Any] | None) -> None:
        self.batches = batches
        self.own = own

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        model: Any = self.batches.model
        generate = self.own or partial(type(model).generate, model)
        batch = self.batches.last_open()
        if batch is None:
            return generate(*args, **kwargs)
        call = self.batches.check_call(batch, args, kwargs)
        with open_batch(replace(batch, repeats=True, call=Call(text=call.text))):
            return generate(*args, **kwargs)


def _read_call(model: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Call:
    """Derive the rows of a call from the shapes of its inputs."""
    main = getattr(model, "main_input_name", "inputs")
    first = args[0] if args else kwargs.get("inputs")
    inputs = {**kwargs, main: first} if first is not None else kwargs
    shapes: dict[str, torch.Size] = {}
    for name in (*_TEXTS, main, *_DECODED):
        value = inputs.get(name)
        if isinstance(value, Tensor) and value.ndim:
            shapes[name] = value.shape
    texts = [shapes[name] for name in (*_TEXTS, *_DECODED) if name in shapes]
    return Call(
        rows=next((shape[0] for shape in shapes.values()), None),
        tokens=tuple(shape[1] for shape in texts if len(shape) > 1),
        text=any(name in shapes for name in _TEXTS),
    )


def mixed_batch_problems(name: str, plan: Plan) -> Iterator[Problem]:
    """Report why an adapter with this plan cannot be used in a mixed batch."""
    if plan.trained:
        yield codes.MIXED_WHOLE(name=name, path=plan.trained[0].parameter)
    for term in plan.update_terms:
        if not term.linear:
            transform = transform_text(term.transform, term.options)
            yield codes.MIXED_NOT_LINEAR(name=name, share=term.share, transform=transform)
            return


def _places(plan: Plan) -> dict[str, Place]:
    """Return the locations of modules with terms, and of their parents."""
    base = plan.base
    # Without a text tower, the rows of the batch are images.
    aside = ASIDE if {site.tower for site in base.sites} - ASIDE else set()
    return {
        path: Place(path, site.layer is not None, site.tower in aside, site.expert is not None)
        for site in plan.sites
        for name in site.paths
        for path in _parents(name, 1 if site.expert is None else 2)
    }


def _parents(path: str, count: int) -> list[str]:
    """Return a module's path and those of its parents."""
    return [path.rsplit(".", above)[0] if above else path for above in range(count + 1)]


def _stacks(plans: Sequence[Plan], members: Sequence[Member | None]) -> dict[str, Stack]:
    """Stack each tensor of combined plans over the members.

    Adapters of other plans get zero tensors, so their terms add nothing.

    Args:
        plans: the members' plans.
        members: the adapters, None for the base.
    """
    return {
        name_of(i, name): tensors.stack(name)
        for i, tensors in enumerate(_MemberTensors(plan, members) for plan in plans)
        for name in plans[i].tensor
    }


class _MemberTensors:
    """The tensors of those members that have a given plan."""

    def __init__(self, plan: Plan, members: Sequence[Member | None]) -> None:
        of_plan = {i: m for i, m in enumerate(members) if m and m.plan.digest == plan.digest}
        self._count = len(members)
        self._places = [*of_plan]
        self._views: Mapping[str, Tensor] = {}
        self._tensors: list[Mapping[str, Tensor]] = []
        held = [m.bank for m in of_plan.values() if m.bank is not None]
        banks = {id(bank): bank for bank, _ in held}
        if len(banks) == 1 and len(held) == len(of_plan):
            (bank,) = banks.values()
            # One copy for a batch, which has thousands of tensors.
            self._views = bank.views([row for _, row in held])
            self._index = numbers_on(bank.own.device, self._places)
            return
        for member in of_plan.values():
            if member.bank is None:
                self._tensors.append(member.tensors())
            else:  # Combined with adapters outside this bank.
                bank, row = member.bank
                tensors = bank.views([row]).items()
                self._tensors.append({n: t[0] if t.dim() == 3 else t for n, t in tensors})

    def stack(self, name: str) -> Stack:
        """Stack a tensor of all members, with zeros for those of other plans."""
        if self._views:
            return self._of_bank, [self._views[name]]
        return self._of_each, [tensors[name] for tensors in self._tensors]

    def _of_each(self, tensors: Sequence[Tensor]) -> Tensor:
        # Compared in one pass, because a batch has thousands of tensors.
        if len({(tensor.dtype, tensor.device) for tensor in tensors}) > 1:
            like = max(tensors, key=lambda tensor: tensor.dtype.itemsize)
            tensors = [tensor.to(like) for tensor in tensors]
        if len(tensors) < self._count:
            of_place = dict(zip(self._places, tensors, strict=True))
            zeros = torch.zeros_like(tensors[0])
            tensors = [of_place.get(place, zeros) for place in range(self._count)]
        return stack_or_share(tensors)

    def _of_bank(self, views: Sequence[Tensor]) -> Tensor:
        (value,) = views
        if len(self._places) == self._count:
            return value
        value, index = value.expand(len(self._places), -1, -1), self._index.to(value.device)
        return value.new_zeros(self._count, *value.shape[1:]).index_copy(0, index, value)


def _factors(
    assembly: Callable[..., tuple[Factor, ...]],
    bases: Tensor,
    adapters: int,
    tensors: Sequence[Tensor],
) -> tuple[Factor, ...]:
    """Compute the factors of a region, with zeros for rows of the base whatever the transform returns."""
    tensors = promote_to_one_dtype(tensors)
    device = tensors[0].device
    with without_autocast(device):
        given = dict(enumerate(tensors))
        factors = vmap_factors(lambda own: assembly(None, *own.values()), given, adapters)
    if len(bases):
        rows = bases.to(device)
        factors = tuple(
            map_tensors(f, lambda tensor: tensor.index_fill(0, rows, 0)) for f in factors
        )
    # On a GPU, launch overhead dominates with many factors.
    return factors if device.type == "cpu" else tuple(Dense(factor.dense()) for factor in factors)


def _recomputed(make: Make, names: Sequence[str], stacks: Mapping[str, Stack]) -> Recomputed:
    """Return factors that are recomputed from stacked tensors."""
    given = [stacks[name] for name in names]

    def of_sources(sources: Sequence[Tensor]) -> tuple[Factor, ...]:
        left = iter(sources)
        return make([stack([next(left) for _ in own]) for stack, own in given])

    return Recomputed(of_sources, [source for _, own in given for source in own])


def _running(module: nn.Module) -> Iterator[nn.Module]:
    """Yield a module and its descendants, without the adapters' tensors: there can be thousands."""
    yield module
    for name, child in module._modules.items():
        if child is not None and name != TENSORS:
            yield from _running(child)


def _device(model: nn.Module) -> torch.device:
    """Guess the device of a model's activations, ignoring accelerate's offloading."""
    devices = (p.device for p in model.parameters() if not p.is_meta)
    return next(devices, torch.device("cpu"))
