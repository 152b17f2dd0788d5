"""Prepare a run: its arguments, spec variants, tokenizer, rows and base model.

Nothing is written. Errors are raised, and notes go to the reporter.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from math import ceil
from pathlib import Path
from typing import Any, cast

import torch
from datasets import concatenate_datasets
from transformers import PreTrainedModel, PreTrainedTokenizerBase, TrainingArguments, set_seed

from bishare_dsl.batched.batches import mixed_batch_problems
from bishare_dsl.compiler import ResolvedSpec, make_plan
from bishare_dsl.diagnostics import advise, raise_errors
from bishare_dsl.diagnostics.codes import train as codes
from bishare_dsl.diagnostics.codes.evaluate import NO_TOKENIZER
from bishare_dsl.folder.contents import StoredAdapter
from bishare_dsl.folder.files import check_apart, check_place, names_in, place_of, read_adapter
from bishare_dsl.folder.fingerprint import Fingerprint, difference
from bishare_dsl.folder.groups import Groups
from bishare_dsl.loading import read_fitting
from bishare_dsl.models import Source, resolve
from bishare_dsl.models.inspect import other_task
from bishare_dsl.models.load import load_model, load_tokenizer
from bishare_dsl.plan import Plan
from bishare_dsl.resources import shipped_specs
from bishare_dsl.train import folder as folders
from bishare_dsl.train.data.batches import Collator
from bishare_dsl.train.data.encoding import DataReport, Encoded, encode
from bishare_dsl.train.data.formats import COLUMNS, split_off
from bishare_dsl.train.data.load import Rows, load_rows
from bishare_dsl.train.errors import TrainError, catch_refusals, translate_refusals
from bishare_dsl.train.grouping import SCORES, named_groups
from bishare_dsl.train.loss import among_options
from bishare_dsl.train.newcomers import decide_starts
from bishare_dsl.train.reporter import Reporter
from bishare_dsl.train.request import DEFAULTS, Request, argument_types
from bishare_dsl.train.tasks import Steps, Task

Trainable = ResolvedSpec | StoredAdapter
"""The object to train: planned, or read from a folder."""

BATCH = 64
"""Examples per optimizer step, over all processes."""
PER_DEVICE = 4
"""The largest number of examples in one forward pass."""
WARM_UP = 100
"""Warm-up steps of the paper's learning rate; by default at most a quarter of the run.

With a tenth of the run instead, some runs at high learning rates diverge early
(benchmarks/notes/2026-11-27-falling.md).
"""


@dataclass(frozen=True)
class Pace:
    """How fast several tasks train, unless a run says otherwise.

    Tasks with few examples have one step in an epoch.

    Attributes:
        rate: the learning rate.
        steps: the least steps of the largest task.
    """

    rate: float
    steps: int


LORA_PACE = Pace(rate=2e-3, steps=60)
"""Of tasks that share nothing: a higher rate is for the few numbers that a task of a library owns."""
LIBRARY_PACE = Pace(rate=1e-2, steps=80)
"""Of a library: members and newcomers learn more than in as many steps at 3e-3.

