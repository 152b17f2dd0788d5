"""Train an adapter on preferences with TRL: DPO on pairs of answers, KTO on answers that are good or not.

    python examples/dpo.py --model ./my-checkpoint --data pairs.jsonl --output_dir out --learning_rate 1e-4
    python examples/dpo.py --model ./my-checkpoint --data more.jsonl --output_dir further --adapter out

A row has `prompt`, `chosen` and `rejected`, or else `prompt`, `completion` and `label`. All other flags are
those of TRL's `DPOConfig` or `KTOConfig`. The reference is the model as it begins, an adapter that was
trained before included.
"""

from __future__ import annotations

from collections.abc import Sequence

from datasets import load_dataset
from start import Start
from transformers import HfArgumentParser, Trainer
from trl import DPOConfig, DPOTrainer, KTOConfig, KTOTrainer


def main(arguments: Sequence[str] | None = None) -> Trainer:
    start, rest = HfArgumentParser(Start).parse_args_into_dataclasses(
        arguments, return_remaining_strings=True
    )
    rows = load_dataset("json", data_files=start.data, split="train")
    pairs = "chosen" in rows.column_names
    config, method = (DPOConfig, DPOTrainer) if pairs else (KTOConfig, KTOTrainer)
    parser = HfArgumentParser(config)
    parser.set_defaults(report_to="none")
    [settings] = parser.parse_args_into_dataclasses(rest)

    trainer = method(args=settings, train_dataset=rows, **start.load())
    trainer.train()
    trainer.save_model()
    return trainer


if __name__ == "__main__":
    main()
