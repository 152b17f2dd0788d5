"""Compute the answers of a server that applies an adapter correctly, or wrongly in a known way."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.nn.utils.rnn import pad_sequence

from bishare_dsl.models.inspect import linear_maps
from bishare_dsl.models.site import block_of
from bishare_dsl.models.weights import Weight, bias_of
from bishare_dsl.verify.answers import Asked
from bishare_dsl.verify.contents import Pair, kind_of, layers_of
from bishare_dsl.verify.server import Answer

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

Pairs = Mapping[str, Pair]
NONE, WHOLE, WITHOUT = "the base alone", "the whole adapter", "without "


LEAST_FLOOR = 5e-4
"""A bound for the difference between two programs in float32."""


LEAST_EFFECT = 4
"""The smallest effect that is judged, in units of the server's rounding."""


def tolerance(floor: float, effect: float) -> float:
    """Return the distance up to which answers are equal. A server rounds the update, too."""
    return 1.5 * floor * math.hypot(1, effect)


def hypotheses(pairs: Pairs) -> dict[str, Pairs]:
    """Return what an engine may make of an adapter, by a description."""
    updates: dict[str, Pairs] = {NONE: {}, WHOLE: pairs}

    ways: dict[str, Callable[[Pair], Pair]] = {
        "at half its scale": lambda p: replace(p, scale=p.scale / 2),
        "at twice its scale": lambda p: replace(p, scale=p.scale * 2),
        "without its scale alpha / r": lambda p: replace(p, scale=1.0) if p.scale != 1 else p,
        "without its magnitude": lambda p: replace(p, changes=None) if p.changes else p,
        "with A and B swapped where modules are square": Pair.swapped,
    }
    for words, change in ways.items():
        changed = {path: change(pair) for path, pair in pairs.items()}
        if any(changed[path] is not pair for path, pair in pairs.items()):
            updates[words] = changed
    for step, words in ((1, "shifted by one layer"), (-1, "shifted back by one layer")):
        blocks = [(block_of(path), pair) for path, pair in pairs.items()]
        moved = {f"{b[0]}.{int(b[1]) + step}.{b[2]}": pair for b, pair in blocks if b}
        updates[words] = {
            p: x for p, x in moved.items() if p in pairs and pairs[p].shape == x.shape
        }
    layers = layers_of(pairs)
    half = len(layers) // 2
    for words, chosen in (("first", layers[:half]), ("second", layers[half:])):
        of_half = {p: pair for p, pair in pairs.items() if {*layers_of([p])} & {*chosen}}
        updates[f"with the {words} half of its layers alone"] = of_half
    for kind in dict.fromkeys(map(kind_of, pairs)):
        others = {path: pair for path, pair in pairs.items() if kind_of(path) != kind}
        if others:
            updates[WITHOUT + kind] = others
    return updates


