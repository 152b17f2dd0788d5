"""Probe cards: what a server with an adapter answers, to judge it with neither weights nor torch.

A card compares differences, adapter minus base, so that the shift of a quantised base cancels.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from functools import partial
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import BaseModel, Field

from bishare_dsl.adapter.fingerprint import Fingerprint, fingerprint
from bishare_dsl.diagnostics import AdapterError, BishareError, one_line, raise_errors
from bishare_dsl.diagnostics.codes.verify import NO_CARD
from bishare_dsl.reading import parse_json, read_file
from bishare_dsl.verify import verdict as v
from bishare_dsl.verify.answers import Asked, Bar, ask, rms
from bishare_dsl.verify.server import LogProb, Server, TokenId

if TYPE_CHECKING:
    from bishare_dsl.verify.contents import Contents
    from bishare_dsl.verify.reference import Reference

MOST_BYTES = 6_000
_LEAST_FLOOR, _LEAST_TOKENS = 1e-3, 24


class Probe(BaseModel):
    """A text, and the likeliest next tokens: id, text, log-probability without and with the adapter."""

    text: str
    tokens: list[tuple[TokenId, str, LogProb, LogProb]]


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
    vocabulary = reference.tokenizer.get_vocab()
    digest = sha256(json.dumps(sorted(vocabulary.items())).encode()).hexdigest()
    told: Any = {
        "dtype": "float32",
        "tokenizer": digest,
        "fingerprint": fingerprint(reference.model),
    }
    answers = reference.base, reference.answer(contents.pairs)
    written = ""
    for count in range(10, 0, -1):  # Fewer where the texts of tokens are long.
        probes = []
        for text, *rows in zip(reference.texts, *answers, strict=True):
            ids = dict.fromkeys(i for row in rows for i in row.topk(count)[1].tolist())
            listed = [
                (i, decode([i]), *(round(min(float(x[i]), 0.0), 3) for x in rows)) for i in ids
            ]
            probes.append(Probe(text=text, tokens=listed))
        card = Card(adapter=adapter, base=base, **told, probes=probes)
        written = card.model_dump_json(exclude_none=True)
        if len(written.encode()) <= MOST_BYTES:
            break
    return written


def judge_cards(
    cards: Mapping[str, Card], servers: Sequence[Server], base: str | None, bar: Bar
) -> list[v.Row]:
    """Judge each server by each card; the keys are the server's names for the adapters."""
    rows = []
    for server in servers:
        for name, card in cards.items():
            asked = ask(server, [name], base, bar, [probe.text for probe in card.probes])[name]
            row = v.Row(name, server.url, v.Verdict(), f"a card of {card.adapter} on {card.base}")
            rows.append(row.answered(asked, partial(judge_card, card)))
    return rows


def judge_card(card: Card, asked: Asked) -> v.Verdict:
    """Judge a server's answers by a card."""
    columns = [
        (before, after, b.get(i, b.get(token)), m.get(i, m.get(token)))
        for probe, b, m in zip(card.probes, asked.base, asked.adapter, strict=True)
        for i, token, before, after in probe.tokens
    ]
    shifts = [b - before for before, _, b, _ in columns if b is not None]
    effect = rms([after - before for before, after, _, _ in columns])
    floor = max(rms(shifts), _LEAST_FLOOR, asked.noise)
    both = [(y - x, m - b) for x, y, b, m in columns if b is not None and m is not None]
    xx, yy = sum(x * x for x, _ in both), sum(y * y for _, y in both)
    xy = sum(x * y for x, y in both)
    slope, correlation = xy / (xx or 1), xy / (math.sqrt(xx * yy) or 1)
    moved = rms([y for _, y in both])
    from_adapter = rms([m - after for _, after, _, m in columns if m is not None])
    from_base = rms([m - before for before, _, _, m in columns if m is not None])
    numbers = {"noise": asked.noise, "floor": floor, "effect": effect, "moved": moved}
    numbers |= {"slope": slope, "correlation": correlation}
    verdict = v.Verdict(
        numbers=numbers, unseen=["each part of the adapter: a card proves the whole"]
    )
    few = len(both) < _LEAST_TOKENS
    words = f"{effect:.2g} expected, {moved:.2g} found, slope {slope:.2f}, correlation {correlation:.2f}"
    if asked.noise > v.MOST_NOISE:
        verdict.why = v.BUSY.format(noise=asked.noise)
    elif asked.noise == 0 and asked.adapter == asked.base:
        verdict.says(v.NOT_APPLIED, "it answers as the base, bit for bit")
    elif len(shifts) < _LEAST_TOKENS:
        verdict.why = "the server's base has other tokens, or is another model"
    elif not few and correlation >= 0.9 and 0.75 <= slope <= 1.33:
        verdict.says(v.APPLIED, words)
    elif effect < 4 * floor:
        verdict.why = f"its effect is near the server's rounding, {floor:.2g}: {words}"
    elif not few and correlation >= 0.97:
        verdict.says(v.AS_IF, f"at {slope:.2g} of its scale: {words}")
    elif few and from_adapter <= min(1.5 * floor * math.hypot(1, effect), from_base):
        verdict.says(v.APPLIED, f"{from_adapter:.2g} from the card")
    elif (from_base if few else moved) <= 1.5 * floor:
        verdict.says(v.NOT_APPLIED, f"the base, or something much weaker: {words}")
    else:
        verdict.says(v.OTHER_TENSORS, f"it answers as another adapter: {words}")
    return verdict
