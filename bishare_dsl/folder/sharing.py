"""How a folder lists a plan's tensors, as `docs/format.md` specifies: stacks in files, and ``sharing``.

A stack has the tensors of one share, role and shape. A model has hundreds of equal modules, so names of
single tensors would take more bytes than small adapters. A state dict in memory and folders of format 2 have
each tensor alone: a stack of one, without the first axis.

``sharing`` is the plan for readers without the spec. bishare writes it to every folder, and compares it with
the plan of the spec on loading.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict
from itertools import chain, islice
from math import prod
from typing import Any, NamedTuple

from pydantic import ValidationError

from bishare_dsl.folder.config import FORMAT, AdapterConfig, Entry, file_key, text_of
from bishare_dsl.folder.fingerprint import SignFingerprint
from bishare_dsl.initial.counter import distribution
from bishare_dsl.models.site import block_of
from bishare_dsl.plan import Plan, Tensor
from bishare_dsl.plan.bits import BITS, GROUP, SCALES, offset_of
from bishare_dsl.plan.names import attribute
from bishare_dsl.reading import parse_json
from bishare_dsl.transforms import load_transform

_FLOATS, _OF_SCALES = ("F64", "F32", "BF16", "F16"), ("F32", "BF16", "F16")

Wanted = Mapping[str, tuple[tuple[int, ...], tuple[str, ...]]]
"""The shapes and the types that tensors of a file may have, by the last component of their keys."""


class Stack(NamedTuple):
    """Tensors of one shape that are stored together.

    ``key`` is the last component of its key in the file. ``form`` is `BITS`' name of a quantised stack, whose
    numbers and scales are stored as ``key:form`` and ``key:scales``; None for a whole one.
    """

    key: str
    tensors: tuple[Tensor, ...]
    form: str | None
    alone: bool

    @property
    def parts(self) -> dict[str, str]:
        """The keys of its parts by label; a whole stack has one part, ``key``."""
        labels = (self.form, SCALES) if self.form else ()
        return {label: f"{self.key}:{label}" for label in labels} or {"key": self.key}

    def wanted(self) -> Wanted:
        """Return the shapes and types of its parts in the file."""
        shape = self.tensors[0].shape
        size = prod(shape)
        shapes = {
            "key": (shape, _FLOATS),
            "int8": (shape, ("I8",)),
            "int4": ((-(-size // 2),), ("U8",)),
            SCALES: ((-(-size // GROUP),), _OF_SCALES),
        }
        count = () if self.alone else (len(self.tensors),)
        return {k: ((*count, *shapes[p][0]), shapes[p][1]) for p, k in self.parts.items()}


def groups_of(plan: Plan, *, alone: bool = False) -> dict[str, list[Tensor]]:
    """Return the tensors that are stacked together, by the key of the stack, in the order of the plan."""
    if alone:
        return {attribute(tensor.name): [tensor] for tensor in plan.tensors}
    groups: dict[tuple[str, str, tuple[int, int]], list[Tensor]] = {}
    for tensor in plan.tensors:
        kind = tensor.share, tensor.name.rpartition(".")[2], tensor.shape
        groups.setdefault(kind, []).append(tensor)
    return {attribute(f"{s}.{role}.{n}x{m}"): ts for (s, role, (n, m)), ts in groups.items()}


def stacks_of(plan: Plan, entries: Mapping[str, Entry], *, alone: bool = False) -> Iterator[Stack]:
    """Return the stacks of a file, without tensors that the seed or the base gives."""
    for key, tensors in groups_of(plan, alone=alone).items():
        ways: dict[str, list[Tensor]] = {}
        for tensor in tensors:
            entry = entries.get(tensor.name)
            ways.setdefault("" if entry is None else entry.way, []).append(tensor)
        for way in ("", *BITS):
            if way in ways:
                yield Stack(key, tuple(ways[way]), way or None, alone)


def common_keys(plan: Plan, *, alone: bool = False) -> set[str]:
    """Return the keys of the stacks that the adapters of a library have in common."""
    groups = groups_of(plan, alone=alone).items()
    return {key for key, tensors in groups if tensors[0].name in plan.common}


def sharing_of(plan: Plan, config: AdapterConfig) -> str:
    """Return a plan as JSON text, with all defaults of the spec resolved."""
    place, entries = _entries(plan, config)
    terms: dict[str, int] = {}
    options: dict[tuple[str, int], dict[str, Any]] = {}
    modules = []
    for site in (site for site in plan.sites if plan.terms_of[site.path]):
        here = plan.terms_of[site.path]
        numbers = []
        for term in here:
            kind = (term.share, term.rank)  # With equal options.
            if kind not in options:
                transform = load_transform(term.transform, term.options)
                options[kind] = transform.model_dump(mode="json", by_alias=True)
            shape = {"transform": term.transform, "options": options[kind], "rank": term.rank}
            shape |= {"scale": term.scale, "roles": [*term.tensors]}
            numbers.append(terms.setdefault(text_of(shape), len(terms)))
        module: dict[str, Any] = {"shape": [site.d_out, site.d_in]}
        module |= {"rank": plan.rows(site.path)} if all(term.linear for term in here) else {}
        module |= {"tied": [*site.tied]} if site.tied else {}
        module |= {"expert": site.expert} if site.expert is not None else {}
        refs = [[place[name] for name in term.tensors.values()] for term in here]
        modules.append((site.path, (module, numbers), refs))
    full = []
    for trained in (t for t in plan.trained if t.tensor in place):
        fixed = {"shape": [*trained.shape]} | ({"tied": [*trained.tied]} if trained.tied else {})
        full.append((trained.parameter, fixed, [[place[trained.tensor]]]))
    stated: dict[str, Any] = {
        "format": FORMAT,
        "tensors": entries,
        "terms": [parse_json(text) for text in terms],
        "modules": [
            {"module": path, **where, **module}
            | {"terms": [[term, *here] for term, here in zip(numbers, refs, strict=True)]}
            for path, where, (module, numbers), refs in _runs(modules)
        ],
        "full": [
            {"parameter": path, **where, **here, "tensor": ref}
            for path, where, here, [[ref]] in _runs(full)
        ],
    }
    words = {"draw": "drawn", "expert": "experts"} | {w: w for w in ("base", "tied", *BITS)}
    parts = [*entries, *stated["modules"], *stated["full"]]
    needs = {word for key, word in words.items() if any(key in part for part in parts)}
    needs |= {term.transform for term in plan.terms}
    needs |= {
        word for word, has in (("full", full), ("library", config.adapters is not None)) if has
    }
    return text_of({**stated, "needs": sorted(needs)})


def _entries(plan: Plan, config: AdapterConfig) -> tuple[dict[str, int], list[dict[str, Any]]]:
    """Return the numbers of the tensors by name, and ``tensors``: an entry for each stack."""
    stacks = stacks_of(plan, config.entries)
    row_of = {t.name: (stack, row) for stack in stacks for row, t in enumerate(stack.tensors)}
    place, entries, last = dict[str, int](), list[dict[str, Any]](), None
    for tensor in (tensor for group in groups_of(plan).values() for tensor in group):
        stack, row = row_of.get(tensor.name, (None, 0))
        entry = config.entries.get(tensor.name)
        if stack is not None and stack is last:
            entries[-1]["count"] += 1
        elif stack is not None:
            keys = {label: file_key(key) for label, key in stack.parts.items()}
            entries.append(keys | {"count": 1})
            offset = offset_of(tensor) if stack.form else 0.0
            entries[-1] |= ({"row": row} if row else {}) | ({"offset": offset} if offset else {})
        elif entry is not None and entry.way == "seed":
            text = f"{config.seed}:{tensor.like or tensor.name}"
            given = {"dtype": entry.dtype, "sha256": entry.sha256}
            entries.append({"draw": distribution(tensor), "text": text, **given})
        elif entry is not None and entry.marks is not None:
            entries.append({"base": {tensor.init: tensor.amount}, **asdict(entry.marks)})
        else:
            continue  # An untrained parameter of the base.
        entries[-1]["shape"], last = [*tensor.shape], stack
        place[tensor.name] = len(place)
    return place, entries


def _runs(
    items: Iterable[tuple[str, Any, list[list[int]]]],
) -> Iterator[tuple[str, dict[str, Any], Any, list[list[Any]]]]:
    """Join items of consecutive blocks: they differ in equal steps of their tensors' numbers alone.

    An item is a path, what is fixed, and lists of numbers. Yields the path, with ``{}`` for the index of the
    block; ``blocks``, as first and count; what is fixed; and a number or ``[first, step]`` for each number.
    """
    groups: dict[str, list[tuple[int, str, Any, list[list[int]]]]] = {}
    for path, fixed, refs in items:
        parent, index, rest = block_of(path) or (path, "0", None)
        key = text_of([parent, rest, fixed])
        groups.setdefault(key, []).append((int(index), path, fixed, refs))
    for found in groups.values():
        # The block, then all numbers of its lists.
        rows = [[index, *chain(*refs)] for index, _, _, refs in found]
        while found:
            first, path, fixed, refs = found[0]
            steps = [b - a for a, b in zip(*rows[:2], strict=True)] if rows[1:] else []
            count = 1
            while rows[count:] and steps[0] == 1:
                if rows[count] != [a + count * by for a, by in zip(rows[0], steps, strict=True)]:
                    break
                count += 1
            found, rows = found[count:], rows[count:]
            if count == 1:
                yield path, {}, fixed, refs
                continue
            parent, _, rest = block_of(path) or ("", "", "")
            step = iter(steps[1:])
            here = [[[a, by] if (by := next(step)) else a for a in numbers] for numbers in refs]
            yield f"{parent}.{{}}.{rest}", {"blocks": [first, count]}, fixed, here


def entries_of_sharing(plan: Plan, stated: Any, *, alone: bool) -> dict[str, Entry]:
    """Return the entries that `sharing` states, for `AdapterConfig`.

    Args:
        plan: the adapter's; `sharing` lists the tensors in the order of its stacks.
        stated: `sharing`, which the caller compares with what the plan gives.
        alone: whether it is of format 2.

    Raises:
        ValueError: it has another form.
    """
    try:
        # A plan without a base has none of these values, and an adapter has all.
        untrained = [] if stated["full"] else [t.tensor for t in plan.trained]
        entries = {name: Entry(way="base") for name in untrained}
        tensors = (t for group in groups_of(plan, alone=alone).values() for t in group)
        names = iter([tensor.name for tensor in tensors if tensor.name not in entries])
        for entry in stated["tensors"]:
            for name in islice(names, entry.get("count", 1)):
                if (stored := _entry(entry)) is not None:
                    entries[name] = stored
        if (left := next(names, None)) is not None:
            raise ValueError(f"`sharing` lacks `{left}`")
    except (KeyError, TypeError, AttributeError, ValidationError) as error:
        raise ValueError(f"a field of `sharing` is missing or unknown: {error!r}") from error
    return entries


def _entry(stated: Mapping[str, Any]) -> Entry | None:
    """Return the entry of a tensor from that in `sharing`; None for a whole one."""
    if "draw" in stated:
        return Entry(way="seed", dtype=stated["dtype"], sha256=stated["sha256"])
    if "base" in stated:
        return Entry(way="base", marks=SignFingerprint(stated["signs"], stated["sums"]))
    form: Any = next((form for form in BITS if form in stated), None)
    return form and Entry(way=form)
