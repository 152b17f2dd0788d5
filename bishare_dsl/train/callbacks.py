"""Callbacks for any Trainer of transformers or TRL: is each tensor trained, and what is trained served?"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from typing import Any

from torch import nn
from transformers import TrainerCallback
from transformers import TrainerControl as Control
from transformers import TrainerState as State
from transformers import TrainingArguments as Args

from bishare_dsl.diagnostics import BishareWarning, Problem, SourceMap, render
from bishare_dsl.diagnostics.codes import verify as codes
from bishare_dsl.models.hooks import own_part
from bishare_dsl.train.bank_trainer import BankModel
from bishare_dsl.train.errors import TrainError
from bishare_dsl.verify.answers import TEXTS, Answer
from bishare_dsl.verify.server import Server


def _warn(problem: Problem, where: SourceMap | None) -> None:
    warnings.warn(render(problem, where), BishareWarning, stacklevel=3)


class GradientCheck(TrainerCallback):
    """Names the trainable tensors that have no gradient (BS873).

    In the first step these are tensors whose gradient is missing. After two steps at a learning rate above 0
    they are those whose gradient is all zero: before that every A has one of zeros, since its B is zero. In
    a run of several tasks each of them is looked at, by its name.

        trainer = SFTTrainer(model, ..., callbacks=[GradientCheck()])

    Args:
        stop: raise an error instead of warning.
        report: takes the problem; by default it becomes a warning.
    """

    def __init__(
        self,
        *,
        stop: bool = False,
        report: Callable[[Problem, SourceMap | None], None] = _warn,
    ) -> None:
        self._stop, self._report, self._calls, self._updates = stop, report, 0, 0

    def on_pre_optimizer_step(
        self,
        args: Args,
        state: State,
        control: Control,
        model: nn.Module | None = None,
        **more: Any,
    ) -> None:
        """Look at the gradients of the first step, and at those of the first after two updates."""
        first, zeros = self._calls == 0, self._updates == 2
        self._calls += 1
        groups = getattr(more.get("optimizer"), "param_groups", ())
        self._updates += any(group["lr"] for group in groups) and self._updates < 3
        sharded = getattr(args, "deepspeed", None)  # It keeps gradients elsewhere.
        if model is None or sharded or not (first or zeros):
            return
        if isinstance(model, BankModel):
            trainable: dict[str, Any] = {} if first else dict(model.gradients())
        else:
            trainable = {name: p.grad for name, p in model.named_parameters() if p.requires_grad}
        found = [
            name
            for name, grad in trainable.items()
            if (grad is None if first else grad is not None and not own_part(grad).any())
        ]
        if found:
            names = ", ".join(f"`{name}`" for name in found[:8])
            names += f" and {len(found) - 8} more" if found[8:] else ""
            problem = codes.NO_GRADIENT(
                count=len(found), total=len(trainable), step=state.global_step + 1, names=names
            )
            if self._stop:
                raise TrainError(problem)
            self._report(problem, None)


class SyncCheck(TrainerCallback):
    """Stops training when the engine that writes the rollouts answers as the base (BS874).

        SyncCheck("http://localhost:8000/v1", name="policy")
        SyncCheck(llm, lora_request=LoRARequest("policy", 1, folder))

    Args:
        engine: the URL of a server, or vLLM's ``LLM`` in this process.
        every: how many steps lie between two checks.
        name: what the adapter is called by the server.
        base: what the base is called there; by default the first model that is listed.
        lora_request: the adapter, for vLLM's ``LLM``.

    Raises:
        TrainError: after such a step, the engine gives the base's log-probabilities to the last bit.
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
                self._name if adapted else base or server.base(self._name), TEXTS
            )
        else:
            self._ask = lambda adapted: _answers(engine, TEXTS, lora_request if adapted else None)

    def on_step_end(self, args: Args, state: State, control: Control, **_: Any) -> None:
        """Ask the engine, in the first process."""
        due = state.global_step % self._every == 0 and state.is_world_process_zero
        if due and self._ask(True) == self._ask(False):
            raise TrainError(codes.ENGINE_IS_BASE(step=state.global_step, name=self._name))


def _answers(llm: Any, texts: Sequence[str], lora_request: Any) -> list[Answer]:
    """Return what vLLM's ``LLM`` holds likely after each text."""
    from vllm import SamplingParams

    asked = SamplingParams(max_tokens=1, temperature=0, logprobs=20)
    found = llm.generate(list(texts), asked, lora_request=lora_request, use_tqdm=False)
    return [
        {token: one.logprob for token, one in output.outputs[0].logprobs[0].items()}
        for output in found
    ]
