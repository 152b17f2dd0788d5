"""Training many adapters in one pass: by the same steps one after another, and by those of PEFT's LoRA.

    python benchmarks/many.py CHECKPOINT --many 16 --rows 1   # 5 minutes on two idle cores; the default
    python benchmarks/many.py --many 1,4,16 --rows 4          # SmolLM2-135M, half an hour
    python benchmarks/many.py --memory                        # counts bytes in place of seconds

A step is a forward, a backward, clipping and AdamW for some rows of each task, of 16 to 64 tokens. Subjects
run interleaved, every other round backwards; ratios are medians over rounds, with their quartiles. "again"
is the control, and "the base" is what adapters that cost nothing would take. ``--memory`` counts the bytes
that are kept for the backward of the largest pass, beside the base's, and the bank with its gradients and
moments.
"""

from __future__ import annotations

import argparse
import random
import time
import warnings
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from harness import interleave, write
from harness.model import smollm2_folder
from harness.stopping import quietly_interrupted
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, logging

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
    model: Any, forward: Any, parameters: list[Any], each: list[list[MicroBatch]]
) -> Callable[[], None]:
    """Return a step of each of some tasks, one after another, as everybody has it."""
    optimizer = torch.optim.AdamW(parameters, lr=1e-4)

    def step() -> None:
        for passes in each:
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


def bare(base: Any, handle: Any, one: MicroBatch) -> torch.Tensor:
    """Return the loss of a pass without adapters, with the gradient of its first layer's input."""
    embeds = base.get_input_embeddings()(one.inputs["input_ids"]).detach().requires_grad_()

    def forward(input_ids: Any = None, logits_to_keep: Any = 0, **others: Any) -> Any:
        return base(inputs_embeds=embeds, logits_to_keep=logits_to_keep, **others)

    with handle.rows([None] * len(one.names)):
        return loss(forward, forward, one)


TOGETHER, AFTER, PEFT = "one pass", "one after another", "PEFT's LoRA one after another"
BASE, BASES = "the base, one pass", "the base one after another"
ROWS = (
    ("{} adapters in one pass / one after another", TOGETHER, AFTER, 0.50),
    ("the same / PEFT's LoRA one after another", TOGETHER, PEFT, 0.60),
    ("control: one pass again / one pass", f"{TOGETHER} again", TOGETHER, None),
    ("control: one after another again / one after another", f"{AFTER} again", AFTER, None),
    ("bound: the base in one pass / one after another", BASE, BASES, None),
    ("bound: the base in one pass / adapters one after another", BASE, AFTER, None),
)
"""What is printed: the subjects of each ratio, and the goal."""


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("checkpoint", nargs="?", help="a folder (default: SmolLM2-135M)")
    parser.add_argument("--spec", default="bishare_ke")
    parser.add_argument("--many", default="16", help="numbers of adapters (default: 16)")
    parser.add_argument(
        "--rows", dest="each", type=int, default=1, help="of each adapter (default: 1)"
    )
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument(
        "--processor", action="store_true", help="measure one thread's time on the processor"
    )
    parser.add_argument("--memory", action="store_true", help="count bytes in place of seconds")
    args = parser.parse_args()
    warnings.simplefilter("ignore")
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    if args.processor:
        torch.set_num_threads(1)
    many = [int(number) for number in args.many.split(",")]
    base, lora = (
        AutoModelForCausalLM.from_pretrained(
            args.checkpoint or smollm2_folder(), dtype=torch.float32
        )
        for _ in range(2)
    )
    lora = get_peft_model(lora, LoraConfig(r=8, target_modules="all-linear"))
    tasks = Tasks(base, args.spec, max(many), args.each)
    clock = time.process_time if args.processor else time.perf_counter
    for count in many:
        if args.memory:
            tasks.memory(count)
        else:
            rows = tasks.table(lora, count, args.rounds, clock=clock)
            write(f"many-{count}", rows, **vars(args))


