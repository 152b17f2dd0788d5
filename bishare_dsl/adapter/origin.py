"""Where an adapter comes from: its base's name, class and fingerprint."""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING, Any, cast

from bishare_dsl.adapter.fingerprint import Fingerprint, compare, fingerprint
from bishare_dsl.diagnostics import Problem
from bishare_dsl.diagnostics.codes import adapter as codes

if TYPE_CHECKING:
    from bishare_dsl.adapter.config import AdapterConfig


def origin_of(handle: Any) -> dict[str, Any]:
    """Return the fields of `ORIGIN` for the adapters in a model. PEFT adds heads for other tasks."""
    from bishare_dsl.export.peft import task_type
    from bishare_dsl.rewrite.rewritten import base_class

    model: Any = handle.model
    kind, task = base_class(type(model)), task_type(model)
    return {
        "base_model": vars(model).get("name_or_path") or None,
        "base_revision": getattr(getattr(model, "config", None), "_commit_hash", None),
        "auto_mapping": {"base_model_class": kind.__name__, "parent_library": kind.__module__},
        "task_type": task if task in ("CAUSAL_LM", "SEQ_2_SEQ_LM") else None,
        "fingerprint": fingerprint_of(handle),
    }


def fingerprint_of(handle: Any) -> Fingerprint | None:
    """Return the fingerprint of the base under adapters, or None if its weights are not here.

    It is computed once: only merging changes the base under its adapters.
    """
    if "fingerprint" not in vars(handle) and not handle.merged:
        vars(handle)["fingerprint"] = None
        with suppress(Exception):  # A quantiser may raise anything, and a save must not fail.
            vars(handle)["fingerprint"] = fingerprint(handle.model)
    return cast("Fingerprint | None", vars(handle).get("fingerprint"))


def base_changes(handle: Any, config: AdapterConfig) -> list[Problem]:
    """Warn if the weights of a base are not those that an adapter was saved on (BS620)."""
    if (saved := config.fingerprint) is None or (found := fingerprint_of(handle)) is None:
        return []
    verdict, apart = compare(saved, found)
    return [codes.OTHER_FINGERPRINT(apart=f"{apart:.1g}")] if verdict == "other" else []
