"""Pairs for experts whose weights are one parameter, in the layouts of several programs.

For each parameter, PEFT has stacked pairs of all experts with one rank (`stacks`). vLLM and SGLang have a
pair for each map of each expert (`each_expert`).
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

import torch
from torch import nn
from torch.nn.functional import pad

from bishare_dsl.convert.lora import Pair
from bishare_dsl.models.inspect import linear_maps
from bishare_dsl.models.weights import Weight

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@dataclass(frozen=True)
class Named:
    """A pair with its name in the file; a leading dimension counts experts if there are several.

    Attributes:
        name: the module's name in checkpoints, or the parameter's path.
        kind: the kind of its map, or the parameter's name.
        down: A ``(rank, d_in)``.
        up: B ``(rank, d_out)``; of a parameter over all maps in it, such as gate and up.
        is_parameter: whether it is one of PEFT's target parameters.
    """

    name: str
    kind: str
    down: torch.Tensor
    up: torch.Tensor
    is_parameter: bool = False

    @property
    def rank(self) -> int:
        return self.down.shape[-2]


def stacks(pairs: Sequence[tuple[Pair, Weight]], *_: object) -> list[Named]:
    """Stack the pairs of the experts of each parameter, with zeros for experts without a pair."""
    places: dict[tuple[str, str], dict[int, list[tuple[Pair, Weight]]]] = {}
    for pair, weight in pairs:
        assert weight.expert is not None
        experts = places.setdefault((weight.owner, weight.parameter), {})
        experts.setdefault(weight.expert, []).append((pair, weight))
    return [_stack(*place, experts) for place, experts in places.items()]


def wrappers_of(model: nn.Module, places: Collection[tuple[str, str]]) -> dict[str, str]:
    """Return the path of PEFT's wrapper for each parameter, which contains its factors.

    Wrappers follow the order of the module's parameters, the last one outermost.

    Args:
        model: the base.
        places: the module path and the name of each parameter.
    """
    wrappers: dict[str, str] = {}
    for owner in dict.fromkeys(owner for owner, _ in places):
        ours = {parameter for of, parameter in places if of == owner}
        parameters = reversed(model.get_submodule(owner)._parameters)
        inwards = [name for name in parameters if name in ours]
        wrappers |= {f"{owner}.{name}": owner + ".base_layer" * i for i, name in enumerate(inwards)}
    return wrappers


@dataclass(frozen=True)
class Stacked:
    """A parameter of experts that PEFT adapts, and its maps."""

    path: str
    maps: Sequence[Weight]

    def shapes(self, rank: int) -> tuple[tuple[int, int], tuple[int, int]]:
        """Return the shapes of A and B for all experts, as in `write_peft`."""
        count, d_in, d_out = _sizes(self.maps[0])
        if _other_way_round(self.maps[0]):
            d_in, d_out = d_out, d_in
        return (count * rank, d_in), (d_out, rank * count)

    def split(
        self, down: torch.Tensor, up: torch.Tensor, rank: int
    ) -> Iterator[tuple[str, torch.Tensor, torch.Tensor]]:
        """Yield the path of each map with its A ``(rank, d_in)`` and B ``(d_out, rank)``."""
        count = len(down) // rank
        downs = down.view(count, rank, -1)
        ups = up.view(-1, rank, count).permute(2, 1, 0)
        if _other_way_round(self.maps[0]):
            downs, ups = ups, downs
        for weight in self.maps:
            assert weight.expert is not None
            mine = slice(None) if weight.outputs is None else weight.outputs
            yield weight.path, downs[weight.expert], ups[weight.expert][:, mine].t()


def stacked_in(model: nn.Module, targets: Collection[str]) -> dict[str, Stacked]:
    """Find the parameters of experts that PEFT adapts, by the paths of its wrappers.

    Args:
        model: the base, adapted or not.
        targets: PEFT's ``target_parameters``: paths, or their ends.
    """
    ends = tuple(f".{target}" for target in targets)
    maps_of: dict[tuple[str, str], list[Weight]] = {}
    for weight in linear_maps(model).values():
        if weight.expert is not None and f".{weight.owner}.{weight.parameter}".endswith(ends):
            maps_of.setdefault((weight.owner, weight.parameter), []).append(weight)
    wrappers = wrappers_of(model, maps_of)
    stacked = [Stacked(".".join(place), maps) for place, maps in maps_of.items()]
    return {wrappers[parameter.path]: parameter for parameter in stacked}


def each_expert(
    pairs: Sequence[tuple[Pair, Weight]], maps: Mapping[str, Weight], model: nn.Module
) -> list[Named]:
    """Return a pair for each map of each expert. vLLM requires all, with one rank per kind and layer."""
    names = in_checkpoints(model, maps)
    named: list[Named] = []
    pairs_of: dict[tuple[str, str], dict[int, tuple[torch.Tensor, torch.Tensor]]] = {}
    for pair, weight in pairs:
        experts = pairs_of.setdefault((weight.owner, pair.site.kind), {})
        experts[weight.expert or 0] = pair.down, pair.up
    owners = {owner for owner, _ in pairs_of}
    for weight in maps.values():
        if weight.owner not in owners or weight.expert != 0:
            continue
        kind = weight.path.rpartition(".")[2]
        count, _, _ = _sizes(weight)
        nothing = {0: (torch.zeros(1, weight.d_in), torch.zeros(1, weight.d_out))}
        pairs_of_kind = pairs_of.get((weight.owner, kind), nothing)
        factors = of_all(pairs_of_kind, count, weight.d_in, weight.d_out)
        for expert, pair_of_one in enumerate(zip(*factors, strict=True)):
            named.append(Named(names[f"{weight.owner}.{expert}.{kind}"], kind, *pair_of_one))
    return named


def in_checkpoints(model: nn.Module, maps: Mapping[str, Weight]) -> dict[str, str]:
    """Return the checkpoint names of the maps of experts, which engines use.

    transformers splits experts when it writes a checkpoint. Give it tensors in which each map is a number:
    an output with a single number belongs to that map.
    """
    from transformers.core_model_loading import revert_weight_conversion

    experts = [weight for weight in maps.values() if weight.expert is not None]
    numbers: dict[str, list[list[float]]] = {}
    for i, weight in enumerate(experts):
        rows = numbers.setdefault(f"{weight.owner}.{weight.parameter}", [])
        if weight.expert == len(rows):
            rows.append([])
        rows[-1].append(float(i))
    marked = {name: torch.tensor(rows).unsqueeze(-1) for name, rows in numbers.items()}
    names = {weight.path: weight.path for weight in experts}
    for name, tensor in revert_weight_conversion(cast("PreTrainedModel", model), marked).items():
        if tensor.numel() == 1:
            names[experts[int(tensor)].path] = name.removesuffix(".weight")
    return names


def of_all(
    pairs: Mapping[int, tuple[torch.Tensor, torch.Tensor]], count: int, d_in: int, d_out: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Stack the pairs of experts by number, padded to one rank, with zeros for experts without a pair."""
    rank = max(len(down) for down, _ in pairs.values())
    dtype = next(down.dtype for down, _ in pairs.values())
    nothing = torch.zeros(0, d_in, dtype=dtype), torch.zeros(0, d_out, dtype=dtype)
    downs: list[torch.Tensor] = []
    ups: list[torch.Tensor] = []
    for expert in range(count):
        down, up = pairs.get(expert, nothing)
        padding = (0, 0, 0, rank - len(down))
        downs.append(pad(down, padding))
        ups.append(pad(up, padding))
    return torch.stack(downs), torch.stack(ups)


