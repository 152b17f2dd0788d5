"""The arguments of a run, with the same names in a config file, as flags and in Python."""

from __future__ import annotations

import builtins
import os
import re
from collections import defaultdict
from collections.abc import Collection, Mapping
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_type_hints

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    PrivateAttr,
    ValidationError,
    create_model,
    field_validator,
)

from bishare_dsl.diagnostics import Problem, advise, advise_option, nearest, one_line
from bishare_dsl.diagnostics.codes import train as codes
from bishare_dsl.diagnostics.tried import near_path, value_meant
from bishare_dsl.train.data.formats import Format
from bishare_dsl.train.data.load import ENDINGS
from bishare_dsl.train.errors import TrainError
from bishare_dsl.train.grouping import (
    BY_FOLDER,
    NAME,
    SCORES,
    expand_folders,
    read_setting,
    setting_problem,
)

if TYPE_CHECKING:
    from bishare_dsl.plan import Plan


_NOT_TAKEN = {
    *("output_dir", "resume_from_checkpoint", "save_only_model", "auto_find_batch_size"),
    *("push_to_hub", "use_liger_kernel", "liger_kernel_config", "label_smoothing_factor", "fsdp"),
    *("deepspeed", "fsdp_config", "parallelism_config", "disable_tqdm", "remove_unused_columns"),
    *("logging_nan_inf_filter", "gradient_checkpointing_kwargs", "activation_checkpointing_kwargs"),
}


@cache
def argument_types() -> Mapping[str, Any]:
    """Return the types of all accepted arguments by name; classes of transformers stand as `Any`.

    They are read from the text of `TrainingArguments`: its import loads torch, so that a wrong name would be
    told seconds later.
    """
    (folder,) = find_spec("transformers").submodule_search_locations  # type: ignore[union-attr, misc]
    text = Path(folder, "training_args.py").read_text("utf-8")
    kinds = {n: k for n, k in re.findall(r"(?m)^    (\w+): (.+?) =", text) if n not in _NOT_TAKEN}
    names = defaultdict(lambda: Any, vars(builtins), Literal=Literal)
    return get_type_hints(type("_", (), {"__annotations__": kinds}), localns=names)


def is_flag(name: str) -> bool:
    """Return whether an argument is boolean, so that its option needs no value."""
    return argument_types().get(name) in (bool, bool | None)


DEFAULTS: Mapping[str, Any] = {
    # The paper's values, with transformers' AdamW.
    "learning_rate": 1e-4,
    "num_train_epochs": 1,
    # The seed of `bishare compile`, so that training starts from the same tensors.
    "seed": 0,
    "logging_steps": 10,
    "logging_first_step": True,
    "include_num_input_tokens_seen": "non_padding",
    "save_steps": 100,
    "save_total_limit": 2,
    # Every tensor of an adapter has a gradient in every step, and a search costs time.
    "ddp_find_unused_parameters": False,
}
"""Defaults that differ from those of `TrainingArguments`."""

RECORD = "record"
"""The key of a ``run.json`` that is no argument: what the run depended on, and its results."""


