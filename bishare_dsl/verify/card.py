"""Probe cards: what a server with an adapter answers, to judge it with neither weights nor torch."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import numpy as np
from pydantic import BaseModel, Field

from bishare_dsl.diagnostics import AdapterError, BishareError, one_line, raise_errors
from bishare_dsl.diagnostics.codes.verify import NO_CARD
from bishare_dsl.folder.fingerprint import Fingerprint, fingerprint, vocabulary_digest
from bishare_dsl.reading import parse_json, read_file
from bishare_dsl.verify.judge import ADAPTER, BASE, Expected, Verdict, judge
from bishare_dsl.verify.server import Bar, LogProb, Server, TokenId, ask

if TYPE_CHECKING:
    from torch import Tensor

    from bishare_dsl.verify.reference import Contents, Reference

MOST_BYTES = 6_000
"""The size of a card."""

MOST_TOKENS = 10
"""The most tokens that a card lists as the likeliest of the base, or of base + adapter."""


class Probe(BaseModel):
    """A text, and the likeliest next tokens: id, text, log-probability without and with the adapter."""

    text: str
    tokens: list[tuple[TokenId, str, LogProb, LogProb]]
    greedy: tuple[str, str] | None = Field(
        None, description="the text of six greedy tokens, without and with the adapter"
    )


class Card(BaseModel):
    """A probe card."""

    format: Literal[1] = 1
    adapter: str = Field(description="the adapter's name")
    base: str = Field(description="the base's name")
    dtype: str = Field(description="the dtype of the reference that answered")
    quantisation: str | None = Field(None, description="how the reference's base is quantised")
    tokenizer: str = Field(
        description="SHA-256 of the vocabulary: JSON of its sorted tokens and ids"
    )
    fingerprint: Fingerprint | None = Field(
        None, description="numbers to know the base's weights by"
    )
    probes: Annotated[list[Probe], Field(min_length=1, max_length=64)]

    def expected(self) -> Expected:
        """Return what a server should answer."""
        columns: dict[int | str, int] = {}
        texts: dict[int | str, int] = {}
        for probe in self.probes:
            for token, text, *_ in probe.tokens:
                texts[text] = columns.setdefault(token, len(columns))
        shape = len(self.probes), len(columns)
        of_base = np.full(shape, np.nan)
        of_adapter = np.full(shape, np.nan)
        for row, probe in enumerate(self.probes):
            for token, _, before, after in probe.tokens:
                of_base[row, columns[token]] = before
                of_adapter[row, columns[token]] = after
        return Expected(
            columns=columns | texts,
            answers={BASE: of_base, ADAPTER: of_adapter},
            greedy=[probe.greedy or ("", "") for probe in self.probes],
            # Equally many of the likeliest tokens of base and adapter are listed, some of them in both.
            depths=[(len(probe.tokens) + 1) // 2 for probe in self.probes],
        )


def read_card(path: Path) -> Card:
    """Read a card.

    Raises:
        BishareError: it is no card (BS876).
    """
    try:
        return Card.model_validate(parse_json(read_file(path.parent, path.name, 2**17)))
    except (OSError, ValueError) as error:
        raise BishareError(NO_CARD(path=path, reason=one_line(error))) from None


def write_card(reference: Reference, contents: Contents, adapter: str, base: str) -> str:
    """Return the JSON of a card, at most `MOST_BYTES` long.

    Args:
        reference: the base in float32.
        contents: the adapter.
        adapter: its name.
        base: the base's name.

    Raises:
        AdapterError: the files do not fit; or they are not the adapter's whole effect, or the answers are
            not finite (BS876).
    """
    raise_errors(AdapterError, contents.problems)
    if not contents.complete:
        raise AdapterError(NO_CARD(path=adapter, reason="the adapter is more than its terms"))
    before = reference.base.clamp(max=0)
    after = reference.answer(contents.pairs).clamp(max=0)
    if before.isnan().any() or after.isnan().any():
        reason = "the answers of base + adapter are not finite"
        raise AdapterError(NO_CARD(path=adapter, reason=reason))
    greedy = list(zip(reference.greedy({}), reference.greedy(contents.pairs), strict=True))
    card = Card(
        adapter=adapter,
        base=base,
        dtype="float32",
        tokenizer=vocabulary_digest(reference.tokenizer.get_vocab()),
        fingerprint=fingerprint(reference.model),
        probes=_probes(reference, before, after, greedy, MOST_TOKENS),
    )
    text = card.model_dump_json(exclude_none=True)
    for count in range(MOST_TOKENS - 1, 0, -1):  # Fewer where the texts of tokens are long.
        if len(text.encode()) <= MOST_BYTES:
            break
        probes = _probes(reference, before, after, greedy, count)
        text = card.model_copy(update={"probes": probes}).model_dump_json(exclude_none=True)
    return text


def _probes(
    reference: Reference,
    before: Tensor,
    after: Tensor,
    greedy: Sequence[tuple[str, str]],
    count: int,
) -> list[Probe]:
    """List the likeliest ``count`` tokens of the base, and of base + adapter."""
    decode: Any = reference.tokenizer.decode
    probes = []
    for row, text in enumerate(reference.texts):
        likeliest = [*before[row].topk(count)[1].tolist(), *after[row].topk(count)[1].tolist()]
        tokens = []
        for token in dict.fromkeys(likeliest):
            of_base = round(before[row, token].item(), 3)
            of_adapter = round(after[row, token].item(), 3)
            tokens.append((token, decode([token]), of_base, of_adapter))
        probes.append(Probe(text=text, tokens=tokens, greedy=greedy[row]))
    return probes


def judge_cards(
    cards: Sequence[tuple[str, Card]], servers: Sequence[Server], base: str | None, bar: Bar
) -> list[Verdict]:
    """Judge each server by each card, with the server's name for its adapter."""
    verdicts = []
    for server in servers:
        for name, card in cards:
            texts = [probe.text for probe in card.probes]
            asked = ask(server, [name], base, bar, texts)[name]
            verdict = Verdict(name, server.url, f"a card of {card.adapter} on {card.base}")
            verdicts.append(judge(verdict, asked, card.expected()))
    return verdicts
