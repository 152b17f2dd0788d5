"""``sharing``: the plan in a folder, for readers without the spec; specified in `docs/format.md`.

bishare writes it to every folder, and compares it with the plan of the spec on loading.
"""

from __future__ import annotations

import json
from typing import Any

from bishare_dsl.adapter.config import (
    FORMAT,
    AdapterConfig,
    DrawnTensor,
    SignFingerprint,
    key_of,
    part_name,
    text_of,
)
from bishare_dsl.adapter.counter import distribution
from bishare_dsl.plan import Plan, Tensor
from bishare_dsl.plan.bits import BITS, SCALES
from bishare_dsl.plan.plan import Term, Trained
from bishare_dsl.transforms import load_transform

UNNAMED = "its base"
"""The name of a base in messages, if the folder has none."""


# Writing ------------------------------------------------------------------------------------------------


def sharing_of(plan: Plan, config: AdapterConfig) -> str:
    """Return a plan as JSON text, with all defaults of the spec resolved."""
    listed = [tensor for tensor in plan.tensors if tensor.name not in config.of_base]
    place = {tensor.name: i for i, tensor in enumerate(listed)}
    entries = [_entry(plan, config, tensor) for tensor in listed]
    terms: dict[str, int] = {}
    modules, needs = [], set[str]()
    options: dict[tuple[str, int], dict[str, Any]] = {}
    for site in (site for site in plan.sites if plan.terms_of[site.path]):
        terms_here = []
        for term in plan.terms_of[site.path]:
            kind = (term.share, term.rank)  # With equal options.
            options[kind] = options.get(kind) or _options(term)
            text = text_of(
                {
                    "transform": term.transform,
                    "options": options[kind],
                    "rank": term.rank,
                    "scale": term.scale,
                    "roles": [*term.tensors],
                }
            )
            terms_here.append(
                [terms.setdefault(text, len(terms)), *map(place.get, term.tensors.values())]
            )
            needs.add(term.transform)
        module: dict[str, Any] = {"module": site.path, "shape": [site.d_out, site.d_in]}
        if all(term.linear for term in plan.terms_of[site.path]):
            module["rank"] = plan.rows(site.path)
        if site.tied:
            module["tied"] = [*site.tied]
        if site.expert is not None:
            module["expert"] = site.expert
        modules.append(module | {"terms": terms_here})
        needs |= {word for word, key in (("tied", "tied"), ("experts", "expert")) if key in module}
    full = [_full(t) | {"tensor": place[t.tensor]} for t in plan.trained if t.tensor in place]
    ways = (("draw", "drawn"), *((key, key) for key in ("base", *BITS)))
    needs |= {word for key, word in ways if any(key in entry for entry in entries)}
    needs |= {"full"} if full else set()
    needs |= {"tied"} if any("tied" in parameter for parameter in full) else set()
    needs |= {"library"} if config.adapters else set()
    stated = {"format": FORMAT, "needs": sorted(needs), "tensors": entries}
    stated |= {"terms": [json.loads(text) for text in terms], "modules": modules, "full": full}
    return text_of(stated)


def _entry(plan: Plan, config: AdapterConfig, tensor: Tensor) -> dict[str, Any]:
    entry: dict[str, Any] = {"shape": [*tensor.shape]}
    if (drawn := config.drawn.get(tensor.name)) is not None:
        how = distribution(tensor)
        return entry | {
            "draw": how,
            "text": f"{config.seed}:{tensor.like or tensor.name}",
            "dtype": drawn.dtype,
            "sha256": drawn.sha256,
        }
    if (labels := config.compact.get(tensor.name)) is not None:
        keys = {p: key_of(plan, part_name(tensor.name, p)) for p in labels}
        return entry | keys
    if (marks := config.marks.get(tensor.name)) is not None:
        return entry | {"base": {tensor.init: tensor.amount}} | marks.model_dump(mode="json")
    return entry | {"key": key_of(plan, tensor.name)}


def _options(term: Term) -> dict[str, Any]:
    return load_transform(term.transform, term.options).model_dump(mode="json", by_alias=True)


def _full(trained: Trained) -> dict[str, Any]:
    tied = {"tied": [*trained.tied]} if trained.tied else {}
    return {"parameter": trained.parameter, "shape": [*trained.shape]} | tied


# Reading ------------------------------------------------------------------------------------------------


def contents_of(plan: Plan, stated: Any) -> dict[str, Any]:
    """Return the plan's tensors that are random, quantised, recomputed or the base's, for `AdapterConfig`.

    `stated` lists the tensors in the order of the plan; the caller compares it with what the plan gives.

    Raises:
        ValueError: it has another form.
    """
    try:
        listed = {full["parameter"] for full in stated["full"]}
        of_base = tuple(t.tensor for t in plan.trained if t.parameter not in listed)
        names = [tensor.name for tensor in plan.tensors if tensor.name not in of_base]
        entries = dict(zip(names, stated["tensors"], strict=True))
        drawn = {
            name: DrawnTensor(dtype=entry["dtype"], sha256=entry["sha256"])
            for name, entry in entries.items()
            if "draw" in entry
        }
        marks = {
            name: SignFingerprint(signs=entry["signs"], sums=entry["sums"])
            for name, entry in entries.items()
            if "base" in entry
        }
        forms = {n: next((bits for bits in BITS if bits in e), None) for n, e in entries.items()}
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"a field of `sharing` is missing or unknown: {error!r}") from error
    compact = {name: (form, SCALES) for name, form in forms.items() if form is not None}
    return {"drawn": drawn, "marks": marks, "compact": compact, "of_base": of_base}
