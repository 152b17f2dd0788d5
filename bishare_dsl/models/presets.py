"""Presets: well-known models by name, with the fields of their configs that determine shapes.

``presets.json`` holds the fields and values of their ``config.json`` files. The Hub ids of the 7B, 13B and 8B
Llamas and of Qwen 2.5 are the same as in the paper.
"""

from __future__ import annotations

from collections.abc import Mapping
from copy import deepcopy
from functools import cache
from pathlib import Path
from types import MappingProxyType
from typing import Any

from bishare_dsl.diagnostics import ModelError, nearest
from bishare_dsl.diagnostics.codes.models import UNKNOWN_MODEL
from bishare_dsl.diagnostics.record import Record
from bishare_dsl.models.decoder import decoder
from bishare_dsl.models.site import Architecture
from bishare_dsl.reading import parse_json


class Preset(Record):
    """A model's id on the Hub, and the fields of its ``config.json`` that determine shapes and positions."""

    model_id: str
    config: Mapping[str, Any]


# A family holds the fields that its models have in common.
_KNOWN = parse_json(Path(__file__).with_suffix(".json").read_bytes())


def _preset(family: str, model_id: str, **fields: Any) -> Preset:
    return Preset(model_id, MappingProxyType({**_KNOWN["families"][family], **fields}))


PRESETS: Mapping[str, Preset] = MappingProxyType(
    {name: _preset(**fields) for name, fields in _KNOWN["models"].items()}
)

ALIASES: Mapping[str, str] = MappingProxyType(_KNOWN["aliases"])
OWNERS: Mapping[str, str] = MappingProxyType(_KNOWN["owners"])
"""Owners of a family's models on the Hub, by the beginning of the models' names."""


@cache
def preset(name: str) -> Architecture:
    """Return the architecture of a preset. If ``name`` is an alias, its name is the preset's.

    Raises:
        ModelError: no preset has that name (BS501).
    """
    name = ALIASES.get(name, name)
    if name not in PRESETS:
        raise ModelError(UNKNOWN_MODEL(name=name, help=nearest(name, (*PRESETS, *ALIASES))))
    return decoder(name, PRESETS[name].model_id, PRESETS[name].config)


def config_of(name: str) -> dict[str, Any]:
    """Return the config fields of a preset, for ``AutoConfig.for_model(**fields)``.

    Raises:
        KeyError: no preset has that name.
    """
    # Copy, because transformers edits `rope_scaling` in place.
    return deepcopy(dict(PRESETS[ALIASES.get(name, name)].config))
