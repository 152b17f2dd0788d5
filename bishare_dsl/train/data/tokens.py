"""Texts to tokens, and from characters that are trained on to tokens that are."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace
from itertools import groupby, pairwise
from typing import TYPE_CHECKING

from bishare_dsl.diagnostics import DataError
from bishare_dsl.diagnostics.codes import data as codes
from bishare_dsl.train.data.turns import Rendered

if TYPE_CHECKING:
    from tokenizers import Encoding
    from transformers import PreTrainedTokenizerBase

Tokens = tuple[list[int], list[bool]]
"""The ids of a text, and which of them are trained on; the first never is, since nothing predicts it."""

_CHARACTERS = 64
"""Of a text that is longer than so many characters a token, only the beginning is tokenised."""
_MARGIN = 64
"""Tokens before the place where a text was cut that the whole text may not have."""


class Encoder:
    """Tokenises texts, many at a time, each as far as examples of ``max_length`` tokens can need it.

    Raises:
        DataError: the tokenizer does not tell the places of tokens (BS722); when called, it has no
            token to end a text with (BS721).
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, max_length: int):
        if not tokenizer.is_fast:
            raise DataError(codes.NO_OFFSETS(kind=type(tokenizer).__name__))
        self._tokenizer, self._enough = tokenizer, max_length + _MARGIN

    def __call__(self, texts: Iterable[Rendered]) -> Iterator[Tokens]:
        """Yield the tokens of each text, in order."""
        for by_template, group in groupby(texts, key=lambda text: text.by_template):
            together = list(group)
            begun = [_beginning(rendered, _CHARACTERS * self._enough) for rendered in together]
            encodings = self._encode([r.text for r in begun], special=not by_template)
            for whole, rendered, encoding in zip(together, begun, encodings, strict=True):
                if rendered is not whole and len(encoding.ids) < self._enough:
                    rendered = whole
                    [encoding] = self._encode([whole.text], special=not by_template)
                yield self._finished(rendered, *self._tokens(rendered, encoding))

    def _encode(self, texts: list[str], *, special: bool = False) -> list[Encoding]:
        encoded = self._tokenizer(
            texts, add_special_tokens=special, padding=False, truncation=False, verbose=False
        )
        encodings: list[Encoding] = encoded.encodings
        return encodings

    def _tokens(self, rendered: Rendered, encoding: Encoding) -> Tokens:
        # What the tokenizer adds before a text is kept; an end is put by `_finished`.
        first, stop = _inside(encoding)
        ids, offsets = encoding.ids[:stop], encoding.offsets
        trained = [False] * len(ids)
        clean, at = True, first
        for start, end in rendered.spans:
            for edge, inner in ((start, False), (end, True)):
                while at < stop and offsets[at][0] < edge:
                    trained[at] = inner
                    at += 1
                # Else a token has characters of both sides; it is trained on if one side is.
                reached = offsets[at - 1][1] if at > first else edge
                clean &= reached == edge
                if reached > edge:
                    trained[at - 1] = True
        return (ids, trained) if clean else self._apart(rendered, ids, trained, first)

    def _apart(
        self, rendered: Rendered, whole: list[int], trained: list[bool], first: int
    ) -> Tokens:
        """Tokenise what is trained on and what is not separately, as the model meets them when it generates.

        Where that gives another text (some tokenizers put a space before every text), what the text gives
        as a whole is kept.
        """
        edges = sorted({0, len(rendered.text), *(edge for span in rendered.spans for edge in span)})
        pieces = list(pairwise(edges))
        encodings = self._encode([rendered.text[start:end] for start, end in pieces])
        ids, mask = whole[:first], [False] * first
        for piece, part in zip(pieces, encodings, strict=True):
            ids += part.ids
            mask += [piece in rendered.spans] * len(part.ids)
        same = self._decode(ids) == self._decode(whole)
        return (ids, mask) if same else (whole, trained)

    def _decode(self, ids: list[int]) -> str:
        text: str = self._tokenizer.backend_tokenizer.decode(ids, skip_special_tokens=False)
        return text

    def _finished(self, rendered: Rendered, ids: list[int], trained: list[bool]) -> Tokens:
        """Put an end where there is none, and take away a second beginning or end."""
        bos, eos = self._tokenizer.bos_token_id, self._tokenizer.eos_token_id
        if len(ids) > 1 and ids[0] == ids[1] == bos:
            ids, trained = ids[1:], trained[1:]  # One from the tokenizer and one from the text.
        if not rendered.ended:
            if eos is None:
                raise DataError(codes.NO_END_TOKEN())
            while ids and ids[-1] == eos:
                ids, trained = ids[:-1], trained[:-1]
            ids, trained = [*ids, eos], [*trained, True]
        if trained:
            trained[0] = False
        return ids, trained


def _beginning(rendered: Rendered, length: int) -> Rendered:
    if len(rendered.text) <= length:
        return rendered
    spans = [(start, min(end, length)) for start, end in rendered.spans if start < length]
    return replace(rendered, text=rendered.text[:length], spans=spans)


def _inside(encoding: Encoding) -> tuple[int, int]:
    """Find the first token of the text itself and the one behind its last; others the tokenizer adds."""
    added = encoding.special_tokens_mask
    if 0 not in added:
        return len(added), len(added)
    return added.index(0), len(added) - added[::-1].index(0)
