"""Stop a run of reinforcement learning whose engine generates the rollouts without the adapter.

from sync_check import SyncCheck

trainer = GRPOTrainer(..., callbacks=[SyncCheck("http://localhost:8000/v1", name="policy")])
"""

from collections.abc import Callable, Sequence
from typing import Any

from transformers import TrainerCallback

from bishare_dsl.diagnostics.codes import verify as codes
from bishare_dsl.train import TrainError
from bishare_dsl.verify.answers import TEXTS, Answer
from bishare_dsl.verify.server import Server


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

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
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
