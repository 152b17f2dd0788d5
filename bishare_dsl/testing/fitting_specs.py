"""Hypothesis strategies for specs that fit a model, over the whole language, and for small models.

    @given(st.data())
    def test_my_change(data):
        model = data.draw(small_llamas())
        check_spec(data.draw(fitting_specs(inspect_model(model))), model)

Needs the package `hypothesis`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from math import gcd
from typing import TYPE_CHECKING, Any

from hypothesis import strategies as st

from bishare_dsl.diagnostics import BishareError
from bishare_dsl.models.site import Architecture, Site
from bishare_dsl.plan.build import build_plan
from bishare_dsl.plan.select import Sites
from bishare_dsl.plan.vocabulary import key_value
from bishare_dsl.spec import (
    ATTRIBUTES,
    And,
    Arm,
    Binary,
    Call,
    Cases,
    Compare,
    Gain,
    Gate,
    If,
    Let,
    Match,
    Member,
    Not,
    Or,
    Param,
    Places,
    Range,
    Ref,
    Reference,
    Selection,
    Settings,
    Share,
    Spec,
    Step,
    Via,
    magnitude,
)
from bishare_dsl.spec.evaluate import Scope
from bishare_dsl.testing.models import tiny_model
from bishare_dsl.transforms import GAIN_OUT, GAIN_RANK, transform_kind
from bishare_dsl.transforms.transform import divisors

if TYPE_CHECKING:
    from transformers import PreTrainedModel

LAYER = Ref(ref="layer")
KIND = Ref(ref="kind")
PARENT = Ref(ref="parent")
TOWER = Ref(ref="tower")
EXPERT = Ref(ref="expert")
IN = Ref(ref="in")
OUT = Ref(ref="out")
RANK = Ref(ref="rank")
ALPHA = Ref(ref="alpha")


@st.composite
def llama_sizes(draw: st.DrawFn) -> dict[str, int]:
    """Generate sizes of a config like Llama's, for `tiny_model`: 1 to 3 layers, and widths that differ."""
    return {
        "num_hidden_layers": draw(st.integers(1, 3)),
        "num_attention_heads": draw(st.sampled_from([2, 4])),
        "hidden_size": draw(st.sampled_from([16, 24, 32])),
        "intermediate_size": draw(st.sampled_from([20, 36, 48])),
        "head_dim": draw(st.sampled_from([6, 10])),
        "num_key_value_heads": draw(st.sampled_from([1, 2])),
    }


@st.composite
def small_llamas(draw: st.DrawFn) -> PreTrainedModel:
    """Generate tiny Llamas in float32 and eval mode. The head may be tied to the embedding."""
    sizes: dict[str, Any] = draw(llama_sizes())
    return tiny_model(tie_word_embeddings=draw(st.booleans()), **sizes)


def vias() -> st.SearchStrategy[Via]:
    """Generate every built-in transform except Identity, with options; most sizes do not
    divide any width.
    """
    starts = st.sampled_from(["kaiming_uniform", "kaiming_normal", "ones"])
    size = st.integers(1, 12)
    kernel = {"size": size, "kernel": starts}
    shared_rank = st.sampled_from([1, Ref(ref="rank")])
    return st.one_of(
        _via("SS", slice=st.sampled_from(["centre", "leading", "trailing"])),
        _via("GT", size=size, gates=starts, gate_rank=st.integers(1, 3)),
        _via("KE", **kernel, shared_rank=shared_rank),
        _via("KE", **kernel, rowwise=st.sampled_from(["true", "false"])),
    )


def _via(name: str, **options: Any) -> st.SearchStrategy[Via]:
    return st.fixed_dictionaries({}, optional=options).map(
        lambda given: Via(transform=name, options=given)
    )


