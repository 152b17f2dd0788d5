"""The arguments of a run, with the same names in a config file, as flags and in Python."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError, field_validator

from bishare_dsl.arguments import argument_types, is_flag
from bishare_dsl.diagnostics import Problem, advise, one_line
from bishare_dsl.diagnostics.codes import train as codes
from bishare_dsl.names import name_fault
from bishare_dsl.train.data.formats import Format
from bishare_dsl.train.data.load import ENDINGS
from bishare_dsl.train.errors import TrainError

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from bishare_dsl.plan import Plan
    from bishare_dsl.spec import Spec


_NAME = re.compile(r"(?!checkpoint-)[A-Za-z0-9_-]+")


class Settings(BaseModel):
    """Settings of the data, the base's loading and the learning rates of parts of the adapter.

    Each field is an argument of `train`, an option of ``bishare train`` and a key of a config. ``--help``
    shows the docstring of a field: a placeholder for the value, unless it is a switch, and a description.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    data: str | dict[str, str]
    """FILES: Examples: .json, .jsonl, .csv, .parquet, or a data set on the Hub. Several files, NAME=FILE or a
    folder of files are tasks that train in one run, each with a separate adapter."""
    rows_at_once: int = Field(default=32, ge=1)
    """N: With several tasks, the examples that go through the model at once; by default 32."""
    library: str | None = None
    """DIR: Add adapters to a library; the tensors that its adapters share stay frozen."""
    start: Literal["zero", "mean", "nearest", "mixture", "auto"] = "auto"
    """zero|mean|nearest|mixture|auto: Where adapters of a library start: at zero, at the mean of its members,
    the nearest member, or a sum weighted by their losses; auto, the default, takes such a sum if it answers
    more of the examples than training from zero. --max_steps 0 does not train."""
    eval_data: str | None = None
    """FILE: Held-out examples, to evaluate on during training."""
    eval_split: int | float | None = Field(default=None, gt=0)
    """N|FRACTION: Hold out this many examples, or this fraction of them."""
    data_split: str = "train"
    """NAME: The split of a Hub data set; by default train."""
    data_subset: str | None = None
    """NAME: The configuration of a Hub data set."""
    eval_data_split: str = "test"
    """NAME: The split for --eval_data; by default test."""
    format: Format | None = None
    """NAME: alpaca, prompt-completion, messages or text, if the columns fit several."""
    train_on: Literal["completion", "all"] = "completion"
    """completion|all: Train on completions and the assistant's turns, or on every token."""
    max_length: int = Field(default=1024, ge=2)
    """N: Cut examples to this many tokens; by default 1024."""
    dtype: Literal["float32", "bfloat16", "float16"] | None = None
    """NAME: Dtype of the base's weights, such as bfloat16; the adapter is float32."""
    load_in_4bit: bool = False
    """Keep the base's linear layers in four bits, as QLoRA does (bitsandbytes)."""
    load_in_8bit: bool = False
    """Keep the base's linear layers in eight bits (bitsandbytes)."""
    device_map: str | None = None
    """NAME: Where to put the base, such as auto, which spreads and offloads it (accelerate)."""

    @field_validator("data", mode="before")
    @classmethod
    def _tasks(cls, value: Any) -> Any:
        """Convert several files, or a folder of files, to tasks by name."""
        words = [value] if isinstance(value, str) else value
        if isinstance(value, Mapping):
            if not value:
                raise ValueError("it contains no task")
            return {str(name): os.fspath(path) for name, path in value.items()}
        if len(words) == 1 and not is_tasks(words[0]):
            return words[0]
        pairs = [pair for word in words for pair in _tasks_of(word)]
        names = [name for name, _ in pairs]
        if twice := next((name for name in names if names.count(name) > 1), None):
            raise ValueError(f"two tasks are called `{twice}`: write NAME=FILE")
        if wrong := next((name for name in names if not _NAME.fullmatch(name)), None):
            raise ValueError(f"no adapter can be called `{wrong}`: write NAME=FILE")
        return dict(pairs)

    @property
    def tasks(self) -> dict[str, str]:
        """The data of each task by name; a single file has its own name."""
        if isinstance(self.data, dict):
            return self.data
        return {re.sub(r"[^A-Za-z0-9_-]", "-", Path(self.data).stem): self.data}

    @property
    def several(self) -> bool:
        """Whether several adapters are trained together, each into a separate folder."""
        return isinstance(self.data, dict) or self.library is not None

    @field_validator("eval_split")
    @classmethod
    def _rows(cls, value: float | None) -> int | float | None:
        if value is not None and value >= 1 and value != int(value):
            raise ValueError("from 1 on it is a number of rows, which is whole")
        return int(value) if value is not None and value >= 1 else value


