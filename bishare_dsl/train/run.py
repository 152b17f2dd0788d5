"""Training from Python, and what the command does: `check`, load, train, save."""

from __future__ import annotations

import os
import time
from collections.abc import Iterable, Mapping
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any

from transformers import TrainerCallback
from trl import pack_dataset

from bishare_dsl.adapter.contents import StoredAdapter
from bishare_dsl.adapter.handle import Handle
from bishare_dsl.models.hooks import undo_prepare, uses_flash_attention
from bishare_dsl.peft.method import as_peft_model, install
from bishare_dsl.train import folder as folders
from bishare_dsl.train.arguments import count_steps, effective_batch, warm_up
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
from bishare_dsl.train.data.batches import Collator, check_packing
from bishare_dsl.train.loop import quietly, run_loop
from bishare_dsl.train.many_run import run_many
from bishare_dsl.train.reporter import Reporter
from bishare_dsl.train.request import Request, make_request
from bishare_dsl.train.result import ManyResult, TrainResult
from bishare_dsl.train.trainer import AdapterTrainer, Watch

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

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
    force: bool = False,
    callbacks: Iterable[TrainerCallback] = (),
    quiet: bool = False,
    **arguments: Any,
) -> TrainResult | ManyResult:
    """Train an adapter by TRL's SFTTrainer, and save it in a folder.

    The recipe is the paper's where nothing else is said: AdamW at 1e-4, then linear to 0; 64 examples in an
    optimizer step, by accumulation; one epoch; dropout and alpha as in the spec. The rate warms up over 100
    steps, but over no more than a quarter of the run. Loss is on the completions alone. Settings have the
    names that they have in `TrainingArguments`; those of the data, and of shares with a rate of their own,
    are the fields of `bishare_dsl.train.request.Settings`.

    The base's weights never change and are never saved. Everything that can be checked without these weights
    is checked before they are loaded.

    Args:
        spec: a spec, its text, the path of a ``.share`` file, the name of one that ships with bishare, or the
            folder of an adapter to train further. None for a model that is adapted, which is trained further.
        model: a checkpoint folder, a ``.gguf`` file or a Hub id; or a model, which is adapted in place.
        data: a file (.json, .jsonl, .csv, .parquet) or a data set on the Hub. Several by name, or a folder of
            files, are tasks that are trained together: each has an adapter of its own, in a folder of its
            name in ``output_dir``.
        output_dir: the folder of the run, which must not hold a run yet.
        params: other values for the spec's.
        tokenizer: needed for a model that is given; by default the checkpoint's.
        config: a YAML file with any of these arguments, which win over it.
        resume: go on with the run in this folder, or from this checkpoint of one. All else is in its
            ``run.json``, but for a model that was given; arguments that are given here win. On the CPU it
            ends bit for bit as an uninterrupted run.
        force: remove the run that is in ``output_dir`` first.
        callbacks: transformers' callbacks.
        quiet: neither notes nor a progress bar.
        **arguments: of `Settings` and of `TrainingArguments`, such as ``max_length=2048``,
            ``learning_rate=2e-4`` or ``eval_split=0.05``.

    Returns:
        The trained model, and what was measured; of several tasks, of each. ``print`` it for a summary.

    Raises:
        BishareError: the arguments, the spec, the model or the data are wrong (BS7xx and those of their
            stage), or a loss or a gradient is not a number (BS750): then the last checkpoint is kept.
        FileNotFoundError: there is no such spec.
        TrainingInterrupted: SIGINT or SIGTERM came; a checkpoint is saved.
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
) -> TrainResult | ManyResult:
    """Do what was asked for, and tell ``reporter``. Arguments and errors are as for `train`."""
    if request.settings.tasks is not None:
        return run_many(request, reporter, tokenizer=tokenizer, force=force, callbacks=callbacks)
    began = time.monotonic()
    settings, folder = request.settings, request.output_dir
    args, base = begin(request, reporter, force=force)
    made, problems = check_adapter(request, base)
    tokenizer = find_tokenizer(request, base, tokenizer)
    rows = read_rows(settings, args.seed)
    reporter.note(f"encoding {sum(map(len, rows.values())):,} rows ...")
    encoded = {name: encode_as_asked(part, tokenizer, settings) for name, part in rows.items()}
    for found in encoded.values():
        reporter.note(str(found.report))
    sets = {name: found.examples for name, found in encoded.items()}
    if settings.packing:
        sets = {name: pack_dataset(found, settings.max_length) for name, found in sets.items()}
    for problem, where in problems:
        reporter.report(problem, where)
    steps = count_steps(args, len(sets["train"]))
    args.warmup_steps = warm_up(args, request.arguments, steps)
    passes = args.world_size * args.gradient_accumulation_steps
    of = f", {passes} passes of {args.per_device_train_batch_size}" if passes > 1 else ""
    reporter.note(f"{steps:,} step{'s' * (steps > 1)} of {effective_batch(args):,} examples{of}")
    base = load_base(request, base, reporter)
    if not isinstance(made, Handle):
        for note in install(base, made, args.seed):
            reporter.warn(note)
    handle: Handle = base.bishare  # type: ignore[assignment]
    reporter.note(handle.plan.parameters_line)
    note_low_rate(reporter, handle.plan.trainable, args.learning_rate, settings)
    collator = Collator.of(tokenizer, flatten=settings.packing and uses_flash_attention(base))
    if settings.packing:
        check_packing(base, collator)
    with undo_prepare(base), quietly():
        watch = Watch()
        trainer = AdapterTrainer(
            rates=settings.lr_of,
            model=as_peft_model(base, "CAUSAL_LM"),
            args=args,
            data_collator=collator,
            train_dataset=sets["train"],
            eval_dataset=sets.get("eval"),
            processing_class=tokenizer,
            callbacks=[watch, GradientCheck(report=reporter.report), *callbacks],
        )
        watch.trainer = trainer
        trainer.accelerator.wait_for_everyone()  # Nobody is looking at the folder any more.
        spec = str(made.folder) if isinstance(made, StoredAdapter) else handle.spec_text
        held = folders.claim(folder, request.as_dict(spec), request.resume, force=force)
        with held if args.should_save else nullcontext():
            run_loop(trainer, watch, request, reporter)
    base.eval()
    state, history = trainer.state, trainer.state.log_history
    held_out = {entry["step"]: entry["eval_loss"] for entry in history if "eval_loss" in entry}
    best = state.best_global_step if args.load_best_model_at_end else None
    return TrainResult(
        folder=folder,
        model=base,
        model_name=request.model if isinstance(request.model, str) else "MODEL",
        trainable=handle.plan.trainable,
        steps=state.global_step,
        epochs=float(state.epoch or 0),
        batch=effective_batch(args),
        eval_loss=held_out[best or max(held_out)] if held_out else None,
        tokens=int(state.num_input_tokens_seen),
        seconds=time.monotonic() - began,
        data={name: found.report for name, found in encoded.items()},
        history=history,
    )
