"""transformers' Trainer for an adapter, and for adapters that are trained together, and its callback."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from operator import itemgetter
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR
from transformers import Trainer, TrainerCallback, get_constant_schedule
from transformers import TrainerControl as Control
from transformers import TrainerState as State
from transformers import TrainingArguments as Args

from bishare_dsl.batched.bank import columns
from bishare_dsl.diagnostics import Problem
from bishare_dsl.diagnostics.codes import train as codes
from bishare_dsl.diagnostics.codes.verify import NO_GRADIENT
from bishare_dsl.folder.standing import BANK_TENSORS
from bishare_dsl.train import folder as folders
from bishare_dsl.train.errors import TrainError, catch_refusals
from bishare_dsl.train.loss import (
    among_options,
    are_likeliest,
    learned_logits,
    loss_of,
    row_losses,
)
from bishare_dsl.train.many.adapters import TaskAdapters
from bishare_dsl.train.optimizer import Settings, schedule_of
from bishare_dsl.train.result import EACH
from bishare_dsl.train.tasks import MicroBatch, Steps


class AdapterTrainer(Trainer):
    """A Trainer for the adapter of a PEFT model, and the base of the one for several tasks.

    Args:
        warm_up: maps the number of steps of a run to its warm-up steps.
        **arguments: as for Trainer.

    Attributes:
        done: the steps of the checkpoint that training resumes from.
        held_out: the last evaluation by rows: ``losses``, numbers with blanks between them, and for rows
            with options ``correct``, a digit for each; None before the first one.
    """

    done = 0
    held_out: dict[str, str] | None = None
    lr_scheduler: Any

    def __init__(
        self, *, warm_up: Callable[[int], int], model: Any, args: Args, **arguments: Any
    ) -> None:
        self._warm_up = warm_up
        metric = str(args.metric_for_best_model or "loss").removeprefix("eval_")
        chosen = among_options(arguments.get("eval_dataset"))
        if metric not in ("loss", "accuracy" if chosen else "loss"):
            reason = f"`metric_for_best_model` cannot be `{metric}`, but `loss` or, of options, `accuracy`"
            raise TrainError(codes.BAD_COMBINATION(reason=reason))
        if args.n_gpu > 1 and len({*(getattr(model, "hf_device_map", None) or {}).values()}) < 2:
            reason = f"one process sees {args.n_gpu} GPUs"
            help = "start with `torchrun --nproc_per_node N`, or show one: CUDA_VISIBLE_DEVICES=0"
            raise TrainError(codes.BAD_COMBINATION(reason=reason, help=help))
        self._has_options = chosen
        if arguments.get("eval_dataset") is not None and not args.batch_eval_metrics:
            arguments["compute_metrics"] = self._keep_rows
        with catch_refusals():
            super().__init__(model=model, args=args, **arguments)
        self.model_accepts_loss_kwargs = True  # The loss here is divided by the tokens of a step.

    def set_initial_training_values(self, *arguments: Any) -> tuple[Any, ...]:
        """Count epochs and steps. A finished run has no epochs left, or the loop would do one more step."""
        epochs, *others, steps = super().set_initial_training_values(*arguments)
        return (0 if self.done >= steps else epochs, *others, steps)

    def create_optimizer(self, *arguments: Any, **keywords: Any) -> Any:
        """Create transformers' optimizer."""
        with catch_refusals():
            return super().create_optimizer(*arguments, **keywords)

    def create_scheduler(self, num_training_steps: int, optimizer: Any = None) -> Any:
        """Create transformers' schedule, without a first step at learning rate 0."""
        layerwise = "layerwise" in str(self.args.optim)
        warm = self.args.warmup_steps = self._warm_up(num_training_steps)
        if self.lr_scheduler is None and not layerwise:
            factor = schedule_of(self.args, warm, num_training_steps)
            stepped: Any = optimizer or self.optimizer
            self.lr_scheduler = None if factor is None else LambdaLR(stepped, factor)
        with catch_refusals():
            return super().create_scheduler(num_training_steps, optimizer)

    def gradients(self) -> Iterator[tuple[str, Tensor | None]]:
        """Yield the gradients of all trainable tensors."""
        named = cast(Any, self.model).named_parameters()
        return ((name, p.grad) for name, p in named if p.requires_grad)

    def norm(self) -> float:
        """Return the norm of the gradient of the next step."""
        gradients = [grad for _, grad in self.gradients() if grad is not None]
        return float(torch.nn.utils.get_total_norm(gradients))

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Any = None,
    ) -> Any:
        """Compute the loss from the logits of trained tokens alone."""
        forward = cast(Any, self.model).get_base_model().forward
        logits, learned = learned_logits(model, forward, inputs)
        loss = loss_of(logits, learned, num_items_in_batch)
        if self.args.average_tokens_across_devices and num_items_in_batch is not None:
            # The loss is divided by the tokens of all processes, and DDP averages.
            loss = loss * self.accelerator.num_processes
        if not return_outputs:
            return loss
        rows = {"losses": row_losses(logits, learned), "correct": are_likeliest(logits, learned)}
        return loss, rows

    def _keep_rows(self, evaluated: Any) -> dict[str, float]:
        """Keep the result of each held-out row, and return the accuracy of rows with options."""
        losses, correct = evaluated.predictions
        self.held_out = {"losses": " ".join(f"{loss:.5g}" for loss in losses)}
        if not self._has_options:
            return {}
        self.held_out["correct"] = "".join(str(int(is_correct)) for is_correct in correct)
        return {"accuracy": correct.mean()}

    def evaluate_last(self) -> None:
        """Evaluate the adapter that is written, unless the last evaluation of this run was of it.

        Trainer evaluates after the last step. It does not for a finished run that goes on, nor once it has
        loaded the best adapter, whose loss is in the history already.
        """
        if self.eval_dataset is None:
            return
        state = self.state
        logged = {entry["step"] for entry in state.log_history if "eval_loss" in entry}
        is_logged = state.global_step in logged or self.args.load_best_model_at_end
        if is_logged and self.held_out is not None and not self.args.load_best_model_at_end:
            return
        history = list(state.log_history)
        self.evaluate()
        if is_logged:
            state.log_history = history

    def evaluate(self, *arguments: Any, **keywords: Any) -> Any:
        """Evaluate, without changing the random numbers of the training that follows."""
        with torch.random.fork_rng():
            return super().evaluate(*arguments, **keywords)


