"""References: tensors of a share that are tensors of other pools, as in ``B per layer is read.A``."""

from __future__ import annotations

from bishare_dsl import spec as m
from bishare_dsl.diagnostics import Loc, SpecError
from bishare_dsl.diagnostics.codes import spec as codes
from bishare_dsl.diagnostics.record import Record
from bishare_dsl.plan.facts import OtherReference
from bishare_dsl.spec.evaluate import Value
from bishare_dsl.spec.facts import UnknownName
from bishare_dsl.spec.spec import Key
from bishare_dsl.transforms import GAIN_OUT, GAIN_RANK, Transform

_MODULE: Key = (m.Ref(ref="module"),)


class Owner(Record):
    """The share, by its number, and the role whose tensors a reference takes."""

    index: int
    role: str


def tensor_text(share: str | None, role: str) -> str:
    """Write what comes after ``is``: ``read.A``, or ``A`` for a role of the same share."""
    return role if share is None else f"{share}.{role}"


def owner_of(spec: m.Spec, index: int, role: str) -> Owner:
    """Return whose tensors a role of share number ``index`` takes.

    Raises:
        SpecError: there is no such share, or its role is a reference too (BS232), located in the share.
    """
    share = spec.shares[index]
    reference = share.references[role]
    text = tensor_text(reference.share, reference.role)
    loc: Loc = ("references", role)

    def refused(why: str, loc: Loc, fact: object = None) -> SpecError:
        problem = codes.NO_REFERENCE(
            role=role, share=share.name, tensor=text, why=why, loc=loc, fact=fact
        )
        return SpecError(problem)

    numbers = {other.name: i for i, other in enumerate(spec.shares) if not other.is_magnitude}
    if share.is_magnitude or reference.share == m.MAGNITUDE:
        raise refused("a magnitude scales outputs by a tensor that only it has", loc)
    if not {role, reference.role}.isdisjoint((GAIN_RANK, GAIN_OUT)):
        raise refused(
            "a gain starts at a number of its share, so it is a tensor of that share", loc
        )
    name = share.name if reference.share is None else reference.share
    if name not in numbers:
        fact = UnknownName(name, "share", frozenset(numbers))
        raise refused(f"no share is called `{name}`", (*loc, "share"), fact)
    owner = Owner(numbers[name], reference.role)
    next_reference = spec.shares[owner.index].references.get(owner.role)
    if next_reference is None:
        return owner
    next_share = next_reference.share
    if next_share is None and owner.index != index:
        next_share = name
    next_text = tensor_text(next_share, next_reference.role)
    if _is_cycle(spec, index, role):
        raise refused("these references form a circle", loc)
    fact_of_next = OtherReference(next_share, next_reference.role)
    raise refused(f"`{text}` is itself `{next_text}`", loc, fact_of_next)


def _is_cycle(spec: m.Spec, index: int, role: str) -> bool:
    """Return whether references lead from a role to a reference for the second time."""
    numbers = {share.name: i for i, share in enumerate(spec.shares)}
    seen: set[tuple[int, str]] = set()
    while (index, role) not in seen:
        seen.add((index, role))
        reference = spec.shares[index].references.get(role)
        if reference is None:
            return False
        if reference.share is not None:
            if reference.share not in numbers:
                return False
            index = numbers[reference.share]
        role = reference.role
    return True


def key_of(share: m.Share, role: str, transform: Transform) -> Key:
    """Return the key of a role that a share has itself. A tensor without a key belongs to a module."""
    if role in transform.pooled or role in share.keys:
        return share.key(role)
    return _MODULE


def comparable(key: tuple[Value, ...]) -> tuple[object, ...]:
    """Return a key's value such that ``true`` and 1, which Python takes as equal, differ."""
    return tuple((isinstance(value, bool), value) for value in key)


def key_text(key: tuple[Value, ...]) -> str:
    """Write the value of a key."""
    return ", ".join(str(value).lower() if isinstance(value, bool) else str(value) for value in key)
