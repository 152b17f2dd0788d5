"""The parts of PEFT's ``adapter_config.json`` that are read, from an untrusted file."""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Annotated

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, FiniteFloat

from bishare_dsl.diagnostics import AdapterError, one_line
from bishare_dsl.diagnostics.codes import adapter as codes
from bishare_dsl.models.site import Architecture, most_parameters
from bishare_dsl.reading import MAX_CONFIG, parse_json, read_file

if TYPE_CHECKING:
    import torch

CONFIG = "adapter_config.json"
TENSORS = "adapter_model.safetensors"
PREFIX = "base_model.model."
"""PEFT's prefix for the names of the base's modules."""

BYTES_EACH = 8  # float64

# PEFT's fields that make a LoRA something else or change the base.
_REFUSED = (
    "lora_bias", "trainable_token_indices", "layer_replication", "alora_invocation_tokens",
    "use_qalora", "use_bdlora", "arrow_config", "kasa_config", "monteclora_config",
)  # fmt: skip
_CHOOSING = ("target_modules", "exclude_modules", "layers_to_transform", "layers_pattern")
_PLAIN_STARTS = ("gaussian", "eva", "orthogonal", "mica")

_ENDLESS = re.compile(r"\)[*+?{]|\(\?|\\\d|([*+?{].*){3}", re.DOTALL)
"""Parts of a regular expression that may take exponential time: repeated groups, and many repetitions."""

_Rank = Annotated[int, Field(gt=0, lt=2**31)]
_Map = BeforeValidator(lambda value: {} if value is None else value)
_MOST = Field(max_length=10_000)
"""Each pattern is compiled, and tried on each module."""


class PeftConfig(BaseModel):
    """The fields that determine a LoRA's update, with PEFT's defaults. Other fields are stored unread."""

    model_config = ConfigDict(frozen=True, extra="allow")

    peft_type: str | None = None
    base_model_name_or_path: str | None = None
    r: _Rank = 8
    lora_alpha: FiniteFloat = 8
    lora_dropout: Annotated[float, Field(ge=0, lt=1), BeforeValidator(lambda value: value or 0)] = 0
    use_rslora: bool = False
    use_dora: bool = False
    bias: str = "none"
    init_lora_weights: bool | str | None = None
    rank_pattern: Annotated[dict[str, _Rank], _Map, _MOST] = {}
    alpha_pattern: Annotated[dict[str, FiniteFloat], _Map, _MOST] = {}
    target_parameters: Annotated[tuple[str, ...], BeforeValidator(lambda value: value or ())] = ()

    @property
    def base(self) -> str:
        """The config's name of the base."""
        return self.base_model_name_or_path or "another base"

    def check_plain(self, folder: Path) -> None:
        """Check that the LoRA adds a matrix to each module, and changes nothing else.

        Raises:
            AdapterError: it is not plain (BS656).
        """
        start = self.init_lora_weights
        reasons = [f"it has `{name}`" for name in _REFUSED if (self.model_extra or {}).get(name)]
        if self.peft_type != "LORA":
            reasons.append(f"its `peft_type` is {self.peft_type}")
        if isinstance(start, str) and start.lower() not in _PLAIN_STARTS:
            reasons.append(f"`init_lora_weights` is {start}, which changes the base")
        if reasons:
            raise AdapterError(
                codes.NOT_PLAIN_LORA(folder=folder, reason=reason) for reason in reasons
            )

    def chooser(self) -> SimpleNamespace | None:
        """Return the fields by which PEFT chooses modules, for PEFT's `check_target_module_exists`.

        None if there are none, or if they have a pattern that may take long.
        """
        given = {name: (self.model_extra or {}).get(name) for name in _CHOOSING}
        patterns = [value for value in given.values() if isinstance(value, str)]
        patterns += given["layers_pattern"] or ()
        if given["target_modules"] in (None, [], "all-linear") or any(map(_takes_long, patterns)):
            return None
        why = " or ".join(f"`{name}`" for name in given if given[name] not in (None, []))
        return SimpleNamespace(**given, why=why)

    def settings(self, folder: Path, paths: Collection[str]) -> dict[str, tuple[int, float]]:
        """Return rank and scale of each path, by PEFT's rule: the first pattern that matches its end.

        Raises:
            AdapterError: a pattern is invalid, or may take exponential time (BS608).
        """
        settings = {}
        with reading(folder / CONFIG, "rank and alpha of its modules: "):
            ranks = _first_fits(self.rank_pattern, paths)
            alphas = _first_fits(self.alpha_pattern, paths)
            for path in paths:
                rank_key = ranks.get(path)
                alpha_key = alphas.get(path)
                rank = self.r if rank_key is None else self.rank_pattern[rank_key]
                alpha = self.lora_alpha if alpha_key is None else self.alpha_pattern[alpha_key]
                scale = alpha / (math.sqrt(rank) if self.use_rslora else rank)
                settings[path] = rank, int(scale) if scale.is_integer() else scale
        return settings


