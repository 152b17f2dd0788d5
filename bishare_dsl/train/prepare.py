"""Prepare a run: its arguments, spec variants, tokenizer, rows and base model.

Nothing is written. Errors are raised, and notes go to the reporter.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any

from transformers import set_seed

from bishare_dsl.adapter.config import member_fault
from bishare_dsl.adapter.contents import StoredAdapter
from bishare_dsl.adapter.files import (
    CONFIG,
    check_apart,
    check_place,
    names_in,
    place_of,
    read_adapter,
)
from bishare_dsl.adapter.handle import Handle
from bishare_dsl.batched.batches import mixed_batch_problems
from bishare_dsl.compiler import ResolvedSpec, make_plan, read_fitting
from bishare_dsl.diagnostics import AdapterError, Problem, SourceMap, raise_errors
from bishare_dsl.diagnostics.codes import train as codes
from bishare_dsl.diagnostics.codes.adapter import (
    DISABLED,
    NO_NAME,
    STILL_MERGED,
)
from bishare_dsl.diagnostics.codes.evaluate import NO_TOKENIZER
from bishare_dsl.models import Source, resolve
from bishare_dsl.models.inspect import other_task
from bishare_dsl.models.load import load_model, load_tokenizer
from bishare_dsl.names import module_names, name_fault
from bishare_dsl.plan import Plan
from bishare_dsl.train.arguments import training_arguments
from bishare_dsl.train.data.encoding import encode
from bishare_dsl.train.data.formats import split_off
from bishare_dsl.train.data.load import load_rows
from bishare_dsl.train.data.rows import Rows
from bishare_dsl.train.errors import TrainError
from bishare_dsl.train.folder import (
    LIBRARY,
    check_new,
    checkpoints,
    fault_of,
    step_of,
    tasks_of,
)
from bishare_dsl.train.groups import check_names
from bishare_dsl.train.request import groups_of
from bishare_dsl.train.tasks import Steps, Task

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase
    from trl import SFTConfig

    from bishare_dsl.train.reporter import Reporter
    from bishare_dsl.train.request import Request, Settings

Trainable = ResolvedSpec | StoredAdapter | Handle
"""The object to train: planned, read from a folder, or already in the model."""

_FEW_PARAMETERS, _LOW_RATE = 10_000, 1e-3
"""A parameter count and a learning rate, below which training learns little (PEFT's UniLoRA entry)."""


def arguments_and_base(
    request: Request, reporter: Reporter, *, force: bool
) -> tuple[SFTConfig, PreTrainedModel | Source]:
    """Return the Trainer's arguments and the base or its location, after checking that the folder is free.

    Raises:
        BishareError: an argument is invalid, the folder contains a run (BS740), or there is no such base.
    """
    settings, folder = request.settings, request.output_dir
    evaluates = settings.eval_data is not None or settings.eval_split is not None
    args = training_arguments(request.arguments, str(folder), evaluates=evaluates)
    if args.process_index > 0:
        reporter.silence()
    set_seed(args.seed)
    if args.should_save:  # Another process may see files of this one.
        check_new(folder, force=force or request.resume is not None)
    return args, resolve(request.model) if isinstance(request.model, str) else request.model


def spec_variants(
    request: Request, base: PreTrainedModel | Source, reporter: Reporter
) -> list[Trainable]:
    """Return the object to train, or one variant of the spec for each candidate value.

    Plan the spec, read the adapter or find it in the model. To resume a run, read its checkpoint.

    Raises:
        BishareError: it cannot be trained.
        FileNotFoundError: there is no such spec.
    """
    if not isinstance(base, Source) and (other := other_task(base)) is not None:
        raise TrainError(codes.NOT_A_CAUSAL_CLASS(name=other))
    variants: list[Trainable] = []
    warnings: list[tuple[Problem, SourceMap | None]] = []  # The source of a text is not hashable.
    for params in request.settings.params_tried:
        variant = replace(request, params={**request.params, **params})
        trainable, problems = _find_trainable(variant, getattr(base, "bishare", None), base)
        fixed = trainable.plan.common if request.settings.library else frozenset()
        check_names(trainable.plan, request.settings.lr_of, fixed)
        warnings += [pair for pair in problems if pair not in warnings]
        if request.several and not isinstance(trainable, ResolvedSpec):
            reason = "several tasks begin with a spec, and not with an adapter"
            raise TrainError(codes.BAD_COMBINATION(reason=reason))
        if params and request.makes_library(trainable.plan):
            reason = "what adapters share has one form: `search` takes no param of such a spec"
            raise TrainError(codes.BAD_COMBINATION(reason=reason))
        variants.append(trainable)
    for problem, where in warnings:
        reporter.report(problem, where)
    return variants


def _find_trainable(
    request: Request, adapter: Handle | None, base: PreTrainedModel | Source
) -> tuple[Trainable, list[tuple[Problem, SourceMap | None]]]:
    spec = request.spec
    if request.resume is not None and not tasks_of(request.resume):
        return read_adapter(request.resume), []
    stored = isinstance(spec, str) and "\n" not in spec and is_adapter(spec)
    if request.params and (adapter is not None or stored):
        reason = "`params` are a spec's, and an adapter has none to be set"
        raise TrainError(codes.BAD_COMBINATION(reason=reason))
    if adapter is not None:
        if spec is not None:
            raise TrainError(codes.SPEC_AND_ADAPTED(spec=adapter.plan.spec))
        check_state(adapter)
        return adapter, []
    if spec is None and (library := request.settings.library):
        spec = _first_of(library).spec_text
    if spec is None:
        raise TrainError(codes.MISSING_ARGUMENT(name="spec"))
    if stored:
        read, findings = read_fitting(str(spec), base)
        return read, [(problem, None) for problem in findings]
    resolved = make_plan(spec, base, request.params)
    return resolved, [(problem, resolved.where) for problem in resolved.problems]


def check_state(handle: Handle) -> None:
    """Check that a run would train the adapter that it saves, as it is saved.

    Raises:
        AdapterError: the adapter is disabled (BS626) or merged (BS643).
        TrainError: another adapter than `default` runs, or it has a scale, which is not saved (BS732).
    """
    if handle.disabled:
        raise AdapterError(DISABLED(action="train"))
    if handle.merged:
        raise AdapterError(STILL_MERGED(action="train"))
    if handle.active != ("default",):
        names = "` and `".join(handle.active)
        reason = f"the adapter `{names}` runs, and a run saves the adapter `default`"
        help = "save the adapter, and train its folder in place of a spec"
        raise TrainError(codes.BAD_COMBINATION(reason=reason, help=help))
    if handle.running.scale != 1:
        reason = f"the adapter has the scale {handle.running.scale:g}, which is not saved"
        help = "call `model.bishare.unscale_layer()` first"
        raise TrainError(codes.BAD_COMBINATION(reason=reason, help=help))


def check_several(request: Request, args: SFTConfig, plan: Plan) -> None:
    """Reject options that need a single adapter, and invalid names and folders of adapters.

    Raises:
        BishareError: an option needs a single task (BS732), a task's name is invalid (BS638), terms do not
            support mixed batches (BS673), or a folder cannot be used (BS615, BS616).
    """
    settings = request.settings
    refused = {
        "eval_data": settings.eval_data is not None,
        "fp16": args.fp16,
        "load_best_model_at_end": args.load_best_model_at_end,
        "optim": getattr(args.optim, "value", args.optim)
        not in ("adamw_torch", "adamw_torch_fused"),
        "loss_type": args.loss_type != "nll",
        "label_smoothing_factor": args.label_smoothing_factor > 0,
        "train_sampling_strategy": args.train_sampling_strategy != "random",
        "fsdp": bool(args.fsdp) or os.environ.get("ACCELERATE_USE_FSDP", "").lower() == "true",
        "deepspeed": args.deepspeed_plugin is not None,
    }
    reasons = [
        f"`{n}` is for one task, without `library`, `search` and `seeds`"
        for n, is_so in refused.items()
        if is_so
    ]
    if settings.search and settings.eval_split is None:
        reasons.append("`search` compares by held-out rows: give `eval_split`")
    if reasons:
        raise TrainError(codes.BAD_COMBINATION(reason=reasons[0]))
    base = plan.base
    others = (path for parameter in base.others for path in (parameter.path, *parameter.tied))
    taken = module_names([*(path for site in base.every_site for path in site.paths), *others])
    shares = request.makes_library(plan)
    faults = {
        name: name_fault(name, taken) or (member_fault(name) if shares else None)
        for name in (*request.settings.tasks, *request.groups)
    }
    unfit = [NO_NAME(name=name, reason=fault) for name, fault in faults.items() if fault]
    raise_errors(TrainError, [*unfit, *mixed_batch_problems("of each task", plan)])
    if args.should_save:
        for name in [LIBRARY] if shares else request.groups:
            check_place(request.output_dir / name, library=shares)


def check_resumed(request: Request, contents: list[list[str]], reporter: Reporter) -> None:
    """Check that a checkpoint has the same tasks, and report which later ones are replaced.

    Raises:
        TrainError: it has other tasks (BS732).
    """
    assert request.resume is not None
    if tasks_of(request.resume) != contents:
        reason = "the checkpoint has adapters of other tasks, of other params or of another library"
        raise TrainError(codes.BAD_COMBINATION(reason=reason))
    later = [c for c in checkpoints(request.output_dir) if step_of(c) > step_of(request.resume)]
    for checkpoint in later:
        fault = fault_of(checkpoint) or "an earlier one was named"
        text = f"{request.resume.name}, which replaces {checkpoint.name}: {fault}"
        reporter.note(f"going on from {text}")


def read_library(request: Request, plan: Plan) -> StoredAdapter | None:
    """Read the library that tasks are added to, as its first adapter.

    Raises:
        TrainError: it is not a library, has another plan, or already has an adapter with a task's name
            (BS732).
    """
    folder = request.settings.library
    if folder is None:
        return None
    first = _first_of(folder)
    check_apart(Path(folder), request.output_dir / LIBRARY)
    if not first.plan.runs_as(plan):
        reason = f"the library `{folder}` is of another spec, or of other params"
        help = "leave the spec and `--set` out: the library has them"
        raise TrainError(codes.BAD_COMBINATION(reason=reason, help=help))
    if twice := sorted({*names_in(folder)} & {*request.groups}):
        reason = f"the library `{folder}` has an adapter `{twice[0]}` already"
        help = f"give the task another name: `--data {twice[0]}-2=FILE`"
        raise TrainError(codes.BAD_COMBINATION(reason=reason, help=help))
    return first


def _first_of(library: str) -> StoredAdapter:
    """Read the first adapter of a library.

    Raises:
        TrainError: it is not a library (BS732).
    """
    if names := names_in(library):
        return read_adapter(f"{library}#{names[0]}")
    reason = f"`{library}` is no library"
    help = "`bishare train library_core` with several `--data` begins one"
    raise TrainError(codes.BAD_COMBINATION(reason=reason, help=help))


def is_adapter(spec: str) -> bool:
    """Return whether a word names an adapter's folder; otherwise it names a spec."""
    return (place_of(spec)[0] / CONFIG).is_file()


def read_tasks(
    request: Request, args: SFTConfig, tokenizer: PreTrainedTokenizerBase, reporter: Reporter
) -> list[Task]:
    """Read and encode the rows of each task; several tasks are repeated for each seed and candidate value.

    Raises:
        DataError: rows are unreadable (BS70x), invalid (BS71x), or have no trained token (BS723).
    """
    settings, tasks = request.settings, list[Task]()
    for name, source in request.settings.tasks.items():
        rows = _read_rows(settings.model_copy(update={"data": source}), args.seed)
        if not request.several:
            reporter.note(f"encoding {sum(map(len, rows.values())):,} rows ...")
        examples, reports = {}, {}
        for part, part_rows in rows.items():
            encoded = encode(
                part_rows,
                tokenizer,
                max_length=settings.max_length,
                train_on=settings.train_on,
                format=settings.format,
            )
            examples[part], reports[part] = encoded.examples, encoded.report
            of = f"{name}{', held out' * (part == 'eval')}: " if request.several else ""
            reporter.note(f"{of}{encoded.report}")
        both = {
            "examples": examples["train"],
            "held_out": examples.get("eval", ()),
            "data": reports,
        }
        tasks += _candidates(name, both, settings, args)
    return tasks


def _candidates(
    name: str, data: dict[str, Any], settings: Settings, args: SFTConfig
) -> Iterator[Task]:
    """Create the tasks of a file: one for each seed, each choice of params and each learning rate."""
    rates = settings.search.get("learning_rate", (None,))
    for group, seed in groups_of(name, settings.seeds, args.seed).items():
        for (variant, params), rate in product(enumerate(settings.params_tried), rates):
            words = [f"{name_of}{value}" for name_of, value in params.items()] + [
                *filter(None, [rate])
            ]
            called = "-".join([group, *(word.replace(".", "_") for word in words)])
            top = args.learning_rate if rate is None else float(rate)
            order = seed if args.data_seed is None else args.data_seed
            yield Task(called, group, rate=top, seed=seed, order=order, variant=variant, **data)


def _read_rows(settings: Settings, seed: int) -> dict[str, Rows]:
    """Read the training rows, ``"train"``, and the held-out rows, ``"eval"``."""
    assert isinstance(settings.data, str)
    rows = load_rows(settings.data, split=settings.data_split, subset=settings.data_subset)
    if settings.eval_data is not None:
        subset = settings.data_subset if settings.eval_data == settings.data else None
        held_out = load_rows(settings.eval_data, split=settings.eval_data_split, subset=subset)
        return {"train": rows, "eval": held_out}
    if settings.eval_split is not None:
        parts = split_off(rows, settings.eval_split, seed, format=settings.format)
        return dict(zip(("train", "eval"), parts, strict=True))
    return {"train": rows}


def find_tokenizer(
    request: Request, base: PreTrainedModel | Source, tokenizer: PreTrainedTokenizerBase | None
) -> PreTrainedTokenizerBase:
    """Return the given tokenizer, or the checkpoint's.

    Raises:
        TrainError: there is none (BS805).
    """
    if tokenizer is None and isinstance(base, Source):
        tokenizer = load_tokenizer(base)
    if tokenizer is None:
        raise TrainError(
            NO_TOKENIZER(model=request.model if isinstance(base, Source) else "the model")
        )
    return tokenizer


def note_steps(args: SFTConfig, request: Request, steps: Steps, reporter: Reporter) -> None:
    """Report the number of steps, and warn if a step is larger than a task (BS752)."""
    batch, passes = steps.batch, args.world_size * args.gradient_accumulation_steps
    of = f", {passes} passes of {args.per_device_train_batch_size}" if passes > 1 else ""
    text = f"{len(steps):,} step{'s' * (len(steps) > 1)} of {batch:,} examples"
    if request.several:
        at_once = f"{steps.at_once} rows at once"
        text = f"adapters: {len(steps.tasks)}; {text} of each, {at_once}"
    else:
        text += of
    reporter.note(text)
    small = {t.group: len(t.examples) for t in steps.tasks if len(t.examples) < batch}
    if small and len(steps) > 1:
        shown = ", ".join(f"`{name}` has {count}" for name, count in [*small.items()][:3])
        more = f" and {len(small) - 3} other tasks have fewer" if len(small) > 3 else ""
        names = f"{shown}{more}" if request.several else f"there are {min(small.values())}"
        reporter.report(codes.LARGE_STEP(batch=batch, names=names), None)


def load_base(
    request: Request, base: PreTrainedModel | Source, reporter: Reporter
) -> PreTrainedModel:
    """Return the given model, or load the named one."""
    if not isinstance(base, Source):
        return base
    settings = request.settings
    reporter.note(f"loading {request.model} ...")
    bits = 4 if settings.load_in_4bit else 8 if settings.load_in_8bit else None
    return load_model(base, dtype=settings.dtype, device=settings.device_map, bits=bits)[0]


def note_low_rate(reporter: Reporter, learned: int, rate: float, settings: Settings) -> None:
    """Warn that few parameters learn little at a low learning rate, unless ``lr_of`` sets another."""
    if learned < _FEW_PARAMETERS and rate < _LOW_RATE and not settings.lr_of:
        advice = "try --learning_rate 2e-3"
        reporter.note(f"so few parameters learn little at a rate of {rate:g}: {advice}")
