"""Train from Python or from the command line: prepare, load, train, save."""

from __future__ import annotations

import math
import os
import signal
import threading
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Any, cast

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase, PrinterCallback, TrainerCallback
from transformers.utils import logging

from bishare_dsl.adapted.handle import Handle
from bishare_dsl.compiler import ResolvedSpec
from bishare_dsl.diagnostics import Problem
from bishare_dsl.diagnostics.codes import train as codes
from bishare_dsl.folder.card import fill_card
from bishare_dsl.folder.contents import StoredAdapter
from bishare_dsl.folder.files import add_to_library, names_in, save_adapter, save_library
from bishare_dsl.folder.fingerprint import Fingerprint
from bishare_dsl.folder.groups import GROUPS, Groups, read_groups
from bishare_dsl.models.hooks import undo_prepare
from bishare_dsl.peft.method import as_peft_model, install
from bishare_dsl.show.shared import sharing_lines
from bishare_dsl.spec import Spec
from bishare_dsl.train.errors import TrainError, TrainingInterrupted, translate_refusals
from bishare_dsl.train.folder import (
    LIBRARY,
    MEMBERS,
    begin,
    complete_record,
    data_of_run,
    find_checkpoint,
    hold,
    read_run,
    step_of,
)
from bishare_dsl.train.grouping import SCORES
from bishare_dsl.train.many.adapters import TaskAdapters
from bishare_dsl.train.many.found import check_scores, find_groups, score_groups, start_from_means
from bishare_dsl.train.many.groups import GroupChoice, GroupScores, cannot_be_judged
from bishare_dsl.train.many.nearest import take_groups
from bishare_dsl.train.many.start import record_starts, start_tasks
from bishare_dsl.train.prepare import (
    Prepared,
    check_groups,
    check_resumed,
    load_base,
    prepare,
)
from bishare_dsl.train.record import differences, record_results, record_run, training_text
from bishare_dsl.train.reporter import Reporter
from bishare_dsl.train.request import DEFAULTS, RECORD, Request, make_request
from bishare_dsl.train.result import EACH, TaskResult, TrainResult, logged
from bishare_dsl.train.tasks import Steps
from bishare_dsl.train.trainer import AdapterTrainer, BankTrainer, Watch
from bishare_dsl.train.trunk import cached_trunk
from bishare_dsl.writing import replace_file