class Settings(BaseModel):
    """Settings of the data, the base's loading and the learning rates of parts of the adapter.

    Each field is an argument of `train`, an option of ``bishare train`` and a key of a config. ``--help``
    shows the docstring of a field: a placeholder for the value, unless it is a switch, and a description.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    data: str | dict[str, str] = Field(min_length=1)
    """FILES: Examples: .json, .jsonl, .csv, .parquet, or a data set on the Hub. Several files, NAME=FILE or a
    folder of files are tasks that train in one run, each with a separate adapter."""
    together: bool = False
    """Train one adapter on the examples of all files."""
    groups: int | str | None = None
    """by-folder|FILE|K|scores: Train one adapter for each group of tasks (experimental): for each folder of
    files, for each list of tasks in FILE (.json, .yaml), or for each of K groups that are found in a library
    of all tasks. scores, or no value, trains that library and shows what speaks for 1 to 4 groups."""
    rows_at_once: int = Field(default=32, ge=1)
    """N: With several tasks, the examples that go through the model at once; by default 32."""
    library: str | None = None
    """DIR: Add adapters to a library; the tensors that its adapters share stay frozen."""
    start: Literal["zero", "mixture", "group"] | None = None
    """zero|mixture|group: Where new adapters of a library start: at zero, or at a sum of members, weighted
    by their losses. By default, with fewer than 16 examples and three members, it is that sum, untrained;
    otherwise it starts at zero. In a library of groups, it is the nearest group by default, untrained.
    --max_steps 0 does not train."""
    eval_data: str | None = None
    """FILE: Held-out examples, to evaluate on during training."""
    eval_split: float | None = Field(default=None, gt=0)
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

    @field_validator("groups", mode="before")
    @classmethod
    def _groups(cls, value: Any) -> Any:
        return None if value is None else read_setting(value)

    @field_validator("data", mode="before")
    @classmethod
    def _tasks(cls, value: Any) -> Any:
        """Convert several files, or a folder of files, to tasks by name."""
        if isinstance(value, Mapping):
            pairs = [(str(name), os.fspath(file)) for name, file in value.items()]
        else:
            words = value if isinstance(value, list | tuple) else [value]
            if not all(isinstance(word, str) for word in words):
                raise ValueError("write rows into a file, such as `rows.jsonl`, and name it")
            pairs = [pair for word in words for pair in _tasks_of(word)]
            if [name for name, _ in pairs] == [""]:
                return pairs[0][1]
        names = [name or Path(file).stem for name, file in pairs]
        if twice := next((name for name in names if names.count(name) > 1), None):
            raise ValueError(f"two tasks are called `{twice}`: write NAME=FILE")
        if wrong := next((name for name in names if not NAME.fullmatch(name)), None):
            raise ValueError(f"no adapter can be called `{wrong}`: write NAME=FILE")
        return dict(zip(names, (file for _, file in pairs), strict=True))

    @property
    def tasks(self) -> dict[str, list[str]]:
        """The data of each task by name; a single file has its own name."""
        if isinstance(self.data, str):
            return {re.sub(r"[^A-Za-z0-9_-]", "-", Path(self.data).stem): [self.data]}
        if self.together:
            return {"together": [*self.data.values()]}
        return {name: [file] for name, file in self.data.items()}

    @property
    def several(self) -> bool:
        """Whether several adapters are trained together, each into a separate folder."""
        return (isinstance(self.data, dict) and not self.together) or self.library is not None

    @field_validator("eval_split")
    @classmethod
    def _rows(cls, value: float | None, info: Any) -> float | None:
        if value is not None and info.data.get("eval_data") is not None:
            raise ValueError("`eval_data` names held-out rows already")
        if value is not None and value >= 1 and value != int(value):
            raise ValueError("from 1 on it is a number of rows, which is whole")
        return int(value) if value is not None and value >= 1 else value


def _tasks_of(word: str) -> list[tuple[str, str]]:
    """Return the names and files of a folder, of NAME=FILE, or of FILE, which has no name."""
    path = Path(word).expanduser()
    # `Path` raises for an unreadable folder, which is reported when the data is read.
    if os.path.isdir(path):  # noqa: PTH112
        files = sorted(file for file in path.iterdir() if file.suffix in ENDINGS)
        if not files:
            raise ValueError(f"`{word}` has no file of rows{_in_folders_of(path)}")
        return [(file.stem, str(file)) for file in files]
    name, equals, file = word.partition("=")
    return [(name, file) if equals and not os.path.exists(path) else ("", word)]  # noqa: PTH110


def _in_folders_of(folder: Path) -> str:
    """Say that the folders of a folder have files of rows, if they do."""
    if any(file.suffix in ENDINGS for file in folder.glob("*/*")):
        return ", and its folders have: `--groups by-folder` makes a group of each"
    return ""


class Request(Settings):
    """All arguments of a run; `_requests` adds those of `TrainingArguments`.

    Attributes:
        spec: a spec, a file, a shipped name or an adapter's folder; None if a library or a checkpoint
            contains the spec.
        model: a name, or a model.
        output_dir: the run's folder.
        params: values for params of the spec.
        resume: the checkpoint to resume from; None for a new run.
    """

    spec: Any
    model: Any
    output_dir: Path
    params: dict[str, Any] = {}
    resume: Path | None = None
    _repeated: Mapping[str, Any] = PrivateAttr(default_factory=dict)
    _continues: bool = PrivateAttr(default=False)

    @property
    def repeated(self) -> Mapping[str, Any]:
        """The record of the run that this one repeats, whose ``run.json`` is the config; or else empty."""
        return self._repeated

    @property
    def continues(self) -> bool:
        """Whether an earlier run is resumed. One that finds groups may have no checkpoint of groups yet."""
        return self._continues

    @field_validator("*", mode="before")
    @classmethod
    def _plain(cls, value: Any, info: Any) -> Any:
        # YAML reads a bare `no` as False.
        own = value is not False or info.field_name in Request.model_fields
        return value if own or is_flag(str(info.field_name)) else "no"

    @property
    def number_of_groups(self) -> int | None:
        """The number of groups that a run finds; None if it finds none."""
        return self.groups if isinstance(self.groups, int) else None

    @property
    def names_groups(self) -> bool:
        """Whether the user says which tasks are a group."""
        return isinstance(self.groups, str) and self.groups != SCORES

    @property
    def arguments(self) -> dict[str, Any]:
        """The arguments of transformers' Trainer that are given."""
        # `model_copy` gives a request arguments that its class may not have.
        return {n: vars(self)[n] for n in self.model_fields_set & argument_types().keys()}

    def makes_library(self, plan: Plan) -> bool:
        """Return whether adapters of a plan share tensors: its keys name `adapter`, or a library has it."""
        return self.several and (plan.is_library or self.library is not None)

    def trainable(self, plan: Plan) -> int:
        """Count the trained parameters of each adapter."""
        return plan.trainable if self.library is None else plan.private

    def owned(self, plan: Plan) -> str:
        """Return in words the parameters per adapter, or a library's private and shared ones."""
        if not self.makes_library(plan):
            return f"{plan.trainable:,} parameters"
        return plan.owned if self.library is None else f"{plan.owned} and frozen"

    def as_dict(self, spec: str | None) -> dict[str, Any]:
        """Return arguments for the same run from any folder; ``spec`` is a text, a path or a library's."""
        model = () if isinstance(self.model, str) else ("model",)
        left_out = {"spec", "output_dir", "resume", *model}
        plain = self.model_dump(exclude=left_out, exclude_unset=True)
        paths = plain.keys() & {"model", "data", "eval_data", "library"}
        if self.names_groups and self.groups != BY_FOLDER:
            paths |= {"groups"}
        places = {name: _absolute(plain[name]) for name in paths}
        return {"spec": spec, **plain, **places}