@dataclass
class _Drawing:
    """A spec under construction, with the meaning of its parts in the architecture."""

    draw: st.DrawFn
    architecture: Architecture
    params: list[Param] = field(default_factory=list)
    lets: list[Let] = field(default_factory=list)
    _known: tuple[int, int] = (-1, -1)
    _scopes: dict[str, Scope] = field(default_factory=dict)

    def scopes(self, sites: Sequence[Site]) -> list[Scope]:
        known = len(self.params), len(self.lets)
        if self._known != known:
            spec = Spec(
                name="drawn",
                params=tuple(self.params),
                lets=tuple(self.lets),
                target=Selection(include=()),
                shares=(),
            )
            self._known = known
            self._scopes = dict(Sites(spec, self.architecture).scopes)
        return [self._scopes[site.path] for site in sites]

    def any(self, *choices: Any) -> Any:
        """Choose a value; a failing example shrinks to the first."""
        return choices[self.draw(st.integers(0, len(choices) - 1))]

    def number(self, value: Any) -> Any:
        """Generate a number, sometimes as a param."""
        if not self.any(False, False, True):
            return value
        self.params.append(Param(name=f"p{len(self.params)}", value=value))
        return Ref(ref=self.params[-1].name)

    def atom(self, sites: Sequence[Site]) -> Any:
        """Generate a predicate that some of ``sites`` satisfy."""
        site = self.any(*sites)
        layers = self.scopes([site])[0].layers
        layer = self.any(site.block, site.block - layers)
        edge = self.draw(st.integers(site.block, layers - 1))
        atoms = [
            Ref(ref=site.kind),
            Match(attribute="kind", pattern=site.kind),
            Match(attribute="path", pattern=f"*.{site.kind}"),
            Match(attribute="path", pattern=site.path.replace(str(site.block), "*", 1)),
            Match(attribute="parent", pattern=site.parent[:1] + "*"),
            Member(value=LAYER, among=(Range(first=site.block, last=edge),)),
            Member(value=LAYER, among=(layer,)),
            Member(value=KIND, among=(Ref(ref=site.kind),)),
            Compare(op="==", left=LAYER, right=layer),
            Compare(op="<=", left=LAYER, right=layer),
            Compare(op="<=", left=IN, right=site.d_in),
            Compare(op=">=", left=OUT, right=site.d_out),
            Compare(op="==", left=Binary(op="%", left=LAYER, right=2), right=site.block % 2),
        ]
        if site.parent not in ATTRIBUTES:  # As a word `layers` is a number.
            atoms.append(Compare(op="==", left=PARENT, right=Ref(ref=site.parent)))
        scopes = self.scopes(sites)
        if len({site.tower for site in sites}) > 1:
            atoms.append(Compare(op="==", left=TOWER, right=Ref(ref=site.tower)))
        if site.expert is not None and any(s.expert is None for s in self.architecture.sites):
            some = Compare(op="!=", left=EXPERT, right=Ref(ref="none"))
            few = Compare(op="<=", left=EXPERT, right=site.expert)
            atoms += [
                some,
                And(all_of=(some, few)),
                Member(value=EXPERT, among=(site.expert,)),
                Member(value=EXPERT, among=(Range(first=0, last=site.expert),)),
            ]
        names = [Ref(ref=let.name) for let in self.lets if let.value is None]
        atoms += [name for name in names if any(scope.holds(name) for scope in scopes)]
        return self.any(*atoms)

    def selection(self, sites: Sequence[Site]) -> Selection:
        """Generate a selection of at least one of ``sites``."""
        first = self.atom(sites)
        form = self.any("one", "not", "two", "and", "or", "except")
        if form == "one":
            return Selection(include=(first,))
        second = first if form == "not" else self.atom(sites)
        selection = {
            "not": Selection(include=(Not(negated=first),)),
            "two": Selection(include=(first, second)),
            "and": Selection(include=(And(all_of=(first, second)),)),
            "or": Selection(include=(Or(any_of=(first, second)),)),
            "except": Selection(include=(first,), exclude=(second,)),
        }[form]
        # Some of these forms may select nothing.
        if self.selected(sites, selection):
            return selection
        return Selection(include=(first,))

    def selected(self, sites: Sequence[Site], selection: Selection) -> list[Site]:
        scopes = self.scopes(sites)
        return [s for s, scope in zip(sites, scopes, strict=True) if scope.holds(selection)]

    def per(self, sites: Sequence[Site]) -> tuple[Any, ...]:
        """Generate keys; without any, all sites share a pool."""
        keys = [
            *(Ref(ref=name) for name in ("module", "layer", "kind", "parent", "path", "in")),
            Binary(op="//", left=LAYER, right=self.number(self.any(2, 3))),
            Binary(op="%", left=LAYER, right=2),
            self.atom(sites),
        ]
        if len({site.tower for site in sites}) > 1:
            keys.append(TOWER)
        keys += [Ref(ref=let.name) for let in self.lets if let.value is not None]
        if any(site.expert is not None for site in sites):
            keys.append(EXPERT)
        if all(site.expert is not None for site in sites):
            # Specs for experts alone are rare, so they often distinguish experts.
            keys += 4 * [Binary(op=op, left=EXPERT, right=2) for op in ("//", "%")]
        count = self.any(1, 0, 1, 2)
        return tuple(self.any(*keys) for _ in range(count))

    def rank(self, sites: Sequence[Site]) -> tuple[Any, Ref | None]:
        """Generate a rank, and the attribute it depends on."""
        form = self.any("number", "number", "kind", "layer", "computed", "largest")
        if form == "number":
            return self.number(self.draw(st.integers(1, 4))), None
        if form == "largest":
            width = Call(function="largest", arguments=(IN,))
            part = Binary(op="//", left=width, right=16)
            return Call(function="max", arguments=(1, part)), None
        if form == "computed":
            return Binary(op="+", left=Binary(op="%", left=LAYER, right=3), right=1), LAYER
        site = self.any(*sites)
        block = site.block
        layers = self.scopes([site])[0].layers
        ranges = Range(first=block, last=block), Range(first=0, last=-1)
        of_kind = [Ref(ref=site.kind)]
        of_layer = [block, block - layers, *ranges]
        value = self.any(*(of_kind if form == "kind" else of_layer))
        arm = Arm(values=(value,), result=self.number(self.any(2, 1, 3, 0)))
        other = self.number(self.any(1, 4, 0))
        return Cases(subject=Ref(ref=form), arms=(arm,), otherwise=other), Ref(ref=form)

    def _scales(self, sites: Sequence[Site]) -> Sequence[Any]:
        """Generate scales that differ between modules."""
        other = Binary(op="-", left=0, right=self.number(3))
        arm = Arm(values=(Ref(ref=self.any(*sites).kind),), result=2)
        by_layer = Binary(op="/", left=2, right=Binary(op="+", left=1, right=LAYER))
        powers = Binary(op="**", left=0.5, right=Binary(op="%", left=LAYER, right=3))
        return (
            by_layer,
            powers,
            If(then=1, condition=self.atom(sites), otherwise=other),
            Cases(subject=KIND, arms=(arm,), otherwise=RANK),
        )

    def group(self) -> Any:
        """Generate the value that a let names, to use as a key."""
        first = Arm(values=(0,), result=self.any(0, Ref(ref="early")))
        by_layer = Cases(subject=LAYER, arms=(first,), otherwise=self.any(1, Ref(ref="late")))
        by_word = If(then=1, condition=self.atom(self.architecture.sites), otherwise=2)
        return self.any(by_layer, by_word, Binary(op="//", left=LAYER, right=2))

    def settings(self, sites: Sequence[Site]) -> dict[str, Any]:
        """Generate scale, alpha, dropout (always 0) and initialisers."""
        alpha = self.any(None, 4, 0.5)
        scales = [None, 2, -0.5, Binary(op="/", left=3, right=RANK), *self._scales(sites)]
        if alpha is not None:
            scales.append(
                Binary(op="/", left=ALPHA, right=Call(function="sqrt", arguments=(RANK,)))
            )
        return {
            "alpha": alpha if alpha is None else self.number(alpha),
            "scale": self.any(*scales),
            "dropout": self.any(None, 0, 0.0),
            "init": self.any(
                {},
                {"A": Ref(ref="kaiming_normal")},
                {"A": Ref(ref="zeros"), "B": Ref(ref="uniform")},
                {"A": Ref(ref="normal"), "B": Ref(ref="zeros")},
                {"A": Ref(ref="ones")},
                {"A": Ref(ref="orthogonal")},
                {"A": Call(function="sparse", arguments=(0.5,))},
            ),
        }

    def share(self, index: int, target: Sequence[Site]) -> Share:
        where = self.any(None, self.selection(target))
        covered = list(target) if where is None else self.selected(target, where)
        per = self.per(covered)
        rank, reads = self.rank(covered)
        # A rank must be constant inside a pool.
        constant = () if reads is None else (reads,)
        named = {key.ref for key in per if isinstance(key, Ref)}
        if reads is not None and not {"module", "path", reads.ref} & named:
            per = (*per, reads)
        key_b = self.any(None, self.per(covered))
        if key_b is not None:
            key_b = (*key_b, *constant)
        keys = {"A": per, "B": key_b} if key_b is not None else {}
        unequal = self._unequal(covered, per, per if key_b is None else key_b)
        form = "fitted" if unequal else self.any("plain", "fitted", "equal")
        settings = self.settings(covered)
        if key_b is None and self.any(False, False, True):
            form = "bank"
        via = self._via(form, rank, covered, settings)
        settings |= self._gain_and_freeze(via, settings["init"])
        own = self.own_roles(via, settings["gain"])
        if self.any(False, True) and own:
            keys[self.any(*own)] = (IN, OUT, *constant)
        return Share(
            name=f"{self.any('local', 'intra', 'inter')}_{index}",
            where=where,
            per=per if key_b is None else None,
            keys=keys,
            rank=rank,
            via=via,
            **settings,
        )

    def _via(
        self, form: str, rank: Any, sites: Sequence[Site], settings: dict[str, Any]
    ) -> Via | Places | None:
        """Generate the `via` of a share, and change the settings that it does not permit.

        ``form`` is ``plain``, ``equal`` for pools of equal widths, ``fitted`` for any pools, or ``bank``.
        """
        if form == "fitted" and self.any(False, False, True):
            # One tensor starts at zero, between the factors if any stands there.
            settings["init"] = {}
            return self._places(gated=all(site.expert is None for site in sites))
        if form == "fitted":
            return self._fitted_via(rank, settings)
        if form == "equal":
            equal: Via = self.any(*self._equal_vias(sites))
            return equal
        if form == "bank":
            settings |= {"init": {}, "nonzero_start": True}
            return Via(transform="VectorBank", options=self._bank(sites))
        return None

    def _fitted_via(self, rank: Any, settings: dict[str, Any]) -> Via:
        """Generate a transform for pools of any widths."""
        via = self.draw(_VIAS)
        if via.transform == "KE" and "rowwise" not in via.options and isinstance(rank, int):
            rows = self.any(*divisors([rank]))
            via = Via(transform="KE", options={**via.options, "shared_rank": rows})
        if not self.any(False, False, True):
            return via
        settings["init"] = {}  # Its private tensors start at zero.
        counted = (
            ("Core", "count"),
            ("Loadings", "vectors"),
            ("Core", "cores"),
            ("Basis", "count"),
        )
        name, option = self.any(*counted)
        return Via(transform=name, options={option: self.any(2, 3, 1)})

    def _places(self, *, gated: bool) -> Places:
        """Generate a chain for each place, whose factors fit any width, with gates if ``gated``."""
        chains = {}
        for place in ("A", "B"):
            first = self.any(
                Step(transform="SS", options={"slice": self.any("centre", "trailing")}),
                Step(transform="KE", options={"size": self.any(3, 8)}),
                Step(
                    transform="Loadings", options={"vectors": self.any(2, 5)}, name=f"first_{place}"
                ),
            )
            mix = Step(transform="Mix", options={f"count_{place}": 2}, name=f"mixed_{place}")
            loadings = Step(transform="Loadings", options={"vectors": 3}, name=f"later_{place}")
            chains[place] = (first, *self.any((), (), (mix,), (loadings,), (mix, loadings)))
        one = Step(transform="Core", name="one")
        two = Step(transform="Core", name="two")
        between = self.any((), (one,), (one, two))
        if gated and between and self.any(False, True):
            gate = Gate(top=self.any(None, 2), of=self.any("x", "A x"))
            one = Step(transform="Core", options={"count": 3}, gate=gate, name="one")
            between = (one, *between[1:])
        return Places(between=between, **chains)

    def own_roles(self, via: Via | Places | None, gain: Gain) -> list[str]:
        """Return the tensors that are private to each site unless they have a key."""
        roles: list[str] = []
        if isinstance(via, Places):
            # Each has a name, see `_places`.
            roles = [f"{step.name}_G" if step.gate else str(step.name) for step in via.between]
        elif via is not None:
            plain = {name: value for name, value in via.options.items() if type(value) is int}
            kind = transform_kind(via.transform)
            has = kind.model_validate(plain).roles
            roles = [role for role in kind.owned if role in has]
        if gain.rank is not None:
            roles.append(GAIN_RANK)
        if gain.out is not None:
            roles.append(GAIN_OUT)
        return roles

    def _equal_vias(self, sites: Sequence[Site]) -> list[Via]:
        """Return transforms for pools with sites of equal widths."""
        blocks = gcd(*(side for site in sites for side in (site.d_in, site.d_out)))
        chunks = (
            min(self.any(1, 2, 3), *(site.d_in for site in sites)),
            min(2, *(site.d_out for site in sites)),
        )
        return [
            Via(transform="Rotation", options={"chunks_A": chunks[0], "chunks_B": chunks[1]}),
            Via(transform="BlockDiagonal", options=self._blocks(blocks)),
            Via(transform="Mix", options={f"count_{self.any('A', 'B')}": self.any(2, 3)}),
            Via(transform="Shards", options={"rows": 1, "shards": self._divisor(blocks)}),
            # An update of an expert must be a matrix.
            *(
                [Via(transform="Experts", options={"count": self.any(2, 3)})]
                if all(site.expert is None for site in sites)
                else []
            ),
        ]

    def _bank(self, sites: Sequence[Site]) -> dict[str, Any]:
        """Generate options of a vector bank whose vectors tile every width."""
        common = gcd(*(side for site in sites for side in (site.d_in, site.d_out)))
        return {"vectors": self.any(3, 4), "length": self._divisor(common), "top_k": 2}

    def _blocks(self, common: int) -> dict[str, Any]:
        """Generate options of block-diagonal factors with widths divisible by ``common``."""
        cut = self.any("both", "in", "out")
        options = {"blocks": self._divisor(common)}
        return options if cut == "both" else options | {"cut": Ref(ref=cut)}

    def _divisor(self, number: int) -> int:
        divisor: int = self.any(*divisors([number]))
        return divisor

    def _gain_and_freeze(self, via: Via | Places | None, init: Mapping[str, Any]) -> dict[str, Any]:
        """Generate nonzero gains, and frozen tensors that leave something to train.

        Alternatively, as in VeRA, combine frozen random factors with an ``out`` gain that starts at zero.
        """
        name = "Identity" if via is None else "Core" if isinstance(via, Places) else via.transform
        if isinstance(via, Places) and not via.between:
            return {"gain": Gain(rank=self.any(None, 0.5))}
        out = self.any(None, None, 1, 0.5)
        if _has_gate(via):
            return {"gain": Gain(out=out)}
        rank = None if name == "Experts" else self.any(None, None, 0.5)
        bases = dict.fromkeys(("Basis", "Core", "Loadings"), ("A", "B"))
        frozen = {"VectorBank": ("bank",), **bases}
        random = "B" if init.get("A") == Ref(ref="zeros") else "A"  # The other starts at zero.
        roles = frozen.get(name, (random,))
        if name not in frozen and self.any(False, False, False, True):
            started = {"A": Ref(ref="normal"), "B": Ref(ref="uniform")}
            return {"init": started, "freeze": ("A", "B"), "gain": Gain(rank=rank, out=0)}
        return {"freeze": self.any((), (), roles), "gain": Gain(rank=rank, out=out)}

    def _unequal(self, sites: Sequence[Site], *keys: Sequence[Any]) -> bool:
        """Return whether a pool has sites of different widths, which requires a transform."""
        pools: dict[tuple[Any, ...], set[int]] = {}
        for site, scope in zip(sites, self.scopes(sites), strict=True):
            for factor, key, width in zip("AB", keys, (site.d_in, site.d_out), strict=True):
                values = [key_value(scope, part) for part in key]
                pools.setdefault((factor, *values), set()).add(width)
        return any(len(widths) > 1 for widths in pools.values())