@contextmanager
def reading(path: Path, what: str = "") -> Iterator[None]:
    """Raise AdapterError (BS608) if a stranger's file cannot be read."""
    from safetensors import SafetensorError

    try:
        yield
    except (
        *(OSError, ValueError, TypeError, LookupError, ArithmeticError, RuntimeError, re.error),
        SafetensorError,
    ) as error:
        reason = f"{what}{one_line(error)}"
        raise AdapterError(codes.BROKEN_FILE(path=path, reason=reason)) from error


def read_config(folder: Path) -> PeftConfig:
    """Read the config of a PEFT folder.

    Raises:
        AdapterError: it cannot be read (BS608).
    """
    with reading(folder / CONFIG):
        fields = parse_json(read_file(folder, CONFIG, MAX_CONFIG))
        if not isinstance(fields, dict):
            raise TypeError("it is not a JSON object")
        return PeftConfig.model_validate(fields)


def check_files(folder: Path) -> None:
    """Check the config and the header of PEFT's files without torch; see `read_config`, `check_plain`."""
    from safetensors import safe_open

    read_config(folder).check_plain(folder)
    with reading(folder / TENSORS):
        if not (folder / TENSORS).is_file():  # Opening a pipe would block.
            raise FileNotFoundError("it is no file")
        with safe_open(folder / TENSORS, framework="np"):
            pass


def read_tensors(folder: Path, file: str, architecture: Architecture) -> dict[str, torch.Tensor]:
    """Return the tensors of a file in a folder by name.

    Raises:
        AdapterError: they cannot be read, or are too large or too many for the base (BS608).
    """
    from safetensors.torch import load

    most = 4 * (len(architecture.every_site) + len(architecture.others)) + 100
    with reading(folder / file):
        tensors = load(read_file(folder, file, BYTES_EACH * most_parameters(architecture)))
        if len(tensors) > most:
            raise ValueError(f"it has {len(tensors):,} tensors, and may have {most:,}")
        for name, tensor in tensors.items():
            if not tensor.is_floating_point():  # float32 would drop imaginary parts.
                kind = str(tensor.dtype).removeprefix("torch.")
                raise ValueError(f"the tensor `{name}` is {kind}")
        return tensors


def _takes_long(pattern: str) -> bool:
    """Tell whether a stranger's pattern may take exponential time."""
    return len(pattern) > 1000 or bool(_ENDLESS.search(pattern.replace("(?:", "(")))


def _first_fits(patterns: Collection[str], paths: Collection[str]) -> dict[str, str | None]:
    """Return the first pattern that matches the end of each path, as PEFT does.

    Raises:
        ValueError: an untrusted pattern may take exponential time.
        re.error: a pattern is invalid.
    """
    for pattern in patterns:
        if _takes_long(pattern):
            raise ValueError(f"`{pattern[:60]}` repeats more than the names of modules do")
    compiled = [(pattern, re.compile(rf"(.*\.)?({pattern})$")) for pattern in patterns]
    return {path: next((key for key, p in compiled if p.match(path)), None) for path in paths}