@cache
def _requests() -> type[Request]:
    theirs: dict[str, Any] = {n: (kind | None, None) for n, kind in argument_types().items()}
    return create_model("Request", __base__=Request, **theirs)


def _absolute(value: Any) -> Any:
    """Return the absolute path of an existing file or folder; other values are unchanged."""
    if isinstance(value, dict):
        return {name: _absolute(path) for name, path in value.items()}
    path = Path(value).expanduser().absolute()
    return str(path) if path.exists() else value


def unknown_argument(
    name: str, value: Any, shown: str | None = None, help: str | None = None
) -> Problem:
    """Build the error for an unknown argument (BS730), with the nearest name that takes the value."""
    takes = {n: f.annotation for n, f in _requests().model_fields.items()}
    help = help or advise_option("argument", name, value, takes)
    return codes.UNKNOWN_ARGUMENT(name=shown or name, help=help)


def _problem(name: str, error: Any, given: Mapping[str, Any]) -> Problem:
    """Build the problem for an error of Pydantic."""
    if error["type"] == "extra_forbidden":
        return unknown_argument(name, given[name])
    if error["type"] == "missing":
        help = advise("missing", next((n for n in ("start", "library") if n in given), name))
        return codes.MISSING_ARGUMENT(name=name, help=help)
    reason = error["msg"].removeprefix("Value error, ").replace("Input should", "it should")
    reason = reason.partition(", unable")[0]
    kind = _requests().model_fields[name].annotation
    help = advise("value", f"{name}:{(value := given[name])}")
    if isinstance(value, str) and help is None:
        help = value_meant(value, kind) or nearest(value, re.findall("'([^']+)'", reason), few=0)
    return codes.WRONG_VALUE(name=name, value=value, reason=reason, help=help)


