"""Train from Python or from the command line: prepare, load, train, save."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from transformers import TrainerCallback

from bishare_dsl.adapter.contents import StoredAdapter
from bishare_dsl.adapter.files import add_to_library, save_adapter, save_library
from bishare_dsl.adapter.handle import Handle
from bishare_dsl.diagnostics.codes import train as codes
from bishare_dsl.models.hooks import undo_prepare
from bishare_dsl.peft.method import as_peft_model, install
from bishare_dsl.train import folder as folders
from bishare_dsl.train.arguments import check_processes, effective_batch, warm_up
from bishare_dsl.train.bank_trainer import BankTrainer, BankWatch, Halving
from bishare_dsl.train.base_trainer import Watch, logged
from bishare_dsl.train.callbacks import GradientCheck
from bishare_dsl.train.data.batches import Collator
from bishare_dsl.train.errors import TrainError
from bishare_dsl.train.loop import quietly, run_loop
from bishare_dsl.train.prepare import (
    arguments_and_base,
    check_resumed,
    check_several,
    find_tokenizer,
    load_base,
    note_low_rate,
    note_steps,
    read_library,
    read_tasks,
    spec_variants,
)
from bishare_dsl.train.reporter import Reporter
from bishare_dsl.train.request import Request, make_request, result_folders
from bishare_dsl.train.result import TaskResult, TrainResult
from bishare_dsl.train.tasks import Steps, Task
from bishare_dsl.train.trunk import cached_trunk

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase
    from trl import SFTConfig

    from bishare_dsl.diagnostics import Problem
    from bishare_dsl.plan import Plan
    from bishare_dsl.spec import Spec
    from bishare_dsl.train.trainer import AdapterTrainer

COSTS = {"cpu": 64, "cuda": 16_384}
"""The fixed cost of a micro-batch in tokens, by device type."""


def train(
    spec: Spec | str | os.PathLike[str] | None = None,
    model: PreTrainedModel | str | os.PathLike[str] | None = None,
    data: str | os.PathLike[str] | Mapping[str, str | os.PathLike[str]] | None = None,
    output_dir: str | os.PathLike[str] | None = None,
    *,
    params: Mapping[str, int | float | str] | None = None,
    tokenizer: PreTrainedTokenizerBase | None = None,
    config: str | os.PathLike[str] | None = None,
    resume: str | os.PathLike[str] | None = None,
    force: bool = False,
    callbacks: Iterable[TrainerCallback] = (),
    quiet: bool = False,
    **arguments: Any,
) -> TrainResult:
    """Train an adapter with TRL's SFTTrainer, or one for each of several tasks, and save it in a folder.

    The defaults are the paper's recipe: AdamW at 1e-4 with linear decay to 0, 64 examples per optimizer
    step by accumulation, one epoch, dropout and alpha of the spec. The learning rate warms up over 100
    steps, but at most a quarter of the run. Only completions have a loss. Settings have their names in
    `TrainingArguments`; those of the data and of separate learning rates are fields of
    `bishare_dsl.train.request.Settings`.

    The base's weights never change and are never saved. All checks that need no weights run before they are
    loaded.

    Args:
        spec: a spec, its text, the path of a ``.share`` file, the name of a shipped spec, or the folder of
            an adapter to train further. None if the model is already adapted, or to use the spec of
            ``library``.
        model: a checkpoint folder, a ``.gguf`` file or a Hub id; or a model to adapt in place.
        data: a file (.json, .jsonl, .csv, .parquet) or a data set on the Hub. Several by name, or a folder
            of files, are tasks trained together: each gets an adapter, in a folder with its name in
            ``output_dir``.
        output_dir: the folder of the run, without an earlier run.
        params: values for params of the spec.
        tokenizer: required if ``model`` is a model; by default the checkpoint's.
        config: a YAML file with any of these arguments; arguments override it.
        resume: resume the run in this folder, or from this checkpoint. Its ``run.json`` has all arguments
            except a model object; arguments given here override it. On the CPU, the result equals an
            uninterrupted run's bit for bit.
        force: first remove the run in ``output_dir``.
        callbacks: transformers' callbacks.
        quiet: show no notes and no progress bar.
        **arguments: fields of `Settings` and `TrainingArguments`, such as ``max_length=2048``,
            ``learning_rate=2e-4`` or ``eval_split=0.05``.

    Returns:
        The trained model and the measurements of each task. ``print`` it for a summary.

    Raises:
        BishareError: the arguments, the spec, the model or the data are invalid (BS7xx and earlier stages),
            or a loss or gradient is not finite (BS750), in which case the last checkpoint is kept.
        FileNotFoundError: the spec does not exist.
        TrainingInterrupted: SIGINT or SIGTERM arrived; a checkpoint is saved.
    """
    given = {
        "spec": spec,
        "model": model,
        "data": data,
        "output_dir": output_dir,
        "params": params,
        "resume": resume,
        **arguments,
    }
    request = make_request(given, config)
    return run(request, Reporter(quiet), tokenizer=tokenizer, force=force, callbacks=callbacks)


def run(
    request: Request,
    reporter: Reporter,
    *,
    tokenizer: PreTrainedTokenizerBase | None = None,
    force: bool = False,
    callbacks: Iterable[TrainerCallback] = (),
) -> TrainResult:
    """Execute a request and report to ``reporter``. Arguments and errors are those of `train`."""
    began = time.monotonic()
    settings, folder, several = request.settings, request.output_dir, request.several
    args, base = arguments_and_base(request, reporter, force=force)
    variants = spec_variants(request, base, reporter)
    if several:
        check_several(request, args, variants[0].plan)
    library = read_library(request, variants[0].plan)
    tokenizer = find_tokenizer(request, base, tokenizer)
    tasks = read_tasks(request, args, tokenizer, reporter)
    shared_file = "" if library is None else library.config.tensors
    contents = [
        [task.name, variants[task.variant].plan.digest + shared_file] for task in tasks if several
    ]
    if request.resume is not None:
        check_resumed(request, contents, reporter)
    batch, steps = effective_batch(args), _steps(args, request, tasks, tokenizer)
    warm = partial(warm_up, args, request.arguments)  # A trainer changes the arguments.
    note_steps(args, request, steps, reporter)
    model = load_base(request, base, reporter)
    check_processes(args, model)
    for task in tasks:
        trainable = variants[task.variant]
        name = task.name if several else None
        for note in (
            () if isinstance(trainable, Handle) else install(model, trainable, task.seed, name)
        ):
            reporter.warn(note)
    placed = getattr(model, "hf_device_map", None) or getattr(model, "is_quantized", False)
    if several and args.place_model_on_device and not placed:
        model.to(args.device)  # The bank is created on the training device.
    handle: Handle = model.bishare  # type: ignore[assignment]
    adapters: list[Any] = [handle[task.name] for task in tasks] if several else [handle]
    shares = request.makes_library(handle.plan)
    owned = handle.plan.owned + " and frozen" * (library is not None) if shares else ""
    reporter.note(f"{'of each task: ' * several}{owned or handle.plan.parameters_line}")
    shared = _share(adapters, library) if shares else frozenset()
    fixed = frozenset() if library is None else shared
    trained = (
        sum(t.size for t in adapter.plan.tensors if t.trainable and t.name not in fixed)
        for adapter in adapters
    )
    note_low_rate(reporter, min(trained), max(task.rate for task in tasks), settings)
    first = variants[0]
    spec = str(first.folder) if isinstance(first, StoredAdapter) else handle.spec_text
    how: dict[str, Any] = {
        "rates": settings.lr_of,
        "warm_up": warm,
        "tasks": contents,
        "args": args,
    }
    with undo_prepare(model), quietly(), ExitStack() as stack:
        trainer: AdapterTrainer | BankTrainer
        if several:
            watch: Watch = BankWatch(steps)
            names = [task.name for task in tasks]
            bank = stack.enter_context(handle.bank(names, shared, fixed))
            evaluates = [()] if settings.eval_split is not None else None
            how["eval_dataset"] = evaluates
            how["callbacks"] = [watch, GradientCheck(report=reporter.report), *callbacks]
            trainer = BankTrainer(steps=steps, handle=handle, bank=bank, **how)
            trainer.write = partial(_write, trainer, folder, settings.library, reporter)
            if settings.search:
                trainer.add_callback(Halving(trainer))
        else:
            watch = Watch()
            how["callbacks"] = [watch, GradientCheck(report=reporter.report), *callbacks]
            trainer = _one_trainer(handle, tasks[0], tokenizer, **how)
        watch.trainer = trainer
        trainer.accelerator.wait_for_everyone()  # All processes have finished reading the folder.
        if args.should_save:
            arguments, library_folder = (
                request.as_dict(spec),
                Path(settings.library or "").resolve(),
            )
            earlier = [
                n for n in result_folders(folder) if (folder / n).resolve() != library_folder
            ]
            held = folders.hold(folder, arguments, request.resume, force=force, earlier=earlier)
            stack.enter_context(held)
        prevented_by = "DeepSpeed" if args.deepspeed_plugin else None
        if (args.gradient_checkpointing_kwargs or {}).get("use_reentrant"):
            prevented_by = "`use_reentrant`"  # It needs inputs with gradients.
        plans, context = [a.plan for a in adapters], trainer.accelerator.autocast
        stack.enter_context(cached_trunk(model, plans, steps, context, reporter, prevented_by))
        run_loop(trainer, watch, request, reporter)
        best = trainer.kept() if isinstance(trainer, BankTrainer) else {tasks[0].group: 0}
    if lost := [group for group in steps.groups if group not in best]:
        reporter.report(_not_finite(steps, lost), None)
    model.eval()
    epochs = max(steps.epochs_of(i) for i in range(len(tasks)))
    return TrainResult(
        folder=folder,
        model=model,
        model_name=request.model if isinstance(request.model, str) else "MODEL",
        trainable=handle.plan.trainable if library is None else handle.plan.private,
        owned=owned,
        tasks=tuple(
            _task_result(trainer, steps, number, request, kept=best.get(task.group) == number)
            for number, task in enumerate(tasks)
        ),
        steps=trainer.state.global_step,
        epochs=epochs if several else float(trainer.state.epoch or 0),
        batch=batch,
        tokens=int(trainer.state.num_input_tokens_seen),
        seconds=time.monotonic() - began,
        history=trainer.state.log_history,
    )


def _steps(
    args: SFTConfig, request: Request, tasks: Sequence[Task], tokenizer: PreTrainedTokenizerBase
) -> Steps:
    """Return the steps of the tasks; for a single task, Trainer and its data loader create them."""
    return Steps(
        tasks,
        Collator.of(tokenizer),
        effective_batch(args),
        args.num_train_epochs,
        args.max_steps if args.max_steps > 0 else None,
        request.settings.rows_at_once,
        args.world_size,
        COSTS.get(args.device.type, COSTS["cuda"]),
    )


def _share(adapters: Sequence[Any], library: StoredAdapter | None) -> frozenset[str]:
    """Return the tensors that all adapters share, after loading the library's values into them.

    Frozen tensors are generated from one seed: the library's, or the first adapter's.
    """
    plan: Plan = adapters[0].plan
    frozen = {tensor.name for tensor in plan.tensors if not tensor.trainable}
    values = (library or adapters[0]).tensors()
    with torch.no_grad():
        for name, adapter in product(frozen | (plan.common if library else set()), adapters):
            adapter.tensors()[name].copy_(values[name])
    return plan.common


def _one_trainer(
    handle: Handle, task: Task, tokenizer: PreTrainedTokenizerBase, **how: Any
) -> AdapterTrainer:
    """Create the trainer of one adapter: TRL's, on a PEFT model."""
    from bishare_dsl.train.trainer import AdapterTrainer

    model: Any = handle.model
    return AdapterTrainer(
        model=as_peft_model(model, "CAUSAL_LM"),
        data_collator=Collator.of(tokenizer),
        train_dataset=task.examples,
        eval_dataset=task.held_out or None,
        processing_class=tokenizer,
        **how,
    )


