"""Training from Python, and what the command does: `check`, load, train, save."""

from __future__ import annotations

import os
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from typing import TYPE_CHECKING, Any, NoReturn

import torch
from transformers import PrinterCallback, ProgressCallback, TrainerCallback, set_seed

from bishare_dsl.adapter.contents import StoredAdapter
from bishare_dsl.compiler import Planned, install
from bishare_dsl.diagnostics.codes import train as codes
from bishare_dsl.models import Source
from bishare_dsl.models.hooks import is_offloaded, undo_prepare, uses_flash_attention
from bishare_dsl.models.load import load_model
from bishare_dsl.train import folder as folders
from bishare_dsl.train import record as records
from bishare_dsl.train.arguments import check_sharding, training_arguments
from bishare_dsl.train.callbacks import Guards, LogFile, Resumes, Saves
from bishare_dsl.train.check import CheckedRun, check, division_in_words
from bishare_dsl.train.checkpoint import for_transformers, tidy
from bishare_dsl.train.curve import can_draw, draw_curve
from bishare_dsl.train.data import Collator, check_packing
from bishare_dsl.train.errors import TrainError, TrainingInterrupted, translate_refusals
from bishare_dsl.train.guard import NotFiniteError
from bishare_dsl.train.progress import progress
from bishare_dsl.train.reporter import Reporter
from bishare_dsl.train.request import Request, make_request
from bishare_dsl.train.result import TrainResult, peak_memory
from bishare_dsl.train.stop import Stop
from bishare_dsl.train.trainer import AdapterTrainer, adapter_of

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from bishare_dsl.spec import Spec


