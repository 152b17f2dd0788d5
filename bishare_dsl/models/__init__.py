"""Models as the compiler sees them: sites, presets, inspection and loading.

Nothing here imports torch or transformers until a model or a config is read.
"""

from bishare_dsl.models.inspect import inspect_config, inspect_model
from bishare_dsl.models.load import architecture_of, load_model, meta_model
from bishare_dsl.models.presets import ALIASES, PRESETS, config_of, preset
from bishare_dsl.models.site import Architecture, Site
from bishare_dsl.models.source import resolve

__all__ = [
    "ALIASES",
    "PRESETS",
    "Architecture",
    "Site",
    "architecture_of",
    "config_of",
    "inspect_config",
    "inspect_model",
    "load_model",
    "meta_model",
    "preset",
    "resolve",
]