@st.composite
def fitting_specs(draw: st.DrawFn, architecture: Architecture) -> Spec:
    """Generate specs over the whole language that fit an architecture, so `build_plan` reports no error.

    They have every form of ``where`` and ``per``, lets, params, exceptions and ranks by kind and layer
    (also 0). They also have keys for each factor, references, all transforms with options, gains, frozen
    tensors, scales, alphas and initialisers. Dropout is 0, so that results are deterministic.
    """
    drawing = _Drawing(draw, architecture)
    sites = architecture.sites
    for index in range(drawing.any(0, 1, 2)):
        drawing.lets.append(Let(name=f"let_{index}", selection=drawing.selection(sites)))
    everything = Selection(include=tuple(Ref(ref=kind) for kind in architecture.kinds))
    if drawing.any(False, True):
        drawing.lets.append(Let(name="group", selection=Selection(include=(drawing.group(),))))
    target = drawing.any(everything, drawing.selection(sites))
    targets = drawing.selected(sites, target)
    count = draw(st.integers(1, 3))
    first, *others = [drawing.share(index, targets) for index in range(count)]
    if isinstance(first.rank, Cases):  # Leave something to train.
        arms = tuple(arm.model_copy(update={"result": 2}) for arm in first.rank.arms)
        rank = first.rank.model_copy(update={"arms": arms, "otherwise": 1})
        first = first.model_copy(update={"rank": rank})
    if drawing.any(False, True) and others:
        others[0] = others[0].model_copy(update={"rank": 0})
    spec = Spec(
        name="drawn",
        params=tuple(drawing.params),
        lets=tuple(drawing.lets),
        target=target,
        defaults=Settings(alpha=drawing.any(None, 2), dropout=drawing.any(None, 0)),
        shares=(first, *others),
    )
    if drawing.any(False, False, True):
        spec = _with_reference(drawing, spec, architecture)
    if drawing.any(False, False, True):
        spec = _with_magnitude(drawing, spec, targets, architecture)
    if architecture.outside and drawing.any(False, False, True):
        spec = _with_ends(draw, spec, architecture)
    if architecture.others and drawing.any(False, False, True):
        spec = _with_train(draw, spec, architecture)
    return spec


