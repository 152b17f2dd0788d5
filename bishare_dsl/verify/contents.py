"""Read an adapter's files, match them with a model's modules, and find problems."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

import torch
from safetensors import safe_open
from torch import nn

from bishare_dsl.adapter.files import is_peft
from bishare_dsl.adapter.fingerprint import Fingerprint, difference
from bishare_dsl.compiler import read_fitting
from bishare_dsl.diagnostics import BishareError, Problem
from bishare_dsl.diagnostics.codes import verify as codes
from bishare_dsl.diagnostics.codes.adapter import NO_WEIGHT, OTHER_FINGERPRINT
from bishare_dsl.export.effective import check_linear, effective_factors, scale_changes
from bishare_dsl.export.peft_config import TENSORS
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
        complete: whether ``pairs`` are the adapter's whole effect.
    """

    pairs: Mapping[str, Pair]
    problems: Sequence[Problem]
    complete: bool = False

    @property
    def fits(self) -> bool:
        """Whether nothing in the files is an error."""
        return not any(problem.severity == "error" for problem in self.problems)

    def __str__(self) -> str:
        if not self.pairs:
            return (
                "no low-rank update, or a DoRA without weights" if self.fits else "they do not fit"
            )
        ranks = sorted({len(pair.down) for pair in self.pairs.values()})
        return f"{len(self.pairs)} modules, rank {' and '.join(map(str, ranks))}"


def layers_of(paths: Iterable[str]) -> list[int]:
    """Return the distinct layer numbers of modules, sorted."""
    return sorted({int(block[1]) for path in paths if (block := block_of(path))})


def kind_of(path: str) -> str:
    """Return the last part of a module's path."""
    return path.rpartition(".")[2]


def read_contents(
    place: str | os.PathLike[str],
    model: nn.Module,
    base: Architecture,
    found: Fingerprint | None = None,
) -> Contents:
    """Read a LoRA of PEFT or an adapter of bishare, and match it with the modules of a model.

    Args:
        place: the adapter's folder or Hub id; ``LIBRARY#NAME`` for an adapter of a library.
        model: the base, which may be on the meta device unless the adapter is a DoRA.
        base: its shapes, with its name in messages.
        found: its fingerprint, if its weights are here.

    Returns:
        What was found; an error of reading is one of its problems.
    """
    others: list[str] = []
    try:
        folder = adapter_folder(place)
        stored, fitting = read_fitting(folder, base, model)
        plan, tensors = stored.plan, stored.tensors()
        check_linear([t for t in plan.terms if not t.is_magnitude], "verify the adapter")
        if is_peft(folder):
            # Weights of the base, such as a longer token table, which may be trained.
            with safe_open(folder / TENSORS, "pt") as file:
                others = [n for n in file.keys() if ".base_layer." in n and ".lora_" not in n]  # noqa: SIM118
    except BishareError as error:
        # The magnitudes of a DoRA are computed last, and need weights.
        return Contents({}, [p for p in error.problems if p.code != NO_WEIGHT.code])
    pairs = _pairs(plan, tensors, linear_maps(model))
    others += [trained.parameter for trained in plan.trained]
    problems = [*fitting, *_zeros(pairs)]
    problems += [codes.NO_FACTORS(count=len(others), path=others[0])] if others else []
    if found and (saved := stored.config.fingerprint) and (apart := difference(saved, found)):
        problems.append(OTHER_FINGERPRINT(apart=f"{apart:.1g}"))
    return Contents(pairs, problems, complete=not others)


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
    zero = [p for p, x in pairs.items() if x.changes is None and not (x.down.any() and x.up.any())]
    if zero:
        problem = codes.ADDS_NOTHING(count=len(zero), total=len(pairs), path=zero[0])
        yield replace(problem, severity="warning") if len(zero) < len(pairs) else problem
