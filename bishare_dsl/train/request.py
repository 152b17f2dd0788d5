"""What a run is asked to do: from a config file, from flags or from Python, by the same names."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from bishare_dsl.diagnostics import Problem, nearest, one_line
from bishare_dsl.diagnostics.codes import train as codes
from bishare_dsl.train.data.formats import Format
from bishare_dsl.train.errors import TrainError

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from bishare_dsl.spec import Spec

_LAST = ("last", "true")


class Settings(BaseModel):
    """The data, how the base is loaded, and what of the adapter learns at another rate.

    Each field is an argument of `train`, an option of ``bishare train`` and a line of a config, by one name.
    What stands below it is shown by ``--help``: a word for the value, but for a switch, and what it does.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    data: str
    """FILE: Rows: .json, .jsonl, .csv, .parquet, or a data set on the Hub."""
    recipe: Literal["default", "paper"] = "default"
    """paper: Warm up over 100 steps; by default over at most a tenth of the run."""
    lr_of: dict[str, str] = {}
    """NAME=RATE: Another learning rate for a share or a factor: B=16x, inter=5e-5, inter.A=1e-3."""
    weight_decay_of: dict[str, float] = {}
    """NAME=DECAY: Another weight decay, as --lr_of."""
    eval_data: str | None = None
    """FILE: Held-out rows, to evaluate on during training."""
    eval_split: int | float | None = Field(default=None, gt=0)
    """N|FRACTION: Hold so many rows out, or such a part of them, below 1."""
    data_split: str = "train"
    """NAME: The split of a Hub data set; by default train."""
    data_subset: str | None = None
    """NAME: The configuration of a Hub data set."""
    eval_data_split: str = "test"
    """NAME: The split for --eval_data; by default test."""
    format: Format | None = None
    """NAME: alpaca, prompt-completion, messages or text, where the columns fit several."""
    train_on: Literal["completion", "all"] = "completion"
    """completion|all: Learn completions and the assistant's turns, or every token."""
    max_length: int = Field(default=1024, gt=1)
    """N: Tokens of the longest example; by default 1024. Longer ones lose their end."""
    packing: bool = False
    """Put several examples into one sequence."""
    dtype: Literal["float32", "bfloat16", "float16"] | None = None
    """NAME: Of the base's weights, such as bfloat16; the adapter's are float32."""
    load_in_4bit: bool = False
    """Keep the base's linear layers in four bits, as QLoRA does (bitsandbytes)."""
    device_map: str | None = None
    """NAME: Such as auto: spread and offload the base (accelerate)."""

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

    @field_validator("lr_of", "weight_decay_of", mode="before")
    @classmethod
    def _named(cls, value: Any) -> Any:
        """Take ``["B=16x"]``, as it stands on the command line, for ``{"B": "16x"}``."""
        value = [value] if isinstance(value, str) else value
        pairs = value.items() if isinstance(value, Mapping) else [v.split("=", 1) for v in value]
        if not all(len(pair) == 2 for pair in pairs):
            raise ValueError("it is written NAME=VALUE")
        return {str(name).strip(): str(said).strip() for name, said in pairs}

    @field_validator("lr_of")
    @classmethod
    def _rates(cls, value: dict[str, str]) -> dict[str, str]:
        if wrong := [said for said in value.values() if not _RATE.fullmatch(said)]:
            raise ValueError(
                f"`{wrong[0]}` is neither a rate, such as 5e-4, nor a factor, such as 16x"
            )
        return value

    @field_validator("weight_decay_of")
    @classmethod
    def _decays(cls, value: dict[str, float]) -> dict[str, float]:
        if not all(0 <= decay < math.inf for decay in value.values()):
            raise ValueError("a weight decay is at least 0")
        return value


