"""Several tasks in one run: the base runs once for the rows of all, and each has an adapter of its own."""

from __future__ import annotations

import math
import time
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from transformers import TrainerCallback

from bishare_dsl.adapter.contents import StoredAdapter
from bishare_dsl.adapter.files import names_in, read_adapter, save_adapter, save_library
from bishare_dsl.adapter.handle import Handle
from bishare_dsl.batched.batches import why_not
from bishare_dsl.compiler import ResolvedSpec
from bishare_dsl.diagnostics import raise_errors
from bishare_dsl.diagnostics.codes import train as codes
from bishare_dsl.diagnostics.codes.adapter import NO_NAME
from bishare_dsl.models.hooks import undo_prepare
from bishare_dsl.names import module_names, name_fault
from bishare_dsl.peft.method import install
from bishare_dsl.plan import Plan
from bishare_dsl.train import folder as folders
from bishare_dsl.train.arguments import effective_batch, warm_up
from bishare_dsl.train.callbacks import GradientCheck
from bishare_dsl.train.check import (
    begin,
    check_adapter,
    encode_as_asked,
    find_tokenizer,
    load_base,
    note_low_rate,
    read_rows,
)
from bishare_dsl.train.data.batches import Collator
from bishare_dsl.train.errors import TrainError
from bishare_dsl.train.loop import quietly, run_loop
from bishare_dsl.train.many import Steps, Task
from bishare_dsl.train.many_trainer import Halving, ManyTrainer, ManyWatch
from bishare_dsl.train.result import ManyResult, TaskResult

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PreTrainedModel, PreTrainedTokenizerBase, TrainingArguments
    from trl import SFTConfig

    from bishare_dsl.diagnostics import Problem, SourceMap
    from bishare_dsl.models import Source
    from bishare_dsl.train.reporter import Reporter
    from bishare_dsl.train.request import Request, Settings

LIBRARY = "library"
"""The folder in a run's of adapters that share tensors."""

PASS_COSTS = {"cpu": 64, "cuda": 16_384}
"""What a pass takes however few rows it has, in tokens, by the kind of device."""


