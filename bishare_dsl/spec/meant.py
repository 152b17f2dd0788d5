"""Warn of parts of a spec that have a meaning, and probably another one than was meant."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Set

from bishare_dsl import spec as m
from bishare_dsl.diagnostics import Loc, Problem, Remedy, Rewrite
from bishare_dsl.diagnostics.codes import spec as codes
from bishare_dsl.spec.walk import Mention, names_read, parts_of

_LAYER, _COUNT = m.Ref(ref="layer"), m.Ref(ref="layers")


def lists(spec: m.Spec) -> Iterator[Problem]:
    """Find lists whose comma was probably meant as `and`: of a layer and a module, or after a `not`."""
    selections: list[tuple[Loc, m.Selection]] = [(("target",), spec.target)] if spec.target else []
    selections += [(("shares", i, "where"), s.where) for i, s in enumerate(spec.shares) if s.where]
    for loc, selection in selections:
        first, *others = selection.include or (None,)
        about = [{n for n, _ in names_read(part, ())} == {"layer"} for part in selection.include]
        for parts in (selection.include, *(one.any_of for _, one in parts_of(selection, m.Or))):
            unlike = [p.left for p in parts if isinstance(p, m.Compare) and p.op == "!="]
            if any(unlike.count(left) > 1 for left in unlike):
                help = "write `and` where both must hold"
                yield codes.COMMA_IS_OR(why="one of them always holds", loc=loc, help=help)
        if isinstance(first, m.Not) and others and not any(isinstance(p, m.Not) for p in others):
            why, help = "`not` holds for one part alone", "join by `or`, in brackets, all it is for"
            yield codes.COMMA_IS_OR(why=why, loc=loc, help=help)
        elif others and loc[0] == "shares" and any(about) and not all(about):
            why = "the share also takes modules that fit one condition alone"
            help = "write `and` between conditions that must both hold, or else `or`"
            yield codes.COMMA_IS_OR(why=why, loc=loc, help=help)


def layers(spec: m.Spec, mentions: Iterable[Mention]) -> Iterator[Problem]:
    """Find layers that are compared with fractions, counted instead of compared, or in two ranges."""
    ends: dict[int, str] = {}
    selecting = {name for share in spec.shares for name, _ in names_read(share.where, ())}
    for mention in mentions:
        part, loc = mention.part, mention.loc
        if isinstance(part, m.Compare):
            sides = (("right", part.left, part.right), ("left", part.right, part.left))
            selects = loc[0] != "lets" or spec.lets[int(loc[1])].name in selecting
            for name, side, other in sides:
                at: Loc = (*loc, name)
                if side == _LAYER and isinstance(other, float) and 0 < other < 1:
                    remedy = Remedy(f"write `{other} * layers`", (Rewrite(at, "{} * layers"),))
                    why = "a layer is a whole number, counted from 0"
                    yield codes.NO_VALUE(why=why, loc=at, remedies=(remedy,))
                elif other == _COUNT and {"include", "exclude"} & {*loc} and selects:
                    told = "layers count from 0, and the last is -1" if side == _LAYER else None
                    yield codes.COUNTS_LAYERS(loc=at, help=told)
        elif isinstance(part, m.Range) and mention.compared_with == _LAYER and "where" in loc:
            share, first, last = spec.shares[int(loc[1])].name, part.first, part.last
            before = ends.get(first, share) if isinstance(first, int) else share
            if before != share:
                yield codes.LAYER_IN_BOTH(layer=first, one=before, other=share, loc=loc)
            if isinstance(last, int):
                ends[last] = share


def shares(spec: m.Spec, names: Set[str]) -> Iterator[Problem]:
    """Find shares with the name of modules that do not select by it, and shares that are one share.

    Args:
        spec: the spec.
        names: kinds and parts of a model.
    """
    known = names | {let.name for let in spec.lets}
    plain: dict[str, int] = {}
    for i, share in enumerate(spec.shares):
        loc: Loc = ("shares", i, "name")
        alone = spec.target == m.Selection(include=(m.Ref(ref=share.name),))
        if share.name in known and share.where is None and not alone:
            help = f"`where {share.name}` selects these modules; or give the share another name"
            yield codes.NAMED(share=share.name, loc=loc, help=help)
            continue
        same = share.model_copy(update={"name": "", "rank": 1}).model_dump_json()
        one_rank = share.via is None and isinstance(share.rank, int | m.Ref) and share.rank != 0
        if one_rank and share.gain == m.Gain() and (other := plain.setdefault(same, i)) != i:
            one, at = spec.shares[other].name, ("shares", other)
            yield codes.SAME_SHARE(one=one, other=share.name, loc=loc, also=at)
