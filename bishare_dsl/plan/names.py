"""Names of pools and tensors: readable key paths such as ``intra.layer_3.A``."""

from __future__ import annotations

import re
from functools import lru_cache

from bishare_dsl import spec as m
from bishare_dsl.models.site import block_of
from bishare_dsl.spec.evaluate import Value

_WORDS = {"//": "div", "%": "mod", "/": "over", "*": "times", "+": "plus", "-": "minus"}
_WORDS |= {"**": "to_the", "==": "is", "!=": "is_not", "<": "lt", "<=": "le", ">": "gt", ">=": "ge"}

_START = ".start"


def start_name(name: str) -> str:
    """Name the share or tensor that subtracts initial values. A share of a spec has no dot in its name."""
    return f"{name}{_START}"


def share_of(name: str) -> str:
    """Return the share of the spec that a term belongs to, which may subtract initial values."""
    return name.removesuffix(_START)


def key_name(per: tuple[m.Expression, ...], values: tuple[Value, ...]) -> str:
    """Name the key of a pool: ``layer_3`` or ``self_attn.layer_div_2_1``; ``""`` for ``per model``.

    Values of attributes that are names are used as they are, and ``adapter`` is left out.
    """
    parts = zip(per, values, strict=True)
    return ".".join(_part(key, value) for key, value in parts if value != m.EACH_ADAPTER)


def _part(key: m.Expression, value: Value) -> str:
    if isinstance(value, str):
        return value if isinstance(key, m.Ref) else f"{_slug(key)}_{_plain(value)}"
    return f"{_slug(key)}_{_plain(str(value).lower())}"


def _plain(text: str) -> str:
    return re.sub(r"\W", "_", text)


def _slug(part: m.Expression | m.Range) -> str:
    """Write an expression as one word."""
    match part:
        case m.Ref(ref=name):
            return _plain(name)
        case m.Binary(op=op, left=left, right=right) | m.Compare(op=op, left=left, right=right):
            return f"{_slug(left)}_{_WORDS[op]}_{_slug(right)}"
        case m.Call(function=function, arguments=arguments):
            return "_".join([function, *map(_slug, arguments)])
        case m.Range(first=first, last=last):
            ends = ["" if end is None else f"_{_slug(end)}" for end in (first, last)]
            return "_to".join(ends).strip("_")
        case m.If(then=chosen, condition=condition, otherwise=otherwise):
            return f"{_slug(chosen)}_if_{_slug(condition)}_else_{_slug(otherwise)}"
        case m.Cases(subject=subject, arms=arms, otherwise=otherwise):
            parts = ["match", _slug(subject)]
            for arm in arms:
                parts += [*map(_slug, arm.values), _slug(arm.result)]
            if otherwise is not None:
                parts += ["else", _slug(otherwise)]
            return "_".join(parts)
        case m.Match(attribute=attribute, pattern=pattern):
            return f"{attribute}_{_plain(pattern)}"
        case m.Member(value=value, among=among):
            return f"{_slug(value)}_in_{'_'.join(map(_slug, among))}"
        case m.And(all_of=parts):
            return "_and_".join(map(_slug, parts))
        case m.Or(any_of=parts):
            return "_or_".join(map(_slug, parts))
        case m.Not(negated=inner):
            return f"not_{_slug(inner)}"
        case number:
            return _plain(str(number))


def attribute(name: str) -> str:
    """Return the attribute of a module that holds the tensor ``name``, without dots."""
    return name.replace(".", "__")


def short_path(path: str) -> str:
    """Return a site's path from its list of blocks on: ``layers.3.self_attn.q_proj``."""
    place, *rest = block_of(path) or (path,)
    return ".".join(filter(None, (place.rpartition(".")[2] if rest else place, *rest)))


_EXPERT = re.compile(r"(experts)\.\d+$")
"""The end of an expert's path. An expert need not be a module, but the list of experts is."""


@lru_cache(maxsize=1024)
def owner(paths: tuple[str, ...]) -> str:
    """Return the nearest module that contains all of these sites: their parent, their block, or the model.

    A tensor used in several blocks belongs to the model, so there are only three kinds of owner.
    """
    parents = {_EXPERT.sub(r"\1", path.rpartition(".")[0]) for path in paths}
    if len(parents) == 1:
        return parents.pop()
    blocks = {(block_of(path) or ())[:2] for path in paths}
    return ".".join(filter(None, blocks.pop())) if len(blocks) == 1 else ""