@dataclass(frozen=True)
class Request:
    """All that a run was asked to do.

    Attributes:
        spec: a spec, a file or a shipped name; or an adapter's folder; None for a model that is adapted, and
            for a run whose checkpoint has the adapter.
        model: a name, or a model.
        output_dir: where everything goes.
        params: other values for the spec's.
        resume: the checkpoint to go on from; ``"last"`` for the newest, None to begin.
        settings: of the data and the adapter.
        arguments: of transformers' Trainer, as they were given.
    """

    spec: Spec | str | None
    model: PreTrainedModel | str
    output_dir: Path
    params: Mapping[str, Any]
    resume: str | None
    settings: Settings
    arguments: Mapping[str, Any]

    def as_dict(self) -> dict[str, Any]:
        """Return what `make_request` needs to make the run again, from any folder, as plain JSON values."""
        plain = self.settings.model_dump(exclude_defaults=True)
        named = {**plain, **({"model": self.model} if isinstance(self.model, str) else {})}
        local = {n: str(Path(named[n]).expanduser().absolute()) for n in _PATHS if n in named}
        return {**named, **{n: p for n, p in local.items() if Path(p).exists()}, **self.arguments}


_OWN = ("spec", "model", "output_dir", "params", "resume_from_checkpoint", "resume")
_PATHS = ("model", "data", "eval_data")
_SUCH = {
    "spec": "the first word is a spec, such as `bishare_ke`, or a `.share` file",
    "model": "such as `--model ./my-checkpoint`, with its weights",
    "data": "such as `--data rows.jsonl`",
    "output_dir": "such as `--output_dir run`",
}
_RATE = re.compile(r"(\d+(\.\d*)?|\.\d+)(e[+-]?\d+)?x?", re.IGNORECASE)
_RANK = "the spec says it: `rank`, or `--set r=16` where the spec has a param for it"
# What PEFT's scripts call it, and what it is here.
_ELSEWHERE = {
    **dict.fromkeys(("r", "rank", "lora_r", "lora_rank"), _RANK),
    **dict.fromkeys(("alpha", "lora_alpha"), "the spec says it: `alpha 32`"),
    **dict.fromkeys(("dropout", "lora_dropout"), "the spec says it: `dropout 0.05`"),
    **dict.fromkeys(
        ("target_modules", "lora_target_modules", "lora_target"),
        "the spec says it: `target q_proj, v_proj`",
    ),
    **dict.fromkeys(("use_dora", "use_rslora", "peft_type"), "another method is another spec"),
    "lr": "it is `learning_rate`",
    **dict.fromkeys(("epochs", "num_epochs", "n_epochs"), "it is `num_train_epochs`"),
    **dict.fromkeys(
        ("batch_size", "micro_batch_size", "train_batch_size"),
        "it is `per_device_train_batch_size`; an optimizer step sees 64 unless `gradient_accumulation_steps` "
        "is given too",
    ),
    **dict.fromkeys(("max_seq_length", "cutoff_len", "max_seq_len"), "it is `max_length`"),
    **dict.fromkeys(("dataset", "dataset_name", "data_path", "train_file"), "it is `data`"),
    **dict.fromkeys(("model_name_or_path", "base_model", "model_name"), "it is `model`"),
    **dict.fromkeys(("eval_every", "val_steps", "eval_freq"), "it is `eval_steps`"),
    **dict.fromkeys(("save_every", "save_freq"), "it is `save_steps`"),
    **dict.fromkeys(("val_set_size", "validation_split", "test_size"), "it is `eval_split`"),
    **dict.fromkeys(("steps", "num_steps", "total_steps", "iters"), "it is `max_steps`"),
    **dict.fromkeys(("out", "output", "save_dir"), "it is `output_dir`"),
    "warmup_ratio": "it is `warmup_steps`, which is a part of the run below 1",
    "qlora": "it is `load_in_4bit`",
    "load_in_8bit": "`--load_in_4bit` takes less; a model in eight bits can be given in Python",
}


def unknown_argument(name: str, known: Iterable[str], shown: str | None = None) -> Problem:
    """Make the problem of an argument that is none (BS730), with what it may have been meant to be."""
    help = _ELSEWHERE.get(name) or nearest(name, known)
    return codes.UNKNOWN_ARGUMENT(name=shown or name, help=help)


