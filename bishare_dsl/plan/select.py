"""Match the names and conditions of a spec with the sites of a model."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence, Set
from functools import cached_property

from bishare_dsl import spec as m
from bishare_dsl.diagnostics import Problem
from bishare_dsl.diagnostics.codes import plan as codes
from bishare_dsl.models.parts import PARTS, parts, parts_outside
from bishare_dsl.models.site import Architecture, LeftOut, Site
from bishare_dsl.plan.vocabulary import Vocabulary
from bishare_dsl.spec.evaluate import EvaluationError, Scope, Value
from bishare_dsl.spec.site_sets import SiteSets
from bishare_dsl.spec.walk import Mention, names_read, parts_of


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
        self.spec = spec
        self.architecture = architecture
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
        declared = {*m.ATTRIBUTES, *self.params, *self.lets}
        return Vocabulary(self.architecture.name, self.site_sets, self.kinds, self.parts, declared)
