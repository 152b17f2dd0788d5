"""The adapters of several tasks on one model, which train together as rows of one bank."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any, cast

from torch import Tensor
from torch.nn import functional as F
from transformers import PreTrainedModel

from bishare_dsl.adapted.handle import Handle
from bishare_dsl.adapted.interrupts import uninterrupted
from bishare_dsl.batched.bank import Bank
from bishare_dsl.batched.batches import mixed_batch_problems
from bishare_dsl.compiler import ResolvedSpec, make_plan
from bishare_dsl.diagnostics import AdapterError, raise_errors
from bishare_dsl.folder.contents import StoredAdapter
from bishare_dsl.peft.method import install
from bishare_dsl.train.data.batches import IGNORED
from bishare_dsl.train.loss import are_likeliest, learned_logits
from bishare_dsl.train.optimizer import RowAdamW
from bishare_dsl.train.tasks import MicroBatch

Values = Mapping[str, Tensor]
Loss = Callable[[Tensor, Values], Tensor]
"""Maps log-probabilities ``(rows, positions)``, and values of the rows by name, to losses ``(rows,)``."""


def cross_entropy(logprobs: Tensor, values: Values) -> Tensor:
    """Return minus the weighted sum of the log-probabilities."""
    return -(logprobs * values["weights"]).sum(1)


@dataclass(frozen=True)
class Forward:
    """The result of a forward pass.

    Attributes:
        losses: of each row, ``(rows,)``.
        logprobs: the log-probabilities of the targets, ``(rows, positions)``; 0 where there is none.
        correct: whether all targets of a row are the likeliest, ``(rows,)``.
    """

    losses: Tensor
    logprobs: Tensor
    correct: Tensor


class TaskAdapters:
    """The adapters of several tasks on one model: rows of a bank, which has one optimizer.

    With an adapter of a library, each task trains its private tensors, and the shared ones stay as they are.
    With a spec that names `adapter` in a key, shared tensors train too: they collect the gradients of all
    tasks.

    Args:
        model: the base. It gets an adapter for each task.
        source: a plan, or an adapter of a library to which the tasks are added.

    Attributes:
        names: of the tasks, in the order of the bank's rows.
        shared: the names of tensors that are stored once for all tasks.
        fixed: those of them that do not train.
        optimizer: of the bank.

    Raises:
        BishareError: the plan supports no mixed batches (BS673, BS679).
    """

    optimizer: RowAdamW

    def __init__(self, model: PreTrainedModel, source: ResolvedSpec | StoredAdapter) -> None:
        self.model = model
        self.library: StoredAdapter | None = None
        if isinstance(source, StoredAdapter):
            self.library = source
            source = make_plan(source.spec_text, model, {})
        self._spec = source
        self.plan = source.plan
        raise_errors(AdapterError, list(mixed_batch_problems("of each task", self.plan)))
        self.shared = frozenset[str]()
        self.fixed = frozenset[str]()
        if self.library is not None:
            self.shared = self.fixed = self.plan.common
        elif self.plan.is_library:
            self.shared = self.plan.common
        self.names: list[str] = []
        self._bank: Bank | None = None
        self._open = ExitStack()
        # A bank that is open when Python exits would be closed too late, with a traceback.
        weakref.finalize(self, self._open.close)

    @property
    def handle(self) -> Handle:
        """The handle of the model, which saves, merges and switches adapters."""
        return cast("Handle", self.model.bishare)

    @uninterrupted()
    def add(self, name: str, seed: int = 0) -> tuple[str, ...]:
        """Add the adapter of a task, while no bank is open; return notes for the user.

        Frozen tensors, and the shared ones of a library, are the library's, or else the first task's.

        Args:
            name: of the adapter.
            seed: of the initial values of tensors that train.

        Raises:
            AdapterError: the name is invalid (BS638) or in use (BS641).
        """
        notes = install(self.model, self._spec, seed, name)
        self.names.append(name)
        source = self.library or self.handle[self.names[0]]
        values = source.tensors()
        copied = {tensor.name for tensor in self.plan.tensors if not tensor.trainable}
        tensors = self.handle[name].tensors()
        for tensor in copied | self.fixed:
            tensors[tensor].data.copy_(values[tensor])
        return notes

    @property
    def bank(self) -> Bank:
        """The tensors of all tasks, one row each; the first call opens it."""
        if self._bank is None:
            opened = self.handle.bank(self.names, self.shared, self.fixed)
            self._bank = self._open.enter_context(opened)
            self.optimizer = RowAdamW(self._bank.parameters)
        return self._bank

    def close(self) -> None:
        """End joint training: the adapters become ordinary ones. Gradients and moments are lost."""
        self._open.close()
        self._bank = None

    def run(self, batch: MicroBatch, loss: Loss = cross_entropy) -> Forward:
        """Run one forward pass of rows of any tasks."""
        model = cast(Any, self.model)
        inputs = _moved(batch.inputs, model.device)
        values = _moved(batch.values, model.device)
        with self.handle.rows(batch.names):
            logits, labels = learned_logits(model, model.forward, inputs)
        flat = logits.float().flatten(0, 1)
        negative = F.cross_entropy(flat, labels.flatten(), ignore_index=IGNORED, reduction="none")
        logprobs = -negative.view(labels.shape)
        return Forward(loss(logprobs, values), logprobs, are_likeliest(logits, labels))


def _moved(tensors: Values, device: Any) -> dict[str, Tensor]:
    return {name: tensor.to(device, non_blocking=True) for name, tensor in tensors.items()}
