"""transformers' Trainer for adapters that are trained together: its loop, logs and checkpoints."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, cast

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor
from torch.nn import functional as F
from transformers import Trainer, TrainerCallback, get_scheduler
from transformers import TrainerControl as Control
from transformers import TrainerState as State
from transformers import TrainingArguments as Args

from bishare_dsl.adapter.handle import Handle
from bishare_dsl.batched.bank import Bank, columns
from bishare_dsl.diagnostics.codes import train as codes
from bishare_dsl.train.arguments import catch_refusals
from bishare_dsl.train.data.batches import IGNORED
from bishare_dsl.train.errors import TrainError
from bishare_dsl.train.folder import BANK
from bishare_dsl.train.groups import rates_of
from bishare_dsl.train.loss import learned_logits
from bishare_dsl.train.many import Pass, Steps
from bishare_dsl.train.optimizer import Rate, RowAdamW, Settings
from bishare_dsl.train.trainer import Watch

NO_NUMBER = "a gradient was no number"


class ManyTrainer(Trainer):
    """Trains the adapters of a bank. An item of its data set is all of a step.

    Args:
        steps: of all tasks, each an adapter of the model.
        rates: of shares and factors, as ``lr_of`` has them.
        warm_up: counts the steps over which the rate rises, of so many.
        **arguments: as for Trainer.

    Attributes:
        handle: the adapters.
        bank: the adapters' tensors; it is set before `train`, when the model is where it stays.
        held_out: the last held-out loss of each task.
        write: writes the adapters when the run is through.
        done: the steps of the checkpoint that training goes on from.
        evaluated: the step after which the held-out losses were computed.
    """

    bank: Bank
    write: Callable[[], None]

    def __init__(
        self,
        *,
        steps: Steps,
        rates: Mapping[str, str],
        warm_up: Callable[[int], int],
        args: Args,
        **arguments: Any,
    ) -> None:
        self.steps, self._rates, self._warm_up = steps, rates, warm_up
        self._settings = Settings(
            (args.adam_beta1, args.adam_beta2),
            args.adam_epsilon,
            args.weight_decay,
            args.max_grad_norm,
        )
        args.max_grad_norm, args.max_steps = 0.0, len(steps)
        args.per_device_train_batch_size = args.gradient_accumulation_steps = 1
        args.include_num_input_tokens_seen = "no"
        super().__init__(args=args, train_dataset=cast(Any, steps), **arguments)
        # DDP wants parameters of the model's that train; gradients of the bank are summed here.
        prepare = cast(Any, self.accelerator).prepare_model
        vars(self.accelerator)["prepare_model"] = partial(prepare, evaluation_mode=True)
        self.handle: Handle = cast(Any, self.model).bishare
        self._sums = torch.zeros(2, len(steps.tasks), device=args.device)
        self.held_out: dict[str, float] = {}
        self.done, self.evaluated = 0, -1

    def get_train_dataloader(self) -> Any:
        """Give the steps as they are."""
        return torch.utils.data.DataLoader(cast(Any, self.steps), batch_size=1, collate_fn=_only)

    def _wrap_model(self, model: Any, *_: Any, **__: Any) -> Any:
        """Leave the model as it is, also where there are several devices."""
        return model

    def create_optimizer(self, *_: Any, **__: Any) -> Any:
        """Make AdamW with a rate and a schedule for each row."""
        tasks = self.steps.tasks
        own = self._own = [self._schedule(task.rate, self.steps.count(task)) for task in tasks]
        top = max(task.rate for task in tasks)
        common = self._schedule(top, len(self.steps))
        rates, scales = [own], [self._scale(self.bank.own, [task.rate for task in tasks])]
        if self.bank.common.numel():
            rates, scales = [*rates, [common]], [*scales, self._scale(self.bank.common, [top])]
        self._of_bank = RowAdamW(self.bank.parameters, rates, scales, self._settings)
        self.optimizer = self._of_bank  # accelerate wraps it.
        return self.optimizer

    def _schedule(self, rate: float, steps: int) -> Rate:
        args, warm_up = self.args, self._warm_up(steps)
        with catch_refusals():
            dummy = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
            kinds = cast(Any, args.lr_scheduler_kwargs)
            made = get_scheduler(args.lr_scheduler_type, dummy, warm_up, steps, kinds)
            factor = made.lr_lambdas[0]
        return lambda step: rate * factor(step)

    def _scale(self, slab: Tensor, tops: Sequence[float]) -> Tensor:
        """Return what the rates of the columns are of those of the rows, ``(rows or 1, values or 1)``."""
        if not self._rates:
            return torch.ones(1, 1, device=slab.device)
        scale = torch.ones(len(tops), slab.shape[1])
        for row, top in enumerate(tops):
            kind = self.bank.kind_of(row)
            places = columns(kind.own if slab is self.bank.own else kind.common)
            plan = self.handle[self.steps.tasks[row].name].plan
            for name, said in rates_of(plan, self._rates).items():
                if name in places:
                    factor = float(said[:-1]) if said[-1] in "xX" else float(said) / top
                    scale[row, places[name]] = factor
        return scale.to(slab.device)

    def create_scheduler(self, num_training_steps: int, optimizer: Any = None) -> Any:
        """Make a schedule that changes nothing: each row has its own in the optimizer."""
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
            parameter.grad = None  # Trainer asks the model, in which they are not.
        for tasks, losses in self._losses(model, inputs):
            losses.sum().backward()
            sums[0].index_add_(0, tasks, losses.detach())
        for one in inputs:
            self.state.num_input_tokens_seen += int(one.inputs["attention_mask"].sum())
        sums[0] = self._together(sums[0])
        for parameter in self.bank.parameters:
            found = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
            parameter.grad = self._together(found)
        sums[1, running] = 1
        self._sums += sums
        self._of_bank.stepping = [
            running if p is self.bank.own else [0] * bool(running) for p in self.bank.parameters
        ]
        return sums[0].sum() / max(len(running), 1)

    def _together(self, part: Tensor) -> Tensor:
        """Return the sum of what all processes have."""
        if self.args.world_size == 1:
            return part
        return cast(Tensor, self.accelerator.reduce(part, "sum"))

    def _losses(self, model: Any, passes: Sequence[Pass]) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield for each pass of this process the numbers of its rows' tasks, and what each row adds to
        its task's loss, ``(rows,)`` both."""
        device = self.args.device
        for one in passes[self.args.process_index :: self.args.world_size]:
            inputs = {name: tensor.to(device) for name, tensor in one.inputs.items()}
            names = [self.steps.tasks[task].name for task in one.tasks]
            with self.compute_loss_context_manager(), self.handle.rows(names):
                logits, learned = learned_logits(model, self.handle.model.forward, inputs)
            flat, labels = logits.float().flatten(0, 1), learned.flatten()
            losses = F.cross_entropy(flat, labels, ignore_index=IGNORED, reduction="none")
            tasks, counts = torch.tensor([one.tasks, one.learned]).to(device, non_blocking=True)
            yield tasks, losses.view(learned.shape).sum(1) / counts

    def log(self, logs: dict[str, Any], *arguments: Any) -> None:
        """Log, and note the loss of each task since the last time; rows that are no numbers stop."""
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
                self.steps.stopped.setdefault(row, (self.state.global_step, NO_NUMBER))

    @torch.no_grad()
    def evaluate(self, *_: Any, **__: Any) -> dict[str, float]:
        """Compute the held-out loss of each task: the mean over its tokens."""
        steps, model = self.steps, cast(Any, self.model).eval()
        tasks = [i for i, t in enumerate(steps.tasks) if t.held_out and i not in steps.stopped]
        totals = torch.zeros_like(self._sums[0])
        passes = steps.passes([(i, steps.tasks[i].held_out) for i in tasks])
        for numbers, losses in self._losses(model, passes):
            totals.index_add_(0, numbers, losses)
        model.train()
        means = self._together(totals).tolist()
        found = {steps.tasks[i].name: means[i] for i in tasks}
        self.held_out |= found
        mean = {"eval_loss": sum(found.values()) / max(len(found), 1)}
        self.log({**mean, "eval_losses": found})
        self.evaluated = self.state.global_step
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, mean)
        return mean

    def set_initial_training_values(self, *arguments: Any) -> tuple[Any, ...]:
        """Count epochs and steps: no epoch for a run that is through."""
        epochs, *others, steps = super().set_initial_training_values(*arguments)
        return (0 if self.done >= steps else epochs, *others, steps)

    # Checkpoints: the bank in the place of a model --------------------------------------------------------

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Write a checkpoint's bank, or the adapters."""
        if _internal_call:
            super().save_model(output_dir, _internal_call)
        else:
            self.write()

    def _save(self, output_dir: str | None = None, state_dict: Any = None) -> None:
        folder = Path(output_dir or str(self.args.output_dir))
        folder.mkdir(parents=True, exist_ok=True)
        values = {"own": self.bank.own.data, "common": self.bank.common.data}
        stopped = [*self.steps.stopped.items()]
        notes = {"tasks": self._tasks(), "stopped": stopped, "held_out": self.held_out}
        said = {name: json.dumps(value) for name, value in notes.items()}
        save_file(values, folder / BANK, said)

    def _tasks(self) -> list[list[str]]:
        """Return the name and the plan of each row of the bank."""
        return [[t.name, self.handle[t.name].plan.digest] for t in self.steps.tasks]

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        with safe_open(str(Path(resume_from_checkpoint, BANK)), framework="pt") as found:
            said = {name: json.loads(value) for name, value in found.metadata().items()}
            if said["tasks"] != self._tasks():
                reason = "the checkpoint has adapters of other tasks, or of other params"
                raise TrainError(codes.BAD_COMBINATION(reason=reason))
            self.bank.own.data.copy_(found.get_tensor("own"))
            self.bank.common.data.copy_(found.get_tensor("common"))
        self.steps.stopped.update(said["stopped"])
        self.held_out |= said["held_out"]


