"""Match the names and conditions of a spec with the sites of a model."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence, Set
from functools import cached_property, partial

from bishare_dsl import spec as m
from bishare_dsl.diagnostics import Loc, Problem, advise, nearest
from bishare_dsl.diagnostics.codes import plan as codes
from bishare_dsl.models.parts import PARTS, kinds_called, parts, parts_outside
from bishare_dsl.models.site import Architecture, LeftOut, Site
from bishare_dsl.plan.vocabulary import Vocabulary, glob_remedies
from bishare_dsl.spec.evaluate import EvaluationError, Scope, Value
from bishare_dsl.spec.site_sets import SiteSets
from bishare_dsl.spec.walk import Mention, names_read, parts_of

_PATHS = "a path reads `model.layers.0.self_attn.q_proj`, and in a pattern `*` is any of it"


def attributes(site: Site) -> dict[str, Value]:
    """Return the attributes of a site that expressions can read."""
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
        "adapter": m.EACH_ADAPTER,
    }


class Sites:
    """A model's sites with their attributes and the spec's params and lets.

    ``sites`` includes a site outside of blocks only if the target names it: other conditions that happen
    to match it do not select it.
    """

    def __init__(self, spec: m.Spec, architecture: Architecture):
        self.spec, self.architecture = spec, architecture
        self.params = spec.values
        self.lets = frozenset(let.name for let in spec.lets)
        self.layers: dict[str, int] = {}
        """The number of blocks of each tower."""
        for site in architecture.sites:
            self.layers[site.tower] = max(site.block + 1, self.layers.get(site.tower, 0))
        self.parts = frozenset(PARTS) - self.lets  # A let replaces the part with its name.
        self._lets = {let.name: let.selection for let in spec.lets}
        self._lets_of_target = frozenset() if spec.target is None else self._lets_in(spec.target)
        self.named = frozenset() if spec.target is None else self.words_of(spec.target)
        kinds = frozenset(self.architecture.kinds)
        self.outside = tuple(
            site
            for site in architecture.outside
            if {*site.paths, *(site.kinds - kinds), *parts(site)} & self.named
        )
        self.sites = (*architecture.sites, *self.outside)
        self.site_sets = self._places(self.sites)
        self.scopes = dict(zip((s.path for s in self.sites), self.site_sets.scopes, strict=True))

    def words_of(self, selection: m.Selection) -> frozenset[str]:
        """Return the names, kinds and whole paths in a selection and in its lets.

        Names of params and lets are left out.
        """
        words: set[str] = set()
        for selected in (selection, *(self._lets[name] for name in self._lets_in(selection))):
            words |= {name for name, _ in names_read(selected, self.params)} - self.lets
            matches = (match for _, match in parts_of(selected, m.Match) if not match.is_glob)
            words |= {match.pattern for match in matches if match.attribute != "parent"}
        return frozenset(words)

    def _lets_in(self, selection: m.Selection) -> Set[str]:
        """Return the lets that a selection reads, directly or indirectly."""
        lets_read: set[str] = set()
        waiting = [selection]
        while waiting:
            names = {name for name, _ in names_read(waiting.pop(), self.params)}
            new = names & self.lets - lets_read
            lets_read |= new
            waiting += (self._lets[name] for name in new)
        return lets_read

    def _places(self, sites: Iterable[Site]) -> SiteSets:
        """Add scopes to sites, which need not be the model's."""
        return SiteSets([self._scope(site) for site in sites], self.spec.lets)

    def _scope(self, site: Site) -> Scope:
        played = parts(site)
        lets = {part: part in played for part in PARTS}
        lets |= dict.fromkeys(site.kinds - {site.kind}, True)  # A tied weight has several kinds.
        return self.scope_of(site, lets, {}, by_name=site.layer is None)

    def scope_of(
        self, site: Site, lets: dict[str, bool], more: Mapping[str, Value], *, by_name: bool = False
    ) -> Scope:
        """Create the scope of a site, without the spec's lets.

        Args:
            site: a site, which need not be the model's.
            lets: truth values of names in conditions.
            more: attributes that override the site's.
            by_name: whether globs skip it.
        """
        read = attributes(site)
        layers = self.layers.get(str(read["tower"]), self.architecture.layers)
        values = self.params | read | {"layers": layers, **more}
        return Scope(values, lets, layers, by_name)

    def tied_problems(self, target: Iterable[Site]) -> Iterator[Problem]:
        """Find tied weights of which the target names only some modules. A term acts in all of them."""
        for site in (site for site in target if site.tied):
            kinds = {path: path.rpartition(".")[2] for path in site.paths}
            words_for = {path: {path, kind, *parts_outside(kind)} for path, kind in kinds.items()}
            does = (
                "adapts it for all of them; to adapt one alone, give each its own weight before "
                "(`tie_word_embeddings = false`, and a copy)"
            )
            yield from self.partly_named("target", self.named, kinds, words_for, does)

    def partly_named(
        self,
        statement: str,
        words: Set[str],
        kinds: Mapping[str, str],
        said: Mapping[str, Set[str]],
        does: str,
    ) -> Iterator[Problem]:
        """Find a tied weight of which a statement names only some modules.

        Args:
            statement: its keyword.
            words: the words of the statement.
            kinds: the names of the modules, by the path of the weight in each.
            said: all words that name the weight there.
            does: the effect of a statement that names all of them.
        """
        unnamed = [path for path, names in said.items() if words.isdisjoint(names)]
        if len(said) > 1 and unnamed:
            names = dict.fromkeys(kinds.values())
            yield codes.TIED(
                names=" and ".join(f"`{name}`" for name in names),
                model=self.architecture.name,
                statement=statement,
                unnamed=" and ".join(f"`{path}`" for path in unnamed),
                loc=(statement,),
                help=f"`{statement} {', '.join(names)}` {does}",
            )

    def of(self, where: Iterable[int]) -> list[Site]:
        """Return the sites of a set, in the order of the model."""
        return [self.sites[i] for i in sorted(where)]

    def left_out_of_target(self, left_out: Sequence[LeftOut]) -> list[LeftOut]:
        """Return the modules that the target would select if they were sites."""
        if self.spec.target is None or not left_out:
            return []
        sites = [(site, left) for left in left_out if (site := Site.at(left.path, 1, 1))]
        selected, _ = self._places(site for site, _ in sites).partition(self.spec.target)
        return [sites[i][1] for i in sorted(selected)]

    @cached_property
    def target(self) -> Set[int]:
        """The sites of the target; all sites if it selects none or is wrong."""
        if self.spec.target is None:
            return self.site_sets.all
        try:
            return self.site_sets.select(self.spec.target) or self.site_sets.all
        except EvaluationError:
            return self.site_sets.all

    def domain_of(self, mention: Mention) -> Set[int]:
        """Return the sites at which a part of a selection is evaluated."""
        if mention.domain == "let":
            needed = self.spec.lets[int(mention.loc[1])].name in self._lets_of_target
        else:
            needed = mention.domain == "model"
        return self.site_sets.all if needed else self.target

    @cached_property
    def kinds(self) -> frozenset[str]:
        return frozenset(self.architecture.kinds).union(*(site.kinds for site in self.outside))

    @cached_property
    def vocabulary(self) -> Vocabulary:
        """The names and sites that the spec may refer to."""
        return Vocabulary(
            self.architecture.name,
            self.site_sets,
            self.kinds,
            self.parts,
            {*m.ATTRIBUTES, *self.params, *self.lets},
            self._no_such_kind,
            self._hint,
        )

    @cached_property
    def _hint(self) -> str:
        """Advice on naming modules in a model without blocks."""
        if self.architecture.sites:
            return _PATHS
        few = ", ".join(f'`path "{site.path}"`' for site in self.architecture.outside[:4])
        name = self.architecture.name
        return f"{name} has no linear layers in numbered blocks: name its modules, such as {few}"

    def _no_such_kind(self, name: str, loc: Loc, as_key: bool) -> Problem:
        model, sites = self.architecture, self.architecture.sites
        as_key = as_key or bool({"per", "keys"} & {*loc})
        more = (*m.ATTRIBUTES, "model") if as_key else ()
        place, names = ("key" if as_key else "kind"), [*self.kinds, *self.lets, *self.parts, *more]
        help = advise(place, name, names, few=0)
        here = kinds_called(name, sites)
        elsewhere = any(f".{name}." in f".{path}." for p in model.others for path in p.paths)
        if name in self.params:
            value = self.params[name]
            compared = f"kind == {name}" if value in self.kinds else f"{name} == {value}"
            compared = f"layer >= {name}" if isinstance(value, int) else compared
            help = f"`{name}` is a param, which a condition compares: `{compared}`"
        elif name in m.ATTRIBUTES and as_key:
            help = "parts of a key have commas between"
        elif name in m.ATTRIBUTES:
            help = f"`{name}` has values, which a condition compares by `==`, `<` or `in`"
        elif name in {site.parent for site in sites} and not as_key:
            help = f"write `parent {name}` for the linear layers in it"
        elif name in ("expert", "experts") and not as_key:
            has = any(site.expert is not None for site in sites)
            help = "write `expert != none`" if has else f"{model.name} has no experts"
        elif any(name in site.kinds for site in model.outside):
            help = f"it is in no layer: name it in `target`, as in `target {name}`"
        elif elsewhere and not (as_key or advise("kind", name)):
            help = f"shares adapt linear layers; `train {name}` trains it in full"
        elif here and not as_key:
            nested = len(here) > 1 and {"all_of", "any_of", "negated", "condition"} & {*loc}
            said = f"({' or '.join(here)})" if nested else ", ".join(here)
            help = f"in {model.name} this is `{said}`"
        elif help is None and as_key:
            help = "a key has attributes of a module, such as `layer` and `kind`"
        if help is None and (listed := nearest(name, self.kinds)):
            help = f"{listed}; or declare it above by `let`" if ": " in listed else listed
        if not sites and not as_key:
            named = {kind for site in model.outside for kind in site.kinds}
            help = nearest(name, named, few=0) or self._hint
        remedies = () if name.isidentifier() or as_key else glob_remedies(name, loc)
        unknown = partial(codes.NO_SUCH_SITE, what=f"`{name}`", model=model.name, loc=loc)
        return unknown(help=help, remedies=remedies)
