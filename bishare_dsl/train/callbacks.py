"""Callbacks for transformers' and TRL's Trainers: check that all tensors train and that
rollouts use them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torch import nn
from transformers import TrainerCallback
from transformers import TrainerControl as Control
from transformers import TrainerState as State
from transformers import TrainingArguments as Args

from bishare_dsl.diagnostics import Problem, SourceMap
from bishare_dsl.diagnostics.codes import verify as codes
from bishare_dsl.models.hooks import own_part
from bishare_dsl.train.bank_trainer import BankModel
from bishare_dsl.train.errors import TrainError
from bishare_dsl.train.reporter import Reporter
from bishare_dsl.verify.answers import TEXTS, Answer
from bishare_dsl.verify.server import Server


class GradientCheck(TrainerCallback):
    """Reports trainable tensors that have no gradient (BS873).

    The first step is checked for missing gradients. After two steps at a learning rate above 0, gradients
    that are all zero are reported too; before, A's gradient is zero because B is. In a run of several
    tasks, each task is checked.

        trainer = SFTTrainer(model, ..., callbacks=[GradientCheck()])

    Args:
        stop: whether to raise an error instead of warning.
        report: receives the problem; by default, it becomes a warning.
    """

    def __init__(
        self,
        *,
        stop: bool = False,
        report: Callable[[Problem, SourceMap | None], None] | None = None,
    ) -> None:
        self._stop, self._report = stop, report or Reporter().report
        self._calls = self._updates = 0

    def on_pre_optimizer_step(
        self,
        args: Args,
        state: State,
        control: Control,
        model: nn.Module | None = None,
        **more: Any,
    ) -> None:
        """Check the gradients of the first step, and those after two updates."""
        first, zeros = self._calls == 0, self._updates == 2
        self._calls += 1
        groups = getattr(more.get("optimizer"), "param_groups", ())
        self._updates += any(group["lr"] for group in groups) and self._updates < 3
        sharded = getattr(args, "deepspeed_plugin", None)  # DeepSpeed keeps gradients elsewhere.
        if model is None or sharded or not (first or zeros):
            return
        if isinstance(model, BankModel):
            trainable: dict[str, Any] = {} if first else dict(model.gradients())
        else:
            trainable = {name: p.grad for name, p in model.named_parameters() if p.requires_grad}
        missing = [
            name
            for name, grad in trainable.items()
            if (grad is None if first else grad is not None and not own_part(grad).any())
        ]
        if missing:
            names = ", ".join(f"`{name}`" for name in missing[:8])
            names += f" and {len(missing) - 8} more" if missing[8:] else ""
            problem = codes.NO_GRADIENT(
                count=len(missing), total=len(trainable), step=state.global_step + 1, names=names
            )
            if self._stop:
                raise TrainError(problem)
            self._report(problem, None)


class SyncCheck(TrainerCallback):
    """Stops training if the engine that generates the rollouts answers like the base (BS874).

        SyncCheck("http://localhost:8000/v1", name="policy")
        SyncCheck(llm, lora_request=LoRARequest("policy", 1, folder))

    Args:
        engine: the URL of a server, or vLLM's ``LLM`` in this process.
        every: the number of steps between two checks.
        name: the server's name for the adapter.
        base: the server's name for the base; by default, the first listed model.
        lora_request: the adapter, for vLLM's ``LLM``.

    Raises:
        TrainError: the engine returns exactly the base's log-probabilities.
        VerifyError: the server does not answer (BS872).
    """

    def __init__(
        self,
        engine: Any,
        every: int = 10,
        *,
        name: str | None = None,
        base: str | None = None,
        lora_request: Any = None,
    ) -> None:
        self._every = every
        self._name = str(name or getattr(lora_request, "lora_name", ""))
        self._ask: Callable[[bool], list[Answer]]
        if isinstance(engine, str):
            server = Server(engine)
            self._ask = lambda adapted: server.ask(
                self._name if adapted else base or server.base([self._name]), TEXTS
            )
        else:
            self._ask = lambda adapted: _answers(engine, TEXTS, lora_request if adapted else None)

    def on_step_end(self, args: Args, state: State, control: Control, **_: Any) -> None:
        """Query the engine from the first process."""
        due = state.global_step % self._every == 0 and state.is_world_process_zero
        if due and self._ask(True) == self._ask(False):
            raise TrainError(codes.ENGINE_IS_BASE(step=state.global_step, name=self._name))


def _answers(llm: Any, texts: Sequence[str], lora_request: Any) -> list[Answer]:
    """Return vLLM's log-probabilities of the token after each text."""
    from vllm import SamplingParams

    sampling = SamplingParams(max_tokens=1, temperature=0, logprobs=20)
    outputs = llm.generate(list(texts), sampling, lora_request=lora_request, use_tqdm=False)
    return [
        {token: likely.logprob for token, likely in output.outputs[0].logprobs[0].items()}
        for output in outputs
    ]