class Reference:
    """A float32 model that answers texts with any update added to its weights.

    Args:
        model: the base, with weights.
        tokenizer: the model's tokenizer.
        texts: the texts to answer.
    """

    def __init__(
        self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, texts: Sequence[str]
    ) -> None:
        self.model, self.tokenizer, self.texts = model, tokenizer, texts
        self.maps = linear_maps(model)
        ids = [tokenizer(text)["input_ids"] for text in texts]
        self._last = torch.tensor([len(text_ids) - 1 for text_ids in ids])
        # Padding on the right, which a causal model does not see.
        self._ids = pad_sequence([torch.tensor(text_ids) for text_ids in ids], batch_first=True)
        self._mask = torch.arange(self._ids.shape[1]) <= self._last[:, None]

    @cached_property
    def base(self) -> torch.Tensor:
        """The answers of the base."""
        return self.answer({})

    @torch.no_grad()
    def answer(self, pairs: Pairs) -> torch.Tensor:
        """Return the log-probabilities of the next token with an update, ``(texts, vocabulary)``."""
        with self._added(pairs):
            ids, mask = (tensor.to(self.model.device) for tensor in (self._ids, self._mask))
            logits = self.model(input_ids=ids, attention_mask=mask.long()).logits
        last: torch.Tensor = logits[torch.arange(len(logits)), self._last]
        return last.float().log_softmax(-1)

    def expect(self, pairs: Pairs) -> dict[str, torch.Tensor]:
        """Return the answers of each of the `hypotheses`."""
        updates = hypotheses(pairs).items()
        return {words: self.answer(some) if some else self.base for words, some in updates}

    def hear(self, asked: Asked) -> Located | None:
        """Find a server's tokens in the vocabulary; None if fewer than half are in it."""
        base, heard = self._locate(asked.base), self._locate(asked.adapter)
        if base is None or heard is None:
            return None
        return replace(heard, floor=max(base.distance(self.base), LEAST_FLOOR, asked.noise))

    @contextmanager
    def _added(self, pairs: Pairs) -> Iterator[None]:
        with ExitStack() as undo:
            for path, pair in pairs.items():
                weight = self.maps[path]
                if weight.expert is None:
                    hook = _adds(pair, weight)
                    undo.callback(weight.module.register_forward_hook(hook).remove)
                else:  # Several matrices share a parameter.
                    matrix = weight.matrix()
                    before = matrix.clone()
                    undo.callback(matrix.copy_, before)
                    matrix.addmm_(pair.up, pair.down, alpha=pair.scale)
                    if pair.changes is not None:
                        matrix.addcmul_(pair.changes(before, matrix).unsqueeze(1), matrix)
            yield

    @cached_property
    def _id_of(self) -> dict[str, int]:
        """The ids of texts that belong to a single token."""
        texts = self.tokenizer.batch_decode([[i] for i in range(len(self.tokenizer))])
        names = self.tokenizer.convert_ids_to_tokens(list(range(len(texts))))
        ids: dict[str, int] = {}
        for written in (names, texts):
            counts = Counter(written)
            ids |= {text: i for i, text in enumerate(written) if counts[text] == 1}
        return ids

    def _locate(self, answers: Sequence[Answer]) -> Located | None:
        found: list[tuple[int, int, float]] = []
        for row, answer in enumerate(answers):
            for token, value in answer.items():
                number = token if isinstance(token, int) else self._id_of.get(token)
                if number is not None and number < self.base.shape[1]:
                    found.append((row, number, value))
        if 2 * len(found) < sum(map(len, answers)):
            return None
        rows, ids, values = zip(*found, strict=True)
        return Located(torch.tensor(rows), torch.tensor(ids), torch.tensor(values))


@dataclass(frozen=True)
class Located:
    """A server's answers: the log-probability of each listed token, with its text and its id.

    ``floor`` is the server's rounding.
    """

    rows: torch.Tensor
    ids: torch.Tensor
    values: torch.Tensor
    floor: float = 0.0

    def distance(self, expected: torch.Tensor, other: torch.Tensor | None = None) -> float:
        """Return the rms difference at these tokens from the answers, or from another expectation."""
        at = self.values if other is None else other[self.rows, self.ids]
        return float((at - expected[self.rows, self.ids]).square().mean().sqrt())

    def is_near(self, whole: torch.Tensor, base: torch.Tensor) -> bool:
        """Return whether the answers are those of an adapter, as far as the rounding tells."""
        effect, off = self.distance(whole, base), self.distance(whole)
        return effect >= LEAST_EFFECT * self.floor and off <= tolerance(self.floor, effect)


def _adds(pair: Pair, weight: Weight) -> Callable[[nn.Module, Any, torch.Tensor], torch.Tensor]:
    """Return a hook that adds ``scale * up @ down`` to its module's weight, and scales the rows."""
    changes = None
    if pair.changes is not None:
        base = weight.values()
        changes = pair.changes(base, base.addmm(pair.up, pair.down, alpha=pair.scale))

    def hook(module: nn.Module, inputs: Any, output: torch.Tensor) -> torch.Tensor:
        (x,) = inputs
        lookup = weight.looks_up
        down = nn.functional.embedding(x, pair.down.t()) if lookup else x @ pair.down.t()
        total = output + pair.scale * (down @ pair.up.t())
        if changes is None:
            return total
        bias = bias_of(module, total)
        return total + changes * (total if bias is None else total - bias)

    return hook
