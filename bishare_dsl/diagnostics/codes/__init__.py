"""The registry of diagnostic codes, one file per stage; messages, docs pages and tests all read it.

BS1xx parsing; BS2xx specs; BS3xx specs on a model; BS4xx rewriting; BS5xx finding and loading models; BS6xx
saving, loading, merging and exporting adapters; BS7xx training and its data; BS80x to BS84x evaluating;
BS85x analysing; BS86x and BS87x verifying; BS9xx usage.
"""

from __future__ import annotations

from importlib import import_module
from pkgutil import iter_modules

from bishare_dsl.diagnostics.problem import Code


def registry() -> dict[str, Code]:
    """Return all codes by name, sorted."""
    stages = [import_module(f"{__name__}.{stage.name}") for stage in iter_modules(__path__)]
    codes = [v for stage in stages for v in vars(stage).values() if isinstance(v, Code)]
    return {code.code: code for code in sorted(codes, key=lambda code: code.code)}
