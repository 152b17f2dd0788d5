"""What an adapter adds to a site, as one plain low-rank pair."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch

from bishare_dsl.diagnostics import AdapterError
from bishare_dsl.diagnostics.codes import adapter as codes
from bishare_dsl.models.site import Site
from bishare_dsl.plan import Plan, Term
from bishare_dsl.transforms import Width, check_term, effective_pair, load_transform


def effective_factors(
    plan: Plan, tensors: Mapping[str, torch.Tensor], site: Site
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return all terms of a site as one pair, ``A (R, d_in)`` and ``B (R, d_out)``: ``dW = B^T A``.

    Float32 on the device of the first tensor, the scales folded into B. R is `Plan.rows`; it is 0 where no
    term covers the site.

    Args:
        plan: the adapter's plan.
        tensors: its tensors by name, with values.
        site: one of the plan's.

    Raises:
        AdapterError: a term there is not linear in its input, so that there are no factors (BS633).
        SpecError: a package's transform fails, or gives something of another shape (BS214).
    """
    width = Width(site.d_in, site.d_out)
    terms = plan.terms_of[site.path]
    check_linear(terms, f"give the factors of `{site.path}`")
    # A model may be spread over devices, and a pool with it.
    device = next((tensors[name].device for t in terms for name in t.tensors.values()), "cpu")
    downs = [torch.empty(0, width.d_in, device=device)]
    ups = [torch.empty(0, width.d_out, device=device)]
    for term in terms:
        transform = load_transform(term.transform, term.options)
        shapes = {role: plan.tensor[name].shape for role, name in term.tensors.items()}
        check_term(transform, term.rank, width, shapes)
        values = {
            role: tensors[name].detach().to(device, torch.float32)
            for role, name in term.tensors.items()
        }
        down, up = effective_pair(transform, values, term.rank, width, term.scale)
        downs.append(down)
        ups.append(up)
    return torch.cat(downs), torch.cat(ups)


def finite_factors(
    plan: Plan, tensors: Mapping[str, torch.Tensor], site: Site, action: str
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the `effective_factors` of a site, whose update is numbers of float32.

    Args:
        plan: as in `effective_factors`, and so are the next ones.
        tensors: those of the plan.
        site: one of the plan's.
        action: what they are for.

    Raises:
        AdapterError: as `effective_factors`; or their product overflows (BS628).
    """
    down, up = effective_factors(plan, tensors, site)
    bound = down.double().norm() * up.double().norm()  # No entry of the product is larger.
    if not bound.float().isfinite():
        raise AdapterError(codes.NOT_FINITE(action=action, path=site.path))
    return down, up


def delta(plan: Plan, tensors: Mapping[str, torch.Tensor], site: Site) -> torch.Tensor:
    """Compute ``dW (d_out, d_in)`` of a site, float32; arguments as in `effective_factors`."""
    down, up = effective_factors(plan, tensors, site)
    return up.t() @ down


def check_low_rank(plan: Plan, action: str) -> None:
    """See that nothing is trained in full, which an action cannot have.

    Raises:
        AdapterError: something is (BS686).
    """
    if plan.trained:
        raise AdapterError(codes.NOT_LOW_RANK(action=action, path=plan.trained[0].parameter))


def check_linear(terms: Sequence[Term], action: str) -> None:
    """Check that what terms add is a matrix, which an action needs.

    Raises:
        AdapterError: it is not; every share of which it is not is named (BS633).
    """
    shares = {term.share: term.transform for term in terms if not term.linear}
    if shares:
        raise AdapterError(
            codes.NOT_A_MATRIX(action=action, share=share, transform=transform)
            for share, transform in shares.items()
        )
