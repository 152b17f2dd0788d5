"""Run one vLLM engine with commands from standard input; `serving.py` starts several such processes.

    python serving_vllm.py '{"mode": "compact", ...}'

Each input line is a command in JSON, and each output line is an answer in JSON.
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
        plan = {"bishare_plans": [self.folders[0]]} if settings["mode"] == "compact" else {}
        self.llm = LLM(
            settings["model"],
            dtype="float32",
            enforce_eager=True,
            max_model_len=640,
            max_num_seqs=self.seats,
            enable_prefix_caching=False,
            additional_config=plan,
            **({} if settings["mode"] == "base" else lora),
        )

    def generate(
        self, adapters: list[int], tokens: int, length: int = 5, requests: int = 0
    ) -> dict[str, Any]:
        """Answer requests, as many as there are seats if no number is given.

        Args:
            adapters: of each request; none for the base.
            tokens: that each writes.
            length: tokens of each prompt.
            requests: how many there are without adapters.
        """
        from vllm import SamplingParams
        from vllm.lora.request import LoRARequest

        count = len(adapters) or requests or self.seats
        loras = [LoRARequest(f"adapter-{i}", i + 1, self.folders[i]) for i in adapters] or None
        prompts = [{"prompt_token_ids": [100 + i, *range(200, 199 + length)]} for i in range(count)]
        started, used = time.perf_counter(), time.process_time()
        self.llm.generate(
            prompts,
            SamplingParams(temperature=0, max_tokens=tokens, ignore_eos=True),
            lora_request=loras,
            use_tqdm=False,
        )
        return {
            "seconds": time.perf_counter() - started,
            "processor seconds": time.process_time() - used,
            "resident, MiB": resident(),
        }

    def write(self, number: int) -> dict[str, Any]:
        """Give a loaded adapter other tensors from memory, as a trainer does."""
        from bishare_dsl.folder.files import read_adapter
        from bishare_dsl.serve.vllm.memory import write_adapter

        tensors = read_adapter(self.folders[number]).tensors()
        started, used = time.perf_counter(), time.process_time()
        self.llm.collective_rpc(write_adapter, args=(1, tensors))
        self.llm.reset_prefix_cache()
        return {
            "seconds": time.perf_counter() - started,
            "processor seconds": time.process_time() - used,
            "bytes": sum(tensor.nbytes for tensor in tensors.values()),
        }

    def bytes_each(self) -> dict[str, float]:
        """Bytes an adapter in the slots, and in the host's cache, counted from the tensors."""
        worker = self.llm.llm_engine.engine_core.engine_core.model_executor.driver_worker.worker
        manager = worker.model_runner.lora_manager._adapter_manager
        loras = manager.list_adapters().values()
        if banks := getattr(manager, "banks", None):
            slots = banks[0].layout.numbers * banks[0].memory.itemsize
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
