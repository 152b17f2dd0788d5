"""The cost of training many adapters in one pass, relative to one after another, and to PEFT's LoRA.

    python benchmarks/many.py CHECKPOINT [--spec bishare_ke] [--many 1,4,16] [--rows 4] [--processor]
    python benchmarks/many.py CHECKPOINT --memory

A step is a forward, a backward, clipping and AdamW for ``rows`` rows of each task, of 16 to 64 tokens. Prints
seconds, the median of interleaved rounds: N together, and one after another each with its own rows; these
twice, as a control. ``--memory`` counts the bytes that are kept for the backward of the largest pass, beside
the base's, and the bank with its gradients and moments.
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

from bishare_dsl.compiler import make_plan
from bishare_dsl.peft.method import install
from bishare_dsl.train.data.batches import Collator
from bishare_dsl.train.loss import learned_logits
from bishare_dsl.train.optimizer import RowAdamW, Settings
from bishare_dsl.train.tasks import MicroBatch, Steps, Task


def examples(tasks: int, rows: int, vocabulary: int) -> list[list[dict[str, list[int]]]]:
    """Draw rows of 16 to 64 tokens."""
    draw = random.Random(0)

    def row() -> dict[str, list[int]]:
        ids = [draw.randrange(5, vocabulary) for _ in range(draw.randint(16, 64))]
        return {"input_ids": ids, "labels": ids}

    return [[row() for _ in range(rows)] for _ in range(tasks)]


def loss(model: Any, forward: Any, one: MicroBatch) -> torch.Tensor:
    """Return the sum of the tasks' mean losses."""
    logits, learned = learned_logits(model, forward, dict(one.inputs))
    each = torch.nn.functional.cross_entropy(
        logits.flatten(0, 1), learned.flatten(), ignore_index=-100, reduction="none"
    )
    return (each.view(learned.shape).sum(1) * one.values["weights"].squeeze(1)).sum()


def alone(
    model: Any, forward: Any, parameters: list[Any], passes: list[MicroBatch]
) -> Callable[[], None]:
    """Return a step of each of some tasks, one after another, as everybody has it."""
    optimizer = torch.optim.AdamW(parameters, lr=1e-4)

    def step() -> None:
        for one in passes:
            loss(model, forward, one).backward()
            torch.nn.utils.clip_grad_norm_(parameters, 1.0)
            optimizer.step()
            optimizer.zero_grad()

    return step


def kept(run: Callable[[], torch.Tensor], beside: Any) -> int:
    """Count the bytes that are kept for a backward, without tensors that exist anyway."""
    found: dict[int, int] = {}
    known = {tensor.untyped_storage().data_ptr() for tensor in beside}

    def note(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in known:
            found[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        result = run()  # Kept, with its graph, so that no memory is used twice.
    return sum(found.values()) + 0 * result.dim()


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
    parser.add_argument("--memory", action="store_true", help="count bytes in place of seconds")
    args = parser.parse_args()
    clock = time.process_time if args.processor else time.perf_counter
    if args.processor:
        torch.set_num_threads(1)
    many = [int(number) for number in args.many.split(",")]
    base: Any = AutoModelForCausalLM.from_pretrained(args.checkpoint, dtype=torch.float32)
    drawn = examples(max(many), args.rows, base.config.vocab_size)
    tasks = [Task(f"t{i}", ()) for i in range(max(many))]  # type: ignore[arg-type]
    steps = Steps(tasks, Collator(0), args.rows, 1, None, 32)
    each = [steps.passes([(i, drawn[i])])[0] for i in range(max(many))]
    lora = get_peft_model(
        AutoModelForCausalLM.from_pretrained(args.checkpoint, dtype=torch.float32),
        LoraConfig(r=8, target_modules="all-linear"),
    ).train()
    mine = [p for p in lora.parameters() if p.requires_grad]

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

    for count in many:
        passes = steps.passes([(i, drawn[i]) for i in range(count)])
        times: dict[str, list[float]] = {}
        of_ours = alone(base, base.forward, ours, each[:count])
        with handle.bank([task.name for task in tasks[:count]]) as bank:
            optimizer = RowAdamW(bank.parameters, Settings(max_norm=1.0))
            optimizer.rates = [dict.fromkeys(range(len(p)), 1e-4) for p in bank.parameters]

            def together(passes: list[MicroBatch] = passes, optimizer: Any = optimizer) -> None:
                for one in passes:
                    with handle.rows(one.names):
                        loss(base, base.forward, one).backward()
                optimizer.step()
                optimizer.zero_grad()

            if args.memory:
                largest = max(passes, key=lambda one: one.inputs["input_ids"].numel())
                memory(base, handle, bank, largest, count)
                continue
            steps_of = {
                "together": together,
                "ours": of_ours,
                "PEFT's LoRA": alone(lora, lora.get_base_model().forward, mine, each[:count]),
                "together again": together,
                "ours again": of_ours,
            }
            for number in range(args.rounds + 1):
                for name, step in steps_of.items():
                    began = clock()
                    step()
                    if number:  # The first compiles, and allocates.
                        times.setdefault(name, []).append(clock() - began)
        if times:
            median = {name: statistics.median(found) for name, found in times.items()}
            together_s = median["together"]
            print(
                f"N={count}, passes {[tuple(one.inputs['input_ids'].shape) for one in passes]}: "
                + "; ".join(
                    f"{name} {found:.3f} s, {together_s / found:.2f}"
                    for name, found in median.items()
                ),
                flush=True,
            )


def memory(base: Any, handle: Any, bank: Any, one: MicroBatch, count: int) -> None:
    """Print the bytes that a pass of ``count`` adapters keeps, and that the base keeps for these rows."""
    there = [*base.parameters(), *base.buffers(), *bank.parameters]
    with handle.rows(one.names):
        mixed = kept(lambda: loss(base, base.forward, one), there)
    embeds = base.get_input_embeddings()(one.inputs["input_ids"]).detach().requires_grad_()

    def forward(input_ids: Any = None, logits_to_keep: Any = 0, **others: Any) -> Any:
        return base(inputs_embeds=embeds, logits_to_keep=logits_to_keep, **others)

    with handle.rows([None] * len(one.names)):
        bare = kept(lambda: loss(forward, forward, one), there)
    rows = 4 * sum(p.numel() * p.itemsize for p in bank.parameters)
    print(
        f"N={count}, a pass of {tuple(one.inputs['input_ids'].shape)}: {mixed:,} bytes kept, "
        f"{mixed / bare:.2f} of the base's {bare:,}; the bank with gradients and moments {rows:,}; "
        f"of base and bank {(mixed + rows) / (bare + rows):.2f}",
        flush=True,
    )


if __name__ == "__main__":
    main()
