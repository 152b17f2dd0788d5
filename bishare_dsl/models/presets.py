"""Well-known models by name: enough of each one's ``config.json`` to know, or to build, its shapes.

They stand in ``presets.json``, with the fields and the values of their own configs. The Hub ids of the 7B,
13B and 8B Llamas and of Qwen 2.5 are those that the paper used.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from copy import deepcopy
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import MappingProxyType
from typing import Any

from bishare_dsl.diagnostics import ModelError, nearest
from bishare_dsl.diagnostics.codes.models import UNKNOWN_MODEL
from bishare_dsl.models.decoder import decoder
from bishare_dsl.models.site import Architecture


@dataclass(frozen=True, slots=True)
class Preset:
    """A model's id on the Hub, and the fields of its ``config.json`` that shapes and positions need."""

    model_id: str
    config: Mapping[str, Any]


# Families have what their models have in common.
_KNOWN = json.loads(Path(__file__).with_suffix(".json").read_bytes())


def _preset(family: str, model_id: str, **own: Any) -> Preset:
    return Preset(model_id, MappingProxyType({**_KNOWN["families"][family], **own}))


PRESETS: Mapping[str, Preset] = MappingProxyType(
    {name: _preset(**fields) for name, fields in _KNOWN["models"].items()}
)

ALIASES: Mapping[str, str] = MappingProxyType(_KNOWN["aliases"])
OWNERS: Mapping[str, str] = MappingProxyType(_KNOWN["owners"])
"""Who has models of a family on the Hub, by what their names begin with."""


@cache
def preset(name: str) -> Architecture:
    """Return the architecture of a preset, under its own name where ``name`` is an alias.

    Raises:
        ModelError: no preset has that name (BS501).
    """
    name = ALIASES.get(name, name)
    if name not in PRESETS:
        raise ModelError(UNKNOWN_MODEL(name=name, help=nearest(name, (*PRESETS, *ALIASES))))
    return decoder(name, PRESETS[name].model_id, PRESETS[name].config)


def config_of(name: str) -> dict[str, Any]:
    """Return the configuration fields of a preset, as ``AutoConfig.for_model(**fields)`` takes them.

    Raises:
        KeyError: no preset has that name.
    """
    # Copies: transformers edits the `rope_scaling` that it is given.
    return deepcopy(dict(PRESETS[ALIASES.get(name, name)].config))