FEW_PARAMETERS, LOW_RATE = 10_000, 1e-3
"""A parameter count and a learning rate, below which training learns little (PEFT's UniLoRA entry)."""


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
        TypeError: the model is the first argument.
        TrainingInterrupted: SIGINT or SIGTERM arrived; a checkpoint is saved.
    """
    if isinstance(spec, PreTrainedModel):
        raise TypeError("the model is the second argument: `train(spec, model, data, output_dir)`")
    given: dict[str, Any] = {"spec": spec, "model": model, "data": data}
    given |= {"output_dir": output_dir, "params": params, "resume": resume, **arguments}
    request = make_request(given, config)
    return run(request, Reporter(quiet), tokenizer=tokenizer, callbacks=callbacks)


def run(
    request: Request,
    reporter: Reporter,
    *,
    tokenizer: PreTrainedTokenizerBase | None = None,
    callbacks: Iterable[TrainerCallback] = (),
    loaded: Callable[[], PreTrainedModel] | None = None,
) -> TrainResult:
    """Execute a request and report to ``reporter``. Arguments and errors are those of `train`.

    ``loaded`` returns the base that the request names, if several runs use it.
    """
    began = time.monotonic()
    groups = None
    if request.number_of_groups is not None:
        groups, loaded = _groups_of(request, reporter, tokenizer, callbacks, loaded)
    prepared = prepare(request, reporter, tokenizer, groups)
    if request.groups == SCORES:
        check_scores(prepared.steps.tasks)
    return _run_prepared(prepared, reporter, callbacks, loaded, began)


def _run_prepared(
    prepared: Prepared,
    reporter: Reporter,
    callbacks: Iterable[TrainerCallback],
    loaded: Callable[[], PreTrainedModel] | None,
    began: float,
) -> TrainResult:
    """Load, train and save; return the result of a run that began at a time of the monotonic clock."""
    handle, adapters = load(prepared, reporter, loaded)
    return fit(prepared, handle, adapters, reporter, callbacks, began)


def _groups_of(
    request: Request,
    reporter: Reporter,
    tokenizer: PreTrainedTokenizerBase | None,
    callbacks: Iterable[TrainerCallback],
    loaded: Callable[[], PreTrainedModel] | None,
) -> tuple[Groups, Callable[[], PreTrainedModel] | None]:
    """Find groups in a library of all tasks, which is trained first, or read those that were found.

    Returns:
        The groups, and a function that returns the base, if it is loaded.
    """
    folder = request.output_dir
    groups = read_groups(folder) if request.continues else None
    if groups is not None:
        reporter.note(f"going on with the groups in {folder / GROUPS}")
        return groups, loaded
    members = folder / MEMBERS
    if request.continues and names_in(members / LIBRARY):
        reporter.note(f"going on with the library of all tasks in {members}")
    else:
        base = _train_members(request, reporter, tokenizer, callbacks, loaded)

        def loaded() -> PreTrainedModel:
            return base

    seed = int(request.arguments.get("seed", DEFAULTS["seed"]))
    count = cast(int, request.number_of_groups)
    groups = find_groups(members / LIBRARY, count, seed, data_of_run(members))
    replace_file(folder / GROUPS, groups.text())
    for group, names in groups.tasks.items():
        reporter.note(f"{group}: {', '.join(names)}")
    return groups, loaded


def _train_members(
    request: Request,
    reporter: Reporter,
    tokenizer: PreTrainedTokenizerBase | None,
    callbacks: Iterable[TrainerCallback],
    loaded: Callable[[], PreTrainedModel] | None,
) -> PreTrainedModel:
    """Train the library of all tasks in which groups are found, and return the base without adapters."""
    began = time.monotonic()
    prepared = prepare(_request_of_members(request), reporter, tokenizer)
    check_groups(request, prepared.trainable.plan)
    tasks = prepared.steps.tasks
    reason = cannot_be_judged(len(tasks), [len(task.examples) for task in tasks])
    if reason:
        reporter.report(codes.UNCERTAIN_GROUPS(reason=reason), None)
    if not request.continues:
        begin(request.output_dir, request.as_dict(cast(ResolvedSpec, prepared.trainable).text()))
    reporter.note(f"first a library of all {len(tasks)} tasks, to find groups in it")
    try:
        result = _run_prepared(prepared, reporter, callbacks, loaded, began)
    except TrainingInterrupted as stopped:
        stopped.folder = request.output_dir
        raise
    reporter.note(f"the library of all tasks: loss {result.loss_line}")
    return cast(PreTrainedModel, cast(Any, result.model).bishare.unload())


def _request_of_members(request: Request) -> Request:
    """Return the request of the library of all tasks in which groups are found."""
    folder = request.output_dir / MEMBERS
    resume = None
    if request.continues:
        with suppress(TrainError):  # It was stopped before its first checkpoint.
            resume = find_checkpoint(folder)
    return request.model_copy(update={"output_dir": folder, "groups": None, "resume": resume})


def load(
    prepared: Prepared, reporter: Reporter, loaded: Callable[[], PreTrainedModel] | None = None
) -> tuple[Handle, TaskAdapters | None]:
    """Load the base, unless it is ``loaded``, and adapt it.

    Returns:
        The handle of its adapters, and those of several tasks.

    Raises:
        BishareError: it cannot be loaded or adapted.
    """
    request = prepared.request
    args = prepared.args
    trainable = prepared.trainable
    model: Any = loaded() if loaded else load_base(request, prepared.base, reporter)[0]
    adapters = None
    notes = list[str]()
    if request.several:
        adapters = TaskAdapters(model, trainable)
        for task in prepared.steps.tasks:
            notes += adapters.add(task.name, args.seed)
        placed = getattr(model, "hf_device_map", None) or getattr(model, "is_quantized", False)
        if args.place_model_on_device and not placed:
            model.to(args.device)  # The bank is created on the training device.
    else:
        notes += install(model, trainable, args.seed)
    for note in dict.fromkeys(notes):
        reporter.warn(note)
    plan = model.bishare.plan
    words = request.owned(plan) if request.makes_library(plan) else plan.parameters_line
    if request.several:
        words = f"of each task: {words}"
    reporter.note(words, *sharing_lines(plan))
    if request.trainable(plan) < FEW_PARAMETERS and args.learning_rate < LOW_RATE:
        rate = f"{args.learning_rate:g}: try --learning_rate 2e-3"
        reporter.note(f"so few parameters learn little at a rate of {rate}")
    return model.bishare, adapters


def fit(
    prepared: Prepared,
    handle: Handle,
    adapters: TaskAdapters | None,
    reporter: Reporter,
    callbacks: Iterable[TrainerCallback],
    began: float,
) -> TrainResult:
    """Train the adapters, and write them and the results. The run began at the time ``began``.

    Raises:
        TrainError: see `train`; or it is not the base of the checkpoint to resume (BS732).
        TrainingInterrupted: SIGINT or SIGTERM arrived; a checkpoint is saved.
    """
    request = prepared.request
    args = prepared.args
    steps = prepared.steps
    model = cast(Any, handle.model)
    base = handle.fingerprint() if len(steps) else None
    if request.resume is not None:
        check_resumed(request.resume, {}, base)
    choices: Mapping[str, GroupChoice] = {}
    with undo_prepare(model), quietly(), ExitStack() as stack:
        if adapters is not None:
            stack.callback(adapters.close)
            choices = _start(prepared, adapters, reporter)
        starts = [task.start for task in steps.tasks]
        record = {**prepared.record, "base": base and asdict(base), "starts": starts}
        watch = Watch(record, reporter.report)
        trainer = _trainer(prepared, model, adapters, reporter, [watch, *callbacks])
        watch.trainer = trainer
        if args.disable_tqdm:
            trainer.remove_callback(PrinterCallback)
        trainer.accelerator.wait_for_everyone()  # All processes have finished reading the folder.
        if args.should_save:
            asked = _first_record(prepared, handle, base, reporter)
            stack.enter_context(hold(request.output_dir, asked, request.resume))
        trunk = cached_trunk(model, handle.plan, steps, trainer.accelerator.autocast, reporter)
        cached = stack.enter_context(trunk)
        if len(steps):
            run_loop(trainer, watch, request, reporter)
        else:  # Sums of members are written as they are.
            trainer.save_model()
            trainer.save_state()
        scores = None
        if adapters is not None:
            record_starts(prepared, adapters, cached)
            scores = _score(prepared, adapters, reporter, cached=cached)
        model.eval()
        result = _result(prepared, handle, trainer, reporter, time.monotonic() - began)
        result = replace(result, group_scores=scores, group_choices=choices)
        if args.should_save:
            results = record_results(result, trainer.held_out)
            complete_record(request.output_dir, results=results)
            _fill_card(request)
    return result


def _first_record(
    prepared: Prepared, handle: Handle, base: Fingerprint | None, reporter: Reporter
) -> dict[str, Any]:
    """Return what a run writes when it begins, and report how it differs from the run that it repeats."""
    request = prepared.request
    begins = prepared.trainable
    spec = begins.folder if isinstance(begins, StoredAdapter) else handle.spec_text
    asked = request.as_dict(None if request.library else str(spec))
    asked[RECORD] = record_run(prepared, base)
    if request.repeated:
        for difference in differences(request.repeated, asked[RECORD]):
            reporter.note(f"not as in the run that is repeated: {difference}")
    return asked


def _fill_card(request: Request) -> None:
    """Write into the card of a finished run's adapter how it was trained."""
    recorded = read_run(request.output_dir)
    # A run that 0.5 began has no record of its data.
    if not request.several and "data" in recorded.get(RECORD, {}):
        fill_card(request.output_dir, training_text(recorded))


