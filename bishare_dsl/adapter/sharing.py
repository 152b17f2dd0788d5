"""Who shares what, as it stands in a folder for readers that know no spec: `docs/format.md`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from bishare_dsl.adapter.config import AdapterConfig, key_of, part_name, text_of
from bishare_dsl.adapter.counter import distribution
from bishare_dsl.diagnostics import AdapterError
from bishare_dsl.diagnostics.codes import adapter as codes
from bishare_dsl.plan import Plan, Tensor, Term
from bishare_dsl.plan.plan import Trained
from bishare_dsl.transforms import load_transform

FORMAT = 1
"""That of the page."""


def sharing_of(plan: Plan, config: AdapterConfig) -> str:
    """Return the plan as a reader needs it: a text of JSON, with all that a spec leaves to defaults."""
    alike = {(term.share, term.rank): term for term in plan.terms}  # Few, whose transforms are one.
    options = {key: _options(term) for key, term in alike.items()}
    said = {
        "format": FORMAT,
        "tensors": {
            tensor.name: _tensor(plan, config, tensor)
            for tensor in plan.tensors
            if tensor.name not in config.of_base
        },
        "modules": [
            {"module": site.path, "shape": [site.d_out, site.d_in]}
            | ({"tied": [*site.tied]} if site.tied else {})
            | ({} if site.expert is None else {"expert": site.expert})
            | {"terms": [_term(t, options[t.share, t.rank]) for t in plan.terms_of[site.path]]}
            for site in plan.sites
            if plan.terms_of[site.path]
        ],
        "full": [
            _full(trained) for trained in plan.trained if trained.tensor not in config.of_base
        ],
    }
    return text_of(said)


def check_sharing(path: Path, plan: Plan, config: AdapterConfig) -> None:
    """Check that what the config says to other readers is what its spec gives.

    Raises:
        AdapterError: it is not (BS607).
    """
    if not config._right and config.sharing not in (None, sharing_of(plan, config)):
        reason = "its `sharing` is not what its spec gives"
        raise AdapterError(codes.CHANGED_FILE(path=path, reason=reason))
    config._right[:] = [True]


def _tensor(plan: Plan, config: AdapterConfig, tensor: Tensor) -> dict[str, Any]:
    said: dict[str, Any] = {"shape": [*tensor.shape]}
    if (drawn := config.drawn.get(tensor.name)) is not None:
        how = distribution(tensor)
        if tensor.like:
            said["like"] = tensor.like
        return said | {
            "dtype": drawn.dtype,
            "draw": {"torch": how} if drawn.generator == "torch" else how,
        }
    if (labels := config.compact.get(tensor.name)) is not None:
        return said | {"parts": {p: key_of(plan, part_name(tensor.name, p)) for p in labels}}
    if tensor.name in config.marks:
        return said | {"base": {tensor.init: tensor.amount}}
    return said | {"key": key_of(plan, tensor.name)}


def _options(term: Term) -> dict[str, Any]:
    return load_transform(term.transform, term.options).model_dump(mode="json", by_alias=True)


def _term(term: Term, options: dict[str, Any]) -> dict[str, Any]:
    return {
        "transform": term.transform,
        "options": options,
        "rank": term.rank,
        "scale": term.scale,
        "tensors": term.tensors,
    }


def _full(trained: Trained) -> dict[str, Any]:
    tied = {"tied": [*trained.tied]} if trained.tied else {}
    return {
        "parameter": trained.parameter,
        "shape": [*trained.shape],
        "tensor": trained.tensor,
    } | tied
