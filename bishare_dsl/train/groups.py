"""Separate learning rates for shares and factors: `lr_of`.

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
    """Return each trained tensor's names: share, role and ``share.role``, or ``train`` if
    trained in full.
    """
    roles = {tensor: role for term in plan.terms for role, tensor in term.tensors.items()}
    return {
        t.name: {t.share, roles[t.name], f"{t.share}.{roles[t.name]}"}
        for t in plan.tensors
        if t.trainable and t.name in roles
    } | {t.tensor: {TRAIN} for t in plan.trained}


def check_names(plan: Plan, rates: Mapping[str, str], fixed: frozenset[str] = frozenset()) -> None:
    """Check that each name in ``lr_of`` matches a tensor that is not ``fixed``.

    Raises:
        TrainError: a name matches none (BS731).
    """
    known = set().union(*(names for t, names in names_of(plan).items() if t not in fixed))
    for name in rates.keys() - known:
        reason = "no share and no factor that trains is called so"
        help = nearest(name, known)
        raise TrainError(codes.WRONG_VALUE(name="lr_of", value=name, reason=reason, help=help))


def rates_of(plan: Plan, rates: Mapping[str, str]) -> dict[str, str]:
    """Return the last value in ``lr_of`` for each tensor that it names."""
    called = names_of(plan).items()
    return {t: rate for t, names in called for name, rate in rates.items() if name in names}


def regroup(
    optimizer: torch.optim.Optimizer,
    tensors: Mapping[str, torch.Tensor],
    plan: Plan,
    rates: Mapping[str, str],
) -> None:
    """Set the learning rates of named tensors.

    Args:
        optimizer: an optimizer without any step done.
        tensors: the adapter's tensors by name.
        plan: the adapter's plan.
        rates: the learning rate (``5e-4``), or a multiple of the run's (``16x``), of each share, role or
            ``share.role``. The last match for a tensor counts.
    """
    if not rates:
        return
    own = rates_of(plan, rates)
    name_of = {id(tensor): name for name, tensor in tensors.items()}
    groups, optimizer.param_groups = list(optimizer.param_groups), []
    for group in groups:
        parts: dict[float, list[torch.Tensor]] = {}
        for parameter in group["params"]:
            rate, own_rate = group["lr"], own.get(name_of.get(id(parameter), ""))
            if own_rate is not None:
                rate = rate * float(own_rate[:-1]) if own_rate[-1] in "xX" else float(own_rate)
            parts.setdefault(rate, []).append(parameter)
        # Trainer logs the first group's learning rate: the run's own, if any tensor has it.
        for rate in sorted(parts, key=lambda rate: rate != group["lr"]):
            optimizer.add_param_group(group | {"params": parts[rate], "lr": rate})
