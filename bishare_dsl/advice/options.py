"""Remedies for transforms, their options and their tensors."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import get_args

from pydantic_core import PydanticUndefined

from bishare_dsl.advice.question import Question, Remedy, listed
from bishare_dsl.diagnostics import near_names
from bishare_dsl.diagnostics.words import meaning_of
from bishare_dsl.plan.facts import BadGate, BadOption, UnknownOption, UnknownRole
from bishare_dsl.resources import shipped_specs
from bishare_dsl.spec import ATTRIBUTES
from bishare_dsl.transforms import (
    GAIN_OUT,
    GAIN_RANK,
    PLAIN,
    Transform,
    transform_kind,
    transform_names,
)
from bishare_dsl.transforms.registry import BUILT_IN


def unknown_transform(name: str, question: Question) -> Iterator[Remedy]:
    """Yield the transform that a name, a title or the name of a shipped spec may mean."""
    names = {*transform_names()} - {PLAIN}
    titles = {transform_kind(own).title.replace(" ", "_"): own for own in names & BUILT_IN.keys()}
    for title, own in titles.items():
        if near_names(name, [title]) or title.lower() == name.lower():
            yield question.instead(own)
    meaning = meaning_of("transform", name)
    if meaning is not None and meaning.instead is not None:
        yield question.instead(meaning.instead, meaning.help)
    elif meaning is not None:
        yield Remedy(meaning.help)
    for near in near_names(name, names)[:3]:
        yield question.instead(near)
    file = shipped_specs().get(name.lower())
    if file is not None:
        used = {*re.findall(r"\bvia (\w+)", file.read_text(encoding="utf-8"))}
        whole = f'it is a whole method, and a shipped spec: `use "{name.lower()}"` in place of the shares'
        yield Remedy(f"{whole}, whose transform is {listed(sorted(used))}" if used else whole)
    yield Remedy(f"there are {listed(sorted(names))}")


def unknown_option(fact: UnknownOption, question: Question) -> Iterator[Remedy]:
    """Yield the option that a name may mean, or the transforms that have it."""
    if question.where is not None:
        span = question.where.spans.get(question.loc)
        named = span is not None
    else:
        named = False
    for near in near_names(fact.option, fact.valid)[:3]:
        yield question.instead(near)
    others = [other for other in BUILT_IN if fact.option in transform_kind(other).model_fields]
    has = listed(sorted(fact.valid)) or "none"
    if others:
        of = f"`{fact.option}` is an option of {', '.join(others)}"
        yield Remedy(f"{of}; {fact.transform} has {has}")
    if len(fact.valid) == 1 and named:
        yield question.instead(fact.valid[0])
    yield Remedy(f"{fact.transform} has {has}; or leave it out")


def bad_option(fact: BadOption, question: Question) -> Iterator[Remedy]:
    """Yield the value that a word may mean, or a description of the option."""
    if fact.value in ATTRIBUTES:
        yield Remedy("an option has one value in a share: use another share for another value")
    kind = transform_kind(fact.transform)
    fields = {field.alias or name: field for name, field in kind.model_fields.items()}
    field = fields.get(fact.option)
    if field is None or not field.description:
        return
    words = [word for word in get_args(field.annotation) if isinstance(word, str)]
    for near in near_names(str(fact.value), words)[:3]:
        yield question.instead(near)
    default = ""
    if field.default is not None and field.default is not PydanticUndefined:
        default = f"; without it {field.default}"
    yield Remedy(f"`{fact.option}` is: {field.description}{default}")


def bad_gate(fact: BadGate, question: Question) -> Iterator[Remedy]:
    """Yield the transforms that take a gate."""
    counted = []
    for name in BUILT_IN:
        kind = transform_kind(name)
        if kind.counted is not Transform.counted:
            options = [option for option in kind.model_fields if option.startswith("count")]
            counted.append(f"{name} with `{'` or `'.join(options)}`")
    yield Remedy(f"a gate follows {', '.join(counted)} of 2 or more; `top` takes 2 or more of them")


def unknown_role(fact: UnknownRole, question: Question) -> Iterator[Remedy]:
    """Yield the tensor that a role may mean, or the clause that makes it."""
    role = fact.role
    for same in fact.valid:
        if same.lower() == role.lower():
            yield question.instead(same)
    meaning = meaning_of("role", role)
    if meaning is not None:
        yield Remedy(meaning.help)
    for near in near_names(role, fact.valid)[:3]:
        yield question.instead(near)
    if role in (GAIN_RANK, GAIN_OUT):
        clause = f"`gain {role.removeprefix('gain_')} init` and a number"
        yield Remedy(f"`{role}` is there with {clause}")
    kinds = [name for name in BUILT_IN if role in _roles_of(name)]
    if 0 < len(kinds) < 4:
        yield Remedy(f"`{role}` is a tensor of `via {' or '.join(kinds)}`")
    yield Remedy(f"this share has {listed(fact.valid)}" if fact.valid else "leave it out")


def _roles_of(name: str) -> set[str]:
    """Return the roles of a transform's tensors."""
    kind = transform_kind(name)
    return {*kind.pooled, *kind.owned}