def _score(
    prepared: Prepared, adapters: TaskAdapters, reporter: Reporter, *, cached: bool
) -> GroupScores | None:
    """Return scores of numbers of groups, if they are asked for."""
    if prepared.request.groups != SCORES:
        return None
    reporter.note("scoring numbers of groups ...")
    library = prepared.request.output_dir / LIBRARY
    return score_groups(prepared, adapters, library, cached=cached)


def _start(
    prepared: Prepared, adapters: TaskAdapters, reporter: Reporter
) -> Mapping[str, GroupChoice]:
    """Give the tasks of a run their first values; return the groups that new tasks take, by task."""
    request = prepared.request
    tasks = prepared.steps.tasks
    groups = prepared.groups
    if request.resume is not None:  # The checkpoint has the values.
        return {}
    if groups is not None and groups.were_found:
        start_from_means(adapters, request.output_dir / MEMBERS / LIBRARY, groups)
        return {}
    indices = [index for index, task in enumerate(tasks) if task.begins == "group"]
    if not indices:
        start_tasks(prepared, adapters, reporter)
        return {}
    # No task of such a run starts elsewhere.
    known = cast(Groups, read_groups(Path(str(request.library))))
    choices = take_groups(prepared, adapters, known, indices, reporter)
    for index in indices:
        group = choices[tasks[index].name].group
        tasks[index] = replace(tasks[index], start=f"nearest group: {group}", group=group)
    return choices


