"""Learning rates and weight decays of their own, for shares and factors: `lr_of` and `weight_decay_of`.

(LoRA+, Hayou et al. 2024, https://arxiv.org/abs/2402.12354, learns B faster than A: ``lr_of B=16x``.)
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

from bishare_dsl.diagnostics import Problem, nearest
from bishare_dsl.diagnostics.codes import train as codes
from bishare_dsl.plan.train import TRAIN

if TYPE_CHECKING:
    import torch

    from bishare_dsl.plan import Plan
    from bishare_dsl.train.request import Settings


def names_of(plan: Plan) -> dict[str, set[str]]:
    """Return what may name each tensor that trains: its share, its role, or both as ``share.role``; ``train``
    for what is trained in full."""
    roles = {tensor: role for term in plan.terms for role, tensor in term.tensors.items()}
    return {
        t.name: {t.share, roles[t.name], f"{t.share}.{roles[t.name]}"}
        for t in plan.tensors
        if t.trainable and t.name in roles
    } | {t.tensor: {TRAIN} for t in plan.trained}


def problems(plan: Plan, settings: Settings) -> Iterator[Problem]:
    """Find names of ``lr_of`` and ``weight_decay_of`` that name no tensor (BS731)."""
    known = set().union(*names_of(plan).values())
    for argument in ("lr_of", "weight_decay_of"):
        for name in getattr(settings, argument):
            if name not in known:
                reason = "no share and no factor that trains is called so"
                help = nearest(name, known)
                yield codes.WRONG_VALUE(name=argument, value=name, reason=reason, help=help)


def regroup(
    optimizer: torch.optim.Optimizer,
    tensors: Mapping[str, torch.Tensor],
    plan: Plan,
    settings: Settings,
) -> None:
    """Set a learning rate and a weight decay for the tensors that settings name.

    Args:
        optimizer: that has not done a step yet.
        tensors: the adapter's, by name.
        plan: theirs.
        settings: whose ``lr_of`` maps a share, a role or ``share.role`` to a rate (``5e-4``) or to a factor
            of the run's (``16x``), and ``weight_decay_of`` to a decay. Of several that name a tensor the
            last one counts.
    """
    if not settings.lr_of and not settings.weight_decay_of:
        return
    called = names_of(plan)
    name_of = {id(tensor): name for name, tensor in tensors.items()}
    groups, optimizer.param_groups = list(optimizer.param_groups), []
    for group in groups:
        parts: dict[tuple[float, float], list[torch.Tensor]] = {}
        for parameter in group["params"]:
            names = called.get(name_of.get(id(parameter), ""), set())
            rate, decay = group["lr"], group["weight_decay"]
            for name, said in settings.lr_of.items():
                if name in names:
                    rate = group["lr"] * float(said[:-1]) if said[-1] in "xX" else float(said)
            for name, number in settings.weight_decay_of.items():
                decay = number if name in names else decay
            parts.setdefault((rate, decay), []).append(parameter)
        # The rate that is logged is the first group's: the run's own, where any tensor has it.
        for rate, decay in sorted(parts, key=lambda part: part[0] != group["lr"]):
            same = parts[rate, decay]
            optimizer.add_param_group(group | {"params": same, "lr": rate, "weight_decay": decay})