class BankModel(nn.Module):
    """An adapted model whose only parameters and checkpoint contents are those of the bank."""

    def __init__(self, adapters: TaskAdapters) -> None:
        super().__init__()
        bank = adapters.bank
        self.adapted = cast(nn.Module, adapters.model)
        self.own = bank.own
        # An empty parameter has no gradient, which callbacks would report.
        self.register_parameter("common", bank.common if bank.common.numel() else None)

    def forward(self, **inputs: Any) -> Any:
        """Run the adapted model."""
        return self.adapted(**inputs)

    def parameters(self, recurse: bool = True) -> Iterator[nn.Parameter]:
        """Omit the bank: Trainer would clip the gradients of all tasks by one norm."""
        return self.adapted.parameters(recurse)

    def state_dict(self, *_: Any, **__: Any) -> Any:
        """Return the bank, which Trainer saves and loads."""
        parts = {"own": self.own, "common": self.common}
        assert parts.keys() == BANK_TENSORS  # They tell whose a begun checkpoint is.
        return {name: part.detach().clone() for name, part in parts.items() if part is not None}

    def __getattr__(self, name: str) -> Any:
        """Forward attributes such as the config and the device to the adapted model."""
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(super().__getattr__("adapted"), name)


class BankTrainer(AdapterTrainer):
    """A Trainer for the adapters of several tasks. An item of its data set is a whole step.

    Args:
        steps: the steps of all tasks.
        adapters: an adapter for each task, in their order.
        **arguments: as for `AdapterTrainer`.

    Attributes:
        write: writes the adapters at the end of the run.
    """

    write: Callable[[], None]

    def __init__(
        self, *, steps: Steps, adapters: TaskAdapters, args: Args, **arguments: Any
    ) -> None:
        self.steps = steps
        self.adapters = adapters
        self.bank = adapters.bank
        adapters.optimizer.settings = Settings.of(args)
        counts = {n: arguments["warm_up"](n) for n in map(steps.count, steps.tasks)}
        self._schedules: Any = {n: schedule_of(args, warm, n) for n, warm in counts.items()}
        args.max_grad_norm = 0.0
        args.max_steps = len(steps)
        args.per_device_train_batch_size = args.gradient_accumulation_steps = 1
        args.include_num_input_tokens_seen = "no"
        super().__init__(model=BankModel(adapters), args=args, train_dataset=steps, **arguments)
        self._sums = torch.zeros(2, len(steps.tasks), device=args.device)
        self._numbers = {task.name: i for i, task in enumerate(steps.tasks)}

    def get_train_dataloader(self) -> Any:
        """Return the steps unchanged."""
        steps: Any = self.steps
        return torch.utils.data.DataLoader(steps, batch_size=1, collate_fn=itemgetter(0))

    def create_optimizer(self, *_: Any, **__: Any) -> Any:
        """Return the AdamW of the bank, with a learning rate per row."""
        self.optimizer = self.adapters.optimizer  # accelerate wraps it.
        return self.optimizer

    def create_scheduler(self, num_training_steps: int, optimizer: Any = None) -> Any:
        """Create a constant schedule: the optimizer gets a learning rate per row before each step."""
        self.lr_scheduler = self.lr_scheduler or get_constant_schedule(cast(Any, self.optimizer))
        return self.lr_scheduler

    def training_step(self, model: Any, inputs: Any, *_: Any) -> Tensor:
        """Run the passes of a step, and return the mean loss of its tasks."""
        model.train()
        step = self.state.global_step
        sums = torch.zeros_like(self._sums)
        running = self.steps.running(step)
        for parameter in self.bank.parameters:
            parameter.grad = None  # Trainer clears the model's parameters, without the bank.
        for tasks, losses, _right in self._losses(inputs):
            losses.sum().backward()
            sums[0].index_add_(0, tasks, losses.detach())
        for batch in inputs:
            self.state.num_input_tokens_seen += int(batch.inputs["attention_mask"].sum())
        for parameter in self.bank.parameters:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
            # A gradient that is not finite shows as a loss that is none: its step is not applied.
            sums[0] += 0 * parameter.grad.sum(1)
        sums[1, running] = 1
        self._sums += sums
        rates = self.adapters.optimizer.rates = [{row: self._rate(row, step) for row in running}]
        if self.bank.common.numel():
            rates.append({0: self._rate(None, step)})
        return sums[0].sum() / max(len(running), 1)

    def _rate(self, task: int | None, step: int) -> float:
        """Return the learning rate of a task, or of the tensors that all tasks share."""
        count = len(self.steps) if task is None else self.steps.count(self.steps.tasks[task])
        return float(self.args.learning_rate * self._schedules[count](step))

    def norm(self) -> float:
        """Return 0: a gradient that is not finite stops its task alone."""
        return 0.0

    def gradients(self) -> Iterator[tuple[str, Tensor]]:
        """Yield the gradients of private tensors, of all tasks in one, and of shared tensors."""
        bank = self.bank
        kind = bank.kind
        slabs: Any = ((bank.own, kind.own), (bank.common, kind.common))
        return (
            (n, p.grad[:, column]) for p, names in slabs for n, column in columns(names).items()
        )

    def _losses(self, passes: Sequence[MicroBatch]) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """Yield, for each pass, three ``(rows,)`` tensors: task numbers, each row's part of its task's loss,
        and whether its learned tokens are the likeliest.
        """
        for batch in passes:
            with self.compute_loss_context_manager(), self.accelerator.autocast():
                result = self.adapters.run(batch)
            tasks = torch.tensor([self._numbers[str(name)] for name in batch.names])
            yield tasks.to(self.args.device, non_blocking=True), result.losses, result.correct

    def log(self, logs: dict[str, Any], *arguments: Any) -> None:
        """Log the mean loss, and record each task's."""
        logs.pop("grad_norm", None)  # 0, by `norm`: each task has its own.
        if "loss" in logs:
            totals, counts = self._sums.tolist()
            self._sums.zero_()
            done = max(self.state.global_step - 1, 0)
            rates = (self._rate(i, done) for i in self.steps.running(done))
            logs["learning_rate"] = max(rates, default=0.0)
            pairs = enumerate(zip(totals, counts, strict=True))
            self._record("loss", {i: total / count for i, (total, count) in pairs if count})
            if self.bank.common.numel() and not math.isfinite(sum(totals)):
                kept = "what all tasks share would be lost"
                step = self.state.global_step
                problem = codes.NOT_FINITE(what="gradient", step=step, value=math.nan, kept=kept)
                raise TrainError(problem)
        super().log(logs, *arguments)

    def _record(self, key: str, values: Mapping[int, float]) -> None:
        """Record a value of each task in the history, which Trainer would print for all of them."""
        of_tasks = {self.steps.tasks[i].name: value for i, value in values.items()}
        log: list[Any] = self.state.log_history
        log.append({EACH[key]: of_tasks, "step": self.state.global_step})

    @torch.no_grad()
    def evaluate(self, *_: Any, **__: Any) -> dict[str, float]:
        """Compute the held-out loss of each task: the mean over its tokens."""
        steps = self.steps
        model = cast(Any, self.model).eval()
        tasks = [i for i, t in enumerate(steps.tasks) if t.held_out]
        totals = torch.zeros_like(self._sums)
        passes = steps.passes([(i, steps.tasks[i].held_out) for i in tasks])
        for numbers, losses, correct in self._losses(passes):
            totals[0].index_add_(0, numbers, losses)
            totals[1].index_add_(0, numbers, correct.to(totals))
        model.train()
        means, correct = totals.tolist()
        mean = {"eval_loss": sum(means[i] for i in tasks) / max(len(tasks), 1)}
        self._record("eval_loss", {i: means[i] for i in tasks})
        if chosen := [i for i in tasks if among_options(steps.tasks[i].held_out)]:
            shares = {i: correct[i] / len(steps.tasks[i].held_out) for i in chosen}
            self._record("eval_accuracy", shares)
        self.log({**mean})
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, mean)
        return mean

    def kept(self) -> list[int]:
        """Return the tasks whose adapters are finite."""
        if not self.bank.common.isfinite().all():
            return []
        return self.bank.own.isfinite().all(dim=1).nonzero().flatten().tolist()

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Write the bank into a checkpoint, or the adapters at the end of the run."""
        if _internal_call:
            super().save_model(output_dir, _internal_call)
            return
        evaluated = (e["step"] for e in reversed(self.state.log_history) if "eval_losses" in e)
        has_held_out = any(task.held_out for task in self.steps.tasks)
        if has_held_out and next(evaluated, None) != self.state.global_step:
            self.evaluate()
        self.bank.attach()  # accelerate may have moved the model.
        self.write()


class Watch(TrainerCallback):
    """Seals checkpoints, and checks for non-finite values and for a stop request right before each step.

    Args:
        record: what each checkpoint records of its run, for `folder.seal`.
        report: receives the warning about tensors without a gradient.

    Attributes:
        trainer: the trainer, created after the callback.
        asked: whether the user requested a stop.
        stopping: whether all processes have agreed to stop after this step.
    """

    trainer: Any

    def __init__(self, record: Mapping[str, Any], report: Callable[[Problem, None], None]) -> None:
        self._record = record
        self._report = report
        self.asked: Callable[[], bool] = lambda: False
        self.stopping = False

    def on_pre_optimizer_step(self, args: Args, state: State, control: Control, **_: Any) -> None:
        # A scaled gradient may be infinite; the scaler then skips the step and reduces the scale.
        scaled = self.trainer.accelerator.scaler is not None
        gradient = 0.0 if scaled else self.trainer.norm()
        self.check_gradients(args, state)
        bad, self.stopping = self._of_any(args, [not math.isfinite(gradient), self.asked()])
        if bad:
            raise _not_finite(args, state, gradient)

    def check_gradients(self, args: Args, state: State) -> None:
        """Report trainable tensors without a gradient (BS873), after two steps: at first, A's is zero."""
        if state.global_step - self.trainer.done != 2 or not args.learning_rate:
            return
        gradients = dict(self.trainer.gradients())
        missing = [f"`{n}`" for n, grad in gradients.items() if grad is None or not grad.any()]
        if missing:
            names = ", ".join(missing[:8])
            if len(missing) > 8:
                names += " ..."
            problem = NO_GRADIENT(
                count=len(missing), total=len(gradients), step=state.global_step + 1, names=names
            )
            self._report(problem, None)

    def _of_any(self, args: Args, flags: Sequence[bool]) -> Sequence[bool]:
        """Return which of the flags are set in any process."""
        if args.world_size == 1:
            return flags
        together = torch.tensor(flags, dtype=torch.int32, device=args.device)
        return [bool(flag) for flag in self.trainer.accelerator.reduce(together, "sum")]

    def on_save(self, args: Args, state: State, control: Control, **_: Any) -> None:
        self.trainer.accelerator.wait_for_everyone()
        if args.should_save:
            folder = Path(str(args.output_dir))
            folders.seal(folder / f"checkpoint-{state.global_step}", self._record)

    def on_step_end(self, args: Args, state: State, control: Control, **_: Any) -> None:
        if state.global_step >= state.max_steps:
            control.should_log = True  # Users want to see the last loss.
        elif self.stopping:
            control.should_training_stop = True
            # At the end of an epoch, the checkpoint waits for logging and evaluation.
            control.should_save = not float(state.epoch or 0).is_integer()

    def on_epoch_end(self, args: Args, state: State, control: Control, **_: Any) -> None:
        if self.stopping and state.global_step < state.max_steps:
            ended = float(state.epoch or 0).is_integer()
            control.should_save = ended
            control.should_log &= ended
            control.should_evaluate &= ended


def _not_finite(args: Args, state: State, value: float) -> TrainError:
    """Build the error for a gradient that is not finite, with the checkpoint to resume from."""
    sealed = folders.checkpoints(Path(str(args.output_dir)))
    kept = f"`{sealed[-1]}` is the last checkpoint" if sealed else "no checkpoint exists yet"
    step = state.global_step + 1
    return TrainError(codes.NOT_FINITE(what="gradient", step=step, value=value, kept=kept))
