"""Training from Python, and what the command does."""

from __future__ import annotations

import os
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from math import ceil
from typing import TYPE_CHECKING, Any, NoReturn

import torch
from transformers import PrinterCallback, ProgressCallback, TrainerCallback, set_seed

from bishare_dsl.diagnostics.codes import train as codes
from bishare_dsl.models import resolve
from bishare_dsl.models.hooks import unprepared
from bishare_dsl.train import folder as folders
from bishare_dsl.train import record as records
from bishare_dsl.train.arguments import effective_batch, training_arguments
from bishare_dsl.train.callbacks import Ends, LogFile
from bishare_dsl.train.checkpoint import Checkpoint, tidy
from bishare_dsl.train.curve import can_draw, draw_curve
from bishare_dsl.train.data import Collator, check_packing
from bishare_dsl.train.errors import TrainError, TrainingInterrupted, refusal_told
from bishare_dsl.train.guard import NotFiniteError
from bishare_dsl.train.loss import takes_only_learnt
from bishare_dsl.train.prepare import Data, adapted, encoded, planned, rows_of, tokenizer_of
from bishare_dsl.train.processes import check_sharding
from bishare_dsl.train.progress import progress
from bishare_dsl.train.result import TrainResult, peak_memory
from bishare_dsl.train.settings import Request, requested
from bishare_dsl.train.stop import Stop
from bishare_dsl.train.trainer import AdapterTrainer
from bishare_dsl.train.voice import Voice

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase, TrainingArguments

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
    resume_from_checkpoint: str | os.PathLike[str] | bool | None = None,
    force: bool = False,
    callbacks: Iterable[TrainerCallback] = (),
    quiet: bool = False,
    **arguments: Any,
) -> TrainResult:
    """Train an adapter, and save it in a folder with all that was logged on the way.

    The recipe is the paper's where nothing else is said: AdamW at 1e-4, 100 steps of warm-up, then linear to
    0; 64 examples in an optimizer step, by accumulation; one epoch; dropout and alpha as in the spec. Loss
    is on the completions alone. What a setting is called in `TrainingArguments` it is called here; those of
    the data are the fields of `bishare_dsl.train.settings.Settings`.

    The base's weights never change and are never saved. Everything that can be checked without them is
    checked before they are loaded.

    Args:
        spec: a spec, its text, the path of a ``.share`` file, the name of one that ships with bishare, or the
            folder of an adapter to train further. None for a model that is adapted, which is trained further.
        model: a checkpoint folder, a ``.gguf`` file or a Hub id; or a model, which is adapted in place.
        data: a file (.json, .jsonl, .csv, .parquet) or a data set on the Hub.
        output_dir: the folder of the run: it must not hold one yet.
        params: other values for the spec's.
        tokenizer: needed for a model that is given; by default the checkpoint's.
        config: a YAML file with any of these arguments, which win over it.
        resume_from_checkpoint: go on with the run in ``output_dir``: ``"last"``, or a checkpoint's path. The
            other arguments are those of the run. On the CPU it ends bit for bit where it would have ended.
        force: remove the run that is in ``output_dir`` first.
        callbacks: transformers' callbacks.
        quiet: neither notes nor a progress bar.
        **arguments: of `Settings` and of `TrainingArguments`, such as ``max_length=2048``,
            ``learning_rate=2e-4`` or ``eval_split=0.05``.

    Returns:
        The trained model, and what was measured. ``print`` it for a summary.

    Raises:
        BishareError: the arguments, the spec, the model or the data are wrong (BS7xx and those of their
            stage), or a loss is no number (BS750): then the last good adapter is kept.
        FileNotFoundError: there is no such spec.
        TrainingInterrupted: SIGINT or SIGTERM came; a checkpoint is saved.
    """
    given = {
        "spec": os.fspath(spec) if isinstance(spec, os.PathLike) else spec,
        "model": os.fspath(model) if isinstance(model, os.PathLike) else model,
        "data": data,
        "output_dir": output_dir,
        "params": params,
        "resume_from_checkpoint": resume_from_checkpoint,
        **arguments,
    }
    request = requested(given, config)
    return run(request, Voice(quiet), tokenizer=tokenizer, force=force, callbacks=callbacks)


