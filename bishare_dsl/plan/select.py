"""Which sites a spec's names and conditions mean, and which of them mean none."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cached_property

from bishare_dsl.diagnostics import Loc, Problem, nearest
from bishare_dsl.diagnostics.codes import plan as codes
from bishare_dsl.models.parts import PARTS, part_called, parts, parts_outside
from bishare_dsl.models.site import Architecture, Site
from bishare_dsl.plan.check import empty_range
from bishare_dsl.plan.settings import parts_of, refs
from bishare_dsl.spec import (
    ATTRIBUTES,
    EACH_ADAPTER,
    And,
    Compare,
    Expression,
    If,
    Match,
    Member,
    Not,
    Or,
    Range,
    Ref,
    Selection,
    Spec,
)
from bishare_dsl.spec.evaluate import EvaluationError, Scope, Value

_PATHS = "a path reads `model.layers.0.self_attn.q_proj`, and in a pattern `*` is any of it"


def attributes(site: Site) -> dict[str, Value]:
    """Return what expressions may read of a site."""
    return {
        "module": site.path,
        "path": site.path,
        "layer": "none" if site.layer is None else site.layer,
        "kind": site.kind,
        "parent": site.parent,
        "tower": site.tower,
        "expert": "none" if site.expert is None else site.expert,
        "in": site.d_in,
        "out": site.d_out,
        "adapter": EACH_ADAPTER,
    }


def located(problem: Problem, part: Expression, site: Site) -> Problem:
    """Say what leaves a site out at which an expression has no value: it is in no layer, or of no expert."""
    for word, none, lacks in (
        ("layer", site.layer is None, "in no layer"),
        ("expert", site.expert is None, "of no expert"),
    ):
        if none and any(ref.ref == word for _, ref in refs(part)):
            help = f"`{site.path}` is {lacks}: `{word} != none` leaves it out"
            return replace(problem, help=help)
    return problem


def _matched(pattern: str, known: Collection[str]) -> list[str]:
    """List the few words that a pattern would match, were it a regular expression with alternatives."""
    # What could take long to match is not tried.
    plain = not re.search(r"\)[*+{]", pattern) and sum(map(pattern.count, "*+{?")) < 3
    if not plain or not {*"|["} & {*pattern}:
        return []
    try:
        found = sorted(word for word in known if re.fullmatch(pattern, word))
    except re.error:
        return []
    return found if len(found) < 5 else []


class Sites:
    """A model's sites as a spec sees them: each with its attributes, the spec's params and lets.

    Those in no block are among its ``sites`` only where the target names them: a condition that fits them
    by chance does not mean them.
    """

    def __init__(self, spec: Spec, architecture: Architecture):
        self.architecture = architecture
        self.params = spec.values
        self.lets = frozenset(let.name for let in spec.lets)
        self.layers: dict[str, int] = {}
        """How many blocks each tower has: in each of them they are counted from 0."""
        for site in architecture.sites:
            self.layers[site.tower] = max(site.block + 1, self.layers.get(site.tower, 0))
        self.parts = frozenset(PARTS) - self.lets  # A let of the name of a part is in its place.
        self._lets = {let.name: let.selection for let in spec.lets}
        self.named = frozenset() if spec.target is None else self.words_of(spec.target)
        own = {*self.architecture.kinds, *self.lets}
        self.outside = tuple(
            site
            for site in architecture.outside
            if {*site.paths, *(site.kinds - own), *(parts(site) & self.parts)} & self.named
        )
        self.sites = (*architecture.sites, *self.outside)
        self.scopes: Mapping[str, Scope] = {
            site.path: self._scope(spec, site) for site in self.sites
        }

    def words_of(self, selection: Selection) -> frozenset[str]:
        """Return the words of a selection, of the lets in it, and its kinds and paths in full."""
        words: set[str] = set()
        waiting = [selection]
        while waiting:
            one = waiting.pop()
            found = {ref.ref for _, ref in refs(one)}
            waiting += (self._lets[name] for name in found - words if name in self._lets)
            words |= found
            matches = [match for _, match in parts_of(one, Match) if match.attribute != "parent"]
            words |= {match.pattern for match in matches if not match.is_glob}
        return frozenset(words)

    def _scope(self, spec: Spec, site: Site) -> Scope:
        played = parts(site)
        lets = {part: part in played for part in PARTS}
        lets |= dict.fromkeys(site.kinds - {site.kind}, True)  # A tied weight has several names.
        return self.scope_of(spec, site, lets, {}, by_name=site.layer is None)

    def scope_of(
        self,
        spec: Spec,
        site: Site,
        lets: dict[str, bool],
        more: Mapping[str, Value],
        *,
        by_name: bool = False,
    ) -> Scope:
        """Make what expressions may read of a site, with other attributes than it has.

        Args:
            spec: with its lets.
            site: which need not be one of the model's.
            lets: what selects it whatever the spec says.
            more: attributes.
            by_name: whether no glob means it.
        """
        layers = self.layers.get(site.tower, self.architecture.layers)
        values = self.params | attributes(site) | {"layers": layers, **more}
        scope = Scope(values, lets, layers, by_name)
        for let in spec.lets:  # In order: a let may name those above it.
            try:
                lets[let.name] = scope.selects(let.selection)
            except EvaluationError:  # `selection_problems` finds it again, and says where.
                lets[let.name] = False
        return scope

    def tied_problems(self, target: Sequence[Site]) -> Iterator[Problem]:
        """Find weights of several modules of which the target does not name all: a term is heard in each."""
        for site in target:
            unnamed = [
                path
                for path in (site.paths if site.tied else ())
                if not {path, kind := path.rpartition(".")[2], *parts_outside(kind)} & self.named
            ]
            if unnamed:
                kinds = dict.fromkeys(path.rpartition(".")[2] for path in site.paths)
                yield codes.TIED(
                    names=" and ".join(f"`{kind}`" for kind in kinds),
                    model=self.architecture.name,
                    statement="target",
                    unnamed=" and ".join(f"`{path}`" for path in unnamed),
                    loc=("target",),
                    help=f"`target {', '.join(kinds)}` adapts it for all of them; to adapt one alone, give "
                    "each a weight of its own before (`tie_word_embeddings = false`, and a copy)",
                )

    def select(self, sites: Sequence[Site], selection: Selection, loc: Loc = ()) -> list[Site]:
        """Return the sites that a selection selects, in their order."""
        return [site for site in sites if self.scopes[site.path].selects(selection, loc)]

    def would_select(self, path: str, spec: Spec) -> bool:
        """Tell whether the target would select what is at a path, were it a site."""
        site, target = Site.at(path, 1, 1), spec.target
        if site is None or target is None:
            return False
        try:
            return self._scope(spec, site).selects(target)
        except EvaluationError:
            return False

    def any_holds(self, sites: Sequence[Site], part: Expression, loc: Loc = ()) -> bool:
        """Tell whether some site fits a predicate."""
        return self._any(sites, lambda scope: scope.holds(part, loc))

    def _any(self, sites: Sequence[Site], fits: Callable[[Scope], bool]) -> bool:
        """Tell whether something is so at some site; at some it may have no value.

        Raises:
            EvaluationError: it has none at any.
        """
        errors: list[EvaluationError] = []
        for site in sites:
            try:
                if fits(self.scopes[site.path]):
                    return True
            except EvaluationError as error:
                errors.append(error)
        if errors and len(errors) == len(sites):
            raise errors[0]
        return False

    @cached_property
    def kinds(self) -> frozenset[str]:
        outside = (kind for site in self.outside for kind in site.kinds)
        return frozenset((*self.architecture.kinds, *outside))

    def selection_problems(self, selection: Selection, loc: Loc) -> Iterator[Problem]:
        """Find parts of a selection that match nothing in the whole model."""
        for name in ("include", "exclude"):
            for i, part in enumerate(getattr(selection, name)):
                yield from self.predicate_problems(part, (*loc, name, i))

    def predicate_problems(self, part: Expression, loc: Loc) -> Iterator[Problem]:
        """Find names, patterns and layers in a predicate that match nothing in the whole model."""
        site = None
        try:
            yield from self._predicate(part, loc)
            # So that no later evaluation can fail at one site, as that of a name cannot.
            for site in () if isinstance(part, Ref) else self.sites:
                self.scopes[site.path].holds(part, loc)
        except EvaluationError as error:
            yield error.problem if site is None else located(error.problem, part, site)

    def key_problems(self, key: Expression, loc: Loc) -> Iterator[Problem]:
        """Yield what is wrong with one key of a ``per``."""
        if isinstance(key, Ref):
            if not self._declared(key.ref) and key.ref not in self.kinds:
                yield self._no_such_kind(key.ref, loc, (*ATTRIBUTES, "model"))
        elif isinstance(key, Match | Member | Compare | And | Or | Not):
            yield from self.predicate_problems(key, loc)
        elif isinstance(key, If):
            yield from self.predicate_problems(key.condition, (*loc, "condition"))
            yield from self.key_problems(key.then, (*loc, "then"))
            yield from self.key_problems(key.otherwise, (*loc, "otherwise"))
        else:
            try:  # Planning looks whether the sites that are covered have a value.
                self._any(self.sites, lambda scope: abs(scope.number(key, loc)) >= 0)
            except EvaluationError as error:
                yield error.problem

    def _predicate(self, part: Expression, loc: Loc) -> Iterator[Problem]:
        sites = self.sites
        match part:
            case Ref(ref=name):
                found = self.any_holds(sites, part) if name in self.parts else name in self.lets
                if not found and name not in self.kinds:
                    yield self._no_such_kind(name, loc)
            case Match(attribute=attribute, pattern=pattern):
                if not self.any_holds(sites, part, loc):
                    known = {str(attributes(site)[attribute]) for site in sites}
                    glob = re.sub(r"\\?\.\*", "*", pattern.strip("^$")).replace("\\.", ".")
                    help_line = nearest(pattern, known) or _PATHS
                    if meant := _matched(pattern, known):
                        names = ", ".join(meant)
                        help_line = f"a pattern is not a regular expression: list them, `{names}`"
                    if glob != pattern and self.any_holds(
                        sites, Match(attribute=attribute, pattern=glob)
                    ):
                        help_line = f'a pattern is not a regular expression: `{attribute} "{glob}"`'
                    yield codes.NO_SUCH_SITE(
                        what=f"`{attribute} {pattern}`",
                        model=self.architecture.name,
                        loc=loc,
                        help=help_line,
                    )
            case And(all_of=parts):
                for i, inner in enumerate(parts):
                    yield from self._predicate(inner, (*loc, "all_of", i))
            case Or(any_of=parts):
                for i, inner in enumerate(parts):
                    yield from self._predicate(inner, (*loc, "any_of", i))
            case Not(negated=inner):
                yield from self._predicate(inner, (*loc, "negated"))
            case Member(value=subject, among=among):
                for i, item in enumerate(among):
                    yield from self.item_problems(subject, item, sites, (*loc, "among", i))
            case Compare(left=left, right=right):
                if self._is_layer(left) or self._is_layer(right):
                    if not self.any_holds(sites, part, loc):
                        yield self._no_such_layer("this comparison", loc)
                else:
                    # A word compared with an attribute must be one of its values.
                    for subject, word, name in ((left, right, "right"), (right, left, "left")):
                        if isinstance(word, Ref) and not self._declared(word.ref):
                            yield from self.item_problems(subject, word, sites, (*loc, name))
                    self.any_holds(sites, part, loc)
            case _:
                self.any_holds(sites[:1], part, loc)  # Raises: a number is not a predicate.

    def item_problems(
        self, subject: Expression, item: Range | Expression, sites: Sequence[Site], loc: Loc
    ) -> Iterator[Problem]:
        """Find what the subject never has, a value or range; a range of layers must lie inside the model."""
        if isinstance(item, Range) and self._is_layer(subject):
            towers = [
                self.scopes[path] for path in {site.tower: site.path for site in sites}.values()
            ]
            ends = [(*scope.bounds(item, subject, loc), scope) for scope in towers]
            if item.first is not None and item.last is not None and all(a > b for a, b, _ in ends):
                scope = towers[0]
                yield empty_range(scope.number(item.first), scope.number(item.last), loc)
                return
            if not any(0 <= first <= last < scope.layers for first, last, scope in ends):
                yield self._no_such_layer("this range of layers", loc)
                return
        scopes = [self.scopes[site.path] for site in sites]
        if any(s.includes(item, s.value(subject, loc), subject, loc) for s in scopes):
            return
        if self._is_layer(subject):
            what = "this range of layers" if isinstance(item, Range) else "this layer"
            yield self._no_such_layer(what, loc)
            return
        known = {str(scope.value(subject, loc)) for scope in scopes}
        slip = "did you mean `layer`? `layers` is their number"
        help_line = slip if subject == Ref(ref="layers") else None
        shown = "this range" if isinstance(item, Range) else f"`{scopes[0].value(item, loc)}`"
        yield codes.NO_SUCH_SITE(
            what=shown,
            model=self.architecture.name,
            loc=loc,
            help=help_line or nearest(shown.strip("`"), known),
        )

    def _declared(self, name: str) -> bool:
        return name in {*ATTRIBUTES, *self.params, *self.lets, *self.parts}

    @staticmethod
    def _is_layer(part: Expression) -> bool:
        return isinstance(part, Ref) and part.ref == "layer"

    def _no_such_kind(self, name: str, loc: Loc, more: Sequence[str] = ()) -> Problem:
        help_line = nearest(name, [*self.kinds, *self.lets, *more])
        if more and not (help_line or "").startswith("did"):
            help_line = "such as `per layer`, `per kind`, `per layer, kind` or `per layer // 4`"
        if name in ("all", "linear", "all_linear"):
            help_line = 'every linear layer is `kind "*"`'
        elif {*"*?"} & {*name}:
            help_line = f'a pattern stands behind what it is of: `kind "{name}"`'
        elif name in ATTRIBUTES:
            help_line = "compare it, as in `layer in 0..15` or `kind == q_proj`"
        elif any(name in site.kinds for site in self.architecture.outside):
            help_line = (
                f"it is in no layer, so that it takes part where `target` names it: `target {name}`"
            )
        elif part := part_called(name):
            sites = self.architecture.sites
            here = dict.fromkeys(f"`{site.kind}`" for site in sites if part in parts(site))
            help_line = f"`{part}` means it in any model, here {', '.join(here) or 'nothing'}"
        elif name in ("attention", "attn") and not more:
            help_line = "the parts of attention are `attention_inputs` and `attention_outputs`"
        if name in {site.parent for site in self.architecture.sites}:
            help_line = f"`parent {name}` means the linear layers in it"
        model = self.architecture.name
        return codes.NO_SUCH_SITE(what=f"`{name}`", model=model, loc=loc, help=help_line)

    def _no_such_layer(self, what: str, loc: Loc) -> Problem:
        layers = self.architecture.layers
        return codes.NO_SUCH_LAYER(
            what=what, model=self.architecture.name, last=layers - 1, layers=layers, loc=loc
        )
