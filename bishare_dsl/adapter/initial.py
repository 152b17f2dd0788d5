"""The first values of an adapter's tensors."""

from __future__ import annotations

from collections.abc import Collection

import torch
from torch import nn

from bishare_dsl.adapter.counter import distribution, fill
from bishare_dsl.diagnostics import AdapterError
from bishare_dsl.diagnostics.codes import adapter as codes
from bishare_dsl.models.hooks import gather, resident_tensor
from bishare_dsl.plan import Plan, Tensor
from bishare_dsl.spec import SINGULAR


def first_values(
    plan: Plan, model: nn.Module, seed: int, device: str, unfilled: Collection[str] = ()
) -> dict[str, torch.Tensor]:
    """Return the first values of a plan's tensors: drawn from the seed, or as the base says."""
    tensors = draw(plan, seed, device, unfilled)
    missing = plan.tensor.keys() - tensors.keys()
    return {**tensors, **start_of_base(plan, model, missing)} if missing else tensors


def start_of_base(plan: Plan, model: nn.Module, names: Collection[str]) -> dict[str, torch.Tensor]:
    """Return the first values of tensors that start as the base says."""
    from bishare_dsl.adapter.singular import singular_starts

    base = copy_base(plan, model)
    if any(plan.tensor[name].init != "base" for name in names):
        base |= singular_starts(plan, model)
    return {name: base[name] for name in names}


def draw(
    plan: Plan,
    seed: int,
    device: torch.device | str = "cpu",
    unfilled: Collection[str] = (),
) -> dict[str, torch.Tensor]:
    """Draw the plan's tensors, by name, float32, each by itself; but for those that start as the base says.

    The run's seed and the tensor's name give its values, so neither the order nor the number of the other
    tensors changes what one gets. Numbers are always drawn on the CPU: the same seed gives the same adapter
    on every device. On the meta device tensors have shapes only.

    Args:
        plan: says shape, start and fan-in of each tensor.
        seed: any integer.
        device: where the tensors go.
        unfilled: tensors that have shapes only.
    """
    on_meta = torch.device(device).type == "meta"
    return {
        t.name: torch.empty(t.shape, device="meta")
        if on_meta or t.name in unfilled
        else draw_tensor(t, seed).to(device)
        for t in plan.tensors
        if t.drawn or t.name in unfilled
    }


def check_drawn(plan: Plan, action: str) -> None:
    """See that the seed draws all that the terms use, which an action without the base needs.

    Raises:
        AdapterError: something starts as the base's weights say (BS688).
    """
    for tensor in plan.tensors:
        if tensor.init in SINGULAR:
            raise AdapterError(
                codes.READS_WEIGHTS(tensor=tensor.name, start=tensor.init, action=action)
            )


def copy_base(plan: Plan, model: nn.Module) -> dict[str, torch.Tensor]:
    """Return the first values of what is trained in full, by the names of the tensors: the base's.

    Float32, or wider where the base is.
    """
    found = {}
    for trained in plan.trained:
        module, _, name = trained.parameter.rpartition(".")
        kept = resident_tensor(model.get_submodule(module), name)
        assert kept is not None, trained.parameter
        wide = torch.promote_types(kept.dtype, torch.float32)
        values = gather(kept.detach()).to(wide, copy=True)
        found[trained.tensor] = values.reshape(plan.tensor[trained.tensor].shape)
    return found


def draw_tensor(tensor: Tensor, seed: int) -> torch.Tensor:
    """Draw the first values of one tensor, float32 on the CPU.

    ``zeros``, ``ones``; by the tensor's amount a, ``constant``: a, ``normal``: N(0, a^2), ``uniform``:
    U(-a, a), ``positive``: U(0, a); and by its fan-in n, ``kaiming_uniform``: U(-1/sqrt(n), 1/sqrt(n)), as
    LoRA and `nn.Linear` start (a = sqrt(5)), and ``kaiming_normal``: N(0, 2/n). ``choice``: whole numbers
    below n, a row each, none of them twice; the two columns are digits to the base 256, which also a type
    of 16 bits, in which tensors may be served, has exactly.
    """
    # In torch's memory, which is aligned as kernels like it: others give other last bits.
    values = torch.empty(tensor.shape, dtype=torch.float32, device="cpu")
    fill(values.numpy(), distribution(tensor), seed, tensor.like or tensor.name)
    return values
