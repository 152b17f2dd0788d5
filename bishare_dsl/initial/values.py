"""Initial values of an adapter's tensors."""

from __future__ import annotations

from collections.abc import Collection

import torch
from torch import nn

from bishare_dsl.diagnostics import AdapterError
from bishare_dsl.diagnostics.codes import adapter as codes
from bishare_dsl.initial.counter import distribution, fill
from bishare_dsl.initial.structured import fill_structured
from bishare_dsl.models.hooks import gather, resident_tensor
from bishare_dsl.plan import Plan, Tensor
from bishare_dsl.spec import SINGULAR, STRUCTURED


def first_values(
    plan: Plan, model: nn.Module, seed: int, device: str, unfilled: Collection[str] = ()
) -> dict[str, torch.Tensor]:
    """Return the initial values of a plan's tensors: random from the seed, or computed from the base."""
    tensors = draw(plan, seed, device, unfilled)
    missing = plan.tensor.keys() - tensors.keys()
    return {**tensors, **start_of_base(plan, model, missing)} if missing else tensors


def start_of_base(plan: Plan, model: nn.Module, names: Collection[str]) -> dict[str, torch.Tensor]:
    """Return the initial values of tensors that depend on the base."""
    from bishare_dsl.initial.singular import singular_starts

    base = copy_base(plan, model)
    if any(plan.tensor[name].init != "base" for name in names):
        base |= singular_starts(plan, model)
    return {name: base[name] for name in names}


def draw(
    plan: Plan, seed: int, device: torch.device | str = "cpu", unfilled: Collection[str] = ()
) -> dict[str, torch.Tensor]:
    """Generate a plan's random tensors in float32, by name, independently of each other.

    Each tensor depends only on the run's seed and its name, not on the order or the number of other
    tensors. Numbers are always generated on the CPU, so the same seed gives the same adapter on every
    device. On the meta device tensors have only shapes.

    Args:
        plan: specifies shape, initialisation and fan-in of each tensor.
        seed: any integer.
        device: where the tensors go.
        unfilled: tensors to create without values.
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
    """Check that the seed determines every tensor in use, for actions without access to the base.

    Raises:
        AdapterError: some initial values depend on the base's weights (BS688).
    """
    for tensor in plan.tensors:
        if tensor.init in SINGULAR:
            raise AdapterError(
                codes.READS_WEIGHTS(tensor=tensor.name, start=tensor.init, action=action)
            )


def copy_base(plan: Plan, model: nn.Module) -> dict[str, torch.Tensor]:
    """Return copies of the base's parameters that are trained in full, by the names of the tensors.

    In float32, or in the base's dtype if wider.
    """
    copies = {}
    for trained in plan.trained:
        parameter = parameter_at(model, trained.parameter)
        wide = torch.promote_types(parameter.dtype, torch.float32)
        values = gather(parameter).detach().to(wide, copy=True)
        copies[trained.tensor] = values.reshape(plan.tensor[trained.tensor].shape)
    return copies


def parameter_at(model: nn.Module, path: str) -> torch.Tensor:
    """Return the tensor that holds the values of one of the base's parameters."""
    module, _, name = path.rpartition(".")
    parameter = resident_tensor(model.get_submodule(module), name)
    assert parameter is not None, path
    return parameter


def draw_tensor(tensor: Tensor, seed: int) -> torch.Tensor:
    """Generate the initial values of one tensor, float32 on the CPU.

    ``zeros``, ``ones``; with the tensor's amount a, ``constant``: a, ``normal``: N(0, a^2), ``uniform``:
    U(-a, a), ``positive``: U(0, a). With its fan-in n, ``kaiming_uniform``: U(-1/sqrt(n), 1/sqrt(n)), as
    in LoRA and `nn.Linear` (a = sqrt(5)), ``kaiming_normal``: N(0, 2/n). ``choice``: distinct integers
    below n, one for each row. Its columns are base-256 digits, which 16-bit types represent exactly.
    `bishare_dsl.initial.structured` has those with a structure.
    """
    # Allocate by torch, because kernels round differently at other alignments.
    values = torch.empty(tensor.shape, dtype=torch.float32, device="cpu")
    name = tensor.like or tensor.name
    if tensor.init in STRUCTURED:
        fill_structured(values.numpy(), tensor.init, tensor.amount, seed, name)
    else:
        fill(values.numpy(), distribution(tensor), seed, name)
    return values
