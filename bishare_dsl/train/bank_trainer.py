"""transformers' Trainer for adapters that are trained together: its loop, logs and checkpoints."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import TrainerCallback
from transformers import TrainerControl as Control
from transformers import TrainerState as State
from transformers import TrainingArguments as Args
from transformers.trainer_callback import ExportableState

from bishare_dsl.adapter.handle import Handle
from bishare_dsl.batched.bank import Bank, columns
from bishare_dsl.diagnostics.codes import train as codes
from bishare_dsl.train.base_trainer import RunTrainer, Watch, logged
from bishare_dsl.train.data.batches import IGNORED
from bishare_dsl.train.errors import TrainError
from bishare_dsl.train.groups import rates_of
from bishare_dsl.train.loss import among_options, are_likeliest, learned_logits
from bishare_dsl.train.optimizer import Rate, RowAdamW, Settings
from bishare_dsl.train.tasks import MicroBatch, Steps

DIVERGED = "a gradient was no number"


class BankModel(nn.Module):
    """An adapted model whose only parameters and checkpoint contents are those of the bank."""

    def __init__(self, adapted: nn.Module, bank: Bank) -> None:
        super().__init__()
        self.adapted, self.own = adapted, bank.own
        self.gradients: Callable[[], Iterator[tuple[str, Tensor]]]
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


class BankTrainer(RunTrainer):
    """A Trainer for the adapters of a bank. An item of its data set is a whole step.

    Args:
        steps: the steps of all tasks; each task is an adapter of the model.
        rates: learning rates of shares and factors, as in ``lr_of``.
        handle: the handle of the adapters.
        bank: the tensors of the adapters.
        **arguments: as for `RunTrainer`.

    Attributes:
        write: writes the adapters at the end of the run.
    """

    write: Callable[[], None]

    def __init__(
        self,
        *,
        steps: Steps,
        rates: Mapping[str, str],
        handle: Handle,
        bank: Bank,
        args: Args,
        **arguments: Any,
    ) -> None:
        self.steps, self._rates, self.handle, self.bank = steps, rates, handle, bank
        self._settings = Settings(
            (args.adam_beta1, args.adam_beta2),
            args.adam_epsilon,
            args.weight_decay,
            args.max_grad_norm,
        )
        args.max_grad_norm, args.max_steps = 0.0, len(steps)
        args.per_device_train_batch_size = args.gradient_accumulation_steps = 1
        args.include_num_input_tokens_seen = "no"
        model = BankModel(cast(nn.Module, handle.model), bank)
        data = cast(Any, steps)
        super().__init__(model=model, args=args, train_dataset=data, **arguments)
        model.gradients = self._gradients
        # DDP must not sum gradients: this class does it for all processes.
        accelerator = cast(Any, self.accelerator)
        accelerator.prepare_model = partial(accelerator.prepare_model, evaluation_mode=True)
        self._sums = torch.zeros(2, len(steps.tasks), device=args.device)

    def get_train_dataloader(self) -> Any:
        """Return the steps unchanged."""
        return torch.utils.data.DataLoader(cast(Any, self.steps), batch_size=1, collate_fn=_only)

    def create_optimizer(self, *_: Any, **__: Any) -> Any:
        """Create an AdamW with a learning rate and a schedule per row."""
        tasks = self.steps.tasks
        own = self._own = [self._rate(task.rate, self.steps.count(task)) for task in tasks]
        top = max(task.rate for task in tasks)
        common = self._rate(top, len(self.steps))
        rates, scales = [own], [self._scale(self.bank.own, [task.rate for task in tasks])]
        if self.bank.common.numel():
            rates, scales = [*rates, [common]], [*scales, self._scale(self.bank.common, [top])]
        self._of_bank = RowAdamW(self.bank.parameters, rates, scales, self._settings)
        self.optimizer = self._of_bank  # accelerate wraps it.
        return self.optimizer

    def _rate(self, rate: float, steps: int) -> Rate:
        factor = self.schedule(steps)
        if factor is None:
            name = self.args.lr_scheduler_type
            reason = f"`{name}` is for one task, without `library`, `search` and `seeds`"
            raise TrainError(codes.BAD_COMBINATION(reason=reason))
        return lambda step: rate * factor(step)

    def _scale(self, slab: Tensor, tops: Sequence[float]) -> Tensor:
        """Return the ratio of the columns' learning rates to their rows', ``(rows or 1, values or 1)``."""
        if not self._rates:
            return torch.ones(1, 1, device=slab.device)
        scale = torch.ones(len(tops), slab.shape[1])
        for row, top in enumerate(tops):
            kind = self.bank.kind_of(row)
            places = columns(kind.own if slab is self.bank.own else kind.common)
            plan = self.handle[self.steps.tasks[row].name].plan
            for name, rate in rates_of(plan, self._rates).items():
                if name in places:
                    factor = float(rate[:-1]) if rate[-1] in "xX" else float(rate) / top
                    scale[row, places[name]] = factor
        return scale.to(slab.device)

    def create_scheduler(self, num_training_steps: int, optimizer: Any = None) -> Any:
        """Create a constant schedule: the optimizer has a schedule per row."""
        if self.lr_scheduler is None:
            self.lr_scheduler = torch.optim.lr_scheduler.LambdaLR(
                cast(Any, self.optimizer), lambda _: 1.0
            )
        return self.lr_scheduler

    def training_step(self, model: Any, inputs: Any, *_: Any) -> Tensor:
        """Run the passes of a step, and return the mean loss of its tasks."""
        model.train()
        running, sums = self.steps.running(self.state.global_step), torch.zeros_like(self._sums)
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
        sums[1, running] = 1
        self._sums += sums
        self._of_bank.stepping = [
            running if p is self.bank.own else [0] * bool(running) for p in self.bank.parameters
        ]
        return sums[0].sum() / max(len(running), 1)

    def _gradients(self) -> Iterator[tuple[str, Tensor]]:
        """Yield the gradients of the running tasks' tensors and of the shared tensors."""
        running = self.steps.running(self.state.global_step)
        for slab, rows in ((self.bank.own, running), (self.bank.common, running[:1])):
            grad = cast(Tensor, slab.grad)
            for row in rows:
                kind, own = self.bank.kind_of(row), slab is self.bank.own
                of_task = f"{self.steps.tasks[row].name}: " if own else ""
                for name, place in columns(kind.own if own else kind.common).items():
                    yield f"{of_task}{name}", grad[row if own else 0, place]

    def _together(self, part: Tensor) -> Tensor:
        """Sum a tensor over all processes."""
        if self.args.world_size == 1:
            return part
        return cast(Tensor, self.accelerator.reduce(part, "sum"))

    def _losses(self, passes: Sequence[MicroBatch]) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """Yield, for each pass of this process, three ``(rows,)`` tensors: task numbers, each row's part of
        its task's loss, and whether its learned tokens are the likeliest.
        """
        device = self.args.device
        for batch in passes[self.args.process_index :: self.args.world_size]:
            inputs = {name: tensor.to(device) for name, tensor in batch.inputs.items()}
            names = [self.steps.tasks[task].name for task in batch.tasks]
            with self.compute_loss_context_manager(), self.handle.rows(names):
                forward = self.handle.model.forward
                logits, learned = learned_logits(cast(Any, self.model), forward, inputs)
            flat, labels = logits.float().flatten(0, 1), learned.flatten()
            losses = F.cross_entropy(flat, labels, ignore_index=IGNORED, reduction="none")
            tasks, counts = torch.tensor([batch.tasks, batch.learned]).to(device, non_blocking=True)
            yield tasks, losses.view(learned.shape).sum(1) / counts, are_likeliest(logits, learned)

    def log(self, logs: dict[str, Any], *arguments: Any) -> None:
        """Log the loss of each task since the last log, and stop rows with non-finite values."""
        if "loss" in logs:
            totals, counts = self._sums.tolist()
            self._sums.zero_()
            losses = {i: t / n for i, (t, n) in enumerate(zip(totals, counts, strict=True)) if n}
            names = [task.name for task in self.steps.tasks]
            done = max(self.state.global_step - 1, 0)
            logs["learning_rate"] = max(
                (self._own[i](done) for i in self.steps.running(done)), default=0.0
            )
            logs["losses"] = {names[i]: loss for i, loss in losses.items()}
            self._stop_rows()
        super().log(logs, *arguments)

    def _stop_rows(self) -> None:
        for parameter, rows in zip(self.bank.parameters, self._of_bank.stopped(), strict=True):
            if rows and parameter is self.bank.common:
                raise TrainError(
                    codes.NOT_FINITE(
                        what="gradient",
                        step=self.state.global_step,
                        value=math.nan,
                        kept="what all tasks share would be lost",
                    )
                )
            for row in rows:
                self.steps.stopped.setdefault(row, (self.state.global_step, DIVERGED))

    @torch.no_grad()
    def evaluate(self, *_: Any, **__: Any) -> dict[str, float]:
        """Compute the held-out loss of each task: the mean over its tokens."""
        steps, model = self.steps, cast(Any, self.model).eval()
        tasks = [i for i, t in enumerate(steps.tasks) if t.held_out and i not in steps.stopped]
        totals = torch.zeros_like(self._sums)
        for numbers, losses, correct in self._losses(
            steps.passes([(i, steps.tasks[i].held_out) for i in tasks])
        ):
            totals[0].index_add_(0, numbers, losses)
            totals[1].index_add_(0, numbers, correct.to(totals))
        model.train()
        means, correct = self._together(totals).tolist()
        by_name = {steps.tasks[i].name: means[i] for i in tasks}
        mean = {"eval_loss": sum(by_name.values()) / max(len(by_name), 1)}
        logs: dict[str, Any] = {**mean, "eval_losses": by_name}
        rows = {
            i: len(steps.tasks[i].held_out) for i in tasks if among_options(steps.tasks[i].held_out)
        }
        if rows:
            logs["eval_accuracies"] = {steps.tasks[i].name: correct[i] / n for i, n in rows.items()}
        self.log(logs)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, mean)
        return mean

    def held_out(self, task: int) -> float:
        """Return the last held-out loss of a task; infinity if it is missing or not finite."""
        past = [*logged(self.state.log_history, "eval_loss", self.steps.tasks[task].name).values()]
        return past[-1] if past and not math.isnan(past[-1]) else math.inf

    def ranked(self, group: str) -> list[int]:
        """Return the candidates of an adapter, best first: running ones by held-out loss, then eliminated
        ones, then those with a non-finite gradient.
        """
        rank, tasks, stopped = {None: 0, DIVERGED: 2}, self.steps.tasks, self.steps.stopped
        numbers = (i for i, task in enumerate(tasks) if task.group == group)
        return sorted(
            numbers, key=lambda i: (rank.get(stopped.get(i, (0, None))[1], 1), self.held_out(i))
        )

    def kept(self) -> dict[str, int]:
        """Return the task whose adapter is kept, by name: if possible, the best with finite values."""
        if not self.bank.common.isfinite().all():
            return {}
        finite = self.bank.own.isfinite().all(dim=1).tolist()
        ranked = {
            group: filter(finite.__getitem__, self.ranked(group)) for group in self.steps.groups
        }
        best = {group: next(numbers, None) for group, numbers in ranked.items()}
        return {group: number for group, number in best.items() if number is not None}

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


