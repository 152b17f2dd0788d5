"""What a run is asked to do: from a config file, from flags or from Python, by the same names."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from bishare_dsl.diagnostics import Problem, nearest, one_line
from bishare_dsl.diagnostics.codes import train as codes
from bishare_dsl.train.data.formats import Format
from bishare_dsl.train.errors import TrainError

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from bishare_dsl.spec import Spec

Dtype = Literal["float32", "bfloat16", "float16"]
_LAST = ("last", "true")


class Settings(BaseModel):
    """The data, and how the base is loaded.

    ``data`` and ``eval_data`` are files or ids on the Hub. ``eval_split`` holds rows of ``data`` out: a
    number of them, or a part below 1. ``format``, ``train_on`` and ``max_length`` are as in
    `bishare_dsl.train.data.encode`, the ``*_split`` and ``subset`` as in `load_rows`. ``dtype`` is of the
    base's weights; the adapter's are float32. ``device_map`` is as ``from_pretrained`` takes it.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    data: str
    data_split: str = "train"
    data_subset: str | None = None
    eval_data: str | None = None
    eval_data_split: str = "test"
    eval_split: int | float | None = Field(default=None, gt=0)
    format: Format | None = None
    train_on: Literal["completion", "all"] = "completion"
    max_length: int = Field(default=1024, gt=1)
    packing: bool = False
    dtype: Dtype | None = None
    device_map: str | None = None

    @field_validator("data", "eval_data", mode="before")
    @classmethod
    def _path(cls, value: Any) -> Any:
        return os.fspath(value) if isinstance(value, os.PathLike) else value

    @field_validator("eval_split")
    @classmethod
    def _rows(cls, value: float | None) -> int | float | None:
        if value is not None and value >= 1:
            if value != int(value):
                raise ValueError("from 1 on it is a number of rows, which is whole")
            return int(value)
        return value


@dataclass(frozen=True)
class Request:
    """All that a run was asked to do.

    Attributes:
        spec: a spec, a file or a shipped name; or an adapter's folder; None for a model that is adapted.
        model: a name, or a model.
        output_dir: where everything goes.
        params: other values for the spec's.
        resume: the checkpoint to go on from; ``"last"`` for the newest, None to begin.
        settings: of the data.
        arguments: of transformers' Trainer, as they were given.
    """

    spec: Spec | str | None
    model: PreTrainedModel | str
    output_dir: Path
    params: Mapping[str, Any]
    resume: str | None
    settings: Settings
    arguments: Mapping[str, Any]


_OWN = ("spec", "model", "output_dir", "params", "resume_from_checkpoint")


def requested(given: Mapping[str, Any], config: str | os.PathLike[str] | None) -> Request:
    """Put together what was given and what a config file says; what was given wins.

    Raises:
        TrainError: every argument that is unknown (BS730), wrong (BS731, BS732) or missing (BS736), or the
            file cannot be read (BS734, BS735).
    """
    # What transformers takes is known to transformers, which takes seconds to import.
    from bishare_dsl.train import arguments

    file = {} if config is None else read_config(Path(config))
    merged = {**file, **{name: value for name, value in given.items() if value is not None}}
    params: dict[str, Any] = {}
    for source in (file, given):
        if not isinstance(source.get("params") or {}, Mapping):
            reason = "it is no list of names and values"
            raise TrainError(
                codes.WRONG_VALUE(name="params", value=source["params"], reason=reason)
            )
        params |= source.get("params") or {}
    theirs = [name for name in arguments.names() if name not in _OWN]
    known = {*_OWN, *Settings.model_fields, *theirs}
    problems = [
        codes.UNKNOWN_ARGUMENT(name=name, help=nearest(name, known))
        for name in merged
        if name not in known
    ]
    live = not isinstance(merged.get("model", ""), str)
    needed = ("model", "data", "output_dir") if live else ("spec", "model", "data", "output_dir")
    problems += [codes.MISSING_ARGUMENT(name=name) for name in needed if name not in merged]
    converted = {}
    for name in theirs:
        if name in merged:
            try:
                converted[name] = arguments.converted(name, merged[name])
            except TrainError as error:
                problems += error.problems
    settings, wrong = _settings(merged)
    problems += wrong
    if problems or settings is None:
        raise TrainError(problems)
    resume = merged.get("resume_from_checkpoint") or None
    return Request(
        spec=merged.get("spec"),
        model=merged["model"],
        output_dir=Path(merged["output_dir"]).expanduser(),
        params=params,
        resume="last" if str(resume).lower() in _LAST else resume and os.fspath(resume),
        settings=settings,
        arguments=converted,
    )


def read_config(path: Path) -> dict[str, Any]:
    """The arguments in a YAML file.

    Raises:
        TrainError: it cannot be read, or is no mapping (BS734); PyYAML is missing (BS735).
    """
    try:
        import yaml
    except ImportError as error:
        help = "pip install 'bishare[train]'"
        raise TrainError(
            codes.NEEDS_PACKAGE(what="reading a config", package="pyyaml", help=help)
        ) from error
    try:
        found = yaml.safe_load(path.read_text(encoding="utf-8"))
        found = {} if found is None else found
    except OSError as error:
        reason: object = error.strerror or error
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        reason = one_line(error)
    else:
        if isinstance(found, dict) and all(isinstance(name, str) for name in found):
            return found
        reason = "it is no list of `name: value`"
    raise TrainError(codes.BAD_CONFIG(path=path, reason=reason))


def _settings(merged: Mapping[str, Any]) -> tuple[Settings | None, list[Problem]]:
    own = {name: merged[name] for name in Settings.model_fields if name in merged}
    try:
        settings = Settings.model_validate(own)
    except ValidationError as error:
        return None, [
            codes.WRONG_VALUE(
                name=e["loc"][0],
                value=own[str(e["loc"][0])],
                reason=e["msg"].removeprefix("Value error, "),
            )
            for e in error.errors()
            if e["type"] != "missing"
        ]
    if settings.eval_data is not None and settings.eval_split is not None:
        reason = "`eval_data` names held-out rows, and `eval_split` would hold others out"
        return settings, [codes.BAD_COMBINATION(reason=reason)]
    return settings, []