def run_many(
    request: Request,
    reporter: Reporter,
    *,
    tokenizer: PreTrainedTokenizerBase | None = None,
    force: bool = False,
    callbacks: Iterable[TrainerCallback] = (),
) -> ManyResult:
    """Train an adapter for each task. Arguments and errors are as for `bishare_dsl.train.run.run`."""
    began = time.monotonic()
    settings, folder = request.settings, request.output_dir
    sources = settings.tasks or {}
    args, base = begin(request, reporter, force=force)
    _check(settings, args)
    forms, problems = _forms(request, base)
    made = forms[0]
    architecture = made.plan.base
    others = [
        path for parameter in architecture.others for path in (parameter.path, *parameter.tied)
    ]
    taken = module_names([*(p for site in architecture.every_site for p in site.paths), *others])
    faults = {name: name_fault(name, taken) for name in sources}
    unfit = [NO_NAME(name=name, reason=fault) for name, fault in faults.items() if fault]
    raise_errors(TrainError, [*unfit, *why_not("of each task", made.plan)])
    library = _read_library(settings.library, made.plan, sources)
    tokenizer = find_tokenizer(request, base, tokenizer)
    for problem, where in problems:
        reporter.report(problem, where)
    tasks: list[Task] = []
    for name, source in sources.items():
        rows = read_rows(settings.model_copy(update={"data": source}), args.seed)
        encoded = {key: encode_as_asked(part, tokenizer, settings) for key, part in rows.items()}
        for part, found in encoded.items():
            reporter.note(f"{name}{', held out' * (part == 'eval')}: {found.report}")
        held_out = encoded["eval"].examples if "eval" in encoded else ()
        tasks += _tried(name, encoded["train"].examples, held_out, settings, args)
    most = args.max_steps if args.max_steps > 0 else None
    batch, collator = effective_batch(args), Collator.of(tokenizer)
    rows_at_once = settings.rows_at_once
    cost = PASS_COSTS.get(args.device.type, PASS_COSTS["cuda"])
    steps = Steps(
        tasks, collator, batch, args.num_train_epochs, most, rows_at_once, args.world_size, cost
    )
    reporter.note(
        f"adapters: {len(tasks)}; steps: {len(steps):,} of {batch:,} examples of each, "
        f"{rows_at_once} rows at once"
    )
    model = load_base(request, base, reporter)
    names = [task.name for task in tasks]
    for task in tasks:
        for note in install(model, forms[task.form], task.seed, task.name):
            reporter.warn(note)
    handle: Handle = model.bishare  # type: ignore[assignment]
    reporter.note(f"of each task: {handle.plan.parameters_line}")
    shared, fixed = made.plan.common if made.plan.is_library else frozenset(), frozenset[str]()
    if library:
        fixed, values = shared, next(iter(library.values())).tensors()
        with torch.no_grad():
            for name, task in product(fixed, tasks):
                handle[task.name].tensors()[name].copy_(values[name])
    least = min(
        sum(t.size for t in form.plan.tensors if t.trainable and t.name not in fixed)
        for form in forms
    )
    note_low_rate(reporter, least, max(task.rate for task in tasks), settings)
    with undo_prepare(model), quietly():
        watch = ManyWatch()
        trainer = ManyTrainer(
            steps=steps,
            rates=settings.lr_of,
            warm_up=partial(warm_up, args, request.arguments),
            model=model,
            args=args,
            callbacks=[watch, GradientCheck(report=reporter.report), *callbacks],
            eval_dataset=[()] if settings.eval_split is not None else None,
        )
        watch.trainer = trainer  # type: ignore[assignment]
        if trainer.is_fsdp_enabled or trainer.is_deepspeed_enabled:
            raise TrainError(codes.BAD_COMBINATION(reason="several tasks are not sharded: use DDP"))
        halving = Halving(trainer)
        if settings.search:
            trainer.add_callback(halving)
        trainer.write = partial(_write, trainer, halving, folder, library)
        trainer.accelerator.wait_for_everyone()  # Nobody is looking at the folder any more.
        asked, bank = request.as_dict(handle.spec_text), handle.bank(names, shared, fixed)
        held = folders.claim(folder, asked, request.resume, force=force)
        with held if args.should_save else nullcontext(), bank as trainer.bank:
            run_loop(trainer, watch, request, reporter)
    model.eval()
    best = _best(trainer, halving)
    if lost := [one for one in dict.fromkeys(task.keeps for task in tasks) if one not in best]:
        reporter.report(_not_finite(trainer, lost), None)
    history: list[dict[str, Any]] = (
        trainer.state.log_history
    )  # Of numbers, and of those of each task.
    logged = [entry["losses"] for entry in history if "losses" in entry]
    return ManyResult(
        folder=folder,
        model=model,
        trainable=handle.plan.trainable,
        tasks=tuple(
            TaskResult(
                name=task.name,
                folder=_place(folder, task, made.plan) if best.get(task.keeps) == number else None,
                rows=len(task.examples),
                steps=done,
                loss_first=next((x[task.name] for x in logged if task.name in x), None),
                loss_last=next((x[task.name] for x in reversed(logged) if task.name in x), None),
                eval_loss=trainer.held_out.get(task.name),
                stopped=why,
            )
            for number, task in enumerate(tasks)
            for done, why in [steps.stopped.get(number, (steps.count(task), None))]
        ),
        tokens=int(trainer.state.num_input_tokens_seen),
        seconds=time.monotonic() - began,
        history=trainer.state.log_history,
    )


def _forms(
    request: Request, base: PreTrainedModel | Source
) -> tuple[list[ResolvedSpec], list[tuple[Problem, SourceMap | None]]]:
    """Plan the spec with each of the values of params that are tried, and say what to warn of.

    Raises:
        BishareError: it cannot be trained so.
    """
    forms, found = [], []
    for params in request.settings.params_tried:
        asked = replace(request, params={**request.params, **params})
        made, problems = check_adapter(asked, base)
        found += problems
        if isinstance(made, (Handle, StoredAdapter)):
            reason = "several tasks begin with a spec, and not with an adapter"
            raise TrainError(codes.BAD_COMBINATION(reason=reason))
        if params and made.plan.is_library:
            reason = "what adapters share has one form: `search` takes no param of such a spec"
            raise TrainError(codes.BAD_COMBINATION(reason=reason))
        forms.append(made)
    # Each only once; the source of a text has no hash.
    return forms, [pair for i, pair in enumerate(found) if pair not in found[:i]]


def _read_library(
    folder: str | None, plan: Plan, names: Collection[str]
) -> dict[str, StoredAdapter]:
    """Read the library that tasks are added to.

    Raises:
        TrainError: it is none, or has another plan, or an adapter of a task's name (BS732).
    """
    if folder is None:
        return {}
    found = {name: read_adapter(f"{folder}#{name}") for name in names_in(folder)}
    reason = None
    if not found:
        reason = f"`{folder}` is no library"
    elif not next(iter(found.values())).plan.runs_as(plan):
        reason = f"the library `{folder}` is of another spec, or of other params"
    elif twice := sorted(found.keys() & set(names)):
        reason = f"the library `{folder}` has an adapter `{twice[0]}` already"
    if reason is not None:
        raise TrainError(codes.BAD_COMBINATION(reason=reason))
    return found


