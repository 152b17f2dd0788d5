"""Hypothesis strategies for all specs that the language can express, meaningful or not.

    @given(specs())
    def test_text_says_the_same(spec):
        assert parse_spec(spec_text(spec)) == spec

Names are arbitrary, so most specs refer to undefined names. Use these strategies to test printing, storing
and checking of specs, not compiling; `fitting_specs` generates specs to compile. Needs the package
`hypothesis`.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from functools import cache
from typing import Any

from hypothesis import strategies as st

from bishare_dsl import spec as m
from bishare_dsl.language import parse_syntax, spec_text

_NAMES = (
    *("q_proj", "layer", "module", "r", "mlp", "centre"),
    *("in", "out", "alpha", "rank", "kind", "A"),
)
_COMPARED = ("==", "!=", "<", "<=", ">", ">=")
_OPERATORS = ("+", "-", "*", "/", "//", "%", "**")
_OF_ONE = ("abs", "floor", "sqrt")


@cache
def names() -> st.SearchStrategy[str]:
    """Generate names: usual names, keywords, and arbitrary text."""
    text = st.text(st.characters(codec="utf-8"), max_size=6)
    return st.sampled_from((*_NAMES, "B", "model", "share", "use", "replace", "gain")) | text


@cache
def numbers() -> st.SearchStrategy[int | float]:
    """Generate the numbers that a text can contain: 64-bit integers and finite floats."""
    return st.integers(-(2**63 - 1), 2**63 - 1) | st.floats(allow_nan=False, allow_infinity=False)


@cache
def expressions() -> st.SearchStrategy[Any]:
    """Generate arbitrarily nested arithmetic, keys and predicates."""
    leaves = st.one_of(
        numbers(),
        st.builds(m.Ref, ref=names()),
        st.builds(m.Match, attribute=st.sampled_from(["path", "kind", "parent"]), pattern=names()),
    )
    return st.recursive(leaves, _nested, max_leaves=3)


def _nested(inner: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    several = st.lists(inner, min_size=2, max_size=3).map(tuple)
    return st.one_of(
        _computed(inner),
        st.builds(m.Compare, op=st.sampled_from(_COMPARED), left=inner, right=inner),
        st.builds(m.Member, value=inner, among=_items(inner)),
        st.builds(m.And, all_of=several),
        st.builds(m.Or, any_of=several),
        st.builds(m.Not, negated=inner),
        st.builds(m.If, then=inner, condition=inner, otherwise=inner),
        _cases(inner, inner),
    )


def _items(inner: st.SearchStrategy[Any]) -> st.SearchStrategy[tuple[Any, ...]]:
    item = inner | st.builds(m.Range, first=inner, last=inner)
    item |= st.builds(m.Range, first=inner) | st.builds(m.Range, last=inner)
    return st.lists(item, min_size=1, max_size=2).map(tuple)


@cache
def selections() -> st.SearchStrategy[m.Selection]:
    """Generate the selections in ``target``, ``where`` and ``let``."""
    return st.builds(
        m.Selection,
        include=st.lists(expressions(), min_size=1, max_size=2).map(tuple),
        exclude=st.lists(expressions(), max_size=1).map(tuple),
    )


def _cases(
    inner: st.SearchStrategy[Any], otherwise: st.SearchStrategy[Any]
) -> st.SearchStrategy[m.Cases]:
    """Generate ``match ...``."""
    arm = st.builds(m.Arm, values=_items(inner), result=inner)
    arms = st.lists(arm, max_size=2).map(tuple)
    # A match needs an arm or an else.
    return st.builds(m.Cases, subject=inner, arms=arms, otherwise=otherwise).filter(
        lambda match: bool(match.arms) or match.otherwise is not None
    )


@cache
def rank_matches() -> st.SearchStrategy[m.Cases]:
    """Generate ``rank match ...``, with or without an ``else``."""
    return _cases(expressions(), _maybe())


@cache
def _maybe() -> st.SearchStrategy[Any]:
    return st.none() | expressions()


@cache
def _inits() -> st.SearchStrategy[dict[str, Any]]:
    return st.dictionaries(names(), expressions(), max_size=2)


@cache
def settings_of_shares() -> st.SearchStrategy[m.Settings]:
    """Generate the defaults at the top of a spec."""
    return st.builds(m.Settings, alpha=_maybe(), scale=_maybe(), dropout=_maybe(), init=_inits())


@cache
def keys() -> st.SearchStrategy[Mapping[str, Any]]:
    """Generate fields of a share: ``per``, or keys for ``A``, ``B`` and other roles, or both."""
    key = st.lists(expressions(), max_size=2).map(tuple)
    several = st.fixed_dictionaries({"A": key, "B": key})
    several |= st.dictionaries(st.just("core") | st.just("per"), key, min_size=1, max_size=1)
    both = st.fixed_dictionaries({"per": key, "keys": several})
    reference = st.builds(m.Reference, role=names(), share=st.none() | names(), key=st.none() | key)
    references = st.dictionaries(st.sampled_from(["m_A", "m_B"]), reference, min_size=1)
    both |= st.fixed_dictionaries({"per": key, "keys": several, "references": references})
    return both | several.map(lambda keys: {"keys": keys}) | key.map(lambda key: {"per": key})


@cache
def shares() -> st.SearchStrategy[m.Share]:
    """Generate a share with any of its clauses."""
    options = st.dictionaries(names(), expressions(), max_size=2)
    plain = st.builds(
        m.Share,
        name=names(),
        rank=expressions() | rank_matches(),
        where=st.none() | selections(),
        via=st.none() | _vias(options),
        freeze=st.lists(names(), max_size=2, unique=True).map(tuple),
        gain=st.builds(m.Gain, rank=_maybe(), out=_maybe()),
        nonzero_start=st.booleans(),
        alpha=_maybe(),
        scale=_maybe(),
        dropout=_maybe(),
        init=_inits(),
    )
    return st.builds(lambda share, keyed: share.model_copy(update=keyed), plain, keys())


def _vias(options: st.SearchStrategy[dict[str, Any]]) -> st.SearchStrategy[m.Via | m.Places]:
    """Generate chains of steps, and chains for each place."""
    gate = st.builds(m.Gate, top=_maybe(), of=st.sampled_from(["x", "A x"]))
    parts = {
        "transform": names(),
        "options": options,
        "gate": st.none() | gate,
        "name": st.none() | names(),
    }
    steps = st.builds(m.Step, **parts)
    chains = st.lists(steps, min_size=1, max_size=2).map(tuple)
    places = st.dictionaries(st.sampled_from(["A", "B", "between"]), chains, min_size=1)
    chain = st.builds(m.Via, then=st.just(()) | chains, **parts)
    return chain | places.map(lambda by_place: m.Places(**by_place))


@cache
def magnitudes() -> st.SearchStrategy[m.Share]:
    """Generate the statement `magnitude`."""
    return st.builds(
        m.magnitude,
        st.lists(expressions(), max_size=2).map(tuple),
        st.none() | selections(),
        plain=st.booleans(),
        init=_inits(),
        nonzero_start=st.booleans(),
    )


def _values(unknown: Collection[str]) -> st.SearchStrategy[Any]:
    """Generate the value of a param, without the names in ``unknown``."""
    words = names().filter(lambda name: name not in unknown)
    known = st.recursive(numbers() | st.builds(m.Ref, ref=words), _computed, max_leaves=3)
    return numbers() | words | _computed(known)


def _computed(inner: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    several = st.lists(inner, min_size=2, max_size=3).map(tuple)
    return st.one_of(
        st.builds(m.Binary, op=st.sampled_from(_OPERATORS), left=inner, right=inner),
        st.builds(m.Call, function=st.sampled_from(_OF_ONE), arguments=st.tuples(inner)),
        st.builds(m.Call, function=st.sampled_from(["max", "min"]), arguments=several),
    )


@st.composite
def specs(draw: st.DrawFn) -> m.Spec:
    """Generate a whole spec whose params and lets are declared before use, as its text requires."""
    # Using a name before its declaration has no text. So params use only earlier params, and lets
    # have unique names.
    named = draw(st.lists(names(), max_size=3))
    params = [m.Param(name=name, value=draw(_values(named[i:]))) for i, name in enumerate(named)]
    lets = [
        m.Let(name=f"let_{i}", selection=selection)
        for i, selection in enumerate(draw(st.lists(selections(), max_size=1)))
    ]
    # Without shares, `train` is the only statement.
    drawn = draw(st.lists(shares(), min_size=draw(st.sampled_from([1, 1, 1, 0])), max_size=2))
    return m.Spec(
        name=draw(names()),
        params=tuple(params),
        lets=tuple(lets),
        target=draw(selections()) if drawn else None,
        train=draw(st.none() | selections() if drawn else selections()),
        defaults=draw(settings_of_shares()),
        shares=(*drawn, *(draw(st.lists(magnitudes(), max_size=1)) if drawn else ())),
    )


@st.composite
def layouts(draw: st.DrawFn) -> tuple[m.Spec, str, list[str]]:
    """Generate a spec, its text in a random layout, and the comments in it, all distinct.

    Comments, line breaks and empty lines may appear between any words, and a list in brackets may end in a
    comma or semicolon.
    """
    spec = draw(specs())
    chance = draw(st.randoms(use_true_random=False))
    syntax = parse_syntax(spec_text(spec))
    brackets = {
        part.meta.end_pos - 1: ";" if part.data == "arms" else ","
        for statement in syntax.statements
        for part in statement.trees()
        if part.data in ("set", "arms") or (part.data == "options" and part.children)
    }
    comments: list[str] = []
    text = ""

    def between() -> str:
        if chance.random() < 0.8:
            return chance.choice([" ", "\n"])
        comments.append(f"# comment {len(comments)}.")
        before, after = chance.choice([(" ", "\n"), ("\n", "\n"), ("\n\n", "\n\n")])
        return f"{before}{comments[-1]}{after}"

    for token in syntax.tokens:
        if token.type != "SPACE":
            if token.start_pos in brackets and chance.random() < 0.5:
                text += brackets[token.start_pos] + between()
            text += str(token) + between()
    return spec, text, comments
