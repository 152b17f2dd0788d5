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

from bishare_dsl.models.inspect import linear_maps
from bishare_dsl.models.site import block_of
from bishare_dsl.models.weights import Weight, bias_of
from bishare_dsl.verify.answers import Answer
from bishare_dsl.verify.contents import Pair, kind_of, layers_of

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
    scales: list[tuple[str, Callable[[Pair], float]]] = [
        ("at half its scale", lambda pair: pair.scale / 2),
        ("at twice its scale", lambda pair: pair.scale * 2),
    ]
    if any(pair.scale != 1 for pair in pairs.values()):
        scales.append(("without its scale alpha / r", lambda pair: 1.0))
    for words, scale in scales:
        updates[words] = {path: replace(pair, scale=scale(pair)) for path, pair in pairs.items()}
    if any(pair.changes for pair in pairs.values()):
        updates["without its magnitude"] = {p: replace(x, changes=None) for p, x in pairs.items()}
    square = {path: pair for path, pair in pairs.items() if pair.shape[0] == pair.shape[1]}
    if square:
        swapped = {path: replace(p, down=p.up.t(), up=p.down.t()) for path, p in square.items()}
        updates["with A and B swapped where modules are square"] = {**pairs, **swapped}
    for step, words in ((1, "shifted by one layer"), (-1, "shifted back by one layer")):
        shifted = {}
        for path, pair in pairs.items():
            block = block_of(path)
            other = path if block is None else f"{block[0]}.{int(block[1]) + step}.{block[2]}"
            if other in pairs and pairs[other].shape == pair.shape:
                shifted[other] = pair
        updates[words] = shifted
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
        self.model, self.tokenizer, self.maps = model, tokenizer, linear_maps(model)
        ids = [tokenizer(text)["input_ids"] for text in texts]
        self._last = torch.tensor([len(text_ids) - 1 for text_ids in ids])
        longest = max(map(len, ids))
        # Padding on the right, which a causal model does not see.
        self._ids = torch.tensor(
            [text_ids + [text_ids[-1]] * (longest - len(text_ids)) for text_ids in ids]
        )
        self._mask = torch.arange(longest) <= self._last[:, None]

    @cached_property
    def base(self) -> torch.Tensor:
        """The answers of the base."""
        return self.answer({})

    @torch.no_grad()
    def answer(self, pairs: Pairs) -> torch.Tensor:
        """Return the log-probabilities of the next token with an update, ``(texts, vocabulary)``."""
        with self._added(pairs):
            logits = self.model(input_ids=self._ids, attention_mask=self._mask.long()).logits
        last: torch.Tensor = logits[torch.arange(len(logits)), self._last]
        return last.float().log_softmax(-1)

    def expect(self, pairs: Pairs) -> dict[str, torch.Tensor]:
        """Return the answers of each of the `hypotheses`."""
        updates = hypotheses(pairs).items()
        return {words: self.answer(some) if some else self.base for words, some in updates}

    def rounding(self, answers: Sequence[Answer]) -> float | None:
        """Return how far a server's base is from this one; None if it has another vocabulary."""
        heard = self.locate(answers)
        return None if heard is None else max(heard.distance(self.base), LEAST_FLOOR)

    def near(
        self, adapter: Sequence[Answer], base: Sequence[Answer], expected: torch.Tensor
    ) -> float | None:
        """Return how far a server's answers are from an expectation; None if they are not equal to it."""
        heard, floor = self.locate(adapter), self.rounding(base)
        if heard is None or floor is None:
            return None
        effect, off = heard.distance(expected, self.base), heard.distance(expected)
        return off if effect >= LEAST_EFFECT * floor and off <= tolerance(floor, effect) else None

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

    def locate(self, answers: Sequence[Answer]) -> Located | None:
        """Find a server's tokens in the vocabulary; None if fewer than half are in it."""
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
    """A server's answers: the log-probability of each listed token, with its text and its id."""

    rows: torch.Tensor
    ids: torch.Tensor
    values: torch.Tensor

    def distance(self, expected: torch.Tensor, other: torch.Tensor | None = None) -> float:
        """Return the rms difference at these tokens from the answers, or from another expectation."""
        at = self.values if other is None else other[self.rows, self.ids]
        return float((at - expected[self.rows, self.ids]).square().mean().sqrt())


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