def _check(settings: Settings, args: SFTConfig) -> None:
    """Refuse what only one adapter's run can do.

    Raises:
        TrainError: something was asked for that is for one task (BS732).
    """
    refused = {
        "packing": settings.packing,
        "eval_data": settings.eval_data is not None,
        "fp16": args.fp16,
        "load_best_model_at_end": args.load_best_model_at_end,
        "optim": getattr(args.optim, "value", args.optim)
        not in ("adamw_torch", "adamw_torch_fused"),
        "loss_type": args.loss_type != "nll",
        "label_smoothing_factor": args.label_smoothing_factor > 0,
        "train_sampling_strategy": args.train_sampling_strategy != "random",
    }
    reasons = [
        f"`{n}` is for one task, and there are several" for n, is_so in refused.items() if is_so
    ]
    if settings.search and settings.eval_split is None:
        reasons.append("`search` compares by held-out rows: give `eval_split`")
    if reasons:
        raise TrainError(codes.BAD_COMBINATION(reason=reasons[0]))


def _tried(
    name: str,
    examples: Dataset,
    held_out: Dataset | tuple[()],
    settings: Settings,
    args: TrainingArguments,
) -> Iterator[Task]:
    """Make the tasks of a file: one for each seed and each rate."""
    for seed in range(args.seed, args.seed + settings.seeds):
        keeps = name if settings.seeds == 1 else f"{name}-seed{seed}"
        rates = settings.search.get("learning_rate", (None,))
        for (form, params), rate in product(enumerate(settings.params_tried), rates):
            said = [f"{one}{value}" for one, value in params.items()] + [*filter(None, [rate])]
            called = "-".join([keeps, *(word.replace(".", "_") for word in said)])
            top = args.learning_rate if rate is None else float(rate)
            order = seed if args.data_seed is None else args.data_seed
            yield Task(called, keeps, examples, held_out, top, seed, order, form)


def _best(trainer: ManyTrainer, halving: Halving) -> dict[str, int]:
    """Return the task that is kept of each name, where one has finite values."""
    names = dict.fromkeys(task.keeps for task in trainer.steps.tasks)
    best = ((one, halving.best(one)) for one in names)
    return {one: number for one, number in best if number is not None}


def _not_finite(trainer: ManyTrainer, names: Sequence[str]) -> Problem:
    """Make the problem of adapters that are not kept, because they have no finite values (BS750)."""
    tasks = [i for i, task in enumerate(trainer.steps.tasks) if task.keeps == names[0]]
    steps = [trainer.steps.stopped.get(i, (trainer.state.global_step, ""))[0] for i in tasks]
    kept = f"no adapter is written for {', '.join(f'`{name}`' for name in names)}"
    return codes.NOT_FINITE(what="gradient", step=max(steps), value=math.nan, kept=kept)


def _place(folder: Path, task: Task, plan: Plan) -> str:
    return f"{folder / LIBRARY}#{task.keeps}" if plan.is_library else str(folder / task.keeps)


def _write(
    trainer: ManyTrainer, halving: Halving, folder: Path, library: Mapping[str, StoredAdapter]
) -> None:
    """Write each adapter into a folder of its name, or all that share tensors into a library."""
    known = trainer.evaluated == trainer.state.global_step
    if not known and any(task.held_out for task in trainer.steps.tasks):
        trainer.evaluate()
    if not trainer.args.should_save:
        return
    names = {one: trainer.steps.tasks[i].name for one, i in _best(trainer, halving).items()}
    adapters = {one: trainer.handle[name] for one, name in names.items()}
    if not adapters:
        raise TrainError(
            _not_finite(trainer, [*dict.fromkeys(t.keeps for t in trainer.steps.tasks)])
        )
    first = next(iter(adapters.values()))
    if first.plan.is_library:
        before = {name: stored.tensors() for name, stored in library.items()}
        seed = next((stored.config.seed for stored in library.values()), first.seed)
        tensors = before | {one: adapter.tensors() for one, adapter in adapters.items()}
        save_library(folder / LIBRARY, first.plan, tensors, first.spec_text, seed=seed)
        return
    for one, adapter in adapters.items():
        text = adapter.spec_text
        save_adapter(folder / one, adapter.plan, adapter.tensors(), text, seed=adapter.seed)