def is_tasks(word: str) -> bool:
    """Return whether a word of ``data`` means tasks: NAME=FILE, or a folder."""
    # `Path` raises for an unreadable folder, which is reported when the data is read.
    path = Path(word).expanduser()
    return ("=" in word and not os.path.exists(word)) or os.path.isdir(path)  # noqa: PTH110, PTH112


def _tasks_of(word: str) -> list[tuple[str, str]]:
    path = Path(word).expanduser()
    if path.is_dir():
        files = sorted(file for file in path.iterdir() if file.suffix in ENDINGS)
        if not files:
            raise ValueError(f"`{word}` has no file of rows")
        return [(file.stem, str(file)) for file in files]
    name, equals, file = word.partition("=")
    return [(name, file) if equals and not path.exists() else (path.stem, word)]


@dataclass(frozen=True)
class Request:
    """All arguments of a run.

    Attributes:
        spec: a spec, a file, a shipped name or an adapter's folder; None if the model is adapted, or if a
            library or a checkpoint contains the spec.
        model: a name, or a model.
        output_dir: the run's folder.
        params: values for params of the spec.
        resume: the checkpoint to resume from; None for a new run.
        settings: settings of the data and the adapter.
        arguments: arguments of transformers' Trainer, unconverted.
    """

    spec: Spec | str | None
    model: PreTrainedModel | str
    output_dir: Path
    params: Mapping[str, Any]
    resume: Path | None
    settings: Settings
    arguments: Mapping[str, Any]

    @property
    def several(self) -> bool:
        """Whether several adapters are trained together, each into a separate folder."""
        return self.settings.several

    def makes_library(self, plan: Plan) -> bool:
        """Return whether adapters of a plan share tensors: its keys name `adapter`, or a library has it."""
        return self.several and (plan.is_library or self.settings.library is not None)

    def as_dict(self, spec: str | None) -> dict[str, Any]:
        """Return arguments for the same run from any folder; ``spec`` is a text or a path."""
        plain = self.settings.model_dump(exclude_defaults=True)
        named = {"model": self.model, **plain} if isinstance(self.model, str) else plain
        places = {n: _absolute(named[n]) for n in _PATHS if n in named}
        values = {k: v.value if isinstance(v, Enum) else v for k, v in self.arguments.items()}
        if isinstance(values.get("deepspeed"), str):  # The path of its config.
            values["deepspeed"] = _absolute(values["deepspeed"])
        params = {"params": dict(self.params)} if self.params else {}
        return {**({"spec": spec} if spec else {}), **params, **named, **places, **values}


def result_folders(folder: Path) -> list[str]:
    """Return the names of the adapter folders in a run's folder; empty for a run of one adapter."""
    from bishare_dsl.train.folder import LIBRARY, RUN_FILE

    try:
        arguments = read_config(folder / RUN_FILE)
        own = {name: arguments[name] for name in Settings.model_fields if name in arguments}
        settings = Settings.model_validate(own)
        names = [*settings.tasks, LIBRARY] if settings.several else []
    except (TrainError, ValueError, TypeError):  # The record is unreadable.
        return []
    return [name for name in names if name_fault(name) is None]


def _absolute(value: Any) -> Any:
    """Return the absolute path of an existing file or folder; other values are unchanged."""
    if isinstance(value, dict):
        return {name: _absolute(path) for name, path in value.items()}
    path = Path(value).expanduser().absolute()
    return str(path) if path.exists() else value


_OWN = ("spec", "model", "output_dir", "params", "resume")
_PATHS = ("model", "data", "eval_data", "library")
_SUCH = {
    "spec": "the first word is a spec, such as `bishare_ke`, or a `.share` file",
    "model": "such as `--model ./my-checkpoint`, with its weights",
    "data": "such as `--data rows.jsonl`",
    "output_dir": "such as `--output_dir run`",
}


def unknown_argument(name: str, known: Iterable[str], shown: str | None = None) -> Problem:
    """Build the error for an unknown argument (BS730), with the nearest name."""
    help = advise("argument", name, known)
    return codes.UNKNOWN_ARGUMENT(name=shown or name, help=help)


def convert(name: str, value: Any) -> Any:
    """Convert a value to what `TrainingArguments` wants.

    Raises:
        TrainError: the value is invalid for this argument (BS731).
    """
    if name == "fsdp" and str(value).lower() in ("true", "false"):
        return str(value).lower() == "true"  # Formerly a list of words.
    if value is False and is_flag(name) is False:
        value = "no"  # YAML reads a bare `no` as False.
    kind = argument_types()[name]
    try:
        return TypeAdapter(kind).validate_python(value)
    except ValidationError as error:
        reason = error.errors()[0]["msg"].lower()
        raise TrainError(codes.WRONG_VALUE(name=name, value=value, reason=reason)) from None


