"""Models: sites, presets, inspection and loading.

The package imports torch and transformers only when a model or a config is read.
"""

from typing import TYPE_CHECKING

from bishare_dsl.lazy import lazy

if TYPE_CHECKING:
    from bishare_dsl.models.inspect import inspect_config, inspect_model
    from bishare_dsl.models.load import architecture_of, load_model, meta_model
    from bishare_dsl.models.presets import PRESETS, config_of, preset
    from bishare_dsl.models.site import Architecture, Site
    from bishare_dsl.models.source import Source, resolve

__getattr__ = lazy(
    __name__,
    {
        "inspect": "inspect_config inspect_model",
        "load": "architecture_of load_model meta_model",
        "presets": "PRESETS config_of preset",
        "site": "Architecture Site",
        "source": "Source resolve",
    },
)
