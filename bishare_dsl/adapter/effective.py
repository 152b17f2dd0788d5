"""What an adapter adds to a site, as one plain low-rank pair."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from bishare_dsl.models.site import Site
from bishare_dsl.plan import Plan
from bishare_dsl.transforms import Width, transform_kinds


def effective_factors(
    plan: Plan, tensors: Mapping[str, torch.Tensor], site: Site
) -> tuple[torch.Tensor, torch.Tensor]:
    """All terms of a site as one pair, ``A (R, d_in)`` and ``B (R, d_out)``: ``dW = B^T A``.

    Float32 on the device of the first tensor, the scales folded into B. R is `Plan.rows`; it is 0 where no
    term covers the site.

    Args:
        plan: the adapter's plan.
        tensors: its tensors by name, with values.
        site: one of the plan's.
    """
    width = Width(site.d_in, site.d_out)
    terms = plan.terms_of[site.path]
    # A model may be spread over devices, and a pool with it.
    device = next((tensors[name].device for t in terms for name in t.tensors.values()), "cpu")
    kinds = transform_kinds()
    downs = [torch.empty(0, width.d_in, device=device)]
    ups = [torch.empty(0, width.d_out, device=device)]
    for term in terms:
        transform = kinds[term.transform].model_validate(term.options)
        values = {
            role: tensors[name].detach().to(device, torch.float32)
            for role, name in term.tensors.items()
        }
        down, up = transform.factors(values, term.rank, width)
        downs.append(down)
        ups.append(term.scale * up)
    return torch.cat(downs), torch.cat(ups)


def delta(plan: Plan, tensors: Mapping[str, torch.Tensor], site: Site) -> torch.Tensor:
    """``dW (d_out, d_in)`` of a site, float32; arguments as in `effective_factors`."""
    down, up = effective_factors(plan, tensors, site)
    return up.t() @ down