160 steps at 3e-3 are better for members and level for newcomers (benchmarks/notes/2026-12-03-groups.md).
"""

NEW_RUN = "start a new run with all arguments, in another `--output_dir`"
"""The remedy for a run that cannot be resumed, because something is not as it was."""

_FIXED: Mapping[str, Any] = {
    # A bad loss must not be hidden; rows are already encoded.
    "logging_nan_inf_filter": False,
    "remove_unused_columns": False,
    # Reentrant recomputing needs inputs with gradients.
    "gradient_checkpointing_kwargs": {"use_reentrant": False},
}


@dataclass(frozen=True)
class Prepared:
    """A run whose arguments, spec and examples are checked.

    Attributes:
        request: the request.
        args: the Trainer's arguments.
        base: the base, or its location.
        trainable: the object to train, or the first adapter of the library that tasks are added to.
        places: what stands where the adapters of several tasks will be, by name.
        tokenizer: encodes the examples.
        steps: the steps of the tasks; for a single task, Trainer and its data loader create them.
        record: the tasks and the digest of the examples, for `folder.seal`.
        warm_up: maps the number of steps of a run to its warm-up steps.
        groups: the groups that are its tasks; None if its tasks are those of the request.
    """

    request: Request
    args: TrainingArguments
    base: PreTrainedModel | Source
    trainable: Trainable
    places: Mapping[str, Any]
    tokenizer: PreTrainedTokenizerBase
    steps: Steps
    record: Mapping[str, Any]
    warm_up: Callable[[int], int]
    groups: Groups | None = None


def prepare(
    request: Request,
    reporter: Reporter,
    tokenizer: PreTrainedTokenizerBase | str | None,
    groups: Groups | None = None,
) -> Prepared:
    """Check all that needs no weights.

    Args:
        request: the request.
        reporter: of the run.
        tokenizer: that of the model; None to load it.
        groups: those that a run has found, to be trained as tasks.

    Raises:
        BishareError: an argument is invalid, the folder contains a run (BS740), there is no such base or
            spec, they do not fit, or examples are invalid.
        FileNotFoundError: there is no such spec.
    """
    evaluates = request.eval_data is not None or request.eval_split is not None
    args = training_arguments(request.arguments, str(request.output_dir), evaluates=evaluates)
    if args.process_index > 0:
        reporter.silence()
    args.disable_tqdm = reporter.quiet or not reporter.shows_steps
    set_seed(args.seed)
    if args.should_save:  # Another process may see files of this one.
        folders.check_new(request.output_dir, resumes=request.resume is not None)
    base: Any = resolve(request.model) if isinstance(request.model, str) else request.model
    if request.names_groups:
        groups = Groups(tasks=named_groups(str(request.groups), cast(Any, request.data)))
    trainable = find_trainable(request, base, reporter)
    check_groups(request, trainable.plan)
    names = list(request.tasks if groups is None else groups.tasks)
    places = check_several(request, args, trainable.plan, names) if request.several else {}
    pace = LIBRARY_PACE if request.makes_library(trainable.plan) else LORA_PACE
    if request.several and "learning_rate" not in request.arguments:
        args.learning_rate = pace.rate
    tokenizer = _tokenizer_of(request, base, tokenizer)
    tasks = read_tasks(request, args, tokenizer, reporter)
    record = _record(request, trainable, tasks, names)
    if groups is not None:
        check_same_examples(request, groups, record["data"])
        tasks = join_groups(tasks, groups.tasks)
    if request.resume is not None:
        check_resumed(request.resume, record)
        reporter.note(f"going on from {request.resume.name}")
    tasks = decide_starts(request, tasks)
    steps = _steps(request, args, Collator.of(tokenizer), tasks, pace)
    # A trainer changes the arguments.
    warm = partial(warm_up, args, request.arguments)
    reporter.note(_steps_line(request, steps, args.learning_rate, trainable.plan))
    return Prepared(
        request=request,
        args=args,
        base=base,
        trainable=trainable,
        places=places,
        tokenizer=tokenizer,
        steps=steps,
        record=record,
        warm_up=warm,
        groups=groups,
    )


def _tokenizer_of(
    request: Request,
    base: PreTrainedModel | Source,
    tokenizer: PreTrainedTokenizerBase | str | None,
) -> PreTrainedTokenizerBase:
    """Return the tokenizer of a run, which is loaded if it is None.

    Raises:
        TrainError: the base has none (BS805).
    """
    if tokenizer is None and isinstance(base, Source):
        tokenizer = load_tokenizer(base)
    if tokenizer is None or isinstance(tokenizer, str):
        name = "the model" if base is request.model else request.model
        raise TrainError(NO_TOKENIZER(model=name))
    return tokenizer


def _record(
    request: Request, trainable: Trainable, tasks: list[Task], names: Sequence[str]
) -> dict[str, Any]:
    """Return what a checkpoint records of its run: its adapters, and the digest of all tasks' examples."""
    shared = trainable.config.tensors if isinstance(trainable, StoredAdapter) else ""
    named = list[list[str]]()
    if request.several:
        named = [[name, trainable.plan.digest + shared] for name in names]
    digests = [report.digest for task in tasks for report in task.data.values()]
    return {"tasks": named, "data": folders.digest_of_data(digests)}


