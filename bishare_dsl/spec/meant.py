"""Warn of parts of a spec that have a meaning, and probably another one than was meant."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Set

from bishare_dsl import spec as m
from bishare_dsl.diagnostics import Loc, Problem
from bishare_dsl.diagnostics.codes import spec as codes
from bishare_dsl.spec.facts import Fault, FractionOfLayers, NamedLikeModules
from bishare_dsl.spec.walk import Mention, names_read, parts_of

_ref = m.Ref.model_construct  # Without validation, whose schema takes long to build.
_LAYER = _ref(ref="layer")
_COUNT = _ref(ref="layers")


def lists(spec: m.Spec) -> Iterator[Problem]:
    """Find lists whose comma was probably meant as `and`: of a layer and a module, or after a `not`."""
    selections: list[tuple[Loc, m.Selection]] = [(("target",), spec.target)] if spec.target else []
    selections += [(("shares", i, "where"), s.where) for i, s in enumerate(spec.shares) if s.where]
    for loc, selection in selections:
        for parts in (*(one.any_of for _, one in parts_of(selection, m.Or)), selection.include):
            read = [{name for name, _ in names_read(part, ())} for part in parts]
            about = [names == {"layer"} for names in read if names]
            unlike = [p.left for p in parts if isinstance(p, m.Compare) and p.op == "!="]
            if any(unlike.count(left) > 1 for left in unlike):
                why = "one of them always holds"
                yield codes.COMMA_IS_OR(why=why, loc=loc, fact=Fault.ALWAYS_HOLDS)
            if [isinstance(p, m.Not) for p in parts[:2]] == [True, False] and not any(about):
                why = "`not` holds for one part alone"
                yield codes.COMMA_IS_OR(why=why, loc=loc, fact=Fault.NOT_OF_ONE_PART)
            elif parts is selection.include and any(about) and not all(about):
                why = "this also takes modules that fit one condition alone"
                yield codes.COMMA_IS_OR(why=why, loc=loc, fact=Fault.TAKES_EITHER)


def layers(spec: m.Spec, mentions: Iterable[Mention]) -> Iterator[Problem]:
    """Find layers that are compared with fractions, or counted instead of compared."""
    selecting = {name for share in spec.shares for name, _ in names_read(share.where, ())}
    for mention in mentions:
        side = mention.part
        other = mention.compared_with
        loc = mention.loc
        if mention.purpose != "side":
            continue
        if other == _LAYER and isinstance(side, float) and 0 < side < 1:
            why = "a layer is a whole number, counted from 0"
            yield codes.NO_VALUE(why=why, loc=loc, fact=FractionOfLayers(side))
        selects = loc[0] != "lets" or spec.lets[int(loc[1])].name in selecting
        if side == _COUNT and selects and {"include", "exclude"} & {*loc}:
            fact = Fault.COUNTS_INSTEAD_OF_LAYER if other == _LAYER else None
            yield codes.COUNTS_LAYERS(loc=loc, fact=fact)


def meeting(spec: m.Spec, terms: Iterable[tuple[str, str, int | None]]) -> Iterator[Problem]:
    """Find two shares of which one ends in the layer where the other begins.

    ``terms`` has the share, the module and the layer of each term.
    """
    covered: dict[str, dict[str, int]] = {s.name: {} for s in spec.shares if s.where is not None}
    for share, path, layer in terms:
        if share in covered and layer is not None:
            covered[share][path] = layer
    beginning: dict[int, list[str]] = {}
    for name, layer_of in covered.items():
        if len({*layer_of.values()}) > 1:
            beginning.setdefault(min(layer_of.values()), []).append(name)
    index_of = {share.name: i for i, share in enumerate(spec.shares)}
    for name, layer_of in covered.items():
        last = max(layer_of.values(), default=0)
        if min(layer_of.values(), default=0) == last:
            continue
        for other in beginning.get(last, ()):
            both = {layer_of[path] for path in layer_of.keys() & covered[other].keys()}
            if both == {last}:
                one, two = sorted((name, other), key=index_of.__getitem__)
                loc = ("shares", index_of[two], "where")
                yield codes.LAYER_IN_BOTH(layer=last, one=one, other=two, loc=loc)


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
        alone = spec.target == m.Selection.model_construct(include=(_ref(ref=share.name),))
        if share.name in known and share.where is None and not alone:
            yield codes.NAMED(share=share.name, loc=loc, fact=NamedLikeModules(share.name))
            continue
        same = repr(share.model_copy(update={"name": "", "rank": 1}))
        bare = share.via is None and share.gain.rank is share.gain.out is None
        one_rank = bare and isinstance(share.rank, int | m.Ref) and share.rank != 0
        if one_rank and (other := plain.setdefault(same, i)) != i:
            one = spec.shares[other].name
            place = ("shares", other)
            yield codes.SAME_SHARE(one=one, other=share.name, loc=loc, also=place)