def _with_reference(drawing: _Drawing, spec: Spec, architecture: Architecture) -> Spec:
    """Give a share, or a copy of one, a tensor of a share, often in another role."""
    for _ in range(4):
        form = drawing.any(_copied, _copied, _of_itself)
        referring: Spec = form(drawing, spec)
        if fits(referring, architecture):
            return referring
    return spec


_SQUARE = Selection(include=(Compare(op="==", left=IN, right=OUT),))


def _copied(drawing: _Drawing, spec: Spec) -> Spec:
    """Add a copy of a share in which a tensor is one of that share."""
    owner = drawing.any(*spec.shares)
    roles = ["A", "B", *drawing.own_roles(owner.via, Gain())]
    if isinstance(owner.via, Via) and owner.via.transform == "KE":
        roles += ["K_A", "K_B"]
    role = drawing.any(*roles)
    other = drawing.any(role, *roles)
    init = {name: start for name, start in owner.init.items() if name != role}
    if role != other:  # B of the owner mostly starts at zero.
        init |= {"A": {"B": Ref(ref="normal")}, "B": {"A": Ref(ref="zeros")}}.get(role, {})
    key = drawing.any(None, owner.key(other)) if other in ("A", "B") else None
    copied = owner.model_copy(
        update={
            "name": "again",
            "where": drawing.any(owner.where, _SQUARE),
            "keys": {name: key for name, key in owner.keys.items() if name != role},
            "init": init,
            "freeze": tuple(name for name in owner.freeze if name != role),
            "references": {role: Reference(role=other, share=owner.name, key=key)},
        }
    )
    # An owner may come later.
    shares = drawing.any((*spec.shares, copied), (copied, *spec.shares))
    return spec.model_copy(update={"shares": shares})


