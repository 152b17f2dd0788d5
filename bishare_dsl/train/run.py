"""Train from Python or from the command line: prepare, load, train, save."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Iterable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from transformers import TrainerCallback

from bishare_dsl.adapter.contents import StoredAdapter
from bishare_dsl.adapter.files import add_to_library, place_of, save_adapter, save_library
from bishare_dsl.diagnostics.codes import train as codes
from bishare_dsl.models.hooks import undo_prepare
from bishare_dsl.peft.method import as_peft_model, install
from bishare_dsl.show.shared import told_lines
from bishare_dsl.train.bank_trainer import BankTrainer, BankWatch
from bishare_dsl.train.errors import TrainError
from bishare_dsl.train.folder import LIBRARY, hold
from bishare_dsl.train.prepare import Prepared, load_base, note_low_rate, prepare
from bishare_dsl.train.reporter import Reporter
from bishare_dsl.train.request import Request, make_request
from bishare_dsl.train.result import TaskResult, TrainResult
from bishare_dsl.train.start import start_tasks
from bishare_dsl.train.tasks import Steps
from bishare_dsl.train.tenants import Tenants
from bishare_dsl.train.trainer import AdapterTrainer
from bishare_dsl.train.trunk import cached_trunk
from bishare_dsl.train.watch import EACH, Watch, logged, quietly, run_loop

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from bishare_dsl.adapter.handle import Handle
    from bishare_dsl.compiler import ResolvedSpec
    from bishare_dsl.diagnostics import Problem
    from bishare_dsl.spec import Spec


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
    callbacks: Iterable[TrainerCallback] = (),
    quiet: bool = False,
    **arguments: Any,
) -> TrainResult:
    """Train an adapter by transformers' Trainer, or one for each of several tasks, and save it in a folder.

    The defaults are the paper's recipe: AdamW at 1e-4 with linear decay to 0, 64 examples per optimizer
    step by accumulation, one epoch, dropout and alpha of the spec. The learning rate warms up over 100
    steps, but at most a quarter of the run. Only completions have a loss. Settings have their names in
    `TrainingArguments`; those of the data and of separate learning rates are fields of
    `bishare_dsl.train.request.Settings`.

    The base's weights never change and are never saved. All checks that need no weights run before they are
    loaded.

    Args:
        spec: a spec, its text, the path of a ``.share`` file, the name of a shipped spec, or the folder of
            an adapter to train further. None to use the spec of ``library``.
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
    return run(request, Reporter(quiet), tokenizer=tokenizer, callbacks=callbacks)


def run(
    request: Request,
    reporter: Reporter,
    *,
    tokenizer: PreTrainedTokenizerBase | None = None,
    callbacks: Iterable[TrainerCallback] = (),
) -> TrainResult:
    """Execute a request and report to ``reporter``. Arguments and errors are those of `train`."""
    began = time.monotonic()
    prepared = prepare(request, reporter, tokenizer)
    loaded = load(prepared, reporter)
    trainer = fit(prepared, loaded, reporter, callbacks)
    return _result(prepared, loaded, trainer, reporter, time.monotonic() - began)


@dataclass(frozen=True)
class Loaded:
    """A model with an adapter for each task.

    Attributes:
        model: the adapted model, on its device.
        tenants: the adapters, if several are trained together.
        base: the digest of the base's weights.
        owned: the parameters per adapter, or the private and shared ones of a library's adapters, in words.
        shares: whether the adapters are a library's.
    """

    model: PreTrainedModel
    tenants: Tenants | None
    base: str
    owned: str
    shares: bool

    @property
    def handle(self) -> Handle:
        """The handle of the adapters."""
        return cast("Handle", self.model.bishare)


def load(prepared: Prepared, reporter: Reporter) -> Loaded:
    """Load the base and adapt it.

    Raises:
        BishareError: it cannot be loaded or adapted, or it is not the base of the checkpoint to resume.
    """
    request, args, library = prepared.request, prepared.args, prepared.library
    trainable, tasks = prepared.trainable, prepared.steps.tasks
    model, digest = load_base(prepared, reporter)
    tenants, notes = None, list[str]()
    if request.several:
        tenants = Tenants(model, library or cast("ResolvedSpec", trainable))
        notes = [note for task in tasks for note in tenants.add(task.name, args.seed)]
    else:
        notes = [*install(model, trainable, args.seed)]
    for note in dict.fromkeys(notes):
        reporter.warn(note)
    placed = getattr(model, "hf_device_map", None) or getattr(model, "is_quantized", False)
    if tenants is not None and args.place_model_on_device and not placed:
        cast(Any, model).to(args.device)  # The bank is created on the training device.
    plan = cast("Handle", model.bishare).plan
    shares = request.makes_library(plan)
    owned = f"{plan.owned}{' and frozen' * (library is not None)}" if shares else ""
    of = "of each task: " * request.several
    reporter.note(f"{of}{owned or plan.parameters_line}", *told_lines(plan))
    note_low_rate(reporter, plan.private if library else plan.trainable, args.learning_rate)
    return Loaded(model, tenants, digest, owned or f"{plan.trainable:,} parameters", shares)