def _task_result(
    trainer: AdapterTrainer | BankTrainer,
    steps: Steps,
    number: int,
    request: Request,
    *,
    kept: bool,
) -> TaskResult:
    """Build a task's result from the log."""
    task, state, several = steps.tasks[number], trainer.state, request.several
    named = task.name if several else None
    losses = [*logged(state.log_history, "loss", named).values()]
    held_out = logged(state.log_history, "eval_loss", named)
    accuracies = logged(state.log_history, "eval_accuracy", named)
    best = state.best_global_step if trainer.args.load_best_model_at_end else None
    done, why = steps.stopped.get(number, (steps.count(task), None))
    folder = request.output_dir
    if isinstance(trainer, BankTrainer):
        library = f"{folder / folders.LIBRARY}#{task.group}"
        shares = request.makes_library(trainer.handle[task.name].plan)
        place = library if shares else str(folder / task.group)
    else:
        place = str(folder)
    return TaskResult(
        name=task.name,
        folder=place if kept else None,
        steps=done if several else state.global_step,
        loss_first=losses[0] if losses else None,
        loss_last=losses[-1] if losses else None,
        eval_loss=held_out[best or max(held_out)] if held_out else None,
        accuracy=accuracies[best or max(accuracies)] if accuracies else None,
        stopped=why,
        data=task.data,
    )