def _of_itself(drawing: _Drawing, spec: Spec) -> Spec:
    """Add a share whose B is its A."""
    of_itself = Share(
        name="same",
        where=_SQUARE,
        keys={"A": (Ref(ref=drawing.any("module", "in")),)},
        references={"B": Reference(role="A")},
        rank=drawing.any(1, 2),
        via=Via(transform="Core"),
    )
    return spec.model_copy(update={"shares": (*spec.shares, of_itself)})


def _with_magnitude(
    drawing: _Drawing, spec: Spec, targets: Sequence[Site], architecture: Architecture
) -> Spec:
    """Add a magnitude at some targets to a spec."""
    where = drawing.any(None, drawing.selection(targets))
    key = drawing.any((Ref(ref="module"),), (LAYER, KIND), (KIND,), (OUT,), (LAYER, OUT))
    statement = magnitude(key, where, plain=drawing.any(False, False, True))
    scaled = spec.model_copy(update={"shares": (*spec.shares, statement)})
    return scaled if fits(scaled, architecture) else spec


def _has_gate(via: Via | Places | None) -> bool:
    """Return whether a step has a gate, so that the update is not a matrix."""
    return via is not None and any(step.gate is not None for step in via.placed_steps.values())


def _with_ends(draw: st.DrawFn, spec: Spec, architecture: Architecture) -> Spec:
    """Extend a spec to heads and embeddings, unless it uses attributes that they lack."""
    kinds = {kind for site in architecture.outside for kind in site.kinds}
    # A model may bypass the module and read its position table directly.
    kinds = {kind for kind in kinds if "position" not in kind}
    if not kinds or any(
        step.transform == "Experts" or step.gate is not None
        for share in spec.shares
        for step in share.steps.values()
    ):
        return spec  # An update of an embedding must be a matrix.
    named = tuple(Ref(ref=kind) for kind in sorted(kinds - {*architecture.kinds}))
    assert spec.target is not None
    include = (*spec.target.include, *named)
    ways: list[dict[str, Any]] = [
        {"per": (Ref(ref="module"),)},
        {"per": (KIND,), "gain": Gain(out=1)},
        {"per": (), "via": Via(transform="SS")},
        {"per": (), "via": Via(transform="KE", options={"size": 8})},
        {"keys": {"A": (IN,), "B": (OUT,)}, "freeze": ("A",)},
    ]
    keys = draw(st.sampled_from(ways))
    share = Share(name="ends", where=Selection(include=named), rank=2, **keys)
    target = spec.target.model_copy(update={"include": include})
    wider = spec.model_copy(update={"target": target, "shares": (*spec.shares, share)})
    # Another share's key may depend on an attribute such as `layer`.
    return wider if fits(wider, architecture) else spec