def train(
    spec: Spec | str | os.PathLike[str] | None = None,
    model: PreTrainedModel | str | os.PathLike[str] | None = None,
    data: str | os.PathLike[str] | None = None,
    output_dir: str | os.PathLike[str] | None = None,
    *,
    params: Mapping[str, int | float | str] | None = None,
    tokenizer: PreTrainedTokenizerBase | None = None,
    config: str | os.PathLike[str] | None = None,
    resume: str | os.PathLike[str] | None = None,
    resume_from_checkpoint: str | os.PathLike[str] | bool | None = None,
    force: bool = False,
    callbacks: Iterable[TrainerCallback] = (),
    quiet: bool = False,
    **arguments: Any,
) -> TrainResult:
    """Train an adapter, and save it in a folder with all that was logged on the way.

    The recipe is the paper's where nothing else is said: AdamW at 1e-4, then linear to 0; 64 examples in an
    optimizer step, by accumulation; one epoch; dropout and alpha as in the spec. The rate warms up over 100
    steps, but over no more than a tenth of the run. Loss is on the completions alone. Settings have the names
    that they have in `TrainingArguments`; those of the data, and of shares with a rate of their own, are the
    fields of `bishare_dsl.train.request.Settings`.

    The base's weights never change and are never saved. Everything that can be checked without these weights
    is checked before they are loaded.

    Args:
        spec: a spec, its text, the path of a ``.share`` file, the name of one that ships with bishare, or the
            folder of an adapter to train further. None for a model that is adapted, which is trained further.
        model: a checkpoint folder, a ``.gguf`` file or a Hub id; or a model, which is adapted in place.
        data: a file (.json, .jsonl, .csv, .parquet) or a data set on the Hub.
        output_dir: the folder of the run, which must not hold a run yet.
        params: other values for the spec's.
        tokenizer: needed for a model that is given; by default the checkpoint's.
        config: a YAML file with any of these arguments, which win over it.
        resume: go on with the run in this folder, or from this checkpoint. All else is in its ``run.json``,
            but for a model that was given; arguments that are given here win. With ``max_steps`` or
            ``num_train_epochs`` raised a finished run goes on, too.
        resume_from_checkpoint: go on with the run in ``output_dir``: ``"last"``, or a checkpoint's path. The
            other arguments are those of the run. On the CPU it ends bit for bit as an uninterrupted run.
        force: remove the run that is in ``output_dir`` first.
        callbacks: transformers' callbacks.
        quiet: neither notes nor a progress bar.
        **arguments: of `Settings` and of `TrainingArguments`, such as ``max_length=2048``,
            ``learning_rate=2e-4`` or ``eval_split=0.05``.

    Returns:
        The trained model, and what was measured. ``print`` it for a summary.

    Raises:
        BishareError: the arguments, the spec, the model or the data are wrong (BS7xx and those of their
            stage), or a loss is not a number (BS750): then the last good adapter is kept.
        FileNotFoundError: there is no such spec.
        TrainingInterrupted: SIGINT or SIGTERM came; a checkpoint is saved.
    """
    given = {
        "spec": os.fspath(spec) if isinstance(spec, os.PathLike) else spec,
        "model": os.fspath(model) if isinstance(model, os.PathLike) else model,
        "data": data,
        "output_dir": output_dir,
        "params": params,
        "resume": resume,
        "resume_from_checkpoint": resume_from_checkpoint,
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
    """Do what was asked for, and tell ``reporter``. Arguments and errors are as for `train`."""
    began = time.monotonic()
    evaluates = request.settings.eval_data is not None or request.settings.eval_split is not None
    args = training_arguments(request.arguments, str(request.output_dir), evaluates=evaluates)
    if args.process_index > 0:
        reporter.silence()
    if request.resume is not None and not force:
        if args.should_save:
            tidy(request.output_dir)
        args.distributed_state.wait_for_everyone()
    set_seed(args.seed)
    checked = check(request, args, tokenizer=tokenizer, force=force, note=reporter.note)
    for report in checked.reports.values():
        reporter.note(str(report))
    for problem, where in checked.problems:
        reporter.report(problem, where)
    reporter.note(division_in_words(args, checked.steps))

    if isinstance(checked.base, Source):
        reporter.note(f"loading {request.model} ...")
    model = _adapted(checked, reporter)
    reporter.note(checked.plan.parameters_line)
    packing = request.settings.packing
    collator = Collator.of(checked.tokenizer, flatten=packing and uses_flash_attention(model))
    if packing:
        check_packing(model, collator)
    record = records.Record(request.output_dir, args.should_save)
    with _as_it_was(model):
        args.kept_elsewhere = any(map(is_offloaded, model.modules()))
        trainer, guards = _trainer(checked, model, collator, callbacks)
        trainer.accelerator.wait_for_everyone()  # Nobody is looking at the folder any more.
        with translate_refusals(request.output_dir):
            if args.should_save:
                _prepare(checked, force, reporter)
            record.add(status="running", **records.describe_run(checked))
        _train(trainer, guards, checked, record, reporter)
    result = _result(checked, trainer, time.monotonic() - began)
    with translate_refusals(request.output_dir):
        record.add(status="finished", ended=records.utc_now(), result=result.as_dict())
    return result


def _adapted(checked: CheckedRun, reporter: Reporter) -> PreTrainedModel:
    """Return the model with the adapter that is to be trained: drawn by the seed, loaded, or as it came.

    Raises:
        BishareError: the weights do not load, or parameters of the base would train as well (BS739).
    """
    base, settings = checked.base, checked.request.settings
    if isinstance(base, Source):
        four = settings.load_in_4bit
        base = load_model(base, dtype=settings.dtype, device=settings.device_map, four_bits=four)[0]
    if isinstance(checked.made, (Planned, StoredAdapter)):
        for note in install(base, checked.made, checked.args.seed):
            reporter.warn(note)
    adapter = adapter_of(base)
    assert adapter is not None
    own = {id(tensor) for tensor in adapter.tensors().values()}
    foreign = [n for n, p in base.named_parameters() if p.requires_grad and id(p) not in own]
    if foreign:
        raise TrainError(codes.FOREIGN_PARAMETERS(count=len(foreign), name=foreign[0]))
    return base


def _trainer(
    checked: CheckedRun,
    model: PreTrainedModel,
    collator: Collator,
    callbacks: Iterable[TrainerCallback],
) -> tuple[AdapterTrainer, Guards]:
    """Make the Trainer, with the adapter as the checkpoint has it."""
    guards = Guards()
    trainer = AdapterTrainer(
        settings=checked.request.settings,
        model=model,
        args=checked.args,
        data_collator=collator,
        train_dataset=checked.train.dataset(),
        eval_dataset=checked.held_out and checked.held_out.dataset(),
        processing_class=checked.tokenizer,
        callbacks=[guards, *callbacks],
    )
    guards.trainer = trainer
    check_sharding(trainer)
    for theirs in (PrinterCallback, ProgressCallback):
        trainer.remove_callback(theirs)
    if checked.resumed is not None:
        trainer.load(checked.resumed.folder)
        trainer.done = checked.resumed.step
    return trainer, guards


def _prepare(checked: CheckedRun, force: bool, reporter: Reporter) -> None:
    """Make the folder what it is at the start of the run."""
    folder, resumed = checked.request.output_dir, checked.resumed
    folder.mkdir(parents=True, exist_ok=True)
    if resumed is None:
        if force:
            folders.clear(folder)
    elif folders.is_in(folder, resumed):
        for name in folders.drop_later(folder, resumed):
            reporter.note(f"removed {name}, which is behind {resumed.folder.name}")


def _train(
    trainer: AdapterTrainer,
    guards: Guards,
    checked: CheckedRun,
    record: records.Record,
    reporter: Reporter,
) -> None:
    """Train and save the adapter; whatever ends this, the record and the curve say how far it came."""
    folder, args = checked.request.output_dir, checked.args
    shown = None if reporter.quiet else progress()
    status = "failed"
    try:
        with ExitStack() as stack, translate_refusals(folder):
            stop = stack.enter_context(Stop(says=not reporter.quiet))
            guards.asked = lambda: stop.requested
            saves = Saves(trainer, guards, dict(checked.identity))
            resumes = Resumes(trainer, checked.resumed)
            stack.callback(saves.close)
            stack.callback(resumes.close)
            logs = [LogFile(folder)] if args.should_save else []
            for callback in (resumes, saves, *logs, *([shown] if shown else [])):
                trainer.add_callback(callback)
            resume = stack.enter_context(for_transformers(checked.resumed))
            trainer.train(resume_from_checkpoint=resume)
        status = "saving"
        if args.load_best_model_at_end and saves.best is not None:
            trainer.load(saves.best)
        trainer.save_model()
        trainer.accelerator.wait_for_everyone()
    except TrainingInterrupted:
        status = "interrupted"
        raise
    except NotFiniteError as error:
        status = "stopped"
        _keep_good(trainer, error)
    except torch.OutOfMemoryError as error:
        help = "lower `--per_device_train_batch_size`, or add `--gradient_checkpointing`"
        reason = str(error).split(".")[0]
        raise TrainError(codes.OUT_OF_MEMORY(reason=reason, help=help)) from error
    finally:
        if shown is not None:
            shown.close()
        step = trainer.state.global_step
        with suppress(OSError):  # What ended the run matters more, be it that the disk is full.
            record.add(status=status, step=step, ended=records.utc_now())
            if args.should_save and can_draw() and status != "failed":
                title = f"{checked.plan.spec}, {step:,} steps"
                draw_curve(folder, trainer.state.log_history, title)


def _keep_good(trainer: AdapterTrainer, error: NotFiniteError) -> NoReturn:
    """Save the adapter as it was when its loss was last a number, and say so."""
    done, folder = trainer.state.global_step, trainer.folder
    good = trainer.guard.step if error.restore else done
    if good:
        if error.restore:
            trainer.guard.restore(trainer.parameters)
        trainer.save_model()
        kept = f"the adapter as of step {good:,} is kept in `{folder}`"
        help = f"begin a new run from it, at a lower rate: give `{folder}` for the spec"
    else:
        kept = "no step before it was good, so nothing is kept"
        help = "lower `--learning_rate`, or begin from an earlier checkpoint"
    problem = codes.NOT_FINITE(
        what=error.what, step=done + 1, value=error.value, kept=kept, help=help
    )
    raise TrainError(problem) from error


@contextmanager
def _as_it_was(model: PreTrainedModel) -> Iterator[None]:
    """Leave no trace of the Trainer on a model but what was trained."""
    parts: tuple[Any, ...] = (model.config, model.config.get_text_config(), model.generation_config)
    before = [(part, dict(vars(part))) for part in parts if part is not None]
    tags = model.model_tags
    try:
        with undo_prepare(model):
            yield
    finally:
        for part, values in before:
            vars(part).clear()
            vars(part).update(values)
        model.model_tags = tags
        model.eval()


def _result(checked: CheckedRun, trainer: AdapterTrainer, seconds: float) -> TrainResult:
    state, history, request = trainer.state, trainer.state.log_history, checked.request
    losses = [entry["loss"] for entry in history if "loss" in entry]
    held_out = {entry["step"]: entry["eval_loss"] for entry in history if "eval_loss" in entry}
    kept = state.best_global_step if trainer.args.load_best_model_at_end else None
    last = list(held_out.values())[-1] if held_out else None
    return TrainResult(
        folder=request.output_dir,
        model=trainer.adapter.model,
        model_name=request.model if isinstance(request.model, str) else "MODEL",
        trainable=checked.plan.trainable,
        steps=state.global_step,
        epochs=float(state.epoch or 0),
        batch=records.effective_batch(trainer.args),
        loss_first=losses[0] if losses else None,
        loss_last=losses[-1] if losses else None,
        eval_loss=held_out.get(kept, last) if kept else last,
        tokens=trainer.counts.tokens(),
        tokens_per_second=trainer.counts.tokens_per_second(),
        seconds=seconds,
        peak_memory=peak_memory(trainer.args.device),
        data=checked.reports,
        history=history,
    )