def make_request(given: Mapping[str, Any], config: str | os.PathLike[str] | None) -> Request:
    """Merge the given arguments, a config file and the record of an earlier run.

    Given arguments override the file, which overrides the run that ``resume`` names.

    Raises:
        TrainError: arguments are unknown (BS730), invalid (BS731) or missing (BS736), all of them
            listed; the file is unreadable (BS734); there is no run to resume (BS742, BS743).
        AdapterError: ``library`` is not a folder, and cannot be fetched from the Hub (BS504, BS505).
    """
    named = dict[str, Any]()
    for name, value in given.items():
        if value not in (None, ""):
            named[name] = os.fspath(value) if isinstance(value, os.PathLike) else value
    file = {} if config is None else read_config(Path(config))
    repeated = file.pop(RECORD, None)
    resume, before = _run_before({**file, **named}.get("resume"))
    arguments = _merged(before, file, named)
    if arguments.get("groups") == BY_FOLDER and "data" in arguments:
        arguments["data"] = expand_folders(arguments["data"])
    request = _validated({**arguments, "resume": resume})
    request._continues = bool(before)
    if isinstance(repeated, Mapping):
        request._repeated = repeated
    _check_read(request, before, file.keys() | named.keys())
    _check_groups(request)
    if request.library:
        from bishare_dsl.hub import adapter_folder

        return request.model_copy(update={"library": str(adapter_folder(request.library))})
    return request


def _merged(
    before: Mapping[str, Any], file: Mapping[str, Any], given: Mapping[str, Any]
) -> dict[str, Any]:
    """Merge the arguments of an earlier run, of a config and of a call; the later ones win."""
    merged = {n: v for n, v in {**before, **file, **given}.items() if v is not None}
    params = given.get("params") or before.get("params") or {}
    merged["params"] = {**(file.get("params") or {}), **params}
    if before or merged.get("library"):
        merged.setdefault("spec", None)
    if "output_dir" in merged:
        merged["output_dir"] = Path(merged["output_dir"]).expanduser()
    return merged


def _validated(arguments: Mapping[str, Any]) -> Request:
    """Check the arguments by their types; the first problem of each is raised."""
    is_plain = arguments.keys() <= Request.model_fields.keys()
    kind = Request if is_plain else _requests()
    try:
        return kind.model_validate(arguments)
    except ValidationError as error:
        first = dict[str, Any]()
        for fault in error.errors():
            first.setdefault(str(fault["loc"][0]), fault)
        problems = [_problem(name, fault, arguments) for name, fault in first.items()]
        raise TrainError(problems) from None


def _check_read(request: Request, before: Mapping[str, Any], names: Collection[str]) -> None:
    """Check that a run reads the arguments with these names.

    Raises:
        TrainError: nothing reads one (BS732).
    """
    files = [file for some in request.tasks.values() for file in some]
    local = all(os.path.isfile(file) for file in files)  # noqa: PTH113
    alone = not request.eval_data or os.path.isfile(request.eval_data)  # noqa: PTH113
    new_library = not request.library
    restarted = request.continues and request.start != before.get("start")
    regrouped = request.continues and request.groups != before.get("groups")
    unread = {
        "data_split": local,
        "data_subset": local and alone,
        "eval_data_split": alone,
        "start": restarted or (new_library and request.start in ("mixture", "group")),
        "groups": regrouped,
        "max_steps": new_library and vars(request).get("max_steps") == 0,
    }
    for name, is_unread in unread.items():
        if is_unread and name in names:
            reason = f"nothing reads `{name}`"
            raise TrainError(codes.BAD_COMBINATION(reason=reason, help=advise("unread", name)))


def _check_groups(request: Request) -> None:
    """Check that the tasks of a request can be grouped as it says.

    Raises:
        TrainError: they cannot (BS732, BS749).
    """
    if request.groups is None:
        return
    others = [name for name in ("together", "library") if getattr(request, name)]
    names = list(request.data) if isinstance(request.data, dict) else list(request.tasks)
    problem = setting_problem(request.groups, names, others)
    if problem is not None:
        raise TrainError(problem)


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
    # The checkpoint has the run's spec; the spec's file may have changed since.
    record.pop(RECORD, None)
    before = {**record, "output_dir": str(folder)}
    try:
        checkpoint = find_checkpoint(path)
    except TrainError:
        if isinstance(record.get("groups"), int) and path == folder:
            return None, before  # It was stopped before it trained groups.
        raise
    if not record_of(checkpoint)["tasks"]:
        before["spec"] = None
    return checkpoint, before


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
    except (OSError, yaml.YAMLError, ValueError, RecursionError) as error:
        reason = one_line(error).replace(' in "<unicode string>",', " at")
    near = None if path.is_file() else near_path(str(path), lambda p: p.endswith((".yaml", ".yml")))
    raise TrainError(codes.BAD_CONFIG(path=path, reason=reason, help=near))