def _with_train(draw: st.DrawFn, spec: Spec, architecture: Architecture) -> Spec:
    """Let a spec also train in full some parameters that its shares do not adapt."""
    parts = [Ref(ref=part) for part in ("norms", "biases", "heads", "embeddings")]
    others = [other.path.split(".") for other in architecture.others]
    kinds = [Ref(ref=kind) for kind in sorted({path[-2] for path in others if path[1:]})]
    some: st.SearchStrategy[Any] = st.sampled_from([*parts, *kinds]) | st.builds(
        Match, attribute=st.just("path"), pattern=st.sampled_from([".".join(p) for p in others])
    )
    inside = Compare(op="!=", left=LAYER, right=Ref(ref="none"))
    some |= st.builds(lambda part: And(all_of=(part, inside)), some)
    include = draw(st.lists(some, min_size=1, max_size=3, unique_by=str))
    exclude = draw(st.lists(some, max_size=1))
    train = Selection(include=tuple(include), exclude=tuple(exclude))
    trained = spec.model_copy(update={"train": train})
    if draw(st.sampled_from([False, False, False, True])):  # Without shares.
        trained = trained.model_copy(update={"target": None, "shares": ()})
    return trained if fits(trained, architecture) else spec


def fits(spec: Spec, architecture: Architecture) -> bool:
    """Return whether a spec has a plan for an architecture."""
    try:
        build_plan(spec, architecture)
    except BishareError:
        return False
    return True


_VIAS = vias()
