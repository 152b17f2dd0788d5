"""Stop a run of reinforcement learning whose engine generates the rollouts without the adapter.

from sync_check import SyncCheck

trainer = GRPOTrainer(..., callbacks=[SyncCheck("http://localhost:8000/v1", name="policy")])
"""

import warnings
from typing import Any

import torch
from transformers import TrainerCallback

from bishare_dsl.diagnostics import BishareWarning, Problem, render
from bishare_dsl.diagnostics.codes import verify as codes
from bishare_dsl.models.hooks import is_sharded_tensor
from bishare_dsl.train import TrainError
from bishare_dsl.verify.reference import Reference
from bishare_dsl.verify.server import TEXTS, Answer, Server

MOVED, MOVED_IN_BFLOAT16 = 1e-3, 0.4
"""How far the trainer's answers must move until an engine whose answers stay equal is stale."""


class SyncCheck(TrainerCallback):
    """Stops training if the engine that generates the rollouts lacks the adapter (BS874, BS875).

        SyncCheck("http://localhost:8000/v1", name="policy")
        SyncCheck(llm, lora_request=LoRARequest("policy", 1, folder))

    An engine lacks it if it answers as the base, or bit for bit as two checks before although the trainer's
    own answers have moved. With no tokenizer, in mixed precision, and if the model is sharded, older adapters
    are not seen, which is a warning (BS878).

    Args:
        engine: the URL of a server, or vLLM's ``LLM`` in this process.
        every: the number of steps between two checks; the engine must get the adapter in between.
        name: the server's name for the adapter.
        base: the server's name for the base; by default, the first listed model.
        lora_request: the adapter, for vLLM's ``LLM``.

    Raises:
        TrainError: the engine answers as the base, or has an older adapter.
        ServerError: the server does not answer (BS872).
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
        self._engine = Server(engine) if isinstance(engine, str) else engine
        self._every, self._base, self._request = every, base, lora_request
        self._name = str(name or getattr(lora_request, "lora_name", ""))
        self._last: tuple[list[Answer], dict[str, torch.Tensor], torch.Tensor] | None = None
        self._late = self._warned = False

    def on_step_end(self, args: Any, state: Any, control: Any, **more: Any) -> None:
        """Query the engine from the first process."""
        if state.global_step % self._every or not state.is_world_process_zero:
            return
        tokenizer = None if args.bf16 or args.fp16 else more.get("processing_class")
        problem = self._find(state.global_step, more["model"], tokenizer)
        if problem is not None and problem.severity == "error":
            raise TrainError(problem)
        if problem is not None and not self._warned:
            self._warned = True
            warnings.warn(render(problem), BishareWarning, stacklevel=2)

    def _find(self, step: int, model: Any, tokenizer: Any) -> Problem | None:
        answers = self._ask(True)
        if answers == self._ask(False):
            return codes.ENGINE_IS_BASE(step=step, name=self._name)
        if tokenizer is None or any(map(is_sharded_tensor, model.parameters())):
            return codes.MAYBE_STALE(name=self._name)
        stale = self._is_stale(answers, model, tokenizer)
        return codes.ENGINE_IS_STALE(step=step, name=self._name) if stale else None

    def _ask(self, adapted: bool) -> list[Answer]:
        if isinstance(self._engine, Server):
            base = self._base or self._engine.base([self._name])
            return self._engine.ask(self._name if adapted else base, TEXTS, scored=True)
        from vllm import SamplingParams

        sampling = SamplingParams(max_tokens=1, temperature=0, logprobs=20)
        request = self._request if adapted else None
        outputs = self._engine.generate([*TEXTS], sampling, lora_request=request, use_tqdm=False)
        tops = [output.outputs[0].logprobs[0] for output in outputs]
        return [{token: likely.logprob for token, likely in top.items()} for top in tops]

    def _is_stale(self, answers: list[Answer], model: Any, tokenizer: Any) -> bool:
        """Return whether the engine has older tensors.

        It has if all of its answers are bit for bit the old ones although, already at the call before, the
        tensors had changed in bfloat16 and the trainer's own answers had moved. Equal answers alone prove
        nothing: small steps may change no bit.
        """
        trainable = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
        tensors = {name: p.detach().to("cpu", torch.bfloat16, copy=True) for name, p in trainable}
        training = model.training
        model.eval()
        now = Reference(model, tokenizer, TEXTS).base.cpu()
        model.train(training)
        if self._last is None or answers != self._last[0]:
            self._last, self._late = (answers, tensors, now), False
            return False
        _, old, then = self._last
        moved = (now - then).gather(1, then.topk(min(20, then.shape[1])).indices)
        exact = all(p.dtype == torch.float32 for p in model.parameters())
        least = MOVED if exact else MOVED_IN_BFLOAT16
        changed = any(not tensor.equal(old[name]) for name, tensor in tensors.items())
        before, self._late = self._late, changed and float(moved.square().mean().sqrt()) >= least
        return before and self._late
