"""Prepare a run: its arguments, spec variants, tokenizer, rows and base model.

Nothing is written. Errors are raised, and notes go to the reporter.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from transformers import set_seed

from bishare_dsl.adapter.contents import StoredAdapter
from bishare_dsl.adapter.files import check_apart, check_place, names_in, read_adapter
from bishare_dsl.batched.batches import mixed_batch_problems
from bishare_dsl.compiler import ResolvedSpec, make_plan, read_fitting
from bishare_dsl.diagnostics import raise_errors
from bishare_dsl.diagnostics.codes import train as codes
from bishare_dsl.diagnostics.codes.evaluate import NO_TOKENIZER
from bishare_dsl.models import Source, resolve
from bishare_dsl.models.inspect import other_task
from bishare_dsl.models.load import load_model, load_tokenizer
from bishare_dsl.plan import Plan
from bishare_dsl.train import folder as folders
from bishare_dsl.train.arguments import (
    check_processes,
    effective_batch,
    training_arguments,
    warm_up,
)
from bishare_dsl.train.data.batches import Collator
from bishare_dsl.train.data.encoding import encode
from bishare_dsl.train.data.formats import split_off
from bishare_dsl.train.data.load import Rows, load_rows
from bishare_dsl.train.errors import TrainError
from bishare_dsl.train.tasks import Steps, Task

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase, TrainingArguments

    from bishare_dsl.train.reporter import Reporter
    from bishare_dsl.train.request import Request

Trainable = ResolvedSpec | StoredAdapter
"""The object to train: planned, or read from a folder."""

_FEW_PARAMETERS, _LOW_RATE = 10_000, 1e-3
"""A parameter count and a learning rate, below which training learns little (PEFT's UniLoRA entry)."""


@dataclass(frozen=True)
class Prepared:
    """A run whose arguments, spec and examples are checked.

    Attributes:
        request: the request.
        args: the Trainer's arguments.
        base: the base, or its location.
        trainable: the object to train.
        library: the first adapter of the library that tasks are added to.
        places: what stands where the adapters of several tasks will be, by name.
        tokenizer: encodes the examples.
        steps: the steps of the tasks; for a single task, Trainer and its data loader create them.
        record: the tasks and the digest of the examples, for `folder.seal`.
        warm_up: maps the number of steps of a run to its warm-up steps.
    """

    request: Request
    args: TrainingArguments
    base: PreTrainedModel | Source
    trainable: Trainable
    library: StoredAdapter | None
    places: Mapping[str, Any]
    tokenizer: PreTrainedTokenizerBase
    steps: Steps
    record: Mapping[str, Any]
    warm_up: Callable[[int], int]


def prepare(
    request: Request, reporter: Reporter, tokenizer: PreTrainedTokenizerBase | str | None
) -> Prepared:
    """Check all that needs no weights.

    Raises:
        BishareError: an argument is invalid, the folder contains a run (BS740), there is no such base or
            spec, they do not fit, or examples are invalid.
        FileNotFoundError: there is no such spec.
    """
    folder = request.output_dir
    evaluates = request.eval_data is not None or request.eval_split is not None
    args = training_arguments(request.arguments, str(folder), evaluates=evaluates)
    if args.process_index > 0:
        reporter.silence()
    args.disable_tqdm = reporter.quiet
    set_seed(args.seed)
    if args.should_save:  # Another process may see files of this one.
        folders.check_new(folder, resumes=request.resume is not None)
    base: Any = request.model
    base = resolve(base) if isinstance(base, str) else base
    trainable = find_trainable(request, base, reporter)
    if args.max_steps == 0 and request.library is None:
        raise TrainError(codes.BAD_COMBINATION(reason="`max_steps` 0 needs a `library`"))
    places = check_several(request, args, trainable.plan) if request.several else {}
    library = read_library(request, trainable.plan)
    if tokenizer is None and isinstance(base, Source):
        tokenizer = load_tokenizer(base)
    if tokenizer is None or isinstance(tokenizer, str):
        name = "the model" if base is request.model else request.model
        raise TrainError(NO_TOKENIZER(model=name))
    tasks = read_tasks(request, args, tokenizer, reporter)
    content = trainable.plan.digest + ("" if library is None else library.config.tensors)
    digests = [report.digest for task in tasks for report in task.data.values()]
    record = {
        "tasks": [[task.name, content] for task in tasks if request.several],
        "data": hashlib.sha256("".join(digests).encode()).hexdigest(),
    }
    if request.resume is not None:
        check_resumed(request.resume, record)
        reporter.note(f"going on from {request.resume.name}")
    steps = Steps(
        tasks,
        Collator.of(tokenizer),
        effective_batch(args),
        args.num_train_epochs,
        args.max_steps if args.max_steps >= 0 else None,
        request.rows_at_once,
        args.world_size,
    )
    # A trainer changes the arguments.
    warm = partial(warm_up, args, request.arguments)
    text = f"{len(steps):,} step{'s' * (len(steps) > 1)} of {steps.batch:,} examples"
    if request.several:
        text = f"adapters: {len(tasks)}; {text} of each, {steps.at_once} rows at once"
    elif (passes := args.world_size * args.gradient_accumulation_steps) > 1:
        text += f", {passes} passes of {args.per_device_train_batch_size}"
    reporter.note(text)
    return Prepared(request, args, base, trainable, library, places, tokenizer, steps, record, warm)


def find_trainable(
    request: Request, base: PreTrainedModel | Source, reporter: Reporter
) -> Trainable:
    """Plan the spec, or read the adapter. To resume a run, read its checkpoint.

    Raises:
        BishareError: it cannot be trained.
        FileNotFoundError: there is no such spec.
    """
    if not isinstance(base, Source) and (other := other_task(base)) is not None:
        raise TrainError(codes.NOT_A_CAUSAL_CLASS(name=other))
    spec = request.spec
    if request.resume is not None and not folders.record_of(request.resume)["tasks"]:
        return read_adapter(request.resume)
    if spec is None:
        spec = first_of(str(request.library)).spec_text
    if not (isinstance(spec, str) and "\n" not in spec and folders.is_adapter(spec)):
        resolved = make_plan(spec, base, request.params)
        for problem in resolved.problems:
            reporter.report(problem, resolved.where)
        return resolved
    if request.several or request.params:
        reason = f"several tasks and `params` need a spec, and `{spec}` is an adapter"
        raise TrainError(codes.BAD_COMBINATION(reason=reason))
    read, findings = read_fitting(spec, base)
    for problem in findings:
        reporter.report(problem, None)
    return read


def check_several(request: Request, args: TrainingArguments, plan: Plan) -> dict[str, Any]:
    """Reject options that need a single adapter, and folders of adapters.

    Returns:
        What stands where the adapters, or their library, will be, by `check_place`.

    Raises:
        BishareError: an option needs a single task (BS732), terms do not support mixed batches (BS673), or a
            folder cannot be used (BS615, BS616).
    """
    refused = {
        "eval_data": request.eval_data is not None,
        "fp16": args.fp16,
        "load_best_model_at_end": args.load_best_model_at_end,
        "optim": getattr(args.optim, "value", args.optim)
        not in ("adamw_torch", "adamw_torch_fused"),
        "lr_scheduler_type": args.lr_scheduler_type in ("reduce_lr_on_plateau", "greedy"),
        "train_sampling_strategy": args.train_sampling_strategy != "random",
        "fsdp": bool(args.fsdp) or os.environ.get("ACCELERATE_USE_FSDP", "").lower() == "true",
    }
    for name in (name for name, is_so in refused.items() if is_so):
        raise TrainError(
            codes.BAD_COMBINATION(reason=f"`{name}` is for one task, without `library`")
        )
    raise_errors(TrainError, [*mixed_batch_problems("of each task", plan)])
    shares = request.makes_library(plan)
    names = [folders.LIBRARY] if shares else request.tasks
    names = names if args.should_save else []
    return {name: check_place(request.output_dir / name, library=shares) for name in names}


def check_resumed(checkpoint: Path, record: Mapping[str, Any]) -> None:
    """Check that a checkpoint is of the same run; ``record`` is a part of that of `folder.seal`.

    Raises:
        TrainError: it is of other tasks, examples or weights (BS732).
    """
    sealed = folders.record_of(checkpoint)
    named = {"tasks": "tasks, params or another library", "data": "examples", "base": "weights"}
    help = f"`bishare train {checkpoint} ...` trains its adapter further, in another `--output_dir`"
    if sealed["tasks"]:
        help = "start a new run with all arguments, in another `--output_dir`"
    reasons = [f"the checkpoint is of other {named[n]}" for n in record if sealed[n] != record[n]]
    raise_errors(TrainError, [codes.BAD_COMBINATION(reason=r, help=help) for r in reasons])


def read_library(request: Request, plan: Plan) -> StoredAdapter | None:
    """Read the library that tasks are added to, as its first adapter.

    Raises:
        TrainError: it is not a library, has another plan, or already has an adapter with a task's name
            (BS732).
    """
    folder = request.library
    if folder is None:
        return None
    first = first_of(folder)
    check_apart(Path(folder), request.output_dir / folders.LIBRARY)
    if not first.plan.runs_as(plan):
        reason = f"the library `{folder}` is of another spec, or of other params"
        help = "leave the spec and `--set` out: the library has them"
        raise TrainError(codes.BAD_COMBINATION(reason=reason, help=help))
    if twice := sorted((first.config.adapters or {}).keys() & request.tasks):
        reason = f"the library `{folder}` has an adapter `{twice[0]}` already"
        help = f"give the task another name: `--data {twice[0]}-2=FILE`"
        raise TrainError(codes.BAD_COMBINATION(reason=reason, help=help))
    return first


def first_of(library: str) -> StoredAdapter:
    """Read the first adapter of a library.

    Raises:
        TrainError: it is not a library (BS732).
    """
    if names := names_in(library):
        return read_adapter(f"{library}#{names[0]}")
    reason = f"`{library}` is no library"
    help = "`bishare train library_core` with several `--data` begins one"
    raise TrainError(codes.BAD_COMBINATION(reason=reason, help=help))


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
    split, subset = request.data_split, request.data_subset
    for name, sources in request.tasks.items():
        parts = {"train": Rows.join([load_rows(s, split=split, subset=subset) for s in sources])}
        if request.eval_data is not None:
            same = request.eval_data in sources
            parts["eval"] = load_rows(
                request.eval_data, split=request.eval_data_split, subset=subset if same else None
            )
        elif (size := request.eval_split) is not None:
            both = split_off(parts["train"], size, args.seed, format=request.format)
            parts = dict(zip(("train", "eval"), both, strict=True))
        if not request.several:
            reporter.note(f"encoding {sum(map(len, parts.values())):,} rows ...")
        examples, reports = {}, {}
        for part, rows in parts.items():
            encoded = encode(
                rows,
                tokenizer,
                max_length=request.max_length,
                train_on=request.train_on,
                format=request.format,
            )
            examples[part], reports[part] = encoded.examples, encoded.report
            of = f"{name}{', held out' * (part == 'eval')}: " if request.several else ""
            reporter.note(f"{of}{encoded.report}")
        tasks.append(Task(name, examples["train"], examples.get("eval", ()), order, reports))
    return tasks


def load_base(prepared: Prepared, reporter: Reporter) -> tuple[PreTrainedModel, str]:
    """Return the given model, or load the named one, and the digest of its weights; empty without steps.

    Raises:
        BishareError: it cannot be loaded, or it is not the base of the checkpoint to resume (BS732).
    """
    request, model = prepared.request, prepared.base
    if isinstance(model, Source):
        reporter.note(f"loading {request.model} ...")
        bits = 4 if request.load_in_4bit else 8 if request.load_in_8bit else None
        model = load_model(model, dtype=request.dtype, device=request.device_map, bits=bits)[0]
    check_processes(prepared.args, model)
    digest = _digest_of(model) if len(prepared.steps) else ""
    if request.resume is not None:
        check_resumed(request.resume, {"base": digest})
    return model, digest


def _digest_of(model: PreTrainedModel) -> str:
    """Return a digest of the name, shape and sum of each weight; weights on disk count without a sum."""
    digest = hashlib.sha256()
    for name, weight in model.named_parameters():
        digest.update(f"{name} {[*weight.shape]} ".encode())
        if not weight.is_meta:
            # A sum of integers does not depend on the order of addition, as one of floats does.
            bits = weight.detach().contiguous().view(getattr(torch, f"int{8 * weight.itemsize}"))
            digest.update(str(int(bits.sum())).encode())
    return digest.hexdigest()


def note_low_rate(reporter: Reporter, learned: int, rate: float) -> None:
    """Note that few parameters learn little at a low learning rate."""
    if learned < _FEW_PARAMETERS and rate < _LOW_RATE:
        text = f"so few parameters learn little at a rate of {rate:g}: try --learning_rate 2e-3"
        reporter.note(text)