def fit(
    prepared: Prepared, loaded: Loaded, reporter: Reporter, callbacks: Iterable[TrainerCallback]
) -> AdapterTrainer | BankTrainer:
    """Train the adapters and write them; return the trainer.

    Raises:
        TrainError: see `train`.
        TrainingInterrupted: SIGINT or SIGTERM arrived; a checkpoint is saved.
    """
    request, args, steps = prepared.request, prepared.args, prepared.steps
    folder, tenants = request.output_dir, loaded.tenants
    record = {**prepared.record, "base": loaded.base}
    how: dict[str, Any] = {"warm_up": prepared.warm_up, "args": args}
    with undo_prepare(loaded.model), quietly(), ExitStack() as stack:
        trainer: AdapterTrainer | BankTrainer
        watch: Watch = Watch(record, reporter.report)
        if tenants is not None:
            watch = BankWatch(record, reporter.report)
        record_start = None if tenants is None else start_tasks(prepared, tenants, reporter)
        how["callbacks"] = [watch, *callbacks]
        if tenants is None:
            (task,) = steps.tasks
            trainer = AdapterTrainer(
                model=as_peft_model(cast(Any, loaded.model), "CAUSAL_LM"),
                data_collator=steps.collator,
                train_dataset=task.examples,
                eval_dataset=task.held_out or None,
                processing_class=prepared.tokenizer,
                **how,
            )
        else:
            stack.callback(tenants.close)
            how["eval_dataset"] = [()] if request.eval_split is not None else None
            trainer = BankTrainer(steps=steps, tenants=tenants, **how)
            trainer.write = partial(_write, trainer, folder, prepared, reporter)
        watch.trainer = trainer
        trainer.accelerator.wait_for_everyone()  # All processes have finished reading the folder.
        if args.should_save:
            first = prepared.trainable
            spec = loaded.handle.spec_text
            if isinstance(first, StoredAdapter):
                spec = str(first.folder)
            stack.enter_context(hold(folder, request.as_dict(spec), request.resume))
        plan, context = loaded.handle.plan, trainer.accelerator.autocast
        trunk = cached_trunk(loaded.model, plan, steps, context, reporter)
        cached = stack.enter_context(trunk)
        if len(steps):
            run_loop(trainer, watch, request, reporter)
        else:  # Members were chosen for all tasks.
            trainer.save_model()
            trainer.save_state()
        if record_start is not None:
            record_start(cached)
    loaded.model.eval()
    return trainer


def _result(
    prepared: Prepared,
    loaded: Loaded,
    trainer: AdapterTrainer | BankTrainer,
    reporter: Reporter,
    seconds: float,
) -> TrainResult:
    """Build the result of a run from its log, and report the tasks without an adapter."""
    request, steps, state = prepared.request, prepared.steps, trainer.state
    numbers, plan = range(len(steps.tasks)), loaded.handle.plan
    kept = trainer.kept() if isinstance(trainer, BankTrainer) else [0]
    best = state.best_global_step if trainer.args.load_best_model_at_end else None

    def result_of(number: int) -> TaskResult:
        task, several = steps.tasks[number], request.several
        named = task.name if several else None
        losses, held_out, correct = (logged(state.log_history, key, named) for key in EACH)
        place = f"{LIBRARY}#{task.name}" if loaded.shares else task.name if several else ""
        return TaskResult(
            name=task.name,
            folder=str(request.output_dir / place) if number in kept else None,
            steps=steps.count(task) if several else state.global_step,
            loss_first=losses.get(min(losses, default=0)),
            loss_last=losses.get(max(losses, default=0)),
            eval_loss=held_out.get(best or max(held_out, default=0)),
            accuracy=correct.get(best or max(correct, default=0)),
            data=task.data,
            start=task.start,
        )

    tasks = tuple(map(result_of, numbers))
    if lost := {t.name: t.folder for t in tasks if not math.isfinite(t.loss_last or 0)}:
        reporter.report(_not_finite(steps, lost), None)
    epochs = max(map(steps.epochs_of, numbers)) if request.several else float(state.epoch or 0)
    return TrainResult(
        folder=request.output_dir,
        model=loaded.model,
        model_name=request.model if isinstance(request.model, str) else "MODEL",
        trainable=plan.trainable if prepared.library is None else plan.private,
        owned=loaded.owned,
        tasks=tasks,
        steps=state.global_step,
        epochs=epochs,
        batch=steps.batch,
        tokens=int(state.num_input_tokens_seen),
        seconds=seconds,
        history=state.log_history,
    )


def _not_finite(steps: Steps, lost: Mapping[str, str | None]) -> Problem:
    """Build the problem of tasks with a gradient that was not finite (BS750)."""
    ends = {True: "is as it was", False: "is not written"}
    kept = ", ".join(f"`{name}` {ends[folder is not None]}" for name, folder in lost.items())
    return codes.NOT_FINITE(what="gradient", step=len(steps), value=math.nan, kept=kept)


def _write(trainer: BankTrainer, folder: Path, prepared: Prepared, reporter: Reporter) -> None:
    """Write each adapter into a folder with its name, or adapters that share tensors into a library.

    Adapters for an existing library are added to a copy of it. Warnings of writers go to ``reporter``.
    """
    steps, handle = trainer.steps, trainer.tenants.handle
    adapters = {steps.tasks[i].name: handle[steps.tasks[i].name] for i in trainer.kept()}
    if not adapters:
        raise TrainError(_not_finite(steps, {task.name: None for task in steps.tasks}))
    if not trainer.args.should_save:
        return
    first = next(iter(adapters.values()))
    tensors, out = {n: a.tensors() for n, a in adapters.items()}, folder / LIBRARY
    problems: tuple[Problem, ...] = ()
    if prepared.library is not None:
        began, library = prepared.library.config, place_of(prepared.library.folder)[0]
        problems = add_to_library(library, tensors, out, began=began, seen=prepared.places[LIBRARY])
    elif first.plan.is_library:
        text, seen = first.spec_text, prepared.places[LIBRARY]
        problems = save_library(out, first.plan, tensors, text, seed=first.seed, seen=seen)
    else:
        for name, one in adapters.items():
            how: Any = {"seed": one.seed, "seen": prepared.places[name]}
            problems += save_adapter(folder / name, one.plan, tensors[name], one.spec_text, **how)
    for problem in problems:
        reporter.report(problem, None)