def make_request(given: Mapping[str, Any], config: str | os.PathLike[str] | None) -> Request:
    """Merge the given arguments, a config file and the record of an earlier run.

    Given arguments override the file, which overrides the run that ``resume`` names.

    Raises:
        TrainError: arguments are unknown (BS730), invalid (BS731, BS732) or missing (BS736), all of them
            listed; the file is unreadable (BS734); there is no run to resume (BS742, BS743).
        AdapterError: ``library`` is not a folder, and cannot be fetched from the Hub (BS504, BS505).
    """
    plain = {n: os.fspath(v) if isinstance(v, os.PathLike) else v for n, v in given.items()}
    given = {name: value for name, value in plain.items() if value is not None}
    file = {} if config is None else read_config(Path(config))
    resume, before = _run_before({**file, **given}.get("resume"))
    merged = {n: v for n, v in {**before, **file, **given}.items() if v is not None}
    params = {**(file.get("params") or {}), **(given.get("params") or before.get("params") or {})}
    theirs = argument_types()
    known = {*_OWN, *Settings.model_fields, *theirs}
    problems = [unknown_argument(name, known) for name in merged if name not in known]
    adapted = not isinstance(merged.get("model", ""), str)
    spared = {"spec"} if before or adapted or merged.get("library") else set()
    needed = [name for name in ("spec", "model", "data", "output_dir") if name not in spared]
    problems += [
        codes.MISSING_ARGUMENT(name=name, help=_SUCH[name]) for name in needed if name not in merged
    ]
    if not str(merged.get("output_dir", "-")).strip():
        reason, help = "it names no folder", _SUCH["output_dir"]
        problems.append(codes.WRONG_VALUE(name="output_dir", value="", reason=reason, help=help))
    converted = {}
    for name in theirs:
        if name in merged:
            try:
                converted[name] = convert(name, merged[name])
            except TrainError as error:
                problems += error.problems
    own = {name: merged[name] for name in Settings.model_fields if name in merged}
    try:
        settings = Settings.model_validate(own)
    except ValidationError as error:
        for e in error.errors():
            name, reason = str(e["loc"][0]), e["msg"].removeprefix("Value error, ")
            reason = reason.replace("Input", "it").replace("greater than or equal to", "at least")
            if e["type"] != "missing":
                value, help = own[name], "`bishare train --help` says what it takes"
                problems.append(codes.WRONG_VALUE(name=name, value=value, reason=reason, help=help))
        raise TrainError(problems) from None
    if settings.eval_data is not None and settings.eval_split is not None:
        reason = "`eval_data` names held-out rows, and `eval_split` would hold others out"
        problems.append(codes.BAD_COMBINATION(reason=reason))
    if problems:
        raise TrainError(problems)
    if settings.library:
        from bishare_dsl.hub import adapter_folder

        place = str(adapter_folder(settings.library))
        settings = settings.model_copy(update={"library": place})
    return Request(
        spec=merged.get("spec"),
        model=merged["model"],
        output_dir=Path(merged["output_dir"]).expanduser(),
        params=params,
        resume=resume,
        settings=settings,
        arguments=converted,
    )


def _run_before(where: str | os.PathLike[str] | None) -> tuple[Path | None, dict[str, Any]]:
    """Return the checkpoint that a run resumes from, and the run's arguments."""
    if where is None:
        return None, {}
    from bishare_dsl.train.folder import RUN_FILE, find_checkpoint, is_checkpoint, record_of

    path = Path(where).expanduser()
    folder = path.parent if is_checkpoint(path) else path
    if not (folder / RUN_FILE).is_file():
        raise TrainError(codes.NO_CHECKPOINT(reason=f"`{path}` has no {RUN_FILE}"))
    record = read_config(folder / RUN_FILE)  # JSON is YAML.
    if not record:
        reason = f"`{folder / RUN_FILE}` is empty: a run was about to begin"
        raise TrainError(codes.NO_CHECKPOINT(reason=reason, help="begin anew, with all arguments"))
    # The checkpoint has the run's spec; the spec's file may have changed since.
    checkpoint = find_checkpoint(path)
    spec = record.get("spec") if record_of(checkpoint)["tasks"] else None
    return checkpoint, {**record, "spec": spec, "output_dir": str(folder)}


def read_config(path: Path) -> dict[str, Any]:
    """Read the arguments in a YAML file.

    Raises:
        TrainError: it is unreadable or not a mapping (BS734).
    """
    import yaml

    reason = "it is not a list of `name: value`"
    try:
        arguments = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
        if isinstance(arguments, dict) and isinstance(arguments.get("params", {}), dict):
            return arguments
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        at = "" if mark is None else f"line {mark.line + 1}, column {mark.column + 1}: "
        reason = f"{at}{error.problem}"
    except (OSError, yaml.YAMLError, ValueError, RecursionError) as error:
        reason = one_line(error)
    raise TrainError(codes.BAD_CONFIG(path=path, reason=reason))
