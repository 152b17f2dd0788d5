"""A weighted sum of adapters of one spec, as a new adapter."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from bishare_dsl.compiler import read_spec
from bishare_dsl.diagnostics import AdapterError
from bishare_dsl.diagnostics.codes import adapter as codes
from bishare_dsl.spec import Binary, Expression, Ref, Share, Spec

if TYPE_CHECKING:
    import torch

    from bishare_dsl.adapter.handle import Adapter
    from bishare_dsl.plan import Plan


def weighted_spec(adapters: Sequence[Adapter], weights: Sequence[float]) -> Spec:
    """Return a spec with each share repeated for each adapter, multiplied by its weight.

    The new adapter adds exactly ``sum of w_i dW_i``; its rank is the sum of the ranks.

    Raises:
        AdapterError: the adapters have different specs, are not linear, or train parameters in full, or a
            weight is zero or not a number (BS672).
    """
    first = adapters[0]
    reason = help = None
    if any(adapter.spec_text != first.spec_text for adapter in adapters):
        reason = "they are of several specs"
        help = "`export` each as a LoRA of PEFT, and add these by PEFT"
    elif whole := first.saved_plan.trained:
        reason = f"they train `{whole[0].parameter}` in full"
    elif wrong := next((term for term in first.saved_plan.terms if not term.linear), None):
        reason = f"share `{wrong.share}` is not linear ({wrong.transform})"
    elif len(adapters) != len(weights) or not all(w and math.isfinite(w) for w in weights):
        reason = f"there are {len(adapters)} adapters, and the weights are {[*weights]}"
        help = f"give each a finite weight other than 0: `weights={[1.0] * len(adapters)}`"
    if reason is not None:
        raise AdapterError(codes.NOT_WEIGHTED(reason=reason, help=help))
    spec, _ = read_spec(first.spec_text if "\n" in first.spec_text else f"{first.spec_text}\n")
    shares = [
        _times(spec, share, number, weight * adapter.scale)
        for number, (adapter, weight) in enumerate(zip(adapters, weights, strict=True))
        for share in spec.shares
    ]
    defaults = spec.defaults.model_copy(update={"alpha": None, "scale": None})
    return spec.model_copy(update={"shares": tuple(shares), "defaults": defaults})


def weighted_tensors(
    adapters: Sequence[Adapter], weights: Sequence[float], plan: Plan
) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield the tensors of the sum by name.

    Raises:
        AdapterError: the plan of the sum does not match its parts (BS672).
    """
    for number, (adapter, weight) in enumerate(zip(adapters, weights, strict=True)):
        tensors, sums = adapter.tensors(), {(t.share, t.site): t for t in plan.terms}
        for term in adapter.saved_plan.terms:
            summed = sums.get((_name(term.share, number), term.site))
            scale = term.scale * weight * adapter.scale
            if (
                summed is None
                or summed.tensors.keys() != term.tensors.keys()
                or not math.isclose(summed.scale, scale)
            ):
                reason = f"share `{term.share}` at `{term.site}` has no equal in the sum"
                raise AdapterError(codes.NOT_WEIGHTED(reason=reason))
            for role, name in summed.tensors.items():
                yield name, tensors[term.tensors[role]]


def _name(share: str, number: int) -> str:
    base, dot, start = share.partition(".")  # A subtracted initial value is a separate share.
    return f"{base}_{number + 1}{dot}{start}"


def _times(spec: Spec, share: Share, number: int, weight: float) -> Share:
    settings = spec.settings(share)
    factor: Expression = weight if weight > 0 else Binary(op="-", left=0, right=-weight)
    scale = settings.scale
    if scale is None and settings.alpha is not None:
        scale = Binary(op="/", left=settings.alpha, right=Ref(ref="rank"))
    scale = factor if scale is None else Binary(op="*", left=scale, right=factor)
    update = {"name": _name(share.name, number), "alpha": settings.alpha, "scale": scale}
    return share.model_copy(update=update)
