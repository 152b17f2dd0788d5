"""What is read of PEFT's ``adapter_config.json``, which anybody may have written."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Annotated, Any, cast

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, FiniteFloat

from bishare_dsl.diagnostics import AdapterError, one_line
from bishare_dsl.diagnostics.codes import adapter as codes
from bishare_dsl.export.peft import CONFIG
from bishare_dsl.reading import MAX_CONFIG, read_file

# What makes of a LoRA something else, or changes the base; PEFT's words.
_REFUSED = (
    "use_dora", "lora_bias", "trainable_token_indices", "layer_replication", "alora_invocation_tokens",
    "use_qalora", "use_bdlora", "arrow_config", "kasa_config", "monteclora_config",
)  # fmt: skip
_PLAIN_STARTS = ("gaussian", "eva", "orthogonal", "mica", "lora_ga")

_SECONDS = 10
_MATCH = r"""
import json, re, sys
try:
    import resource
    resource.setrlimit(resource.RLIMIT_AS, (2**30, 2**30))
except (ImportError, ValueError):
    pass
patterns, names = json.load(sys.stdin)
compiled = [(key, re.compile(rf"(.*\.)?({key})$")) for key in patterns]
json.dump({name: next((key for key, p in compiled if p.match(name)), None) for name in names}, sys.stdout)
"""
"""Finds for each name the first pattern that fits its end, as PEFT does."""

_Rank = Annotated[int, Field(gt=0, lt=2**31)]
_Map = BeforeValidator(lambda value: {} if value is None else value)


class PeftConfig(BaseModel):
    """The fields that say what a LoRA adds, with PEFT's defaults; others are kept, and not read."""

    model_config = ConfigDict(frozen=True, extra="allow")

    peft_type: str | None = None
    base_model_name_or_path: str | None = None
    r: _Rank = 8
    lora_alpha: FiniteFloat = 8
    lora_dropout: Annotated[float, Field(ge=0, lt=1), BeforeValidator(lambda value: value or 0)] = 0
    use_rslora: bool = False
    bias: str = "none"
    init_lora_weights: bool | str | None = None
    rank_pattern: Annotated[dict[str, _Rank], _Map] = {}
    alpha_pattern: Annotated[dict[str, FiniteFloat], _Map] = {}
    target_parameters: Annotated[tuple[str, ...], BeforeValidator(lambda value: value or ())] = ()

    @property
    def base(self) -> str:
        """What it calls its base."""
        return self.base_model_name_or_path or "another base"

    def check_plain(self, folder: Path) -> None:
        """Check that the LoRA adds a matrix to each module, and changes nothing else.

        Raises:
            AdapterError: it is more than that (BS656).
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

    def settings(self, folder: Path, paths: Collection[str]) -> dict[str, tuple[int, float]]:
        """Return rank and scale of each path, by PEFT's rule: the first pattern that fits its end.

        Raises:
            AdapterError: a pattern is none, or takes too long (BS608).
        """
        found = {}
        try:
            ranks, alphas = (_first_fits(p, paths) for p in (self.rank_pattern, self.alpha_pattern))
            for path in paths:
                key, other = ranks.get(path), alphas.get(path)
                rank = self.r if key is None else self.rank_pattern[key]
                alpha = self.lora_alpha if other is None else self.alpha_pattern[other]
                scale = alpha / (math.sqrt(rank) if self.use_rslora else rank)
                found[path] = rank, int(scale) if scale.is_integer() else scale
        except ValueError as error:
            reason = f"rank and alpha of its modules: {one_line(error)}"
            raise AdapterError(codes.BROKEN_FILE(path=folder / CONFIG, reason=reason)) from error
        return found


def read_config(folder: Path) -> PeftConfig:
    """Read the config of a folder of PEFT.

    Raises:
        AdapterError: it cannot be read (BS608).
    """
    try:
        fields = json.loads(read_file(folder, CONFIG, MAX_CONFIG))
        if not isinstance(fields, dict):
            reason = "it is not a JSON object"
            raise AdapterError(codes.BROKEN_FILE(path=folder / CONFIG, reason=reason))
        return PeftConfig.model_validate(fields)
    except (OSError, ValueError, RecursionError) as error:
        reason = one_line(error)
        raise AdapterError(codes.BROKEN_FILE(path=folder / CONFIG, reason=reason)) from error


def _first_fits(patterns: Mapping[str, Any], paths: Collection[str]) -> dict[str, str | None]:
    """Return the first pattern that fits the end of each path, in a process of its own: a regular expression
    of a stranger may take time and memory without end, and Python cannot stop it.

    Raises:
        ValueError: a pattern is none, or takes too long.
    """
    if not patterns:
        return {}
    command, given = [sys.executable, "-I", "-S", "-c", _MATCH], json.dumps([[*patterns], [*paths]])
    try:
        done = subprocess.run(
            command, input=given, capture_output=True, text=True, check=True, timeout=_SECONDS
        )
    except subprocess.TimeoutExpired:
        raise ValueError(f"its patterns take more than {_SECONDS} seconds") from None
    except subprocess.CalledProcessError as error:
        raise ValueError(([*error.stderr.splitlines()] or ["they cannot be read"])[-1]) from None
    return cast("dict[str, str | None]", json.loads(done.stdout))
