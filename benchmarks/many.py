"""What training many adapters in one pass takes, beside one after another, and PEFT's LoRA one after another.

    python benchmarks/many.py CHECKPOINT [--spec bishare_ke] [--many 1,4,16] [--rows 4] [--processor]

A step is a forward, a backward, clipping and AdamW for ``rows`` rows of each task, of 16 to 64 tokens. Prints
seconds, the median of interleaved rounds: N together; N times one alone; N times PEFT's LoRA of rank 8 alone.
"""

from __future__ import annotations

import argparse
import random
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM

from bishare_dsl.compiler import install, make_plan
from bishare_dsl.train.data.batches import Collator
from bishare_dsl.train.loss import learned_logits
from bishare_dsl.train.many import Pass, Steps, Task
from bishare_dsl.train.optimizer import RowAdamW, Settings


def examples(tasks: int, rows: int, vocabulary: int) -> list[list[dict[str, list[int]]]]:
    """Draw rows of 16 to 64 tokens."""
    draw = random.Random(0)

    def row() -> dict[str, list[int]]:
        ids = [draw.randrange(5, vocabulary) for _ in range(draw.randint(16, 64))]
        return {"input_ids": ids, "labels": ids}

    return [[row() for _ in range(rows)] for _ in range(tasks)]


def loss(model: Any, forward: Any, one: Pass) -> torch.Tensor:
    """Return the sum of the tasks' mean losses."""
    logits, learned = learned_logits(model, forward, dict(one.inputs))
    each = torch.nn.functional.cross_entropy(
        logits.flatten(0, 1), learned.flatten(), ignore_index=-100, reduction="none"
    )
    return (each.view(learned.shape).sum(1) / torch.tensor(one.learned)).sum()


def alone(model: Any, forward: Any, parameters: list[Any], one: Pass) -> Callable[[], None]:
    """Return a step of one adapter as everybody has it."""
    optimizer = torch.optim.AdamW(parameters, lr=1e-4)

    def step() -> None:
        loss(model, forward, one).backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        optimizer.zero_grad()

    return step


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("checkpoint")
    parser.add_argument("--spec", default="bishare_ke")
    parser.add_argument("--many", default="1,4,16")
    parser.add_argument("--rows", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument(
        "--processor", action="store_true", help="measure one thread's time on the processor"
    )
    args = parser.parse_args()
    clock = time.process_time if args.processor else time.perf_counter
    if args.processor:
        torch.set_num_threads(1)
    many = [int(number) for number in args.many.split(",")]
    base: Any = AutoModelForCausalLM.from_pretrained(args.checkpoint, dtype=torch.float32)
    drawn = examples(max(many), args.rows, base.config.vocab_size)
    tasks = [Task(f"t{i}", f"t{i}", ()) for i in range(max(many))]  # type: ignore[arg-type]
    steps = Steps(tasks, Collator(0), args.rows, 1, None, 32)
    (first,) = steps.passes([(0, drawn[0])])
    lora = get_peft_model(
        AutoModelForCausalLM.from_pretrained(args.checkpoint, dtype=torch.float32),
        LoraConfig(r=8, target_modules="all-linear"),
    ).train()
    mine = [p for p in lora.parameters() if p.requires_grad]
    of_peft = alone(lora, lora.get_base_model().forward, mine, first)

    made = make_plan(args.spec, base)
    install(base, made, 0, "alone")
    handle = base.bishare
    for task in tasks:
        handle.add(
            task.name,
            made.plan,
            {n: t.detach().clone() for n, t in handle.tensors().items()},
            "",
            0,
        )
    base.train()
    ours = [p for p in handle.tensors().values() if p.requires_grad]
    of_ours = alone(base, base.forward, ours, first)

    for count in many:
        passes = steps.passes([(i, drawn[i]) for i in range(count)])
        times: dict[str, list[float]] = {"together": [], "ours": [], "PEFT's LoRA": []}
        with handle.bank([task.name for task in tasks[:count]]) as bank:
            rates = [[lambda step: 1e-4] * len(p) for p in bank.parameters]
            scales = [torch.ones(1, 1) for _ in bank.parameters]
            optimizer = RowAdamW(bank.parameters, rates, scales, Settings(max_norm=1.0))

            def together(passes: list[Pass] = passes, optimizer: Any = optimizer) -> None:
                for one in passes:
                    with handle.rows([tasks[task].name for task in one.tasks]):
                        loss(base, base.forward, one).backward()
                optimizer.step()
                optimizer.zero_grad()

            steps_of = {"together": together, "ours": of_ours, "PEFT's LoRA": of_peft}
            for number in range(args.rounds + 1):
                for name, step in steps_of.items():
                    began = clock()
                    step()
                    if number:  # The first compiles, and allocates.
                        times[name].append(clock() - began)
        median = {name: statistics.median(found) for name, found in times.items()}
        own, peft = count * median["ours"], count * median["PEFT's LoRA"]
        print(
            f"N={count}: together {median['together']:.3f} s; one after another {own:.3f} s, "
            f"ratio {median['together'] / own:.2f}; PEFT's LoRA {peft:.3f} s, "
            f"ratio {median['together'] / peft:.2f}",
            flush=True,
        )


if __name__ == "__main__":
    main()
