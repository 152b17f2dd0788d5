"""The registry of diagnostic codes, one file a stage; messages, docs pages and tests all read it.

BS1xx reading text; BS2xx a spec's own meaning; BS3xx a spec against a model; BS4xx rewriting;
BS5xx finding and loading models; BS6xx adapters: saving, loading, merging, exporting;
BS7xx training, its data first; BS80x to BS84x evaluating; BS85x analysing; BS9xx usage.
"""

from __future__ import annotations

from importlib import import_module
from pkgutil import iter_modules

from bishare_dsl.diagnostics.problem import Code


def registry() -> dict[str, Code]:
    """Return every code by its name, in order."""
    stages = [import_module(f"{__name__}.{stage.name}") for stage in iter_modules(__path__)]
    found = [v for stage in stages for v in vars(stage).values() if isinstance(v, Code)]
    return {code.code: code for code in sorted(found, key=lambda code: code.code)}