def _only(items: Sequence[list[Pass]]) -> list[Pass]:
    return items[0]


class ManyWatch(Watch):
    """Sees whether the run was asked to stop: losses that are no numbers stop their task alone."""

    def on_train_begin(self, args: Args, state: State, control: Control, **_: Any) -> None:
        cast(Any, self.trainer).bank.attach()  # accelerate has placed the model.

    def on_pre_optimizer_step(
        self, args: Args, state: State, control: Control, **more: Any
    ) -> None:
        asked = torch.tensor(int(self.asked()), device=args.device)
        self.stopping = bool(cast(Any, self.trainer)._together(asked))


class Halving(TrainerCallback):
    """Stops half of the tasks that are tried against each other, by held-out loss, again and again.

    (Successive halving, Jamieson and Talwalkar 2016, https://arxiv.org/abs/1502.07943.) The better half goes
    on after the first half of the steps, after a quarter before, and so on: one is left for the second half.
    """

    def __init__(self, trainer: ManyTrainer) -> None:
        self._trainer, self._steps = trainer, trainer.steps
        kept = [task.keeps for task in self._steps.tasks]
        rounds = math.ceil(math.log2(max(map(kept.count, kept))))
        self._when = {math.ceil(len(self._steps) / 2**i) for i in range(1, rounds + 1)}

    def on_step_end(self, args: Args, state: State, control: Control, **_: Any) -> None:
        control.should_evaluate |= state.global_step in self._when

    def on_evaluate(self, args: Args, state: State, control: Control, **_: Any) -> None:
        if (step := state.global_step) in self._when:
            self._when.remove(step)
            for one in dict.fromkeys(task.keeps for task in self._steps.tasks):
                ranked = self.ranked(one)
                for loser in ranked[math.ceil(len(ranked) / 2) :]:
                    self._steps.stopped[loser] = step, f"lost at step {step}"

    def ranked(self, keeps: str) -> list[int]:
        """Return the running tasks that are tried for an adapter, by held-out loss, the best first."""
        return [i for i in self._by_loss(keeps) if i not in self._steps.stopped]

    def best(self, keeps: str) -> int | None:
        """Return the task whose adapter is kept: one that ran to its end if there is one, else the best of
        those that lost, else one whose gradient was no number. None if no adapter has finite values."""
        stopped, bank = self._steps.stopped, self._trainer.bank
        rank = {None: 0, NO_NUMBER: 2}
        order = sorted(
            self._by_loss(keeps), key=lambda i: rank.get(stopped.get(i, (0, None))[1], 1)
        )
        common = bool(bank.common.isfinite().all())
        return next((i for i in order if common and bank.own[i].isfinite().all()), None)

    def _by_loss(self, keeps: str) -> list[int]:
        tasks, losses = self._steps.tasks, self._trainer.held_out
        found = (i for i, task in enumerate(tasks) if task.keeps == keeps)

        def loss(i: int) -> float:
            value = losses.get(tasks[i].name, math.inf)
            return math.inf if math.isnan(value) else value  # No order has a place for NaN.

        return sorted(found, key=loss)