def _steps(
    request: Request, args: TrainingArguments, collator: Collator, tasks: list[Task], pace: Pace
) -> Steps:
    """Count the steps of a run: of several tasks that train, the largest one has those of the pace."""
    steps = Steps(
        tasks=tasks,
        collator=collator,
        batch=effective_batch(args),
        epochs=args.num_train_epochs,
        most=None if args.max_steps < 0 else args.max_steps,
        at_once=request.rows_at_once,
    )
    if request.several and "num_train_epochs" not in request.arguments:
        longest = max((steps.in_epoch(task) for task in tasks if task.trains), default=1)
        return replace(steps, epochs=max(1, ceil(pace.steps / longest)))
    return steps


def _steps_line(request: Request, steps: Steps, rate: float, plan: Plan) -> str:
    """Say how many steps a run has, of how many examples, and for several tasks at which learning rate."""
    count = len(steps)
    text = f"{count:,} step{'' if count == 1 else 's'} of {steps.batch:,} examples"
    if request.several:
        sums = sum(not task.trains and task.begins != "group" for task in steps.tasks)
        grouped = sum(task.begins == "group" for task in steps.tasks)
        adapters = f"adapters: {len(steps.tasks)} (`--together` trains one on all)"
        if sums:
            adapters += (
                f", {sums} of them sums of members that do not train: `--max_steps` trains them"
            )
        if grouped:
            adapters += f", {grouped} of them groups as they are: `--start zero` trains"
        if sums + grouped == len(steps.tasks):
            return adapters
        has_groups = any(task.members for task in steps.tasks)
        each = "each task of a group" if has_groups else "each"
        return f"{adapters}; {text} of {each}, {steps.at_once} rows at once, learning rate {rate:g}"
    if plan.is_library:
        text += "; one adapter and no library, which takes several `--data`"
    return text


def training_arguments(
    given: Mapping[str, Any], output_dir: str, *, evaluates: bool
) -> TrainingArguments:
    """Build the arguments of a run. Under `torchrun` and similar launchers, this joins the processes.

    Args:
        given: values by name, of the types of `TrainingArguments`.
        output_dir: the run's folder.
        evaluates: whether there is held-out data.

    Raises:
        TrainError: arguments conflict (BS732).
    """
    chosen = {**DEFAULTS, **given, **_FIXED}
    if "activation_checkpointing" in argument_types():  # The name since transformers 5.23.
        old = "gradient_checkpointing"
        new = "activation_checkpointing"
        chosen = {name.replace(old, new): value for name, value in chosen.items()}
    if not torch.accelerator.is_available():
        chosen["use_cpu"] = True
    if evaluates and "eval_strategy" not in given:
        chosen["eval_strategy"] = "steps"
        chosen.setdefault("eval_steps", chosen["save_steps"])
    with catch_refusals(given):
        args = TrainingArguments(output_dir=output_dir, **chosen)
        if args.deepspeed_plugin is not None or os.environ.get("ACCELERATE_USE_FSDP") == "true":
            raise ValueError("DeepSpeed and FSDP shard a base in TRL's `SFTTrainer`")
        if args.save_total_limit == 1:
            args.save_total_limit = 2  # Trainer removes the last one before the next one is sealed.
        _fill_batch(args, given)
    return args


