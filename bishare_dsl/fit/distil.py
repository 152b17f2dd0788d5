"""From near in weights to near in what the model makes of data: steps towards given hidden states.

What is compared is what the model's head reads, ``h (tokens, width)``: the loss of a batch is
``||h - h_given||^2 / ||h_base - h_given||^2``, 0 where the two adapters do the same and 1 for the base alone.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from bishare_dsl.compiler import Planned, install
from bishare_dsl.train.data.batches import Collator, Examples
from bishare_dsl.train.data.encoding import encode
from bishare_dsl.train.data.load import load_rows

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from bishare_dsl.adapter.contents import StoredAdapter

_JUDGED = 16
"""Batches of which the loss is measured before and behind."""


@dataclass(frozen=True)
class TeacherBatch:
    """A batch, and what the given adapter makes of it; ``scale`` is how far that is from the base's."""

    batch: Mapping[str, Any]
    wanted: Tensor
    scale: float


@dataclass(frozen=True)
class DistilResult:
    """The tensors behind the steps, and the mean loss over the first batches before and behind them.

    Where the steps have not brought the loss down, the tensors are those before.
    """

    tensors: dict[str, Tensor]
    before: float
    after: float

    def __str__(self) -> str:
        kept = "" if self.after < self.before else ": what was fitted is kept"
        return f"hidden states: relative distance {self.before:.4g} before, {self.after:.4g} behind{kept}"


def read_examples(
    data: str, tokenizer: PreTrainedTokenizerBase, max_length: int = 1024
) -> tuple[Examples, Collator]:
    """Read rows of data, and give them as examples with what makes batches of them.

    Raises:
        DataError: they cannot be read or encoded (BS7xx).
    """
    examples = encode(load_rows(data), tokenizer, max_length=max_length).examples
    return examples, Collator.of(tokenizer)


def distil(
    model: PreTrainedModel,
    given: StoredAdapter,
    made: Planned,
    tensors: Mapping[str, Tensor],
    examples: Examples,
    collator: Collator,
    *,
    steps: int,
    rate: float = 1e-4,
    batch: int = 8,
    seed: int = 0,
    watch: Callable[[int, float], None] = lambda step, loss: None,
) -> DistilResult:
    """Train an adapter to make of data what another one makes of it, by AdamW.

    Args:
        model: the base of both, without an adapter; it is left so.
        given: the adapter to come near to.
        made: the plan of the other one.
        tensors: what it begins with.
        examples: of the data.
        collator: makes batches of them.
        steps: how many there are; each has a batch of its own, and the data begins again at its end.
        rate: the learning rate, constant.
        batch: examples in a step.
        seed: shuffles.
        watch: is told of each step and its loss.

    Raises:
        BishareError: an adapter does not go into the model.
    """
    batches = [collator(part) for part in _batches(examples, steps, batch, seed)]
    plain = [_hidden(model, b) for b in batches]
    install(model, given)
    wanted = [_hidden(model, b) for b in batches]
    model.bishare.unload()  # type: ignore[operator, union-attr]
    lessons = [
        TeacherBatch(b, h, float((h - base).square().sum()) or 1.0)
        for b, h, base in zip(batches, wanted, plain, strict=True)
    ]
    install(model, made, seed)
    try:
        return _steps(model, tensors, lessons, rate, watch)
    finally:
        model.bishare.unload()  # type: ignore[operator, union-attr]


def _steps(
    model: PreTrainedModel,
    tensors: Mapping[str, Tensor],
    lessons: Sequence[TeacherBatch],
    rate: float,
    watch: Callable[[int, float], None],
) -> DistilResult:
    held: dict[str, Tensor] = model.bishare.tensors()  # type: ignore[operator, union-attr]
    with torch.no_grad():
        for name, tensor in held.items():
            tensor.copy_(tensors[name])
    judged = lessons[:_JUDGED]

    def judge() -> float:
        with torch.no_grad():
            return sum(float(_loss(model, lesson)) for lesson in judged) / len(judged)

    before = judge()
    optimizer = torch.optim.AdamW(
        [t for t in held.values() if t.requires_grad], lr=rate, weight_decay=0.0
    )
    for number, lesson in enumerate(lessons, 1):
        optimizer.zero_grad()
        loss = _loss(model, lesson)
        loss.backward()
        optimizer.step()
        watch(number, float(loss.detach()))
    after = judge()
    if not after < before:
        return DistilResult(dict(tensors), before, before)
    return DistilResult({n: t.detach().cpu().clone() for n, t in held.items()}, before, after)


def _loss(model: PreTrainedModel, lesson: TeacherBatch) -> Tensor:
    wanted = lesson.wanted
    return (_states(model, lesson.batch) - wanted).square().sum() / lesson.scale


@torch.no_grad()
def _hidden(model: PreTrainedModel, batch: Mapping[str, Any]) -> Tensor:
    return _states(model, batch)


def _states(model: PreTrainedModel, batch: Mapping[str, Any]) -> Tensor:
    """Return what the head reads of the tokens that are there, ``(tokens, width)``, float32."""
    mask = batch["attention_mask"].to(model.device)
    ids = batch["input_ids"].to(model.device)
    found = model.base_model(input_ids=ids, attention_mask=mask, use_cache=False)
    states: Tensor = found.last_hidden_state[mask.bool()].float()
    return states


def _batches(examples: Examples, steps: int, batch: int, seed: int) -> Iterator[Any]:
    order: list[int] = []
    shuffle = random.Random(seed)
    for _ in range(steps):
        while len(order) < batch:
            order += shuffle.sample(range(len(examples)), len(examples))
        yield [examples[i] for i in order[:batch]]
        del order[:batch]
