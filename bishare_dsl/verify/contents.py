"""Read an adapter's files, match them with a model's modules, and find problems."""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import takewhile
from pathlib import Path

import torch
from torch import nn

from bishare_dsl.adapter.files import is_peft
from bishare_dsl.compiler import read_fitting
from bishare_dsl.diagnostics import AdapterError, Problem, nearest
from bishare_dsl.diagnostics.codes import adapter as adapter_codes
from bishare_dsl.diagnostics.codes import verify as codes
from bishare_dsl.export.effective import check_linear, effective_factors
from bishare_dsl.export.experts import stacked_in
from bishare_dsl.export.layouts import FACTOR, read_tensors
from bishare_dsl.export.peft import TENSORS as PEFT_TENSORS
from bishare_dsl.export.peft_config import PREFIX, PeftConfig, read_config
from bishare_dsl.hub import adapter_folder
from bishare_dsl.models import architecture_of
from bishare_dsl.models.inspect import linear_maps
from bishare_dsl.models.site import block_of


@dataclass(frozen=True)
class Pair:
    """The update of a module's weight: ``dW = scale * up @ down``, float32.

    Attributes:
        down: A, ``(rank, d_in)``.
        up: B, ``(d_out, rank)``.
        scale: ``alpha / rank``, or 1 if it is folded into B.
    """

    down: torch.Tensor
    up: torch.Tensor
    scale: float

    @property
    def shape(self) -> tuple[int, int]:
        """The shape of the weight."""
        return len(self.up), self.down.shape[1]


@dataclass(frozen=True)
class Contents:
    """An adapter, matched with the modules of a model.

    Attributes:
        folder: the adapter's folder.
        pairs: the updates of the model's modules by path.
        named: all modules in the files, even if the model lacks them.
        problems: problems with the files.
        tensors: the tensors of a PEFT LoRA by their names in the file; empty for bishare's folders.
        config: the config of a PEFT LoRA.
        scales: the scales of a PEFT LoRA's modules by their names in the file.
        others: the names of tensors other than factors, such as modules trained in full.
        complete: whether ``pairs`` are the adapter's whole effect.
        plain: whether ``pairs`` fit into a LoRA of linear layers, as copies require.
    """

    folder: Path
    pairs: Mapping[str, Pair]
    named: Sequence[str]
    problems: Sequence[Problem]
    tensors: Mapping[str, torch.Tensor] = field(default_factory=dict)
    config: PeftConfig | None = None
    scales: Mapping[str, float] = field(default_factory=dict)
    others: Sequence[str] = ()
    complete: bool = True
    plain: bool = True

    @property
    def ranks(self) -> list[int]:
        """The distinct ranks of the modules, sorted."""
        return sorted({len(pair.down) for pair in self.pairs.values()})


def layers_of(paths: Iterable[str]) -> list[int]:
    """Return the distinct layer numbers of modules, sorted."""
    return sorted({int(block[1]) for path in paths if (block := block_of(path))})


def kind_of(path: str) -> str:
    """Return the last part of a module's path."""
    return path.rpartition(".")[2]


def read_contents(folder: str | os.PathLike[str], model: nn.Module, name: str) -> Contents:
    """Read a LoRA of PEFT or an adapter of bishare, and match it with the modules of a model.

    Args:
        folder: the adapter's folder or Hub id.
        model: the base, which may be on the meta device.
        name: the model's name in messages.

    Raises:
        BishareError: there is no adapter, or its files are unreadable (BS6xx).
    """
    folder = adapter_folder(folder)
    if is_peft(folder):
        return _of_peft(Path(folder), model, name)
    stored, problems = read_fitting(folder, model)
    check_linear(stored.plan.terms, "verify the adapter")
    tensors, maps = stored.tensors(), linear_maps(model)
    pairs: dict[str, Pair] = {}
    for site in stored.plan.sites:
        down, up = effective_factors(stored.plan, tensors, site)
        for path in site.paths if len(down) else ():
            # A tied embedding uses the transposed update of the head.
            swapped = maps[path].looks_up and not maps[site.path].looks_up
            a, b = (up, down) if swapped else (down, up)
            pairs[path] = Pair(a, b.t(), 1.0)
    problems += _values({path: (pair.down, pair.up) for path, pair in pairs.items()}, folder)
    whole = [trained.parameter for trained in stored.plan.trained]
    plain = all(maps[p].expert is None and not maps[p].looks_up for p in pairs) and bool(pairs)
    return Contents(
        Path(folder), pairs, [*pairs], problems, others=whole, complete=not whole, plain=plain
    )


