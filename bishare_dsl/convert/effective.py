"""The update of a site as a single low-rank pair."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch

from bishare_dsl.diagnostics import AdapterError, raise_errors
from bishare_dsl.diagnostics.codes import adapter as codes
from bishare_dsl.models.site import Site
from bishare_dsl.plan import Plan, Term
from bishare_dsl.transforms import Width, check_term, effective_pair, load_transform
from bishare_dsl.transforms.described import transform_text
from bishare_dsl.transforms.shipped.magnitude import bounded_ratio

MERGE = "merge the adapter into its base: `bishare merge FOLDER --model BASE --out NEW`"
"""Advice for operations that need low-rank updates, if the adapter has a magnitude."""


def effective_factors(
    plan: Plan, tensors: Mapping[str, torch.Tensor], site: Site, *, scaled: bool = False
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return all terms at a site as one pair, ``A (R, d_in)`` and ``B (R, d_out)``: ``dW = B^T A``.

    The result is float32 on the device of the first tensor, with the scales folded into B. R is
    `Plan.rows`, which is 0 if no term covers the site.

    Args:
        plan: the adapter's plan.
        tensors: its tensors by name, with values.
        site: a site of the plan.
        scaled: whether the caller applies the site's magnitude to W + dW.

    Raises:
        AdapterError: a term is nonlinear in its input and has no factors (BS633).
        SpecError: a package's transform fails, or returns a wrong shape (BS214).
    """
    width = Width(site.d_in, site.d_out)
    terms = [term for term in plan.terms_of[site.path] if not (scaled and term.is_magnitude)]
    check_linear(terms, f"give the factors of `{site.path}`")
    # The model, and so its pools, may span several devices.
    device = next((tensors[name].device for t in terms for name in t.tensors.values()), "cpu")
    downs = [torch.empty(0, width.d_in, device=device)]
    ups = [torch.empty(0, width.d_out, device=device)]
    for term in terms:
        transform = load_transform(term.transform, term.options)
        shapes = {role: plan.tensor[name].shape for role, name in term.tensors.items()}
        check_term(transform, term.rank, width, shapes)
        held = {role: tensors[name].detach() for role, name in term.tensors.items()}
        values = {role: value.to(device, torch.float32) for role, value in held.items()}
        down, up = effective_pair(transform, values, term.rank, width, term.scale)
        downs.append(down)
        ups.append(up)
    return torch.cat(downs), torch.cat(ups)


def finite_factors(
    plan: Plan, tensors: Mapping[str, torch.Tensor], site: Site, action: str
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the `effective_factors` of a site, after checking that dW does not overflow float32.

    Args:
        plan: the adapter's plan.
        tensors: the plan's tensors by name.
        site: a site of the plan.
        action: the operation, for the message.

    Raises:
        AdapterError: see `effective_factors`; or the product overflows (BS628).
    """
    down, up = effective_factors(plan, tensors, site)
    bound = down.double().norm() * up.double().norm()  # An upper bound of all entries.
    if not bound.float().isfinite():
        raise AdapterError(codes.NOT_FINITE(action=action, path=site.path))
    return down, up


def delta(
    plan: Plan, tensors: Mapping[str, torch.Tensor], site: Site, weight: torch.Tensor | None = None
) -> torch.Tensor:
    """Compute ``dW (d_out, d_in)`` of a site in float32. Other arguments are those of `effective_factors`.

    Args:
        weight: the base's W, ``(d_out, d_in)``, required if the site has a magnitude.
    """
    down, up = effective_factors(plan, tensors, site, scaled=weight is not None)
    added = up.t() @ down
    term = plan.magnitude(site.path)
    if weight is None or term is None:
        return added
    base = weight.to(added)
    mu = tensors[term.tensors["mu"]].detach().to(added).squeeze(0)
    return added + scale_changes(term, mu, base, base + added).unsqueeze(1) * (base + added)


def magnitude_vector(base: torch.Tensor, added: torch.Tensor, change: torch.Tensor) -> torch.Tensor:
    """Return DoRA's ``m (d_out)``, float32: ``diag(m / |W + dW|) (W + dW)`` is closest to the new weight.

    A row is NaN if W + dW is 0 there, which has no direction to scale.

    Args:
        base: W, ``(d_out, d_in)``.
        added: dW, before any magnitude.
        change: the whole change of the weight, see `delta`.
    """
    whole = base.to(added) + added
    lengths: torch.Tensor = whole.norm(dim=1)
    return ((base.to(added) + change.to(added)) * whole).sum(1) / lengths


def scale_changes(
    term: Term, mu: torch.Tensor, base: torch.Tensor, whole: torch.Tensor
) -> torch.Tensor:
    """Compute ``g - 1`` of each row for a magnitude from the weights.

    Args:
        term: the magnitude's term.
        mu: its values, ``(d_out)``.
        base: W, ``(d_out, d_in)``.
        whole: W + dW.
    """
    if term.options["plain"]:
        return mu
    return (1 + mu) * bounded_ratio(base.square().sum(1), whole.square().sum(1)) - 1


def check_low_rank(plan: Plan, action: str) -> None:
    """Check that no parameter is trained in full, which an action does not support.

    Raises:
        AdapterError: a parameter is trained in full (BS686).
    """
    if plan.trained:
        raise AdapterError(codes.NOT_LOW_RANK(action=action, path=plan.trained[0].parameter))


def check_linear(terms: Sequence[Term], action: str, help: str = MERGE) -> None:
    """Check that the update is a low-rank matrix, which an action requires.

    Args:
        terms: of the adapter.
        action: the action, for the message.
        help: what to do instead if there is a magnitude.

    Raises:
        AdapterError: shares are nonlinear (BS633, all listed), or there is a magnitude (BS675).
    """
    linear = [term for term in terms if not term.is_magnitude]
    shares = {t.share: transform_text(t.transform, t.options) for t in linear if not t.linear}
    problems = [
        codes.NOT_A_MATRIX(action=action, share=share, transform=transform)
        for share, transform in shares.items()
    ]
    if len(linear) < len(terms) and not problems:  # Merging does not help here.
        problems.append(codes.SCALES_BASE(action=action, help=help))
    raise_errors(AdapterError, problems)
