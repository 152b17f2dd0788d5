"""Write a spec, read from text or built in Python, as text."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator
from typing import Any

from bishare_dsl import spec as m
from bishare_dsl.diagnostics import SourceMap, SpecError
from bishare_dsl.diagnostics.codes import language as codes
from bishare_dsl.language.format import format_text
from bishare_dsl.language.grammar import CLAUSES, IN_EXPRESSIONS, is_keyword
from bishare_dsl.language.read import parse_spec
from bishare_dsl.spec.walk import parts_of

_IF, _OR, _AND, _NOT, _COMPARISON, _SUM, _PRODUCT, _SIGNED, _POWER, _ATOM = range(10)
_PLAIN = re.compile(r"[A-Za-z_][A-Za-z0-9_]*\Z")


def own_text(spec: m.Spec, where: SourceMap | None, *, changed: bool) -> str:
    """Return a text for a spec that needs no other file, for an adapter's config.

    It is the original text with comments, unless that uses other files or the spec was ``changed`` since, for
    example by other values of params.

    Raises:
        SpecError: see `spec_text`.
    """
    if where is None or where.used or changed:
        return spec_text(spec)
    return where.source.text


def spec_text(spec: m.Spec) -> str:
    """Write the `.share` text of a spec, formatted: ``parse_spec(spec_text(spec)) == spec``.

    Used files become part of the text.

    Raises:
        SpecError: no text can express the spec (BS140), or its text would be wrong (BS1xx): for example, an
            empty list, an infinity, or a let that is used before its declaration.
    """
    text = format_text("\n".join(_statements(spec)), spec.name)
    if parse_spec(text, spec.name) != spec:
        raise SpecError(codes.NO_TEXT())
    return text


def _statements(spec: m.Spec) -> Iterable[str]:
    yield f"spec {spelled_name(spec.name)}"
    for param in spec.params:
        value = param.value
        said = spelled_name(value) if isinstance(value, str) else _text(value, _SUM)
        yield f"param {spelled_name(param.name)} = {said}"
    for let in spec.lets:
        yield f"let {spelled_name(let.name)} = {_selection(let.selection)}"
    if spec.target is not None:
        yield f"target {_selection(spec.target)}"
    if spec.train is not None:
        yield f"train {_selection(spec.train)}"
    yield from _clauses(spec.defaults)
    for share in spec.shares:
        if share.is_magnitude:
            yield m.MAGNITUDE
            yield from (c for c in _clauses(share) if not c.startswith(("rank ", "via ")))
            yield from ["plain"] if isinstance(share.via, m.Via) and share.via.options else []
        else:
            yield share_text(share)


def share_text(share: m.Share) -> str:
    """Write a share in one line."""
    return " ".join([f"share {spelled_name(share.name)}", *_clauses(share)])


def _clauses(part: m.Settings) -> Iterator[str]:
    of_roles: dict[str, str] = {}
    if isinstance(part, m.Share):
        of_roles = {role: f"per {_said('per', key)}" for role, key in part.keys.items()}
        of_roles |= {role: _reference(to) for role, to in part.references.items()}
    # The plan has the tensors of other roles in the order of their keys.
    roles = sorted(of_roles, key=lambda role: {"A": 0, "B": 1}.get(role, 2))
    words = [*CLAUSES]
    if roles and roles[0] not in ("A", "B"):
        # A name after a condition could continue it, as in `where kind core per layer`.
        words.remove("per")
        words.insert(0, "per")
    for word in words:
        value = getattr(part, "nonzero_start" if word == "start" else word, None)
        if said := _said(word, value):
            yield f"{word} {said}"
        if word == "per":
            yield from (f"{_role(role)} {of_roles[role]}" for role in roles)


def reference_text(role: str, reference: m.Reference) -> str:
    """Write the clause of a reference: ``B per layer is read.A``."""
    return f"{_role(role)} {_reference(reference)}"


def _reference(reference: m.Reference) -> str:
    """Write what comes after the role of a reference."""
    key = ""
    if reference.key is not None:
        parts = list(reference.key)
        texts = list(map(_text, parts))
        if parts and any(True for _ in parts_of(parts[-1], m.Match)):
            # The pattern before `is` would be read as the role of a next clause.
            texts[-1] = f"({texts[-1]})"
        key = f"per {', '.join(texts) or 'model'} "
    share = "" if reference.share is None else f"{spelled_name(reference.share)}."
    return f"{key}is {share}{_role(reference.role)}"


def via_text(via: m.Via | m.Places) -> str:
    """Write what comes after ``via``."""
    if isinstance(via, m.Places):
        chains = via.chains.items()
        return ", ".join(f"{place} {_chain(steps)}" for place, steps in chains if steps)
    return _chain((via, *via.then))


def _chain(steps: Iterable[m.Step]) -> str:
    return " then ".join(map(_step, steps))


def _step(step: m.Step) -> str:
    pairs = [f"{spelled_name(name)} = {_text(option)}" for name, option in step.options.items()]
    options = f"({', '.join(pairs)})" if pairs else ""
    gate = "" if step.gate is None else f" {gate_text(step.gate)}"
    name = "" if step.name is None else f" as {spelled_name(step.name)}"
    # A transform of this name would be a place.
    transform = (
        _quoted(step.transform) if step.transform == "between" else spelled_name(step.transform)
    )
    return f"{transform}{options}{gate}{name}"


def gate_text(gate: m.Gate) -> str:
    """Write a gate after its step."""
    kind = "softmax" if gate.top is None else f"top {_text(gate.top)}"
    return f"gate {kind}" if gate.of == "x" else f"gate {kind} of {gate.of}"


def _role(name: str) -> str:
    """Write a role. A and B are keywords, all others are names."""
    return name if name in ("A", "B") else spelled_name(name)


def _said(word: str, value: Any) -> str:
    """Write the value of a clause, or an empty text to omit the clause."""
    match value:
        case None | False:
            return ""
        case True:
            return "nonzero"
        case m.Selection():
            return _selection(value)
        case m.Via() | m.Places():
            return via_text(value)
        case dict():
            return ", ".join(f"{_role(role)} {_text(start)}" for role, start in value.items())
        case m.Gain():
            return ", ".join(f"{name} init {_text(v)}" for name, v in value if v is not None)
        case tuple() if word == "freeze":
            return ", ".join(map(_role, value))
        case tuple():
            return _list(value) or "model"
    return _text(value)


def _selection(selection: m.Selection) -> str:
    excluded = f" except {_list(selection.exclude)}" if selection.exclude else ""
    return _list(selection.include) + excluded


def _list(parts: Iterable[m.Range | m.Expression]) -> str:
    return ", ".join(map(_text, parts))


def _text(node: m.Range | m.Expression, least: int = _IF) -> str:
    """Write an expression, in parentheses if it binds less tightly than ``least``."""
    text, level = _written(node)
    return text if level >= least else f"({text})"


def expression_text(node: m.Expression) -> str:
    """Write one expression."""
    return _text(node)


def _written(node: m.Range | m.Expression) -> tuple[str, int]:
    match node:
        case int() | float():
            return repr(node), _SIGNED if repr(node).startswith("-") else _ATOM
        case m.Ref(ref=name):
            return (name if name in IN_EXPRESSIONS else spelled_name(name)), _ATOM
        case m.Match(attribute=attribute, pattern=pattern):
            spelled_pattern = _quoted(pattern) if attribute == "path" else spelled_name(pattern)
            return f"{attribute} {spelled_pattern}", _ATOM
        case m.Call(function=function, arguments=arguments):
            return f"{function}({', '.join(map(_text, arguments))})", _ATOM
        case m.Binary():
            return _binary(node)
        case m.Compare(op=op, left=left, right=right):
            return f"{_text(left, _SUM)} {op} {_text(right, _SUM)}", _COMPARISON
        case m.Range(first=first, last=last):
            ends = ["" if end is None else _text(end, _SUM) for end in (first, last)]
            return "..".join(ends), _ATOM
        case m.If(then=then, condition=condition, otherwise=otherwise):
            chosen = f"{_text(then, _OR)} if {_text(condition, _OR)}"
            return f"{chosen} else {_text(otherwise)}", _IF
        case m.Cases():
            return _cases(node), _ATOM
        case m.Member(value=value, among=(m.Range(last=last) as only,)) if last is not None:
            return f"{_text(value, _SUM)} in {_text(only)}", _COMPARISON
        case m.Member(value=value, among=among):
            return f"{_text(value, _SUM)} in {{{_list(among)}}}", _COMPARISON
        case m.Not(negated=inner):
            return f"not {_text(inner, _NOT)}", _NOT
        case m.And(all_of=parts):
            return " and ".join(_text(part, _NOT) for part in parts), _AND
        case m.Or(any_of=parts):
            return " or ".join(_text(part, _AND) for part in parts), _OR
    raise TypeError(f"not an expression: {node!r}")


def _binary(node: m.Binary) -> tuple[str, int]:
    op = node.op
    if op == "-" and node.left == 0 and not isinstance(node.right, int | float):
        return f"-{_text(node.right, _SIGNED)}", _SIGNED
    if op == "**":
        return f"{_text(node.left, _ATOM)} ** {_text(node.right, _SIGNED)}", _POWER
    level = _SUM if op in ("+", "-") else _PRODUCT
    return f"{_text(node.left, level)} {op} {_text(node.right, level + 1)}", level


def _cases(node: m.Cases) -> str:
    cases = [f"{_list(arm.values)}: {_text(arm.result)}" for arm in node.arms]
    if node.otherwise is not None:
        cases.append(f"else: {_text(node.otherwise)}")
    return f"match {_text(node.subject)} {{ {'; '.join(cases)} }}"


def spelled_name(name: str) -> str:
    """Write a name, in quotes if it needs them."""
    return name if _PLAIN.match(name) and not is_keyword(name) else _quoted(name)


def _quoted(text: str) -> str:
    plain = json.dumps(text, ensure_ascii=False)
    return "".join(c if c.isprintable() else json.dumps(c)[1:-1] for c in plain)
