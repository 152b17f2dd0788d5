"""Load the shapes of a model, a model without weights, or a model with weights."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from bishare_dsl.diagnostics import ModelError, one_line
from bishare_dsl.diagnostics.codes.models import BROKEN_WEIGHTS, GGUF_BROKEN, NO_WEIGHTS
from bishare_dsl.models.decoder import plain_decoder
from bishare_dsl.models.presets import PRESETS, preset
from bishare_dsl.models.site import Architecture
from bishare_dsl.models.source import Source, resolve

if TYPE_CHECKING:
    import torch
    from torch import nn
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

_PRESET_OF = {known.model_id: name for name, known in PRESETS.items()}
_TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "tokenizer.model", "vocab.json")


def architecture_of(model: str | Source | Architecture | nn.Module) -> Architecture:
    """Return the shapes of a model, with as little work as possible.

    A preset, or the Hub id of a preset, needs neither torch nor the network. For other names the config
    is read, never the weights.

    Args:
        model: a preset, a checkpoint folder, a ``config.json``, a ``.gguf`` file or a Hub id; its
        source; a model;
            or its shapes.

    Raises:
        ModelError: the model cannot be found, read or understood (BS501 to BS511, BS514).
    """
    if isinstance(model, Architecture):
        return model
    if not isinstance(model, (str, Source)):
        from bishare_dsl.models.inspect import inspect_model

        return inspect_model(model)
    source = resolve(model)
    if source.kind == "preset":
        return preset(source.place)
    if source.place in _PRESET_OF:
        return preset(_PRESET_OF[source.place]).model_copy(update={"name": source.place})
    if source.kind in ("folder", "config"):
        place = Path(source.place)
        config = place / "config.json" if source.kind == "folder" else place
        if (plain := plain_decoder(source.name, config)) is not None:
            return plain

    from bishare_dsl.models.inspect import inspect_model

    return inspect_model(meta_model(source), source.name)


def meta_model(name: str | Source) -> PreTrainedModel:
    """Return a model on the meta device: its modules and shapes, without weights.

    Raises:
        ModelError: see `architecture_of`.
    """
    from bishare_dsl.models.config import read_config
    from bishare_dsl.models.inspect import model_on_meta

    source = resolve(name)
    return model_on_meta(read_config(source), source.name)


def require_weights(name: str | Source) -> Source:
    """Return the source of a model that has weights.

    Raises:
        ModelError: see `resolve`; or the model has shapes only (BS512).
    """
    source = resolve(name)
    if source.kind in ("preset", "config"):
        help = "give a folder with this config.json and the weights, a .gguf file or a Hub id"
        if source.kind == "preset":
            known = PRESETS[source.place].model_id
            help = f"its weights are `{known}` on the Hub; or give a folder or a .gguf file"
        raise ModelError(NO_WEIGHTS(name=source.place, help=help))
    return source


def load_model(
    name: str | Source,
    *,
    dtype: torch.dtype | str | None = None,
    device: str | dict[str, str] | None = None,
    bits: int | None = None,
    causal: bool = True,
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase | None]:
    """Load a model with its weights, in eval mode, and its tokenizer or None.

    A ``.gguf`` file is unpacked into a dense model, which can be merged, trained and saved.

    Args:
        name: a checkpoint folder, a ``.gguf`` file or a Hub id.
        dtype: of the parameters; by default the checkpoint's.
        device: a ``device_map`` of ``from_pretrained`` (``"cuda"``, ``"auto"``, ``{"": "disk"}``); by default
            the CPU.
        causal: whether to require a decoder-only model.
        bits: 4 (NF4) or 8 quantises linear layers except the head with bitsandbytes; by default as in the
            checkpoint.

    Raises:
        ModelError: see `architecture_of`; or the model has no weights (BS512), or they do not load (BS513).
    """
    source = require_weights(name)

    from transformers import BitsAndBytesConfig

    from bishare_dsl.models.config import arguments, read_config
    from bishare_dsl.models.inspect import auto_class

    config = read_config(source)
    auto = auto_class(config, source.name, causal=causal)
    place, extra = arguments(source)
    loading: dict[str, Any] = {"dtype": dtype or "auto", "device_map": device}
    if bits is not None:
        loading["quantization_config"] = BitsAndBytesConfig(
            load_in_4bit=bits == 4,
            load_in_8bit=bits == 8,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=_compute_dtype(config, dtype),
        )
    elif source.kind == "gguf":
        loading |= {"config": config, **_unpacked()}  # avoids reading the config again, for seconds
    try:
        loaded: Any = auto.from_pretrained(place, output_loading_info=True, **loading, **extra)
    except Exception as error:  # readers of foreign bytes may raise anything
        reason = one_line(error)
        if source.kind == "gguf":
            raise ModelError(GGUF_BROKEN(path=source.place, reason=reason)) from error
        raise ModelError(BROKEN_WEIGHTS(name=source.place, reason=reason)) from error
    model: PreTrainedModel = loaded[0]
    if missing := sorted(loaded[1]["missing_keys"]):
        more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
        reason = f"`{missing[0]}`{more} is not in the checkpoint"
        raise ModelError(BROKEN_WEIGHTS(name=source.place, reason=reason))
    model.config.name_or_path = source.place
    return model, _tokenizer(source, place, extra)


def _compute_dtype(config: Any, dtype: torch.dtype | str | None) -> torch.dtype | str:
    """Return the dtype in which quantised layers compute: the dtype of the other layers."""
    import torch

    return dtype or getattr(config, "dtype", None) or torch.float32


def load_tokenizer(name: str | Source) -> PreTrainedTokenizerBase | None:
    """Load the tokenizer that `load_model` returns, without the model.

    Raises:
        ModelError: see `require_weights`.
    """
    source = require_weights(name)
    from bishare_dsl.models.config import arguments

    return _tokenizer(source, *arguments(source))


def _tokenizer(source: Source, place: str, extra: dict[str, Any]) -> PreTrainedTokenizerBase | None:
    from transformers import AutoTokenizer

    # For a folder without a tokenizer, AutoTokenizer may invent an empty one from the model's family.
    folder = Path(place)
    local = source.kind != "gguf" and folder.is_dir()
    if local and not any((folder / file).is_file() for file in _TOKENIZER_FILES):
        return None
    try:
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(place, **extra)
    except Exception:  # noqa: BLE001 - a model without a usable tokenizer is still a model
        return None
    return tokenizer


def _unpacked() -> dict[str, Any]:
    """Return arguments that make transformers unpack a GGUF file, as versions before 5.24 always do."""
    import transformers

    gguf_config = getattr(transformers, "GgufConfig", None)
    return {} if gguf_config is None else {"quantization_config": gguf_config(dequantize=True)}
