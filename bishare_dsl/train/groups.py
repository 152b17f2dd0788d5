"""Learning rates of their own, for shares and factors: `lr_of`.

(LoRA+, Hayou et al. 2024, https://arxiv.org/abs/2402.12354, learns B faster than A: ``lr_of B=16x``.)
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from bishare_dsl.diagnostics import nearest
from bishare_dsl.diagnostics.codes import train as codes
from bishare_dsl.plan.in_full import TRAIN
from bishare_dsl.train.errors import TrainError

if TYPE_CHECKING:
    import torch

    from bishare_dsl.plan import Plan


def names_of(plan: Plan) -> dict[str, set[str]]:
    """Return what may name each tensor that trains: its share, its role, or both as ``share.role``; ``train``
    for what is trained in full."""
    roles = {tensor: role for term in plan.terms for role, tensor in term.tensors.items()}
    return {
        t.name: {t.share, roles[t.name], f"{t.share}.{roles[t.name]}"}
        for t in plan.tensors
        if t.trainable and t.name in roles
    } | {t.tensor: {TRAIN} for t in plan.trained}


def check_names(plan: Plan, rates: Mapping[str, str]) -> None:
    """Check that each name of ``lr_of`` names a tensor.

    Raises:
        TrainError: one does not (BS731).
    """
    known = set().union(*names_of(plan).values())
    for name in rates.keys() - known:
        reason = "no share and no factor that trains is called so"
        help = nearest(name, known)
        raise TrainError(codes.WRONG_VALUE(name="lr_of", value=name, reason=reason, help=help))


def rates_of(plan: Plan, rates: Mapping[str, str]) -> dict[str, str]:
    """Return what was said last of each tensor that ``lr_of`` names."""
    called = names_of(plan).items()
    return {t: said for t, names in called for name, said in rates.items() if name in names}


def regroup(
    optimizer: torch.optim.Optimizer,
    tensors: Mapping[str, torch.Tensor],
    plan: Plan,
    rates: Mapping[str, str],
) -> None:
    """Set a learning rate for the tensors that are named.

    Args:
        optimizer: that has not done a step yet.
        tensors: the adapter's, by name.
        plan: theirs.
        rates: of a share, a role or ``share.role``: a rate (``5e-4``), or a factor of the run's (``16x``). Of
            several that name a tensor the last one counts.
    """
    if not rates:
        return
    found = rates_of(plan, rates)
    name_of = {id(tensor): name for name, tensor in tensors.items()}
    groups, optimizer.param_groups = list(optimizer.param_groups), []
    for group in groups:
        parts: dict[float, list[torch.Tensor]] = {}
        for parameter in group["params"]:
            rate, said = group["lr"], found.get(name_of.get(id(parameter), ""))
            if said is not None:
                rate = rate * float(said[:-1]) if said[-1] in "xX" else float(said)
            parts.setdefault(rate, []).append(parameter)
        # The rate that is logged is the first group's: the run's own, where any tensor has it.
        for rate in sorted(parts, key=lambda rate: rate != group["lr"]):
            optimizer.add_param_group(group | {"params": parts[rate], "lr": rate})
