"""Compute the answers of a server that applies an adapter correctly, or wrongly in a known way."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from bishare_dsl.models.inspect import linear_maps
from bishare_dsl.models.site import block_of
from bishare_dsl.verify.answers import Answer, rms
from bishare_dsl.verify.contents import Pair, kind_of, layers_of

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

Pairs = Mapping[str, Pair]
NONE, WHOLE, WITHOUT = "the base alone", "the whole adapter", "without "


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
    square = {path: pair for path, pair in pairs.items() if pair.shape[0] == pair.shape[1]}
    if square:
        swapped = {path: Pair(p.up.t(), p.down.t(), p.scale) for path, p in square.items()}
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

    @torch.no_grad()
    def answer(self, pairs: Pairs) -> torch.Tensor:
        """Return the log-probabilities of the next token with an update, ``(texts, vocabulary)``."""
        with self._added(pairs):
            logits = self.model(input_ids=self._ids, attention_mask=self._mask.long()).logits
        last: torch.Tensor = logits[torch.arange(len(logits)), self._last]
        return last.float().log_softmax(-1)

    @contextmanager
    def _added(self, pairs: Pairs) -> Iterator[None]:
        with ExitStack() as undo:
            for path, pair in pairs.items():
                weight = self.maps[path]
                if weight.expert is None:
                    hook = _adds(pair, embeds=weight.looks_up)
                    undo.callback(weight.module.register_forward_hook(hook).remove)
                else:  # Several matrices share a parameter.
                    matrix = weight.matrix()
                    undo.callback(matrix.copy_, matrix.clone())
                    matrix.addmm_(pair.up, pair.down, alpha=pair.scale)
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

    def number(self, token: int | str) -> int | None:
        """Return the id of a server's token, which may be an id or a text."""
        return token if isinstance(token, int) else self._id_of.get(token)

    def distance(self, answers: Sequence[Answer], expected: torch.Tensor) -> float:
        """Return the rms difference at the server's listed tokens; infinite if all are unknown."""
        differences = []
        for answer, row in zip(answers, expected, strict=True):
            for token, value in answer.items():
                number = self.number(token)
                if number is not None:
                    differences.append(value - float(row[number]))
        return rms(differences) if differences else math.inf


def _adds(pair: Pair, *, embeds: bool) -> Callable[[nn.Module, Any, torch.Tensor], torch.Tensor]:
    """Return a hook that adds ``scale * up @ down`` to its module's weight."""

    def hook(module: nn.Module, inputs: Any, output: torch.Tensor) -> torch.Tensor:
        (x,) = inputs
        down = nn.functional.embedding(x, pair.down.t()) if embeds else x @ pair.down.t()
        return output + pair.scale * (down @ pair.up.t())

    return hook