class Tasks:
    """Tasks with an adapter each, on one model.

    Args:
        base: gets the adapters.
        spec: of the adapters.
        most: the number of tasks.
        rows: of each.
    """

    def __init__(self, base: Any, spec: str, most: int, rows: int) -> None:
        self.base, self.device = base, base.device
        self.drawn = examples(most, rows, base.config.vocab_size)
        self.names = [f"t{i}" for i in range(most)]
        tasks: Any = [Task(name, ()) for name in self.names]
        self.steps = Steps(tasks, Collator(0), rows, 1, None, 32)
        made = make_plan(spec, base)
        install(base, made, 0, "alone")
        for name in self.names:
            copies = {n: t.detach().clone() for n, t in base.bishare.tensors().items()}
            compiled = base.bishare.code_for(made.plan)
            base.bishare.add(name, made.plan, compiled, copies, spec_text="", seed=0)
        base.train()

    def passes(self, *numbers: int) -> list[MicroBatch]:
        """Return the passes of a step of some tasks."""
        return [
            replace(
                one,
                inputs={name: t.to(self.device) for name, t in one.inputs.items()},
                values={name: t.to(self.device) for name, t in one.values.items()},
            )
            for one in self.steps.passes([(i, self.drawn[i]) for i in numbers])
        ]

    def table(self, lora: Any, count: int, rounds: int, **how: Any) -> list[dict[str, Any]]:
        """Return `ROWS` for the first tasks, beside PEFT's LoRA; ``how`` is for `interleave`."""
        together, each = self.passes(*range(count)), [self.passes(i) for i in range(count)]
        with self.base.bishare.bank(self.names[:count]) as bank:
            steps = subjects(self.base, lora.train(), bank, together, each)
            timed = interleave({n: lambda s=s: s for n, s in steps.items()}, rounds, **how)
        shapes = [tuple(one.inputs["input_ids"].shape) for one in together]
        return [
            {
                "what": what.format(count),
                "ratio": timed[of].ratio(timed[by]),
                "quartiles": timed[of].by(timed[by]).quartiles(),
                "goal": goal or "",
                "seconds": f"{timed[of].median:.2f} / {timed[by].median:.2f}",
                "passes": f"{shapes}" if of == TOGETHER else "",
            }
            for what, of, by, goal in ROWS
        ]

    def memory(self, count: int) -> None:
        """Print the bytes that the largest pass keeps, and that the base keeps for these rows."""
        base, handle = self.base, self.base.bishare
        one = max(self.passes(*range(count)), key=lambda one: one.inputs["input_ids"].numel())
        with handle.bank(self.names[:count]) as bank:
            there = [*base.parameters(), *base.buffers(), *bank.parameters]
            with handle.rows(one.names):
                mixed = kept(lambda: loss(base, base.forward, one), there)
            alone = kept(lambda: bare(base, handle, one), there)
            rows = 4 * sum(p.numel() * p.itemsize for p in bank.parameters)
        print(
            f"N={count}, a pass of {tuple(one.inputs['input_ids'].shape)}: {mixed:,} bytes kept, "
            f"{mixed / alone:.2f} of the base's {alone:,}; the bank with gradients and moments {rows:,}; "
            f"of base and bank {(mixed + rows) / (alone + rows):.2f}",
            flush=True,
        )


def subjects(
    base: Any, lora: Any, bank: Any, passes: list[MicroBatch], each: list[list[MicroBatch]]
) -> dict[str, Callable[[], None]]:
    """Return the steps that are timed, by name."""
    handle = base.bishare
    ours = [p for p in handle.tensors().values() if p.requires_grad]
    theirs = [p for p in lora.parameters() if p.requires_grad]
    optimizer = RowAdamW(bank.parameters, Settings(max_norm=1.0))
    optimizer.rates = [dict.fromkeys(range(len(p)), 1e-4) for p in bank.parameters]

    def together() -> None:
        for one in passes:
            with handle.rows(one.names):
                loss(base, base.forward, one).backward()
        optimizer.step()
        optimizer.zero_grad()

    def of_base(passes: list[MicroBatch]) -> Callable[[], None]:
        def step() -> None:
            for one in passes:
                bare(base, handle, one).backward()

        return step

    after = alone(base, base.forward, ours, each)
    return {
        TOGETHER: together,
        AFTER: after,
        PEFT: alone(lora, lora.get_base_model().forward, theirs, each),
        BASE: of_base(passes),
        BASES: of_base([one for passes in each for one in passes]),
        f"{TOGETHER} again": together,
        f"{AFTER} again": after,
    }


if __name__ == "__main__":
    with quietly_interrupted():
        main()
