"""transformers' Trainer, for adapters: what it saves, how it resumes, when it stops."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
from transformers import Trainer
from transformers.trainer_callback import ExportableState

from bishare_dsl.adapter.files import read_adapter
from bishare_dsl.adapter.handle import Handle
from bishare_dsl.models.hooks import gathered, is_offloaded, is_spread, spread_like
from bishare_dsl.train import checkpoint as checkpoints
from bishare_dsl.train.arguments import refusals
from bishare_dsl.train.errors import refusal_told
from bishare_dsl.train.guard import Guard, check_step
from bishare_dsl.train.loss import only_learnt
from bishare_dsl.train.optimizer import check_options, load_optimizer, optimizer_state
from bishare_dsl.train.record import division
from bishare_dsl.train.state import generators, kept_generators, set_generators
from bishare_dsl.writing import new_folder

if TYPE_CHECKING:
    from torch import nn


class AdapterTrainer(Trainer):
    """Trains the adapter of a model; the loop is transformers'.

    Args:
        run: what run this is, for its checkpoints.
        kept: whether the model takes `only_learnt` batches.
        resumed: the checkpoint that `train` will go on from.
        **arguments: as for the Trainer.

    Attributes:
        asked: whether the user wants the run to stop.
        stopping: whether all processes know that the run is to stop after this step.
        guard: holds the adapter as it was when its loss was last a number.
    """

    def __init__(
        self,
        *,
        run: Mapping[str, Any],
        kept: bool = False,
        resumed: checkpoints.Checkpoint | None = None,
        **arguments: Any,
    ) -> None:
        self.asked: Callable[[], bool] = lambda: False
        self.stopping = False
        self.guard = Guard()
        self._run, self._kept, self._resumed = run, kept, resumed
        self._clock, self._tokens = _Clock(), 0
        with _with_adapter(arguments["model"]):
            super().__init__(**arguments)
        if _is_kept_elsewhere(arguments["model"]):
            self.accelerator.device_placement = False
        self._new_tokens = torch.zeros((), dtype=torch.int64, device=self.args.device)

    @property
    def adapter(self) -> Handle:
        """The adapter, as ``model.bishare``."""
        found = adapter_of(self.accelerator.unwrap_model(self.model, keep_torch_compile=False))
        assert found is not None
        return found

    @property
    def resumes_from(self) -> str | None:
        """What `train` takes as ``resume_from_checkpoint``."""
        return None if self._resumed is None else str(self._resumed.folder)

    @property
    def parameters(self) -> list[torch.Tensor]:
        """What the optimizer changes."""
        assert self.optimizer is not None
        return [p for group in self.optimizer.param_groups for p in group["params"]]

    @property
    def folder(self) -> Path:
        """Of the run."""
        assert self.args.output_dir is not None
        return Path(self.args.output_dir)

    # A step ---------------------------------------------------------------------------------------

    def training_step(self, model: nn.Module, inputs: dict[str, Any], *rest: Any) -> torch.Tensor:
        mask = inputs.get("attention_mask")
        self._new_tokens += inputs["input_ids"].numel() if mask is None else mask.sum()
        loss: torch.Tensor = super().training_step(model, inputs, *rest)
        self.guard.see(loss)
        return loss

    def compute_loss(
        self, model: nn.Module, inputs: dict[str, Any], *rest: Any, **more: Any
    ) -> Any:
        # The label smoother computes a loss of its own from all logits.
        if self._kept and self.label_smoother is None:
            inputs = only_learnt(inputs)
        return super().compute_loss(model, inputs, *rest, **more)

    def _get_grad_norm(self, model: nn.Module, grad_norm: Any = None) -> Any:
        """The one thing that is asked for in every step right before it is applied."""
        norm = super()._get_grad_norm(model, grad_norm)  # type: ignore[no-untyped-call]
        loss = self.guard.loss()
        bad, self.stopping = self._any_process(not math.isfinite(loss), self.asked())
        # A scaled gradient may be infinite; the scaler then leaves the step out, and scales less.
        scaled = self.accelerator.scaler is not None
        check_step(loss, bad, 0.0 if scaled else float(gathered(norm)))
        self.guard.keep(self.parameters, self.state.global_step)
        return norm

    def _any_process(self, *flags: bool) -> list[bool]:
        """Which flags are set in any of the processes, so that all do the same."""
        if self.args.world_size == 1:
            return list(flags)
        together = torch.tensor(flags, dtype=torch.int32, device=self.args.device)
        return [bool(flag) for flag in self.accelerator.reduce(together, "sum")]

    # What is said ---------------------------------------------------------------------------------

    def log(self, logs: dict[str, float], *rest: Any) -> None:
        if "loss" in logs:
            logs["tokens"] = self.tokens()
            logs["tokens_per_second"] = self._clock.rate(self._tokens)
        if "train_loss" in logs:  # Of the whole run, interrupted or not.
            logs["train_loss"] = self._total_loss_scalar / max(1, self.state.global_step)
        super().log(logs, *rest)

    def tokens(self) -> int:
        """Tokens that were trained on so far, in all processes; every process has to call this."""
        self._tokens += int(self.accelerator.reduce(self._new_tokens, "sum"))
        self._new_tokens.zero_()
        return self._tokens

    def tokens_per_second(self) -> float:
        """Since training began or was resumed, until something was last logged."""
        return self._clock.mean()

    def evaluate(self, *args: Any, **keywords: Any) -> dict[str, float]:
        # Whatever it draws, training draws the same as if nothing had been evaluated.
        with self._clock.stopped(), kept_generators(self.args.device):
            return super().evaluate(*args, **keywords)

    # Saving ---------------------------------------------------------------------------------------

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        adapter = self.adapter
        sharded = any(map(is_spread, adapter.tensors().values()))
        if sharded or self.args.should_save:
            adapter.save_pretrained(output_dir or self.folder)

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        folder = self.folder / checkpoints.name_of(self.state.global_step)
        self.store_flos()
        with self._clock.stopped():
            state = None if self.args.save_only_model else self._full_state()
            self._note_best(folder)
            writes = self.args.should_save
            with refusal_told(folder), new_folder(folder) if writes else nullcontext(folder) as new:
                self.save_model(str(new))
                if writes:
                    self._note_callbacks()
                    self.state.save_to_json(str(new / checkpoints.TRAINER))
                    checkpoints.write_state(new, state, self.state.global_step, self._run)
            self.accelerator.wait_for_everyone()
            if writes:
                best = self.state.best_model_checkpoint
                keep = self.args.save_total_limit
                checkpoints.rotate(self.folder, keep, None if best is None else Path(best))

    def _full_state(self) -> dict[str, Any]:
        """All that the next step depends on beside the adapter; every process has to call this."""
        from accelerate.utils import gather_object  # type: ignore[import-untyped]

        assert self.optimizer is not None
        assert self.lr_scheduler is not None
        scaler = self.accelerator.scaler
        own = {"generators": generators(self.args.device), "loss": float(self._tr_loss)}
        return {
            "optimizer": optimizer_state(self.optimizer, self.adapter.tensors()),
            "schedule": self.lr_scheduler.state_dict(),
            "scaler": None if scaler is None else scaler.state_dict(),
            "division": division(self.args),
            "processes": gather_object([own]),
            "losses": self._total_loss_scalar,
            "logged": self._globalstep_last_logged,
            "tokens": self.tokens(),
        }

    def _note_best(self, folder: Path) -> None:
        if self.state.best_global_step:
            best = folder.with_name(checkpoints.name_of(self.state.best_global_step))
            if best == folder or best.is_dir():
                self.state.best_model_checkpoint = str(best)

    def _note_callbacks(self) -> None:
        states = cast("dict[str, Any]", self.state.stateful_callbacks)
        for part in (*self.callback_handler.callbacks, self.control):
            if isinstance(part, ExportableState):
                states[type(part).__name__] = part.state()

    # Loading --------------------------------------------------------------------------------------

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        self._load_adapter(Path(resume_from_checkpoint))

    def _load_best_model(self) -> None:
        assert self.state.best_model_checkpoint is not None
        self._load_adapter(Path(self.state.best_model_checkpoint))

    @torch.no_grad()
    def _load_adapter(self, folder: Path) -> None:
        stored = read_adapter(folder)
        if stored.plan.digest != self.adapter.plan.digest:
            raise checkpoints.broken(folder, ValueError("its adapter has another plan"))
        values = stored.tensors()
        for name, tensor in self.adapter.tensors().items():
            tensor.copy_(spread_like(values[name], tensor))

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        if (state := self._stored(checkpoint)) is None:
            return
        assert self.optimizer is not None
        assert self.lr_scheduler is not None
        with self._as_saved():
            load_optimizer(self.optimizer, self.adapter.tensors(), state["optimizer"])
            check_options(state["schedule"], self.lr_scheduler.state_dict())
            self.lr_scheduler.load_state_dict(state["schedule"])

    def _load_scaler(self, checkpoint: str | None) -> None:
        scaler, state = self.accelerator.scaler, self._stored(checkpoint)
        if scaler is not None and state is not None and state["scaler"] is not None:
            with self._as_saved():
                scaler.load_state_dict(state["scaler"])

    def _load_rng_state(self, checkpoint: str | None) -> None:
        state = self._stored(checkpoint)
        # Of another number of processes none has this one's.
        if state is not None and len(state["processes"]) == self.args.world_size:
            own = state["processes"][self.args.process_index]
            with self._as_saved():
                set_generators(own["generators"], self.args.device)

    def set_initial_training_values(self, *arguments: Any) -> tuple[Any, ...]:
        """Epochs and steps: no epoch for a run that is through, of which the loop would do one more step."""
        epochs, *others, steps = super().set_initial_training_values(*arguments)
        through = self._resumed is not None and self._resumed.step >= steps
        return (0 if through else epochs, *others, steps)

    def begin(self) -> None:
        """Let what is counted and logged go on as well; once the loop has set it to nothing."""
        if self._resumed is not None and (state := self._resumed.state) is not None:
            losses = [process["loss"] for process in state["processes"]]
            same = len(losses) == self.args.world_size
            mean = sum(losses) / len(losses)
            self._tr_loss.fill_(losses[self.args.process_index] if same else mean)
            self._total_loss_scalar, self._globalstep_last_logged = state["losses"], state["logged"]
            self._tokens = state["tokens"]
            self._note_best(self._resumed.folder)
        self._clock.start(self._tokens)

    @contextmanager
    def _as_saved(self) -> Iterator[None]:
        """Take what an owner of a part of the state refuses for what it is: another state than was saved."""
        assert self._resumed is not None
        try:
            yield
        except (
            ValueError,
            LookupError,
            TypeError,
            AttributeError,
            OverflowError,
            RuntimeError,
        ) as error:
            raise checkpoints.broken(self._resumed.folder, error) from error

    def _stored(self, checkpoint: str | None) -> Mapping[str, Any] | None:
        if checkpoint is None:
            return None
        assert self._resumed is not None
        return self._resumed.state

    # Errors of transformers', in our form -----------------------------------------------------------

    def create_optimizer(self, *args: Any) -> Any:
        with refusals():
            return super().create_optimizer(*args)

    def create_scheduler(self, *args: Any, **keywords: Any) -> Any:
        with refusals():
            return super().create_scheduler(*args, **keywords)

    def _move_model_to_device(self, model: nn.Module, device: torch.device) -> None:
        if not _is_kept_elsewhere(model):
            super()._move_model_to_device(model, device)


class _Clock:
    """Tokens a second, without the time in which nothing is trained."""

    def __init__(self) -> None:
        self.start(0)

    def start(self, tokens: int) -> None:
        self._began = time.monotonic()
        self._first = self._last = (0.0, tokens)

    def rate(self, tokens: int) -> float:
        """Since it was last asked."""
        before, self._last = self._last, (time.monotonic() - self._began, tokens)
        return _speed(before, self._last)

    def mean(self) -> float:
        """From the start until it was last asked."""
        return _speed(self._first, self._last)

    @contextmanager
    def stopped(self) -> Iterator[None]:
        paused = time.monotonic()
        try:
            yield
        finally:
            self._began += time.monotonic() - paused


def _speed(before: tuple[float, int], now: tuple[float, int]) -> float:
    return (now[1] - before[1]) / max(now[0] - before[0], 1e-9)


@contextmanager
def _with_adapter(model: nn.Module) -> Iterator[None]:
    """Let the Trainer take a quantised base: it does so where it knows of adapters, and it knows PEFT's."""
    knows = "_hf_peft_config_loaded"
    if not getattr(model, "is_quantized", False) or getattr(model, knows, False):
        yield
        return
    vars(model)[knows] = True
    try:
        yield
    finally:
        del vars(model)[knows]


def _is_kept_elsewhere(model: nn.Module) -> bool:
    """Whether accelerate brings the weights of some modules to the device itself, whenever they run."""
    return any(is_offloaded(module) for module in model.modules())


def adapter_of(model: nn.Module) -> Handle | None:
    """The adapter of a model; None where it has none."""
    found = getattr(model, "bishare", None)
    return found if isinstance(found, Handle) else None