def run(
    request: Request,
    voice: Voice,
    *,
    tokenizer: PreTrainedTokenizerBase | None = None,
    force: bool = False,
    callbacks: Iterable[TrainerCallback] = (),
) -> TrainResult:
    """Do what was asked for, and tell ``voice``. Arguments and errors are as for `train`."""
    began = time.monotonic()
    settings = request.settings
    evaluates = settings.eval_data is not None or settings.eval_split is not None
    args = training_arguments(request.arguments, str(request.output_dir), evaluates=evaluates)
    if args.process_index > 0:
        voice.silence()
    set_seed(args.seed)
    resumed = _resumed(request, args, force)
    base = resolve(request.model) if isinstance(request.model, str) else request.model
    made = planned(request, base, voice)
    plan = made.plan
    tokenizer = tokenizer_of(base, tokenizer)
    rows, held_out = rows_of(settings, args.seed)
    voice.note(f"encoding {len(rows) + len(held_out or ()):,} rows ...")
    data = encoded(rows, held_out, tokenizer, settings)
    for report in data.reports.values():
        voice.note(str(report))
    identity = records.identity(request, plan, data.reports["train"], args)
    if resumed is not None:
        _check_same(resumed, identity, args, voice)
    _tell_schedule(len(data.train), args, voice)
    if not can_draw():
        voice.problems([codes.NO_CURVE()])

    if isinstance(request.model, str):
        voice.note(f"loading {request.model} ...")
    model = adapted(base, made, settings, args.seed, voice)
    voice.note(plan.parameters_line)
    flash = "flash" in (model.config._attn_implementation or "")
    collator = Collator.of(tokenizer, flatten=settings.packing and flash)
    if settings.packing:
        check_packing(model, collator)
    with _as_it_was(model):
        trainer = AdapterTrainer(
            run=identity,
            kept=takes_only_learnt(model),
            resumed=resumed,
            model=model,
            args=args,
            data_collator=collator,
            train_dataset=data.train,
            eval_dataset=data.held_out,
            callbacks=list(callbacks),
        )
        check_sharding(trainer)
        record = records.Record(request.output_dir, args.should_save)
        trainer.accelerator.wait_for_everyone()  # Nobody is looking at the folder any more.
        with refusal_told(request.output_dir):
            if args.should_save:
                _prepare(request, resumed, force, voice)
            record.add(
                status="running",
                resumed_from=None if resumed is None else str(resumed.folder),
                **records.described(request, plan, data.reports, args),
            )
        _train(trainer, record, plan.spec, voice)
    result = _result(request, trainer, data, time.monotonic() - began)
    with refusal_told(request.output_dir):
        record.add(status="finished", ended=records.now(), result=result.as_dict())
    return result


def _resumed(request: Request, args: TrainingArguments, force: bool) -> Checkpoint | None:
    """The checkpoint to go on from; None for a run that begins, which may do so."""
    folder = request.output_dir
    if request.resume is None:
        folders.check_new(folder, force=force)
        return None
    if force:
        reason = "`force` begins anew, and `resume_from_checkpoint` goes on"
        raise TrainError(codes.BAD_COMBINATION(reason=reason))
    if args.should_save:
        tidy(folder)
    args.distributed_state.wait_for_everyone()
    checkpoint = folders.found_checkpoint(folder, request.resume)
    if not folders.is_in(folder, checkpoint):
        folders.check_new(folder, force=False)
    return checkpoint


def _check_same(
    resumed: Checkpoint, identity: Mapping[str, Any], args: TrainingArguments, voice: Voice
) -> None:
    if different := records.differences(resumed.run, identity):
        help = f"begin a new run from its adapter: give `{resumed.folder}` in the place of the spec"
        raise TrainError(
            codes.OTHER_RUN(folder=resumed.folder, differences="; ".join(different), help=help)
        )
    assert resumed.state is not None
    before, now = resumed.state["division"], records.division(args)
    if before != now:
        said = (
            "{processes} processes with {per_device_train_batch_size} x "
            "{gradient_accumulation_steps} examples each"
        )
        problem = codes.OTHER_SPLIT(before=said.format(**before), now=said.format(**now))
        voice.problems([problem])