def make_request(given: Mapping[str, Any], config: str | os.PathLike[str] | None) -> Request:
    """Put together what was given, what a config file says, and what an earlier run was asked.

    What was given wins over the file, and the file over the run that ``resume`` names.

    Raises:
        TrainError: every argument that is unknown (BS730), wrong (BS731, BS732) or missing (BS736); the
            file cannot be read (BS734, BS735); there is no run to resume (BS742).
    """
    # What transformers takes is known to transformers, which takes seconds to import.
    from bishare_dsl.train import arguments

    given = {name: value for name, value in given.items() if value is not None}
    file = {} if config is None else read_config(Path(config))
    before = _run_before({**file, **given}.get("resume"))
    merged = {**before, **file, **given}
    params: dict[str, Any] = {}
    for found in (file.get("params") or {}, given.get("params") or {}):
        if not isinstance(found, Mapping):
            reason = "it is not a list of names and values"
            raise TrainError(codes.WRONG_VALUE(name="params", value=found, reason=reason))
        params |= found
    theirs = [name for name in arguments.argument_names() if name not in _OWN]
    known = {*_OWN, *Settings.model_fields, *theirs}
    problems = [unknown_argument(name, known) for name in merged if name not in known]
    spared = {"spec"} if before or not isinstance(merged.get("model", ""), str) else set()
    needed = [name for name in ("spec", "model", "data", "output_dir") if name not in spared]
    problems += [
        codes.MISSING_ARGUMENT(name=name, help=_SUCH[name]) for name in needed if name not in merged
    ]
    converted = {}
    for name in theirs:
        if name in merged:
            try:
                converted[name] = arguments.convert(name, merged[name])
            except TrainError as error:
                problems += error.problems
    own = {name: merged[name] for name in Settings.model_fields if name in merged}
    try:
        settings = Settings.model_validate(own)
    except ValidationError as error:
        for e in error.errors():
            name, reason = str(e["loc"][0]), e["msg"].removeprefix("Value error, ")
            if e["type"] != "missing":
                problems.append(codes.WRONG_VALUE(name=name, value=own[name], reason=reason))
        raise TrainError(problems) from None
    if settings.eval_data is not None and settings.eval_split is not None:
        reason = "`eval_data` names held-out rows, and `eval_split` would hold others out"
        problems.append(codes.BAD_COMBINATION(reason=reason))
    if problems:
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


def _run_before(folder: str | os.PathLike[str] | None) -> dict[str, Any]:
    """Return what the run in a folder was asked, and where it is to go on."""
    if folder is None:
        return {}
    from bishare_dsl.train.record import RUN, read_record

    path = Path(folder).expanduser()
    within = (path / RUN).is_file()
    record = read_record(path if within else path.parent)
    asked = (record or {}).get("asked")
    if not isinstance(asked, dict):
        reason = f"`{path}` has no {RUN} that says what the run was asked"
        help = "give spec, model, data and `--output_dir` again, with `--resume_from_checkpoint`"
        raise TrainError(codes.NO_CHECKPOINT(reason=reason, help=help))
    where = {"output_dir": str(path if within else path.parent)}
    return {**asked, **where, "resume_from_checkpoint": "last" if within else str(path)}


def read_config(path: Path) -> dict[str, Any]:
    """Read the arguments in a YAML file.

    Raises:
        TrainError: it cannot be read, or is not a mapping (BS734); PyYAML is missing (BS735).
    """
    try:
        import yaml
    except ImportError as error:
        raise TrainError(codes.NEEDS_PACKAGE(what="reading a config", package="pyyaml")) from error
    reason, help = "it is not a list of `name: value`", cast("str | None", None)
    try:
        found = yaml.safe_load(path.read_text(encoding="utf-8"))
        if found is None:
            return {}
        if isinstance(found, dict) and all(isinstance(name, str) for name in found):
            return found
    except yaml.MarkedYAMLError as error:
        reason, help = _not_yaml(error)
    except UnicodeDecodeError:
        reason, help = "it is not UTF-8", "save the file as UTF-8"
    except (OSError, yaml.YAMLError, ValueError, RecursionError) as error:
        reason = one_line(error)
    raise TrainError(codes.BAD_CONFIG(path=path, reason=reason, help=help))


def _not_yaml(error: Any) -> tuple[str, str | None]:
    """Say where a text stops being YAML, and what to do about it, in other words than the parser's."""
    opened, mark = error.context_mark, error.problem_mark or error.context_mark
    context, problem = error.context or "", error.problem or ""
    place = f"line {mark.line + 1}, column {mark.column + 1} is not YAML"
    if "flow" in context:
        return place, f"the bracket of line {opened.line + 1} is not closed"
    if "quoted" in context:
        return place, f"the quote of line {opened.line + 1} is not closed"
    if "\\t" in problem or "tab" in problem.lower():
        return place, "lines are indented with spaces, not with tabs"
    return place, None