def _trainer(
    prepared: Prepared,
    model: Any,
    adapters: TaskAdapters | None,
    reporter: Reporter,
    callbacks: list[TrainerCallback],
) -> AdapterTrainer | BankTrainer:
    """Create the trainer of one adapter, or of the adapters of several tasks."""
    if adapters is None:
        (task,) = prepared.steps.tasks
        return AdapterTrainer(
            model=as_peft_model(model, "CAUSAL_LM"),
            args=prepared.args,
            warm_up=prepared.warm_up,
            callbacks=callbacks,
            data_collator=prepared.steps.collator,
            processing_class=prepared.tokenizer,
            train_dataset=task.examples,
            eval_dataset=task.held_out or None,
        )
    trainer = BankTrainer(
        steps=prepared.steps,
        adapters=adapters,
        args=prepared.args,
        warm_up=prepared.warm_up,
        callbacks=callbacks,
        eval_dataset=None if prepared.request.eval_split is None else [()],
    )
    trainer.write = partial(_write, trainer, prepared, reporter)
    return trainer


def _result(
    prepared: Prepared,
    handle: Handle,
    trainer: AdapterTrainer | BankTrainer,
    reporter: Reporter,
    seconds: float,
) -> TrainResult:
    """Build the result of a run from its log, and report the tasks without an adapter."""
    request = prepared.request
    steps = prepared.steps
    state = trainer.state
    plan = handle.plan
    tasks = [_task_result(prepared, handle, trainer, number) for number in range(len(steps.tasks))]
    lost = {task.name: task.folder for task in tasks if not math.isfinite(task.loss_last or 0)}
    if lost:
        reporter.report(_not_finite(steps, lost), None)
    epochs = float(state.epoch or 0)
    if request.several:
        epochs = max(steps.epochs_of(number) for number in range(len(steps.tasks)))
    return TrainResult(
        folder=request.output_dir,
        model=handle.model,
        model_name=request.model if isinstance(request.model, str) else "MODEL",
        trainable=request.trainable(plan),
        owned=request.owned(plan),
        tasks=tuple(tasks),
        steps=state.global_step,
        epochs=epochs,
        batch=max(steps.batch_of(task) for task in steps.tasks),
        tokens=int(state.num_input_tokens_seen),
        seconds=seconds,
        history=state.log_history,
    )


def _task_result(
    prepared: Prepared, handle: Handle, trainer: AdapterTrainer | BankTrainer, number: int
) -> TaskResult:
    """Build the result of the task with this number from the log of its run."""
    request = prepared.request
    steps = prepared.steps
    state = trainer.state
    task = steps.tasks[number]
    folder: Path | None = request.output_dir
    if isinstance(trainer, BankTrainer) and number not in trainer.kept():
        folder = None
    elif request.several:
        folder = request.output_dir / task.name
    place = None if folder is None else str(folder)
    if folder is not None and request.makes_library(handle.plan):
        place = str(request.output_dir / f"{LIBRARY}#{task.name}")
    name = task.name if request.several else None
    losses, held_out, correct = [logged(state.log_history, key, name) for key in EACH]
    # The adapter that is written is that of the last evaluation, or of the best one.
    best = state.best_global_step if trainer.args.load_best_model_at_end else None
    return TaskResult(
        name=task.name,
        data=task.data,
        start=task.start,
        steps=steps.count(task) if request.several else state.global_step,
        loss_first=losses.get(min(losses, default=0)),
        loss_last=losses.get(max(losses, default=0)),
        eval_loss=held_out.get(best or max(held_out, default=0)),
        accuracy=correct.get(best or max(correct, default=0)),
        folder=place,
    )


def _not_finite(steps: Steps, lost: Mapping[str, str | None]) -> Problem:
    """Build the problem of tasks with a gradient that was not finite (BS750)."""
    ends = []
    for name, folder in lost.items():
        ends.append(f"`{name}` {'is not written' if folder is None else 'is as it was'}")
    kept = ", ".join(ends)
    return codes.NOT_FINITE(what="gradient", step=len(steps), value=math.nan, kept=kept)


