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
from bishare_dsl.verify.judge import NONE, WHOLE, Expected, Row, judge
from bishare_dsl.verify.server import Bar, LogProb, Server, TokenId, ask

if TYPE_CHECKING:
    from bishare_dsl.verify.reference import Contents, Reference

MOST_BYTES = 6_000


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
        tokens = [(row, *one) for row, probe in enumerate(self.probes) for one in probe.tokens]
        ids: dict[int | str, int] = {}
        for _, i, *_ in tokens:
            ids.setdefault(i, len(ids))
        none, whole = np.full((2, len(self.probes), len(ids)), np.nan)
        for row, i, _, before, after in tokens:
            none[row, ids[i]], whole[row, ids[i]] = before, after
        ids |= {text: ids[i] for _, i, text, *_ in tokens}
        greedy = [probe.greedy or ("", "") for probe in self.probes]
        return Expected(ids, {NONE: none, WHOLE: whole}, greedy)


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
        AdapterError: the files do not fit; or they are not the adapter's whole effect (BS876).
    """
    raise_errors(AdapterError, contents.problems)
    if not contents.complete:
        raise AdapterError(NO_CARD(path=adapter, reason="the adapter is more than its terms"))
    decode: Any = reference.tokenizer.decode
    told: Any = {"adapter": adapter, "base": base, "fingerprint": fingerprint(reference.model)}
    told |= {"tokenizer": vocabulary_digest(reference.tokenizer.get_vocab()), "dtype": "float32"}
    answers = reference.base.clamp(max=0), reference.answer(contents.pairs).clamp(max=0)
    greedy = [*zip(reference.greedy({}), reference.greedy(contents.pairs), strict=True)]
    written = ""
    for count in range(10, 0, -1):  # Fewer where the texts of tokens are long.
        probes = []
        for text, both, *rows in zip(reference.texts, greedy, *answers, strict=True):
            ids = dict.fromkeys(i for row in rows for i in row.topk(count)[1].tolist())
            tokens = [(i, decode([i]), *(round(row[i].item(), 3) for row in rows)) for i in ids]
            probes.append(Probe(text=text, tokens=tokens, greedy=both))
        written = Card(**told, probes=probes).model_dump_json(exclude_none=True)
        if len(written.encode()) <= MOST_BYTES:
            break
    return written


def judge_cards(
    cards: Sequence[tuple[str, Card]], servers: Sequence[Server], base: str | None, bar: Bar
) -> list[Row]:
    """Judge each server by each card, with the server's name for its adapter."""
    rows = []
    for server in servers:
        for name, card in cards:
            asked = ask(server, [name], base, bar, [probe.text for probe in card.probes])[name]
            row = Row(name, server.url, f"a card of {card.adapter} on {card.base}")
            rows.append(judge(row, asked, card.expected()))
    return rows
