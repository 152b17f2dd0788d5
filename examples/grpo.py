"""Train an adapter by reinforcement with TRL's GRPO: what holds the right answer is rewarded.

    python examples/grpo.py --model ./my-checkpoint --data questions.jsonl --output_dir out --beta 0.04 \
        --learning_rate 1e-4 --num_generations 8 --max_completion_length 256

A row has `prompt` and `answer`. All other flags are those of TRL's `GRPOConfig`. Its `beta`, the weight of
the KL divergence from where training began, is 0 by default. With `--use_vllm True --vllm_mode server` and
`--vllm_server_base_url URL`, a vLLM server generates, and gets the adapter after each update, not merged
weights (docs/adapter-sync.md). `--adapter tiny_lora --params '{"count": 4}'` trains 600 numbers.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from datasets import load_dataset
from start import Start
from transformers import HfArgumentParser
from trl import GRPOConfig, GRPOTrainer


def holds_answer(completions: list[str], answer: list[str], **_: Any) -> list[float]:
    """Reward 1 for a completion in which the answer is, else 0."""
    return [float(right in text) for text, right in zip(completions, answer, strict=True)]


def main(arguments: Sequence[str] | None = None) -> GRPOTrainer:
    parser = HfArgumentParser((Start, GRPOConfig))
    parser.set_defaults(report_to="none")
    start, args = parser.parse_args_into_dataclasses(arguments)
    rows = load_dataset("json", data_files=start.data, split="train")
    kind = GRPOTrainer
    if args.use_vllm:
        from bishare_dsl.integrations.trl import adapter_sync

        kind = adapter_sync(GRPOTrainer)
    trainer = kind(reward_funcs=holds_answer, args=args, train_dataset=rows, **start.load())
    trainer.train()
    trainer.save_model()
    return trainer


if __name__ == "__main__":
    main()
