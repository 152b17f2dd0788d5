"""One vLLM engine in a process of its own, told on standard input what to do; `serving.py` starts several.

    python serving_vllm.py '{"mode": "compact", ...}'

Each line that it reads is a command in JSON, each line that it writes an answer in JSON.
"""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path
from typing import Any

PAGE = os.sysconf("SC_PAGE_SIZE")


def resident() -> float:
    """MiB of this process."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * PAGE / 2**20


class Engine:
    """vLLM with adapters of one kind.

    Attributes:
        settings: ``mode`` is ``base``, ``plain`` (LoRA in PEFT's folders, without bishare's plug-in) or
            ``compact``; ``folders`` are the adapters', of which some may be the same; ``slots``, ``seats``
            (requests at a time) and ``model`` are vLLM's.
    """

    def __init__(self, settings: dict[str, Any]):
        from vllm import LLM

        self.folders, self.seats = settings["folders"], settings["seats"]
        lora = {
            "max_loras": settings["slots"],
            "max_cpu_loras": settings["slots"],
            "max_lora_rank": 8,
            "lora_target_modules": ["qkv_proj", "gate_up_proj", "down_proj"],
            "enable_lora": True,
        }
        plan = {"bishare_plan": self.folders[0]} if settings["mode"] == "compact" else {}
        self.llm = LLM(
            settings["model"],
            dtype="float32",
            enforce_eager=True,
            max_model_len=128,
            max_num_seqs=self.seats,
            enable_prefix_caching=False,
            additional_config=plan,
            **({} if settings["mode"] == "base" else lora),
        )

    def generate(self, adapters: list[int], tokens: int) -> dict[str, Any]:
        """Answer as many requests as there are seats, request i with the adapter ``adapters[i]``."""
        from vllm import SamplingParams
        from vllm.lora.request import LoRARequest

        requests = [LoRARequest(f"adapter-{i}", i + 1, self.folders[i]) for i in adapters] or None
        count = len(adapters) or self.seats
        started, used = time.perf_counter(), time.process_time()
        self.llm.generate(
            ["The capital of France is"] * count,
            SamplingParams(temperature=0, max_tokens=tokens, ignore_eos=True),
            lora_request=requests,
            use_tqdm=False,
        )
        return {
            "seconds": time.perf_counter() - started,
            "processor seconds": time.process_time() - used,
            "resident, MiB": resident(),
        }

    def bytes_each(self) -> dict[str, float]:
        """Bytes an adapter in the slots, and in the host's cache, counted from the tensors."""
        worker = self.llm.llm_engine.engine_core.engine_core.model_executor.driver_worker.worker
        manager = worker.model_runner.lora_manager._adapter_manager
        loras = manager.list_adapters().values()
        if bank := getattr(manager, "bank", None):
            slots = bank.nbytes_each
            host = [lora.packed.nbytes for lora in loras if lora.packed is not None]
        else:
            slots = sum(
                stack[:1].nbytes
                for layer in manager.modules.values()
                for stack in (*layer.lora_a_stacked, *layer.lora_b_stacked)
            )
            host = [t.nbytes for lora in loras for t in tensors_of(lora)]
        return {"slots": slots, "host": sum(host) / len(loras)}


def tensors_of(lora: Any) -> list[Any]:
    """The tensors of an adapter in vLLM's cache; a fused layer has lists of them."""
    found: list[Any] = []
    for weights in lora.loras.values():
        for factor in (weights.lora_a, weights.lora_b):
            found += [
                t for t in (factor if isinstance(factor, list) else [factor]) if t is not None
            ]
    return found


def main() -> None:
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # What vLLM prints is not an answer.
    engine = Engine(json.loads(sys.argv[1]))
    answers.write(json.dumps({"resident, MiB": resident()}) + "\n")
    for line in sys.stdin:
        name, *arguments = json.loads(line)
        answers.write(json.dumps(getattr(engine, name)(*arguments)) + "\n")


if __name__ == "__main__":
    main()
