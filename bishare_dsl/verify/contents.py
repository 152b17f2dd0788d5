"""Read an adapter's files, match them with a model's modules, and find problems."""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import takewhile

import torch
from torch import nn

from bishare_dsl.adapter.files import is_peft
from bishare_dsl.compiler import read_fitting
from bishare_dsl.diagnostics import BishareError, Problem, nearest
from bishare_dsl.diagnostics.codes import verify as codes
from bishare_dsl.diagnostics.codes.adapter import NO_WEIGHT
from bishare_dsl.export.effective import check_linear, effective_factors, scale_changes
from bishare_dsl.export.layouts import FACTOR, read_tensors
from bishare_dsl.export.peft_config import PREFIX, TENSORS
from bishare_dsl.hub import adapter_folder
from bishare_dsl.models.inspect import linear_maps
from bishare_dsl.models.site import Architecture, block_of
from bishare_dsl.models.weights import Weight
from bishare_dsl.plan import Plan


@dataclass(frozen=True)
class Pair:
    """The update of a module's weight: ``dW = scale * up @ down``, float32.

    Attributes:
        down: A, ``(rank, d_in)``.
        up: B, ``(d_out, rank)``.
        scale: ``alpha / rank``, or 1 for a sum of several terms.
        changes: of a magnitude: returns ``g - 1`` of each row of W + dW, from W and W + dW.
    """

    down: torch.Tensor
    up: torch.Tensor
    scale: float = 1.0
    changes: Callable[[torch.Tensor, torch.Tensor], torch.Tensor] | None = None

    @property
    def shape(self) -> tuple[int, int]:
        """The shape of the weight."""
        return len(self.up), self.down.shape[1]

    def swapped(self) -> Pair:
        """Return the pair with A and B swapped if the weight is square, else the pair itself."""
        square = len(self.up) == self.down.shape[1]
        return replace(self, down=self.up.t(), up=self.down.t()) if square else self


@dataclass(frozen=True)
class Contents:
    """An adapter, matched with the modules of a model.

    Attributes:
        pairs: the updates of the model's modules by path; empty if the files do not fit.
        problems: problems with the files.
        modules: the paths of the adapted modules, also of those that the model lacks.
        ranks: the distinct ranks of the modules, sorted.
        complete: whether ``pairs`` are the adapter's whole effect.
    """

    pairs: Mapping[str, Pair]
    problems: Sequence[Problem]
    modules: Sequence[str] = ()
    ranks: Sequence[int] = ()
    complete: bool = False

    def __str__(self) -> str:
        ranks = f", rank {' and '.join(map(str, self.ranks))}" if self.ranks else ""
        return f"{len(self.modules)} modules{ranks}"


def layers_of(paths: Iterable[str]) -> list[int]:
    """Return the distinct layer numbers of modules, sorted."""
    return sorted({int(block[1]) for path in paths if (block := block_of(path))})


def kind_of(path: str) -> str:
    """Return the last part of a module's path."""
    return path.rpartition(".")[2]


def read_contents(place: str | os.PathLike[str], model: nn.Module, base: Architecture) -> Contents:
    """Read a LoRA of PEFT or an adapter of bishare, and match it with the modules of a model.

    Args:
        place: the adapter's folder or Hub id; ``LIBRARY#NAME`` for an adapter of a library.
        model: the base, which may be on the meta device unless the adapter is a DoRA.
        base: its shapes, with its name in messages.

    Returns:
        What was found; an error of reading is one of its problems.
    """
    names: list[str] = []
    modules: dict[str, None] = {}
    try:
        folder = adapter_folder(place)
        if is_peft(folder):
            tensors = read_tensors(folder, TENSORS, base)
            names = [name.removeprefix(PREFIX) for name in sorted(tensors)]
            modules = dict.fromkeys(match[1] for name in names if (match := FACTOR.fullmatch(name)))
        stored, fitting = read_fitting(folder, base, model)
        plan, tensors = stored.plan, stored.tensors()
        check_linear([t for t in plan.terms if not t.is_magnitude], "verify the adapter")
    except BishareError as error:
        # The magnitudes of a DoRA are computed last, and need weights.
        said = [problem for problem in error.problems if problem.code != NO_WEIGHT.code]
        return Contents({}, [*_unknown_modules(modules, base)] or said, [*modules])
    pairs = _pairs(plan, tensors, linear_maps(model))
    others = [trained.parameter for trained in plan.trained]
    others += [name for name in names if ".base_layer." in name]
    problems = [*fitting, *_zeros(pairs)]
    problems += [codes.NO_FACTORS(count=len(others), path=others[0])] if others else []
    ranks = sorted({len(pair.down) for pair in pairs.values()})
    return Contents(pairs, problems, [*pairs], ranks, complete=not others)


