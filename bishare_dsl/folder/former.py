"""Folders of 0.4 and 0.5: their field ``sharing`` lists which tensors a folder does not store."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import islice
from typing import Any

from pydantic import ValidationError

from bishare_dsl.folder.config import Entry
from bishare_dsl.folder.fingerprint import SignFingerprint
from bishare_dsl.folder.stacks import groups_of
from bishare_dsl.plan import Plan
from bishare_dsl.reading import parse_json


def entries_of_sharing(plan: Plan, sharing: str, *, alone: bool) -> dict[str, Entry]:
    """Return the entries that ``sharing`` states, for `AdapterConfig`.

    Only its list of tensors is read: the spec says everything else.

    Args:
        plan: the adapter's; ``sharing`` lists the tensors in the order of its stacks.
        sharing: as JSON text.
        alone: whether each tensor is stored alone.

    Raises:
        ValueError: it has another form, or lists other tensors.
    """
    try:
        return _entries(plan, parse_json(sharing), alone=alone)
    except (KeyError, TypeError, AttributeError, ValidationError) as error:
        raise ValueError(f"a field of `sharing` is missing or unknown: {error!r}") from error


def _entries(plan: Plan, stated: Any, *, alone: bool) -> dict[str, Entry]:
    entries: dict[str, Entry] = {}
    if not stated["full"]:  # A plan that was saved without a base has no values of these.
        entries = {trained.tensor: Entry(way="base") for trained in plan.trained}
    names = _names(plan, entries, alone=alone)
    for fields in stated["tensors"]:
        entry = _entry(fields)
        for name in islice(names, fields.get("count", 1)):
            if entry is not None:
                entries[name] = entry
    missing = next(names, None)
    if missing is not None:
        raise ValueError(f"`sharing` lacks `{missing}`")
    return entries


def _names(plan: Plan, omitted: Mapping[str, Entry], *, alone: bool) -> Iterator[str]:
    """Return the tensors that ``sharing`` lists, in its order."""
    untrained = {*omitted}
    for group in groups_of(plan, alone=alone).values():
        for tensor in group:
            if tensor.name not in untrained:
                yield tensor.name


def _entry(fields: Mapping[str, Any]) -> Entry | None:
    """Return the entry of a tensor; None for one that is stored."""
    if "draw" in fields:
        return Entry(way="seed", dtype=fields["dtype"], sha256=fields["sha256"])
    if "base" in fields:
        return Entry(way="base", marks=SignFingerprint(fields["signs"], fields["sums"]))
    return None