def _of_peft(folder: Path, model: nn.Module, name: str) -> Contents:
    config, problems = read_config(folder), []
    try:
        config.check_plain(folder)
    except AdapterError as error:
        reasons = [problem.message.partition(": ")[2] for problem in error.problems]
        problems.append(codes.NOT_PLAIN(reason="; ".join(reasons)))
    if config.use_dora:
        problems.append(codes.NOT_PLAIN(reason="it has `use_dora`, which scales the base too"))
    tensors = read_tensors(folder, PEFT_TENSORS, architecture_of(model))
    factors: dict[str, dict[str, torch.Tensor]] = {}
    others = []
    for full in sorted(tensors):
        if match := FACTOR.fullmatch(full.removeprefix(PREFIX)):
            factors.setdefault(match[1], {})[match[2] or match[3]] = tensors[full]
        else:
            others.append(full)
    maps = linear_maps(model)
    stacked = stacked_in(model, config.target_parameters) if config.target_parameters else {}
    known = maps.keys() | stacked.keys()
    named = {path: stacked[path].path if path in stacked else path for path in factors}
    settings = config.settings(folder, named.values())

    def add(code: Callable[..., Problem], paths: Sequence[str], **values: object) -> None:
        if paths:
            count, total = len(paths), len(factors)
            problems.append(code(count=count, total=total, path=paths[0], model=name, **values))

    missing = [path for path in factors if path not in known]
    add(codes.NO_MODULE, missing, help=_advice(missing, known))
    whole = {path: pair for path, pair in factors.items() if len(pair) == 2}
    add(codes.ONE_FACTOR, [path for path in factors if path not in whole])
    wrong, pairs = [], {}
    for path, pair in whole.items():
        rank, scale = settings[named[path]]
        if path in known:
            if path in stacked:
                wanted = stacked[path].shapes(rank)
            else:
                wanted = (rank, maps[path].d_in), (maps[path].d_out, rank)
            if (tuple(pair["A"].shape), tuple(pair["B"].shape)) != wanted:
                wrong.append(path)
            elif path in stacked:
                for at, down, up in stacked[path].split(pair["A"], pair["B"], rank):
                    pairs[at] = Pair(down.float(), up.float(), scale)
            else:
                pairs[path] = Pair(pair["A"].float(), pair["B"].float(), scale)
    add(codes.OTHER_SHAPES, wrong)
    problems += _values({path: (pair["A"], pair["B"]) for path, pair in whole.items()}, folder)
    add(codes.NO_FACTORS, others)
    if not missing:  # Missing modules most likely explain these.
        add(codes.WITHOUT_TENSORS, _without_tensors(config, factors, known))
    plain = not others and all(problem.code != "BS867" for problem in problems)
    scales = {path: settings[named[path]][1] for path in factors}
    return Contents(
        folder, pairs, [*factors], problems, tensors, config, scales, tuple(others), plain
    )


def _values(
    factors: Mapping[str, tuple[torch.Tensor, torch.Tensor]], folder: object
) -> list[Problem]:
    """Find factors that are zero or not finite."""
    problems = []
    bad = [path for path, pair in factors.items() if not all(t.isfinite().all() for t in pair)]
    if bad:
        what = f"{len(bad)} modules have values that are not finite, the first is `{bad[0]}`"
        problems.append(adapter_codes.NOT_FINITE_ADAPTER(folder=folder, what=what))
    zero = [path for path, pair in factors.items() if not all(t.any() for t in pair)]
    if zero:
        problem = codes.ADDS_NOTHING(count=len(zero), total=len(factors), path=zero[0])
        some = len(zero) < len(factors)
        problems.append(replace(problem, severity="warning") if some else problem)
    return problems


def _without_tensors(
    config: PeftConfig, factors: Collection[str], known: Collection[str]
) -> list[str]:
    """Return the modules that a config targets by name but that have no tensors in the file."""
    more = config.model_extra or {}
    targets = more.get("target_modules")
    chosen = ("layers_to_transform", "exclude_modules", "layers_pattern")
    if not isinstance(targets, list) or any(more.get(key) for key in chosen):
        return []
    ends = tuple(f".{target}" for target in targets)
    return [path for path in known if f".{path}".endswith(ends) and path not in factors]


def _advice(missing: Sequence[str], known: Collection[str]) -> str | None:
    """Suggest the model's names for modules that it lacks."""
    if not missing:
        return None
    path, layers = missing[0], layers_of(known)
    parts, layer = path.split("."), layers_of([path])
    candidates: dict[tuple[int, bool], list[str]] = {}
    for other in (other for other in known if kind_of(other) == parts[-1]):
        pairs = zip(reversed(parts), reversed(other.split(".")), strict=False)
        same = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], pairs))
        candidates.setdefault((same, layers_of([other]) == layer), []).append(other)
    nearest_known = candidates[max(candidates)] if candidates else []
    if len(nearest_known) == 1:
        end = max(candidates)[0]
        ours, theirs = (
            "".join(f"{part}." for part in name.split(".")[:-end])
            for name in (path, nearest_known[0])
        )
        return f"`{ours}*` is `{theirs}*` there: rename the tensors, or export the adapter again"
    if layer and layers and layer[0] not in layers:
        return f"the model has layers {layers[0]} to {layers[-1]}: this is another base"
    return nearest(parts[-1], {kind_of(other) for other in known})