def _pairs(
    plan: Plan, tensors: Mapping[str, torch.Tensor], maps: Mapping[str, Weight]
) -> dict[str, Pair]:
    pairs: dict[str, Pair] = {}
    for site in plan.sites:
        down, up = effective_factors(plan, tensors, site, scaled=True)
        magnitude = plan.magnitude(site.path)
        scales = {term.scale for term in plan.terms_of[site.path] if not term.is_magnitude}
        scale = scales.pop() if len(scales) == 1 and 0 not in scales else 1.0
        changes = None
        if magnitude is not None:
            mu = tensors[magnitude.tensors["mu"]].detach().float().squeeze(0)
            changes = partial(scale_changes, magnitude, mu)
        for path in site.paths if len(down) or changes else ():
            # A tied embedding uses the transposed update of the head.
            swapped = maps[path].looks_up and not maps[site.path].looks_up
            a, b = (up, down) if swapped else (down, up)
            pairs[path] = Pair(a, b.t() / scale, scale, changes)
    return pairs


def _zeros(pairs: Mapping[str, Pair]) -> Iterator[Problem]:
    """Find modules whose update is zero."""
    zero = [
        path
        for path, pair in pairs.items()
        if pair.changes is None and not (pair.down.any() and pair.up.any())
    ]
    if zero:
        problem = codes.ADDS_NOTHING(count=len(zero), total=len(pairs), path=zero[0])
        yield replace(problem, severity="warning") if len(zero) < len(pairs) else problem


def _unknown_modules(paths: Collection[str], base: Architecture) -> Iterator[Problem]:
    """Find modules that a model lacks, and suggest its names for them."""
    known = [path for site in base.every_site for path in site.paths]
    missing = [path for path in paths if path not in {*known}]
    # In models whose experts are one parameter, factors have the names of wrappers.
    if missing and not any(".experts" in path for path in missing):
        count, total, path = len(missing), len(paths), missing[0]
        help = _advice(path, known)
        yield codes.NO_MODULE(count=count, total=total, path=path, model=base.name, help=help)


def _advice(path: str, known: Collection[str]) -> str | None:
    """Suggest the model's name for a module that it lacks."""
    parts, layers, layer = path.split("."), layers_of(known), layers_of([path])
    ends: dict[str, int] = {}
    for one in known:
        pairs = zip(parts[::-1], one.split(".")[::-1], strict=False)
        ends[one] = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], pairs))
    longest = max(ends.values(), default=0)
    near = [one for one in ends if ends[one] == longest]
    near = [one for one in near if layers_of([one]) == layer] if len(near) > 1 else near
    if longest and len(near) == 1:
        ours, theirs = (".".join([*n.split(".")[:-longest], "*"]) for n in (path, near[0]))
        return f"`{ours}` is `{theirs}` there: rename the tensors, or export the adapter again"
    if layer and layers and layer[0] not in layers:
        return f"the model has layers {layers[0]} to {layers[-1]}: this is another base"
    return nearest(parts[-1], {kind_of(other) for other in known})