def _not_finite(steps: Steps, groups: Sequence[str]) -> Problem:
    """Build the error for adapters that are not kept because of non-finite values (BS750)."""
    whys = (steps.stopped.get(i) for i, task in enumerate(steps.tasks) if task.group == groups[0])
    step = max((why[0] for why in whys if why), default=len(steps))
    consequence = f"no adapter is written for {', '.join(f'`{name}`' for name in groups)}"
    return codes.NOT_FINITE(what="gradient", step=step, value=math.nan, kept=consequence)


def _write(trainer: BankTrainer, folder: Path, library: str | None, reporter: Reporter) -> None:
    """Write each adapter into a folder with its name, or adapters that share tensors into a library.

    Adapters for an existing ``library`` are added to a copy of it. Warnings of writers go to ``reporter``.
    """
    names = {group: trainer.steps.tasks[i].name for group, i in trainer.kept().items()}
    adapters = {group: trainer.handle[name] for group, name in names.items()}
    if not adapters:
        raise TrainError(_not_finite(trainer.steps, trainer.steps.groups))
    if not trainer.args.should_save:
        return
    first = next(iter(adapters.values()))
    tensors, out = {g: a.tensors() for g, a in adapters.items()}, folder / folders.LIBRARY
    if library is not None:
        problems = add_to_library(Path(library), tensors, out)
    elif first.plan.is_library:
        problems = save_library(out, first.plan, tensors, first.spec_text, seed=first.seed)
    else:
        problems = tuple(
            problem
            for group, adapter in adapters.items()
            for problem in save_adapter(
                folder / group,
                adapter.plan,
                adapter.tensors(),
                adapter.spec_text,
                seed=adapter.seed,
            )
        )
    for problem in problems:
        reporter.report(problem, None)
