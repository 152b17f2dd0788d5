"""The pairs of experts whose weights are one parameter: for each expert one pair, all of one rank."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn.functional import pad

from bishare_dsl.export.lora import Pair
from bishare_dsl.models.weights import Weight


@dataclass(frozen=True)
class Stack:
    """What is exported for a parameter of experts.

    Attributes:
        owner: the path of the module that has the parameter.
        down: A of each expert, ``(experts, rank, d_in)``.
        up: B of each, ``(experts, rank, d_out)``, of all that the parameter holds, such as gate and up.
    """

    owner: str
    parameter: str
    down: torch.Tensor
    up: torch.Tensor

    @property
    def name(self) -> str:
        """The path of the parameter."""
        return f"{self.owner}.{self.parameter}"

    @property
    def rank(self) -> int:
        return self.down.shape[1]


def stacks(pairs: Iterable[tuple[Pair, Weight]]) -> list[Stack]:
    """Join the pairs of experts: those of one parameter in a stack, with zeros for who has none."""
    found: dict[tuple[str, str], dict[int, list[tuple[Pair, Weight]]]] = {}
    for pair, weight in pairs:
        assert weight.expert is not None
        experts = found.setdefault((weight.owner, weight.parameter), {})
        experts.setdefault(weight.expert, []).append((pair, weight))
    return [_stack(*place, experts) for place, experts in found.items()]


def wrappers_of(model: nn.Module, stacks: Sequence[Stack]) -> dict[str, str]:
    """Return the path of the wrapper that PEFT makes for each parameter, which has its factors.

    It wraps a module's parameters in their order there, the last one outermost.
    """
    found: dict[str, str] = {}
    for owner in dict.fromkeys(stack.owner for stack in stacks):
        ours = {stack.parameter for stack in stacks if stack.owner == owner}
        inwards = [
            name for name in reversed(model.get_submodule(owner)._parameters) if name in ours
        ]
        found |= {f"{owner}.{name}": owner + ".base_layer" * i for i, name in enumerate(inwards)}
    return found


def of_all(
    pairs: Mapping[int, tuple[torch.Tensor, torch.Tensor]], count: int, d_in: int, d_out: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Stack the pairs of experts, by their numbers: all of one rank, and zeros for who has none."""
    rank = max(len(down) for down, _ in pairs.values())
    dtype = next(down.dtype for down, _ in pairs.values())
    nothing = torch.zeros(0, d_in, dtype=dtype), torch.zeros(0, d_out, dtype=dtype)
    both = [pairs.get(expert, nothing) for expert in range(count)]
    down, up = (
        torch.stack([pad(pair[i], (0, 0, 0, rank - len(pair[i]))) for pair in both])
        for i in range(2)
    )
    return down, up


def _stack(owner: str, parameter: str, experts: dict[int, list[tuple[Pair, Weight]]]) -> Stack:
    _, any_weight = next(iter(experts.values()))[0]
    shape = any_weight.module.get_parameter(parameter).shape
    count, d_in, d_out = shape if any_weight.transposed else (shape[0], shape[2], shape[1])
    joined = {expert: _joined(members, d_out) for expert, members in experts.items()}
    return Stack(owner, parameter, *of_all(joined, count, d_in, d_out))


def _joined(
    members: Sequence[tuple[Pair, Weight]], d_out: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Make one pair of those of an expert's maps: each gives its own outputs, from equal rows but once."""
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