def _only(items: Sequence[list[MicroBatch]]) -> list[MicroBatch]:
    return items[0]


class BankWatch(Watch, ExportableState):
    """Stops the run on request. A non-finite loss stops only its task."""

    def __init__(self, steps: Steps) -> None:
        super().__init__()
        self._stopped = steps.stopped

    def state(self) -> dict[str, Any]:
        """Return what a checkpoint stores: the stopped tasks, their last steps and the reasons."""
        stopped = [(task, *why) for task, why in self._stopped.items()]
        return {"args": {}, "attributes": {"stopped": stopped}}

    def on_train_begin(self, args: Args, state: State, control: Control, **_: Any) -> None:
        self.trainer.bank.attach()  # accelerate has moved the model.
        before = cast(Any, state.stateful_callbacks)[type(self).__name__]
        stopped = before["attributes"]["stopped"]
        self._stopped.update({task: (step, why) for task, step, why in stopped})

    def on_pre_optimizer_step(
        self, args: Args, state: State, control: Control, **more: Any
    ) -> None:
        (self.stopping,) = self._of_any(args, [self.asked()])


class Halving(TrainerCallback):
    """Successive halving of candidate tasks by held-out loss.

    (Jamieson and Talwalkar 2016, https://arxiv.org/abs/1502.07943.) The last halving, at half of the steps,
    leaves one candidate. The halving before it is at a quarter of the steps, and so on.
    """

    def __init__(self, trainer: BankTrainer) -> None:
        self._trainer, self._steps = trainer, trainer.steps
        groups = [task.group for task in self._steps.tasks]
        rounds = math.ceil(math.log2(max(map(groups.count, groups))))
        self._when = {math.ceil(len(self._steps) / 2**i) for i in range(1, rounds + 1)}

    def on_step_end(self, args: Args, state: State, control: Control, **_: Any) -> None:
        control.should_evaluate |= state.global_step in self._when

    def on_evaluate(self, args: Args, state: State, control: Control, **_: Any) -> None:
        if (step := state.global_step) in self._when:
            self._when.remove(step)
            stopped = self._steps.stopped
            for group in self._steps.groups:
                running = [i for i in self._trainer.ranked(group) if i not in stopped]
                for loser in running[math.ceil(len(running) / 2) :]:
                    stopped[loser] = step, f"lost at step {step}"