def _stack(owner: str, parameter: str, experts: dict[int, list[tuple[Pair, Weight]]]) -> Named:
    _, any_weight = next(iter(experts.values()))[0]
    count, d_in, d_out = _sizes(any_weight)
    joined = {expert: _joined(members, d_out) for expert, members in experts.items()}
    down, up = of_all(joined, count, d_in, d_out)
    if _other_way_round(any_weight):
        down, up = up, down
    return Named(f"{owner}.{parameter}", parameter, down, up, is_parameter=True)


def _sizes(weight: Weight) -> tuple[int, int, int]:
    """Return the number of experts in a parameter, and the input and output widths of its matrices."""
    count, one, other = weight.module.get_parameter(weight.parameter).shape
    return (count, one, other) if weight.transposed else (count, other, one)


def _other_way_round(weight: Weight) -> bool:
    """Return whether PEFT swaps inputs and outputs, for lack of an attribute that it checks."""
    return weight.transposed and not getattr(weight.module, "is_transposed", False)


def _joined(
    members: Sequence[tuple[Pair, Weight]], d_out: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Merge the pairs of an expert's maps, each with separate outputs; equal A are stored once."""
    downs: list[torch.Tensor] = []
    ups: list[torch.Tensor] = []
    for pair, weight in members:
        same = next((i for i, down in enumerate(downs) if torch.equal(down, pair.down)), None)
        if same is None:
            same = len(downs)
            downs.append(pair.down)
            ups.append(torch.zeros(pair.rank, d_out, dtype=pair.up.dtype))
        mine = slice(None) if weight.outputs is None else weight.outputs
        ups[same][:, mine] += pair.up
    return torch.cat(downs), torch.cat(ups)


def expand_experts(
    factors: dict[str, dict[str, torch.Tensor]],
    known: Collection[str],
    model: Callable[[], nn.Module] | None,
) -> dict[str, str]:
    """Rename the factors of experts to the paths of their maps; return their old names by path.

    Args:
        factors: A and B by module name, changed in place.
        known: names that are already paths.
        model: returns the base, whose checkpoints also name experts.
    """
    unknown = [name for name in factors if name not in known]
    if not unknown or model is None:
        return {}
    base = model()
    maps = linear_maps(base)
    of_experts = {path: weight for path, weight in maps.items() if weight.expert is not None}
    if not of_experts:
        return {}
    by_name = {name: path for path, name in in_checkpoints(base, of_experts).items()}
    origins = {by_name[name]: name for name in unknown if name in by_name}
    for path, name in origins.items():
        factors[path] = factors.pop(name)
    return origins
