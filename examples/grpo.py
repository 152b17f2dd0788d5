"""Train an adapter by reinforcement with TRL's GRPO: what holds the right answer is rewarded.

    python examples/grpo.py --model ./my-checkpoint --data questions.jsonl --output_dir out --beta 0.04 \
        --learning_rate 1e-4 --num_generations 8 --max_completion_length 256

A row has `prompt` and `answer`. All other flags are those of TRL's `GRPOConfig`. Its `beta`, the weight of
the KL divergence from where training began, is 0 by default, and then no reference is needed.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from datasets import load_dataset
from start import Start
from transformers import HfArgumentParser, PreTrainedModel
from trl import GRPOConfig, GRPOTrainer
from trl.trainer.utils import add_fused_lm_head


def holds_answer(completions: list[str], answer: list[str], **_: Any) -> list[float]:
    """Reward 1 for a completion in which the answer is, else 0."""
    return [float(right in text) for text, right in zip(completions, answer, strict=True)]


def grpo(model: PreTrainedModel, args: GRPOConfig, **settings: Any) -> GRPOTrainer:
    """Make a trainer whose reference is the model as it is now.

    `GRPOTrainer` takes no reference. With a `beta` it would load the plain base once more, which is another
    model than an adapter's that was trained before. So it is told its `beta` when it is made.
    """
    reference, beta = model.bishare.reference(), args.beta
    args.beta = 0.0
    trainer = GRPOTrainer(model, args=args, **settings)
    if beta:
        add_fused_lm_head(reference, trainer.temperature, args.cast_lm_head_to_fp32)
        prepared = trainer.accelerator.prepare_model(reference, evaluation_mode=True)
        args.beta = trainer.beta = beta
        trainer.ref_model = prepared
    return trainer


def main(arguments: Sequence[str] | None = None) -> GRPOTrainer:
    parser = HfArgumentParser((Start, GRPOConfig))
    # TRL's checkpoints hold the base as well.
    parser.set_defaults(save_strategy="no", report_to="none")
    start, args = parser.parse_args_into_dataclasses(arguments)
    model, tokenizer = start.load()
    trainer = grpo(
        model,
        args,
        reward_funcs=holds_answer,
        train_dataset=load_dataset("json", data_files=start.data, split="train"),
        processing_class=tokenizer,
    )
    trainer.train()
    model.bishare.save_pretrained(args.output_dir)
    return trainer


if __name__ == "__main__":
    main()