def effective_batch(args: TrainingArguments) -> int:
    """Count the examples per optimizer step, over all processes."""
    at_once: int = args.per_device_train_batch_size * args.world_size
    return at_once * args.gradient_accumulation_steps


def warm_up(args: TrainingArguments, given: Mapping[str, Any], steps: int) -> int:
    """Count the warm-up steps of a run with this many steps, from the arguments."""
    return args.get_warmup_steps(steps) if "warmup_steps" in given else min(WARM_UP, steps // 4)


def _fill_batch(args: TrainingArguments, given: Mapping[str, Any]) -> None:
    """Choose unset arguments so that an optimizer step sees `BATCH` examples."""
    size = given.get("per_device_train_batch_size")
    steps = given.get("gradient_accumulation_steps")
    if any(count is not None and count < 1 for count in (size, steps)):
        raise ValueError("a batch has one example at least")
    if size is None:
        most = PER_DEVICE if steps is None else BATCH
        size = max(1, min(most, round(BATCH / (args.world_size * (steps or 1)))))
    if steps is None:
        steps = max(1, round(BATCH / (size * args.world_size)))
    args.per_device_train_batch_size = size
    args.gradient_accumulation_steps = steps


def find_trainable(
    request: Request, base: PreTrainedModel | Source, reporter: Reporter
) -> Trainable:
    """Plan the spec, or read the adapter: the first one of a library, or the checkpoint of a run to resume.

    Raises:
        BishareError: it cannot be trained.
        FileNotFoundError: there is no such spec.
    """
    if not isinstance(base, Source) and (other := other_task(base)) is not None:
        raise TrainError(codes.NOT_A_CAUSAL_CLASS(name=other))
    spec = request.spec
    if request.library is not None:
        spec = first_of(request.library)
    elif request.resume is not None and not folders.record_of(request.resume)["tasks"]:
        return read_adapter(request.resume)
    elif not (isinstance(spec, str) and "\n" not in spec and folders.is_adapter(spec)):
        resolved = make_plan(spec, base, request.params)
        for problem in resolved.problems:
            reporter.report(problem, resolved.where)
        return resolved
    elif spec in shipped_specs():
        help = f"write `./{spec}` for the folder, or `{spec}.share` for the spec"
        reason = f"`{spec}` is a folder with an adapter, and a shipped spec"
        raise TrainError(codes.BAD_COMBINATION(reason=reason, help=help))
    elif request.several or request.params:
        reason = f"several tasks and `params` need a spec, and `{spec}` is an adapter"
        help = "name a spec, such as `lora`; an adapter is trained further without `--set`, on one task"
        raise TrainError(codes.BAD_COMBINATION(reason=reason, help=help))
    read, findings = read_fitting(spec, base)
    for problem in findings:
        reporter.report(problem, None)
    if request.library is not None:
        check_library(request, read)
    return read


def check_groups(request: Request, plan: Plan) -> None:
    """Check that tasks have private numbers by which they can be grouped, if they are to be.

    Raises:
        TrainError: they have none, or share nothing (BS737).
    """
    finds_groups = request.groups == SCORES or request.number_of_groups is not None
    if finds_groups and not plan.is_library:
        reason = f"adapters of `{plan.spec}` share nothing, so their numbers cannot be compared"
        help = "take a spec of a library, such as `library_core`"
        raise TrainError(codes.BAD_GROUPS(reason=reason, help=help))


def check_same_examples(request: Request, groups: Groups, data: str) -> None:
    """Check that groups were found in the examples of a run, which have this digest.

    Raises:
        TrainError: they were found in others (BS732).
    """
    if groups.were_found and groups.data != data:
        reason = f"the groups in `{request.output_dir}` were found in other examples"
        raise TrainError(codes.BAD_COMBINATION(reason=reason, help=NEW_RUN))


def join_groups(tasks: Sequence[Task], groups: Mapping[str, Sequence[str]]) -> list[Task]:
    """Return a task for each group, with the examples of its tasks.

    Raises:
        TrainError: some tasks of a group have options, and others have none (BS749).
    """
    task_of = {task.name: task for task in tasks}
    joined = list[Task]()
    for group, names in groups.items():
        members = [task_of[name] for name in names]
        for member in members[1:]:
            if among_options(member.examples) != among_options(members[0].examples):
                both = f"`{members[0].name}` and `{member.name}`"
                reason = f"in the group `{group}`, only one of {both} has `options`"
                help = "give `options` to the rows of all tasks of a group, or to none"
                raise TrainError(codes.BAD_GROUPS(reason=reason, help=help))
        held_out = [member.held_out for member in members if member.held_out]
        data = dict[str, DataReport]()
        for part in members[0].data:
            reports = [member.data[part] for member in members]
            data[part] = DataReport.joined(f"{len(reports)} files", reports)
        task = Task(
            name=group,
            examples=concatenate_datasets([member.examples for member in members]),
            held_out=concatenate_datasets(cast(Any, held_out)) if held_out else (),
            order=members[0].order,
            data=data,
            members=tuple(names),
        )
        joined.append(task)
    return joined


def check_several(
    request: Request, args: TrainingArguments, plan: Plan, tasks: Sequence[str]
) -> dict[str, Any]:
    """Reject options that need a single adapter, and folders of adapters.

    Returns:
        What stands where the adapters, or their library, will be, by `check_place`.

    Raises:
        BishareError: an option needs a single task (BS732), terms do not support mixed batches (BS673), or a
            folder cannot be used (BS615, BS616, BS740).
    """
    refused = {
        "eval_data": request.eval_data is not None,
        "fp16": args.fp16,
        "load_best_model_at_end": args.load_best_model_at_end,
        "optim": getattr(args.optim, "value", args.optim)
        not in ("adamw_torch", "adamw_torch_fused"),
        "lr_scheduler_type": args.lr_scheduler_type in ("reduce_lr_on_plateau", "greedy"),
        "train_sampling_strategy": args.train_sampling_strategy != "random",
        "torchrun": args.world_size > 1,
    }
    for name, is_refused in refused.items():
        if is_refused:
            reason = f"`{name}` is not for several tasks, nor for a library"
            raise TrainError(codes.BAD_COMBINATION(reason=reason, help=advise("several", name)))
    raise_errors(TrainError, [*mixed_batch_problems("of each task", plan)])
    shares = request.makes_library(plan)
    names = [folders.LIBRARY] if shares else tasks
    places = {}
    for name in names:
        place = request.output_dir / name
        if request.resume is None:
            with translate_refusals(place):
                folders.check_free(place)
        places[name] = check_place(place, library=shares)
    return places


def check_resumed(
    checkpoint: Path, record: Mapping[str, Any], base: Fingerprint | None = None
) -> None:
    """Check that a checkpoint is of the same run; ``record`` is a part of that of `folder.seal`.

    Raises:
        TrainError: it is of other tasks, examples or weights (BS732).
    """
    sealed = folders.record_of(checkpoint)
    named = {"tasks": "tasks, params or another library", "data": "examples"}
    others = [named[n] for n in record if sealed[n] != record[n]]
    if base and sealed["base"] and difference(Fingerprint(**sealed["base"]), base):
        others.append("weights")
    reasons = [f"the checkpoint is of other {other}" for other in others]
    raise_errors(TrainError, [codes.BAD_COMBINATION(reason=r, help=NEW_RUN) for r in reasons])


def check_library(request: Request, first: StoredAdapter) -> None:
    """Check that tasks can be added to the library of an adapter, whose spec and params are those of the run.

    Raises:
        TrainError: the request has others, or the library has an adapter with a task's name (BS732).
    """
    folder = Path(str(request.library))
    check_apart(folder, request.output_dir / folders.LIBRARY)
    reason = ""
    help = None
    if request.spec is not None or request.params:
        reason = f"`{folder}` has a spec and its params"
        help = "leave the spec and `--set` out"
    elif twice := sorted((first.config.adapters or {}).keys() & request.tasks):
        reason = f"the library `{folder}` has {' and '.join(f'`{n}`' for n in twice)} already"
        help = "leave their files out; `--data NAME=FILE` trains one anew under another name"
    if reason:
        raise TrainError(codes.BAD_COMBINATION(reason=reason, help=help))


def first_of(library: str) -> str:
    """Return the location of a library's first adapter.

    Raises:
        TrainError: it is not a library (BS732).
    """
    if names := names_in(library):
        return f"{library}#{names[0]}"
    help = "`bishare inspect .` lists adapters and libraries: name a library"
    place = place_of(library)[0]
    for near in (place.parent / folders.LIBRARY, place, place.parent, place / folders.LIBRARY):
        if names_in(near):
            help = f"the library is `{near}`: write `--library {near}`"
    raise TrainError(codes.BAD_COMBINATION(reason=f"`{library}` is no library", help=help))


def read_tasks(
    request: Request,
    args: TrainingArguments,
    tokenizer: PreTrainedTokenizerBase,
    reporter: Reporter,
) -> list[Task]:
    """Read and encode the rows of each task.

    Raises:
        DataError: rows are unreadable (BS70x), invalid (BS71x), or have no trained token (BS723).
    """
    tasks = list[Task]()
    order = args.seed if args.data_seed is None else args.data_seed
    for name, sources in request.tasks.items():
        parts = _read_rows(request, sources, args.seed)
        if not request.several:
            count = sum(len(rows) for rows in parts.values())
            reporter.note(f"encoding {count:,} rows ...")
        encoded = dict[str, Encoded]()
        for part, rows in parts.items():
            encoded[part] = encode(
                rows,
                tokenizer,
                max_length=request.max_length,
                train_on=request.train_on,
                format=request.format,
            )
        unread = [column for column in parts["train"].table[0] if column not in COLUMNS]
        if unread:
            reporter.note(f"columns that are not read: {', '.join(unread)}")
        for part, one in encoded.items():
            held_out = ", held out" if part == "eval" else ""
            of = f"{name}{held_out}: " if request.several else ""
            reporter.note(f"{of}{one.report}")
        task = Task(
            name=name,
            examples=encoded["train"].examples,
            held_out=encoded["eval"].examples if "eval" in encoded else (),
            order=order,
            data={part: one.report for part, one in encoded.items()},
        )
        tasks.append(task)
    return tasks


def _read_rows(request: Request, sources: list[str], seed: int) -> dict[str, Rows]:
    """Read the rows of a task: ``"train"``, and ``"eval"`` if some are held out."""
    split = request.data_split
    subset = request.data_subset
    rows = Rows.join([load_rows(source, split=split, subset=subset) for source in sources])
    if request.eval_data is not None:
        same = subset if request.eval_data in sources else None
        held_out = load_rows(request.eval_data, split=request.eval_data_split, subset=same)
        return {"train": rows, "eval": held_out}
    if request.eval_split is not None:
        rows, held_out = split_off(rows, request.eval_split, seed, format=request.format)
        return {"train": rows, "eval": held_out}
    return {"train": rows}


def load_base(
    request: Request, base: PreTrainedModel | Source, reporter: Reporter
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase | None]:
    """Return the given model, or load it, and then its tokenizer too.

    Raises:
        BishareError: it cannot be loaded.
    """
    if not isinstance(base, Source):
        return base, None
    reporter.note(f"loading {request.model} ...")
    bits = 4 if request.load_in_4bit else 8 if request.load_in_8bit else None
    return load_model(base, dtype=request.dtype, device=request.device_map, bits=bits)