def _tell_schedule(examples: int, args: TrainingArguments, voice: Voice) -> None:
    """Say how long the run is, and warn if it ends before the learning rate has warmed up."""
    batches = ceil(examples / (args.per_device_train_batch_size * args.world_size))
    steps = ceil(args.num_train_epochs * ceil(batches / args.gradient_accumulation_steps))
    if args.max_steps > 0:
        steps = args.max_steps
    voice.note(
        f"{steps:,} steps of {effective_batch(args):,} examples: {args.per_device_train_batch_size} at "
        f"once, on {args.world_size} device{'s' if args.world_size > 1 else ''}, "
        f"{args.gradient_accumulation_steps} times"
    )
    warmup = args.get_warmup_steps(steps)
    if warmup >= steps and args.lr_scheduler_type != "constant":
        reached = f"{args.learning_rate * (steps - 1) / warmup:.2g} of {args.learning_rate:g}"
        voice.problems([codes.LONG_WARMUP(steps=steps, warmup=warmup, reached=reached)])


def _prepare(request: Request, resumed: Checkpoint | None, force: bool, voice: Voice) -> None:
    """Make the folder what it is at the start of the run."""
    request.output_dir.mkdir(parents=True, exist_ok=True)
    if resumed is None:
        if force:
            folders.clear(request.output_dir)
    elif folders.is_in(request.output_dir, resumed):
        for name in folders.drop_later(request.output_dir, resumed):
            voice.note(f"removed {name}, which is behind {resumed.folder.name}")


def _train(trainer: AdapterTrainer, record: records.Record, spec: str, voice: Voice) -> None:
    """Train and save the adapter; whatever ends this, the record and the curve say how far it came."""
    folder = trainer.folder
    for theirs in (PrinterCallback, ProgressCallback):
        trainer.remove_callback(theirs)
    if trainer.args.should_save:
        trainer.add_callback(LogFile(folder))
    shown = None if voice.quiet else progress()
    if shown is not None:
        trainer.add_callback(shown)
    status = "failed"
    try:
        with Stop(says=not voice.quiet) as stop:
            trainer.asked = lambda: stop.requested
            trainer.add_callback(Ends(trainer))
            trainer.train(resume_from_checkpoint=trainer.resumes_from)
        status = "saving"
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
            record.add(status=status, step=step, ended=records.now())
            if trainer.args.should_save and can_draw() and status != "failed":
                draw_curve(folder, trainer.state.log_history, f"{spec}, {step:,} steps")


def _keep_good(trainer: AdapterTrainer, error: NotFiniteError) -> NoReturn:
    """Save the adapter as it was when its loss was last a number, and say so."""
    done = trainer.state.global_step
    good = trainer.guard.step if error.restore else done
    if good:
        if error.restore:
            trainer.guard.restore(trainer.parameters)
        trainer.save_model()
        kept = f"the adapter as of step {good:,} is kept in `{trainer.folder}`"
        help = f"begin a new run from it, at a lower rate: give `{trainer.folder}` for the spec"
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
    cache = model.config.use_cache
    try:
        with unprepared(model):
            yield
    finally:
        model.config.use_cache = cache
        model.eval()


def _result(request: Request, trainer: AdapterTrainer, data: Data, seconds: float) -> TrainResult:
    state, history = trainer.state, trainer.state.log_history
    losses = [entry["loss"] for entry in history if "loss" in entry]
    held_out = {entry["step"]: entry["eval_loss"] for entry in history if "eval_loss" in entry}
    kept = state.best_global_step if trainer.args.load_best_model_at_end else None
    last = list(held_out.values())[-1] if held_out else None
    adapter = trainer.adapter
    return TrainResult(
        folder=request.output_dir,
        model=adapter.model,
        model_name=request.model if isinstance(request.model, str) else "MODEL",
        trainable=adapter.plan.trainable,
        steps=state.global_step,
        epochs=float(state.epoch or 0),
        batch=effective_batch(trainer.args),
        loss_first=losses[0] if losses else None,
        loss_last=losses[-1] if losses else None,
        eval_loss=held_out.get(kept, last) if kept else last,
        tokens=trainer.tokens(),
        tokens_per_second=trainer.tokens_per_second(),
        seconds=seconds,
        peak_memory=peak_memory(trainer.args.device),
        data=data.reports,
        history=history,
    )
