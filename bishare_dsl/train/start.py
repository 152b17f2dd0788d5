"""Start new adapters of a library from its members (`bishare_dsl.train.members` chooses)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from itertools import groupby, islice
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor

from bishare_dsl.adapter.files import names_in, read_adapter
from bishare_dsl.train.data.batches import ALLOWED, IGNORED, Example
from bishare_dsl.train.folder import LIBRARY
from bishare_dsl.train.members import RECORD, Record, choose, leave_out
from bishare_dsl.train.optimizer import RowAdamW, Settings
from bishare_dsl.train.prepare import Prepared
from bishare_dsl.train.reporter import Reporter
from bishare_dsl.train.tasks import MicroBatch, Task
from bishare_dsl.train.tenants import Tenants
from bishare_dsl.train.trunk import cached_trunk
from bishare_dsl.train.watch import schedule_of
from bishare_dsl.writing import replace_file

SLOTS, AT_ONCE = 16, 256
"""Adapters that are tried at once, and the largest number of rows in one forward."""


class Tried:
    """A `bishare_dsl.train.members.Trial` of a model: adapters whose private values change.

    Attributes:
        rows: the examples of each task of the run.
    """

    def __init__(self, prepared: Prepared, tenants: Tenants, library: Path) -> None:
        self._prepared, self._tenants, self._own = prepared, tenants, tenants.bank.own
        self.rows = [[*task.examples] for task in prepared.steps.tasks]
        self._zero, kept = self._own.detach()[0].clone(), tenants.bank.kind.own
        stored = (read_adapter(f"{library}#{name}").tensors() for name in names_in(library))
        rows = [torch.cat([tensors[part].flatten() for part in kept]) for tensors in stored]
        self.members = torch.stack(rows).to(self._own)

    @torch.no_grad()
    def judge(self, values: Tensor, pairs: Sequence[tuple[int, Example]]) -> tuple[Tensor, Tensor]:
        """Return the loss of each example, and whether it is answered."""
        losses, right = torch.zeros(len(pairs)), torch.zeros(len(pairs), dtype=torch.bool)
        names = self._tenants.names
        # A forward has as many candidates as there are adapters, and all rows with options or none.
        kinds = [(number // len(names), ALLOWED in row) for number, row in pairs]
        order = sorted(range(len(pairs)), key=lambda i: (*kinds[i], len(pairs[i][1]["input_ids"])))
        self._tenants.model.eval()
        for (chunk, _), alike in groupby(order, kinds.__getitem__):
            part = values[chunk * len(names) :][: len(names)]
            self._own[: len(part)] = part
            while some := [*islice(alike, AT_ONCE)]:
                inputs = self._prepared.steps.collator([pairs[i][1] for i in some])
                of = (names[pairs[i][0] % len(names)] for i in some)
                batch = MicroBatch(inputs, [*of], {"weights": torch.ones(len(some), 1)})
                loss, _, correct = self._tenants.run(batch)
                losses[some], right[some] = loss.float().cpu(), correct.cpu()
        return losses, right

    def trained(self, tasks: Sequence[Sequence[Example]]) -> Tensor:
        """Train private tensors from zero on the examples of each task, as the run would."""
        tenants, a, warm_up = self._tenants, self._prepared.args, self._prepared.warm_up
        few = [Task(n, cast(Any, r)) for n, r in zip(tenants.names, tasks, strict=False)]
        steps = replace(self._prepared.steps, tasks=few, processes=1)
        self._own.data[:] = self._zero
        betas = a.adam_beta1, a.adam_beta2
        how = Settings(betas, a.adam_epsilon, a.weight_decay, a.max_grad_norm)
        optimizer = RowAdamW([self._own], how)
        schedules: Any = [schedule_of(a, warm_up(n), n) for n in map(steps.count, few)]
        tenants.model.train()
        for step in range(len(steps)):
            self._own.grad = None
            for batch in steps[step]:
                tenants.run(batch)[0].sum().backward()
            optimizer.rates = [
                {i: a.learning_rate * schedules[i](step) for i in steps.running(step)}
            ]
            optimizer.step()
        return self._own.detach()[: len(few)].clone()


@contextmanager
def _trial(prepared: Prepared, model: Any, library: Path, reporter: Reporter) -> Iterator[Tried]:
    """Yield a trial of a library; nothing of it stays in the model."""
    tenants, mode = Tenants(model, str(library)), model.training
    often = replace(prepared.steps, most=None, epochs=2.0)  # All examples are read more than once.
    try:
        for number in range(SLOTS):
            tenants.add(f"start-{number}")
        with cached_trunk(model, tenants.plan, often, nullcontext, reporter):
            yield Tried(prepared, tenants, library)
    finally:
        tenants.close()
        for name in tenants.names:
            tenants.handle.delete_adapter(name)
        model.train(mode)


def start_tasks(prepared: Prepared, tenants: Tenants | None, reporter: Reporter) -> None:
    """Give new tasks of a library the values that `choose` finds; what ``auto`` takes trains no further."""
    settings, tasks = prepared.request.settings, cast("list[Task]", prepared.steps.tasks)
    if tenants is None or settings.library is None or settings.start == "zero":
        return
    library, trains = Path(settings.library), len(prepared.steps) > 0
    with _trial(prepared, tenants.model, library, reporter) as tried:
        found = choose(tried, tried.rows, settings.start, Record.of(library), trains=trains)
    for number, (values, text) in found.items():
        tenants.bank.own.data[number] = values
        most = 0 if settings.start == "auto" else None
        tasks[number] = replace(tasks[number], start=text, most=most)


def record_start(prepared: Prepared, tenants: Tenants | None, reporter: Reporter) -> None:
    """Leave members out of a new library, and write into it how later tasks should start."""
    settings, library = prepared.request.settings, prepared.request.output_dir / LIBRARY
    alone = prepared.args.world_size == 1 and settings.library is None and settings.start != "zero"
    if tenants is None or not tenants.shared or not alone:
        return
    with _trial(prepared, tenants.model, library, reporter) as tried:
        record = leave_out(tried, tried.rows, [[*map(_prompt, some)] for some in tried.rows])
    if record is not None:
        replace_file(library / RECORD, record.model_dump_json(indent=1).encode())


def _prompt(row: Example) -> tuple[int, ...]:
    return tuple(t for t, x in zip(row["input_ids"], row["labels"], strict=True) if x == IGNORED)