def _write(trainer: BankTrainer, prepared: Prepared, reporter: Reporter) -> None:
    """Write each adapter into a folder with its name, or adapters that share tensors into a library.

    Adapters for an existing library are added to a copy of it. Warnings of writers go to ``reporter``.
    """
    request = prepared.request
    places = prepared.places
    folder = request.output_dir
    steps = trainer.steps
    handle = trainer.adapters.handle
    names = [steps.tasks[number].name for number in trainer.kept()]
    if not names:
        raise TrainError(_not_finite(steps, {task.name: None for task in steps.tasks}))
    tensors = {name: handle[name].tensors() for name in names}
    first = handle[names[0]]
    problems = list[Problem]()
    if isinstance(prepared.trainable, StoredAdapter):
        problems += add_to_library(
            Path(str(request.library)),
            tensors,
            folder / LIBRARY,
            began=prepared.trainable.config,
            seen=places[LIBRARY],
            newcomers={task.name: task.group for task in steps.tasks if task.group is not None},
        )
        copy = folder / LIBRARY
        text = f"`{request.library}` is as it was: add the next task to the copy, with `--library {copy}`"
        reporter.note(text)
    elif first.plan.is_library:
        files = dict[str, bytes]()
        if prepared.groups is not None:
            files[GROUPS] = prepared.groups.of(names).text()
        problems += save_library(
            folder / LIBRARY,
            first.plan,
            tensors,
            first.spec_text,
            seed=first.seed,
            seen=places[LIBRARY],
            files=files,
        )
    else:
        for name in names:
            one = handle[name]
            problems += save_adapter(
                folder / name,
                one.plan,
                tensors[name],
                one.spec_text,
                seed=one.seed,
                seen=places[name],
            )
    for problem in problems:
        reporter.report(problem, None)


_SIGNALS = (signal.SIGINT, signal.SIGTERM)
_SAID = b"\nstopping after this step, with a checkpoint; press Ctrl-C again to stop at once\n"


def run_loop(trainer: Any, watch: Watch, request: Request, reporter: Reporter) -> None:
    """Train, and save the adapter."""
    folder = request.output_dir
    resume = request.resume
    trainer.done = 0 if resume is None else step_of(resume)
    try:
        with hear_signals(not reporter.quiet) as watch.asked, translate_refusals(folder):
            trainer.train(resume_from_checkpoint=None if resume is None else str(resume))
            state = trainer.state
            if watch.stopping and state.global_step < state.max_steps:
                saved = folder / f"checkpoint-{state.global_step}"
                raise TrainingInterrupted(state.global_step, state.max_steps, saved)
            if not request.several:
                trainer.evaluate_last()
            trainer.save_model()
            trainer.save_state()
            trainer.accelerator.wait_for_everyone()
    except TrainError as error:
        if error.problems[0].code == codes.NOT_FINITE.code and trainer.args.should_save:
            complete_record(folder, diverged=error.problems[0].message)
        raise
    except torch.OutOfMemoryError as error:
        reason = str(error).split(".")[0]
        raise TrainError(codes.OUT_OF_MEMORY(reason=reason)) from error


@contextmanager
def quietly() -> Iterator[None]:
    """Silence transformers and TRL except for errors; they would report the tokenizer's tokens."""
    before = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # From PEFT.
            yield
    finally:
        logging.set_verbosity(before)


@contextmanager
def hear_signals(says: bool) -> Iterator[Callable[[], bool]]:
    """Let the first Ctrl-C or SIGTERM within a block request a stop; yield a function that reports it.

    The second stops at once. Outside of the main thread, signals are not changed.

    Args:
        says: whether to confirm the request on standard error.
    """
    heard: list[int] = []

    def restore() -> None:
        for which, handler in before.items():
            # None: installed by something other than Python.
            signal.signal(which, signal.SIG_DFL if handler is None else handler)

    def hear(number: int, frame: FrameType | None) -> None:
        heard.append(number)
        restore()
        if says:
            with suppress(OSError):
                os.write(2, _SAID)  # The signal may have interrupted `print`.

    main = threading.current_thread() is threading.main_thread()
    before = {which: signal.signal(which, hear) for which in _SIGNALS} if main else {}
    try:
        yield lambda: bool(heard)
    finally:
        restore()
