"""transformers' Trainer for adapters that are trained together: its loop, logs and checkpoints."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from operator import itemgetter
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import TrainerControl as Control
from transformers import TrainerState as State
from transformers import TrainingArguments as Args
from transformers import get_constant_schedule

from bishare_dsl.batched.bank import columns
from bishare_dsl.diagnostics.codes import train as codes
from bishare_dsl.train.errors import TrainError
from bishare_dsl.train.loss import among_options
from bishare_dsl.train.optimizer import Settings
from bishare_dsl.train.tasks import MicroBatch, Steps
from bishare_dsl.train.tenants import Tenants
from bishare_dsl.train.trainer import AdapterTrainer
from bishare_dsl.train.watch import EACH, Schedule, Watch, schedule_of


class BankModel(nn.Module):
    """An adapted model whose only parameters and checkpoint contents are those of the bank."""

    def __init__(self, tenants: Tenants) -> None:
        super().__init__()
        bank = tenants.bank
        self.adapted, self.own = cast(nn.Module, tenants.model), bank.own
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
        return {name: part.detach().clone() for name, part in parts.items() if part is not None}

    def __getattr__(self, name: str) -> Any:
        """Forward attributes such as the config and the device to the adapted model."""
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(super().__getattr__("adapted"), name)


class BankTrainer(AdapterTrainer):
    """A Trainer for tenants, one for each task. An item of its data set is a whole step.

    Args:
        steps: the steps of all tasks.
        tenants: an adapter for each task, in their order.
        warm_up: maps the number of steps of a run to its warm-up steps.
        **arguments: as for Trainer.

    Attributes:
        write: writes the adapters at the end of the run.
    """

    write: Callable[[], None]

    def __init__(
        self,
        *,
        steps: Steps,
        tenants: Tenants,
        warm_up: Callable[[int], int],
        args: Args,
        **arguments: Any,
    ) -> None:
        self.steps, self.tenants, self.bank = steps, tenants, tenants.bank
        betas = args.adam_beta1, args.adam_beta2
        how = Settings(betas, args.adam_epsilon, args.weight_decay, args.max_grad_norm)
        tenants.optimizer.settings = how
        counts = {steps.count(task) for task in steps.tasks}
        self._schedules = {n: cast(Schedule, schedule_of(args, warm_up(n), n)) for n in counts}
        args.max_grad_norm, args.max_steps = 0.0, len(steps)
        args.per_device_train_batch_size = args.gradient_accumulation_steps = 1
        args.include_num_input_tokens_seen = "no"
        model = BankModel(tenants)
        super().__init__(warm_up=warm_up, model=model, args=args, train_dataset=steps, **arguments)
        # DDP must not sum gradients: this class does it for all processes.
        accelerator = cast(Any, self.accelerator)
        accelerator.prepare_model = partial(accelerator.prepare_model, evaluation_mode=True)
        self._sums = torch.zeros(2, len(steps.tasks), device=args.device)
        self._numbers = {task.name: i for i, task in enumerate(steps.tasks)}

    def get_train_dataloader(self) -> Any:
        """Return the steps unchanged."""
        return torch.utils.data.DataLoader(
            cast(Any, self.steps), batch_size=1, collate_fn=itemgetter(0)
        )

    def create_optimizer(self, *_: Any, **__: Any) -> Any:
        """Return the tenants' AdamW, with a learning rate per row."""
        self.optimizer = self.tenants.optimizer  # accelerate wraps it.
        return self.optimizer

    def create_scheduler(self, num_training_steps: int, optimizer: Any = None) -> Any:
        """Create a constant schedule: the optimizer gets a learning rate per row before each step."""
        self.lr_scheduler = self.lr_scheduler or get_constant_schedule(cast(Any, self.optimizer))
        return self.lr_scheduler

    def training_step(self, model: Any, inputs: Any, *_: Any) -> Tensor:
        """Run the passes of a step, and return the mean loss of its tasks."""
        model.train()
        step, sums = self.state.global_step, torch.zeros_like(self._sums)
        running = self.steps.running(step)
        for parameter in self.bank.parameters:
            parameter.grad = None  # Trainer clears the model's parameters, without the bank.
        for tasks, losses, _right in self._losses(inputs):
            losses.sum().backward()
            sums[0].index_add_(0, tasks, losses.detach())
        for batch in inputs:
            self.state.num_input_tokens_seen += int(batch.inputs["attention_mask"].sum())
        sums[0] = self._together(sums[0])
        for parameter in self.bank.parameters:
            gradient = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
            parameter.grad = self._together(gradient)
            # A gradient that is not finite shows as a loss that is none: its step is not applied.
            sums[0] += 0 * parameter.grad.sum(1)
        sums[1, running] = 1
        self._sums += sums
        self.tenants.optimizer.rates = [
            {row: self._rate(row, step) for row in running}
            if p is self.bank.own
            else {0: self._rate(None, step)}
            for p in self.bank.parameters
        ]
        return sums[0].sum() / max(len(running), 1)

    def _rate(self, task: int | None, step: int) -> float:
        """Return the learning rate of a task, or of the tensors that all tasks share."""
        count = len(self.steps) if task is None else self.steps.count(self.steps.tasks[task])
        return self.args.learning_rate * self._schedules[count](step)

    def gradients(self) -> Iterator[tuple[str, Tensor]]:
        """Yield the gradients of the running tasks' tensors and of the shared tensors."""
        running, kind = self.steps.running(self.state.global_step), self.bank.kind
        own, common = (cast(Tensor, slab.grad) for slab in (self.bank.own, self.bank.common))
        for row in running:
            for name, place in columns(kind.own).items():
                yield f"{self.steps.tasks[row].name}: {name}", own[row, place]
        for name, place in columns(kind.common).items():
            yield name, common[0, place]

    def _together(self, part: Tensor) -> Tensor:
        """Sum a tensor over all processes."""
        if self.args.world_size == 1:
            return part
        return cast(Tensor, self.accelerator.reduce(part, "sum"))

    def _losses(self, passes: Sequence[MicroBatch]) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """Yield, for each pass of this process, three ``(rows,)`` tensors: task numbers, each row's part of
        its task's loss, and whether its learned tokens are the likeliest.
        """
        for batch in passes[self.args.process_index :: self.args.world_size]:
            with self.compute_loss_context_manager(), self.accelerator.autocast():
                losses, _, right = self.tenants.run(batch)
            tasks = torch.tensor([self._numbers[str(name)] for name in batch.names])
            yield tasks.to(self.args.device, non_blocking=True), losses, right

    def log(self, logs: dict[str, Any], *arguments: Any) -> None:
        """Log the mean loss, and record each task's."""
        if "loss" in logs:
            totals, counts = self._sums.tolist()
            self._sums.zero_()
            done = max(self.state.global_step - 1, 0)
            rates = (self._rate(i, done) for i in self.steps.running(done))
            logs["learning_rate"] = max(rates, default=0.0)
            pairs = enumerate(zip(totals, counts, strict=True))
            self._record("loss", {i: total / count for i, (total, count) in pairs if count})
            if self.bank.common.numel() and not math.isfinite(sum(totals)):
                kept, step = "what all tasks share would be lost", self.state.global_step
                problem = codes.NOT_FINITE(what="gradient", step=step, value=math.nan, kept=kept)
                raise TrainError(problem)
        super().log(logs, *arguments)

    def _record(self, key: str, values: Mapping[int, float]) -> None:
        """Record a value of each task in the history, which Trainer would print for all of them."""
        of_tasks = {self.steps.tasks[i].name: value for i, value in values.items()}
        entry: Any = {EACH[key]: of_tasks, "step": self.state.global_step}
        self.state.log_history.append(entry)

    @torch.no_grad()
    def evaluate(self, *_: Any, **__: Any) -> dict[str, float]:
        """Compute the held-out loss of each task: the mean over its tokens."""
        steps, model = self.steps, cast(Any, self.model).eval()
        tasks = [i for i, t in enumerate(steps.tasks) if t.held_out]
        totals = torch.zeros_like(self._sums)
        for numbers, losses, correct in self._losses(
            steps.passes([(i, steps.tasks[i].held_out) for i in tasks])
        ):
            totals[0].index_add_(0, numbers, losses)
            totals[1].index_add_(0, numbers, correct.to(totals))
        model.train()
        means, correct = self._together(totals).tolist()
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
        self.write()


class BankWatch(Watch):
    """Stops the run on request. A step with a non-finite gradient is not applied to its task alone."""

    def on_train_begin(self, args: Args, state: State, control: Control, **_: Any) -> None:
        self.trainer.bank.attach()  # accelerate has moved the model.

    def on_pre_optimizer_step(
        self, args: Args, state: State, control: Control, **more: Any
    ) -> None:
        self.check_gradients(args, state)
        (self.stopping,) = self._of_any(args, [self.asked()])
