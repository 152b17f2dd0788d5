"""Read a model's config from a preset, a folder, a JSON file, a GGUF file or the Hub."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bishare_dsl.diagnostics import ModelError, Problem, nearest, one_line
from bishare_dsl.diagnostics.codes.models import (
    BAD_SIZES,
    BROKEN_CONFIG,
    GGUF_BROKEN,
    UNKNOWN_FAMILY,
)
from bishare_dsl.diagnostics.codes.train import NEEDS_PACKAGE
from bishare_dsl.hub import cached_folder, require_hub
from bishare_dsl.models.presets import PRESETS, config_of
from bishare_dsl.models.source import Source
from bishare_dsl.reading import parse_json

if TYPE_CHECKING:
    from transformers import PreTrainedConfig


def read_config(source: Source) -> PreTrainedConfig:
    """Return the transformers config of a model, without reading weights.

    ``name_or_path`` of the config is the source of the model, as after ``from_pretrained``.

    Raises:
        ModelError: the config cannot be fetched or read (BS504 to BS511).
    """
    from transformers import AutoConfig

    config: PreTrainedConfig
    path = Path(source.place)
    match source.kind:
        case "preset":
            config = AutoConfig.for_model(**config_of(source.place))
            config.name_or_path = PRESETS[source.place].model_id
            return config
        case "gguf":
            require_gguf(path)
        case "folder":
            _check_json(path / "config.json")
        case "config":
            _check_json(path)
    # Revisions do not change shapes, so a cached config will do.
    place, keywords = arguments(source, cached=True)
    try:
        config = AutoConfig.from_pretrained(place, **keywords)
    # Checks of model families and readers of raw bytes may raise anything.
    except Exception as error:
        raise ModelError(_unreadable(source, one_line(error))) from error
    config.name_or_path = source.place
    return config


def arguments(source: Source, *, cached: bool = False) -> tuple[str, dict[str, Any]]:
    """Return the name and the keywords to pass to ``from_pretrained``.

    Args:
        source: of the model.
        cached: whether to prefer the local cache over the Hub.

    Raises:
        ModelError: the Hub refuses the model, and the cache does not have it (BS504, BS505).
    """
    keywords: dict[str, Any] = {"trust_remote_code": False}
    if source.kind == "gguf":
        path = Path(source.place)
        return str(path.parent), {**keywords, "gguf_file": path.name, "local_files_only": True}
    if source.kind == "hub":
        # Pass the folder, not the id with `local_files_only`: transformers 5.24 would still search the
        # Hub for an adapter_config.json, for 23 seconds.
        folder = cached_folder(source.place)
        try:
            if folder is None or not cached:
                require_hub(source.place)
                return source.place, keywords
        except ModelError:
            if folder is None:
                raise
        return str(folder), keywords
    return source.place, keywords


def _unreadable(source: Source, reason: str) -> Problem:
    if source.kind == "gguf":
        return GGUF_BROKEN(path=Path(source.place), reason=reason)
    return BAD_SIZES(name=source.place, reason=reason)


def require_gguf(path: Path) -> None:
    """Check that ``path`` begins like a GGUF file and that the package to read it is installed.

    Raises:
        ModelError: the package is missing (BS735), or the file is not GGUF (BS511).
    """
    if find_spec("gguf") is None:
        help = "run `pip install 'bishare[gguf]'`"
        raise ModelError(NEEDS_PACKAGE(what=f"reading `{path}`", package="gguf", help=help))
    try:
        with path.open("rb") as file:
            magic = file.read(4)
    except OSError as error:
        raise ModelError(GGUF_BROKEN(path=path, reason=error.strerror)) from error
    if magic != b"GGUF":
        raise ModelError(GGUF_BROKEN(path=path, reason="it does not begin with the bytes GGUF"))


def _check_json(path: Path) -> None:
    """Check that ``path`` is a JSON object with a ``model_type`` that the installed transformers knows."""
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    try:
        fields = parse_json(path.read_bytes())
    except (OSError, ValueError) as error:
        raise ModelError(BROKEN_CONFIG(path=path, reason=one_line(error))) from error
    if not isinstance(fields, dict):
        raise ModelError(BROKEN_CONFIG(path=path, reason="it is not a JSON object"))
    family = fields.get("model_type")
    if not isinstance(family, str):
        reason = "has no model_type"
        raise ModelError(
            UNKNOWN_FAMILY(path=path, reason=reason, help='add it, as in "model_type": "llama"')
        )
    if family not in CONFIG_MAPPING:
        help = nearest(family, CONFIG_MAPPING.keys())
        if "auto_map" in fields:
            help = "it brings its own code, which bishare never runs"
        reason = f"has the model_type `{family}`, which the installed transformers does not know"
        raise ModelError(UNKNOWN_FAMILY(path=path, reason=reason, help=help))
