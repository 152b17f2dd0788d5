"""Resolve a spec against a model's sites. All sharing is decided here."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence, Set
from contextlib import contextmanager
from dataclasses import field, replace
from typing import TypeAlias

from bishare_dsl import spec as m
from bishare_dsl.diagnostics import (
    Loc,
    PlanError,
    Problem,
    SpecError,
    raise_errors,
)
from bishare_dsl.diagnostics.codes import plan as codes
from bishare_dsl.diagnostics.record import Record
from bishare_dsl.models.parts import parts_outside
from bishare_dsl.models.site import Architecture, LeftOut, Site, layers_of
from bishare_dsl.plan.check import check, rank_of
from bishare_dsl.plan.facts import (
    JoinedTowers,
    NeedsMatrix,
    NoMagnitude,
    NoPool,
    NothingSelected,
    UnequalPool,
)
from bishare_dsl.plan.in_full import train
from bishare_dsl.plan.names import attribute, key_name, owner, short_path, start_name
from bishare_dsl.plan.plan import Plan, Pool, Tensor, Term
from bishare_dsl.plan.references import comparable, key_of, key_text, owner_of, tensor_text
from bishare_dsl.plan.select import Sites
from bishare_dsl.plan.settings import ShareSettings, SpecSettings, at_via, fitted, settings_read
from bishare_dsl.plan.structures import why_no_structure
from bishare_dsl.plan.via import located
from bishare_dsl.plan.vocabulary import key_value
from bishare_dsl.spec import meant
from bishare_dsl.spec.evaluate import EvaluationError, Scope, Value
from bishare_dsl.spec.spec import Key
from bishare_dsl.spec.walk import mentions, names_read
from bishare_dsl.transforms import (
    GAIN_OUT,
    GAIN_RANK,
    Own,
    Transform,
    Width,
    guard,
    shape_of,
)
from bishare_dsl.transforms.protocol import check_own


def build_plan(spec: m.Spec, architecture: Architecture) -> tuple[Plan, tuple[Problem, ...]]:
    """Resolve a spec for a model, and return the plan and the warnings.

    Raises:
        SpecError: the spec is wrong for any model. The error includes problems with names of this model.
        PlanError: the spec does not fit the model.
    """
    spec_settings = SpecSettings(spec)
    check(spec_settings)
    wrong = spec_settings.failed
    sites = Sites(spec, architecture)
    spec_settings.add(_names(spec_settings, sites))
    raise_errors(SpecError if wrong else PlanError, spec_settings.problems)

    selected = _selected(spec, sites)
    target = sites.of(selected)
    tensors: list[Tensor] = []
    pools: list[Pool] = []
    terms: list[Term] = []
    without_rank: set[str] = set()  # paths of sites where a share has rank 0
    if not target and (spec.target is not None or spec.shares):
        fact = NothingSelected(spec.target) if spec.target is not None else None
        nothing = codes.COVERS_NOTHING(
            what="`target`", model=architecture.name, loc=("target",), fact=fact
        )
        spec_settings.add([nothing])
    else:
        spec_settings.add(sites.tied_problems(target))
        spec_settings.add(_idle_exceptions(sites, spec))
        spec_settings.add(_left_out(sites))
        spec_settings.add(meant.shares(spec, sites.kinds | sites.parts))
        for one in _plan_shares(spec_settings, sites, selected):
            tensors += one.tensors
            pools += one.pools
            terms += one.terms
            without_rank |= one.without_rank
        layers = {site.path: site.layer for site in target}
        placed = ((term.share, term.site, layers[term.site]) for term in terms)
        spec_settings.add(meant.meeting(spec, placed))
        # The magnitude scales all terms, so it comes last.
        terms.sort(key=lambda term: term.is_magnitude)
        spec_settings.add(_no_matrices(spec, target, terms))
        spec_settings.add(_unscaled(spec, target, terms))
    raise_errors(PlanError, spec_settings.problems)
    adapted = {term.site for term in terms}
    trained, whole, problems = train(spec, sites, adapted)
    spec_settings.add(problems)
    raise_errors(PlanError, spec_settings.problems)
    if not any(tensor.trainable for tensor in (*tensors, *whole)) or not (terms or spec.train):
        raise PlanError(_nothing_to_train(spec, terms))
    spec_settings.add(_uncovered(target, adapted, without_rank, alone=len(spec.shares) == 1))
    plan = Plan(
        spec=spec.name,
        params=spec.values,
        base=architecture,
        sites=tuple(target),
        tensors=(*tensors, *whole),
        pools=tuple(pools),
        terms=tuple(terms),
        trained=tuple(trained),
    )
    return plan, tuple(spec_settings.problems)


def _selected(spec: m.Spec, sites: Sites) -> Set[int]:
    """Return the sites that the target selects.

    Raises:
        PlanError: it has no value at one of the sites.
    """
    if not spec.target:
        return frozenset()
    try:
        return sites.site_sets.select(spec.target, ("target",))
    except EvaluationError as error:  # `_names` reports most.
        raise PlanError(error.problem) from error


def _plan_shares(spec_settings: SpecSettings, sites: Sites, selected: Set[int]) -> list[_SharePlan]:
    """Compute the tensors, pools and terms of every share. Problems go to the spec_settings."""
    short = _short(sites.sites)
    planned = [
        _SharePlan(spec_settings, index, sites, short)
        for index in range(len(spec_settings.spec.shares))
    ]
    for one in planned:
        one.make_tensors(selected)
    for one in planned:
        one.make_terms(planned)
    for one in planned:
        one.own_for(planned)
    return planned


def _nothing_to_train(spec: m.Spec, terms: Sequence[Term]) -> Problem:
    """Return the problem of a spec that trains no parameter, with the reason."""
    loc: Loc = ("shares", 0, "rank")
    why = "no share has a rank above 0"
    if terms:
        loc = ("shares", 0, "freeze")
        why = "every tensor is frozen"
    elif not spec.shares:
        loc = ("train",)
        why = "`train none` trains no parameter, and the spec has no share"
    return codes.NOTHING_TO_TRAIN(spec=spec.name, why=why, loc=loc)


def _names(spec_settings: SpecSettings, sites: Sites) -> Iterator[Problem]:
    """Find every name, pattern, layer and expert of the spec that the model does not have."""
    # `train` checks its own mentions, and some mentions concern no module.
    wrong = {problem.loc for problem in spec_settings.problems if problem.severity == "error"}
    asked = [one for one in spec_settings.mentions if one.domain not in (None, "parameters")]
    asked = [it for it in asked if wrong.isdisjoint(it.loc[:n] for n in range(1, len(it.loc) + 1))]
    problems = sites.vocabulary.problems(asked)
    yield from problems
    # No later evaluation can then fail at a site.
    faulty: set[Loc] = set()  # every part with a problem in it
    for problem in problems:
        faulty.update(problem.loc[:length] for length in range(len(problem.loc) + 1))
    for mention in asked:
        if mention.loc not in faulty:
            yield from sites.vocabulary.without_value(mention, sites.domain_of(mention))


def _is_embedding(site: Site) -> bool:
    """Whether a module that uses the weight looks up its rows, as far as its name tells."""
    in_block = site.layer is not None
    return not in_block and any("embeddings" in parts_outside(kind) for kind in site.kinds)


def _no_matrices(spec: m.Spec, target: Sequence[Site], terms: Sequence[Term]) -> Iterator[Problem]:
    """Report modules that only a matrix can adapt and a share with another update, once per share."""
    sites = {site.path: site for site in target}
    index_of = {share.name: index for index, share in enumerate(spec.shares)}
    reported: set[tuple[str, NeedsMatrix]] = set()
    for term in terms:
        if term.linear or term.is_magnitude:
            continue
        site = sites[term.site]
        if site.expert is not None:
            fact = NeedsMatrix.EXPERT
            why = "experts are computed together, each by one matrix"
        elif _is_embedding(site):
            fact = NeedsMatrix.EMBEDDING
            why = "an embedding looks up rows of one"
        else:
            continue
        if (term.share, fact) in reported:
            continue
        reported.add((term.share, fact))
        loc: Loc = ("shares", index_of[term.share], "via")
        yield codes.NO_MATRIX(share=term.share, path=site.path, why=why, loc=loc, fact=fact)


def _unscaled(spec: m.Spec, target: Sequence[Site], terms: Sequence[Term]) -> Iterator[Problem]:
    """Report sites that a magnitude cannot scale, once per reason."""
    scaled = {term.site: term for term in terms if term.is_magnitude}
    other = {term.site: term for term in terms if not (term.linear or term.is_magnitude)}
    loc: Loc = ("shares", next((i for i, s in enumerate(spec.shares) if s.is_magnitude), 0))
    problems: dict[str, Problem] = {}
    for site in target:
        term = scaled.get(site.path)
        if term is None:
            continue
        if site.expert is not None:
            fact = NoMagnitude.EXPERT
            why = "experts are computed together, without an output of each module"
        elif _is_embedding(site):
            fact = NoMagnitude.EMBEDDING
            why = "an embedding looks up rows, and multiplies nothing by a weight"
        elif site.path in other and not term.options["plain"]:
            fact = NoMagnitude.NOT_A_MATRIX
            share = other[site.path].share
            why = f"what share `{share}` adds there is not a matrix, whose rows have a length"
        else:
            continue
        problem = codes.NO_MAGNITUDE(path=site.path, why=why, loc=loc, fact=fact)
        problems.setdefault(why, problem)
    yield from problems.values()


def _idle_exceptions(sites: Sites, spec: m.Spec) -> Iterator[Problem]:
    """Find parts of lists that select nothing, and exceptions that remove nothing from the list."""
    selections: list[tuple[Loc, m.Selection | None]] = [(("target",), spec.target)]
    selections += ((("lets", i, "selection"), let.selection) for i, let in enumerate(spec.lets))
    selections += ((("shares", i, "where"), share.where) for i, share in enumerate(spec.shares))
    for loc, selection in selections:
        if selection is None:
            continue
        for i, part in enumerate(selection.include if len(selection.include) > 1 else ()):
            if isinstance(part, m.And) and not sites.site_sets.partition(part)[0]:
                yield codes.COVERS_NOTHING(
                    what="this",
                    model=sites.architecture.name,
                    loc=(*loc, "include", i),
                    fact=NothingSelected(m.Selection(include=(part,))),
                )
        if not selection.exclude:
            continue
        included, _ = sites.site_sets.partition(selection.model_copy(update={"exclude": ()}))
        if loc[0] == "shares":
            included &= sites.target
        for i, part in enumerate(selection.exclude):
            if included.isdisjoint(sites.site_sets.partition(part)[0]):
                yield codes.EXCLUDES_NOTHING(loc=(*loc, "exclude", i))


def _left_out(sites: Sites) -> Iterator[Problem]:
    """Warn of modules that match the target but are not sites."""
    grouped: dict[tuple[str, str], list[LeftOut]] = {}
    for left in sites.left_out_of_target(sites.architecture.left_out):
        pattern = re.sub(r"\.\d+(?=\.)", ".*", left.path)
        grouped.setdefault((pattern, left.why), []).append(left)
    for (pattern, why), parts in grouped.items():
        path = pattern if len(parts) > 1 else parts[0].path
        size = sum(part.parameters for part in parts)
        yield codes.LEFT_OUT(what=f"`{path}` ({size:,} parameters)", why=why, loc=("target",))


def _uncovered(
    target: Sequence[Site], covered: Set[str], without_rank: Set[str], *, alone: bool
) -> Iterator[Problem]:
    """Warn of targets without a term. ``alone`` says that the spec has one share only."""
    missing = [site for site in target if site.path not in covered]
    if alone:  # Its `where` leaves modules of a kind out on purpose.
        kinds = {site.kind for site in target if site.path in covered}
        missing = [s for s in missing if s.kind not in kinds or s.path in without_rank]
    if missing:
        counts = Counter(site.kind for site in missing)
        kinds_missing = []
        for kind, count in counts.items():
            noun = "module" if count == 1 else "modules"
            kinds_missing.append(f"`{kind}` ({count} {noun})")
        what = ", ".join(kinds_missing)
        layers = ["none" if layer is None else str(layer) for layer in layers_of(missing)]
        more = ", …" if len(layers) > 4 else ""
        why = "`where` of no share selects these"
        if all(site.path in without_rank for site in missing):
            why = "every share has rank 0 for these"
        where = f"{', '.join(layers[:4])}{more}"
        yield codes.UNCOVERED(what=what, why=why, layers=where, loc=("target",))


def _short(sites: Sequence[Site]) -> dict[str, str]:
    """Map the path of each site to its name in the names of tensors."""
    short = {site.path: short_path(site.path) for site in sites}
    count = Counter(short.values())
    # Two towers may both have a `layers.0`.
    return {path: name if count[name] == 1 else path for path, name in short.items()}


class _TermSite(Record, frozen=False):
    """A share at a site, with the shapes and names of its tensors by role."""

    site: Site
    rank: int
    resolved: ShareSettings
    width: Width
    rows: int = 0
    own: Mapping[str, Own] = field(default_factory=dict)
    tensors: dict[str, str] = field(default_factory=dict)


def _owner(users: Iterable[_TermSite]) -> str:
    return owner(tuple(path for place in users for path in place.site.paths))


_Groups: TypeAlias = dict[tuple[Value, ...], list[_TermSite]]


class _SharePlan:
    """The part of a plan that one share contributes. Problems go to the spec_settings."""

    def __init__(
        self, spec_settings: SpecSettings, index: int, sites: Sites, short: Mapping[str, str]
    ):
        self.spec_settings = spec_settings
        self.index = index
        self.sites = sites
        self.short = short
        self.share: m.Share = spec_settings.spec.shares[index]
        self.loc: Loc = ("shares", index)
        self.tensors: list[Tensor] = []
        self.pools: list[Pool] = []
        self.terms: list[Term] = []
        self.without_rank: set[str] = set()  # paths of sites where the rank is 0
        self._taken: set[str] = set()  # the attributes of pooled tensors
        self._values: dict[Key, list[tuple[Value, ...]]] = {}  # values of keys at each site
        # Shapes of pools, by role and by the ranks and widths of their sites.
        self._shapes: dict[object, Own] = {}
        self._places: list[_TermSite] = []
        # Names of tensors, by role and by the value of its key.
        self._names: dict[str, dict[tuple[object, ...], str]] = {}
        self._taken_from: set[str] = set()  # names of tensors that are another share's

    def make_tensors(self, target: Set[int]) -> None:
        """Compute the tensors and pools at the sites of the target."""
        with self._reporting():
            self._make_tensors(target)

    def make_terms(self, planned: Sequence[_SharePlan]) -> None:
        """Compute the terms. ``planned`` are all shares with their tensors, which references take."""
        if self.share.references and self.spec_settings.failed:
            return  # The tensors may be missing that it takes.
        with self._reporting():
            self._make_terms(planned)

    def own_for(self, planned: Sequence[_SharePlan]) -> None:
        """Give the tensors that other shares use to a module that contains all of their sites."""
        borrowed = {name for one in planned for name in one._taken_from}
        for i, tensor in enumerate(self.tensors):
            if tensor.name in borrowed:
                users = []
                for one in planned:
                    users += [p for p in one._places if tensor.name in p.tensors.values()]
                self.tensors[i] = tensor.model_copy(update={"owner": _owner(users)})

    @contextmanager
    def _reporting(self) -> Iterator[None]:
        """Add the problems that are raised to the spec's."""
        try:
            yield
        except EvaluationError as error:
            self.spec_settings.add([error.problem])
        except PlanError as error:
            self.spec_settings.add(error.problems)
        except SpecError as error:  # a package's transform
            self.spec_settings.add(at_via(self.spec_settings.spec, self.index, error))

    def _make_tensors(self, target: Set[int]) -> None:
        covered = self._covered(target)
        ranks = self._ranks(covered)
        self.without_rank = {path for path, rank in ranks.items() if rank == 0}
        at_ranks = {
            rank: self.spec_settings.for_rank(self.index, rank)
            for rank in sorted({*ranks.values()} - {0})
        }
        resolved = {rank: settings for rank, settings in at_ranks.items() if settings is not None}
        if len(resolved) < len(at_ranks) or not at_ranks:
            return
        sites = [site for site in self.sites.of(covered) if ranks[site.path]]
        shapes = {(ranks[site.path], Width(site.d_in, site.d_out)) for site in sites}
        resolved = {rank: fitted(settings, shapes) for rank, settings in resolved.items()}
        settings = self._settings(covered, ranks, resolved)
        places = [
            _TermSite(s, ranks[s.path], settings[s.path], Width(s.d_in, s.d_out)) for s in sites
        ]
        # Compute once per rank and width, of which a model has few.
        first: dict[tuple[int, Width], _TermSite] = {}
        for place in places:
            if (equivalent := first.setdefault((place.rank, place.width), place)) is place:
                self._own(place)
            place.rows = equivalent.rows
            place.own = equivalent.own
        # The pooled roles of a transform do not depend on the rank.
        pooled = next(iter(resolved.values())).transform.pooled
        for role in dict.fromkeys((*pooled, *self.share.keys)):
            if role in self.share.references:
                continue
            groups = self._groups(role, self.share.key(role), places)
            for key, members in groups.items():
                self._pool(role, key, members, places)
            self._towers(role, groups)
        for place in places:
            self._private(place)
        self._places = places

    def _make_terms(self, planned: Sequence[_SharePlan]) -> None:
        places = self._places
        if not places:
            return
        for role in self.share.references:
            self._refer(role, planned)
        for place in places:
            order = [*place.resolved.transform.pooled, *place.own]
            place.tensors = {role: place.tensors[role] for role in order if role in place.tensors}
            self._term(place)
        if places[0].resolved.subtracted:  # Then it is so at every rank.
            self._subtract([*self.terms])
        resolved = {place.rank: place.resolved for place in places}
        for rank, at_rank in sorted(resolved.items()):
            widths = [place.width for place in places if place.rank == rank]
            self._review(rank, at_rank.transform, widths)

    def _refer(self, role: str, planned: Sequence[_SharePlan]) -> None:
        """Give the sites the tensors of another pool in a role.

        Raises:
            PlanError: a site finds no tensor, or one of another shape (BS324).
            EvaluationError: the key has no value at a site.
        """
        owner = owner_of(self.spec_settings.spec, self.index, role)
        lender = planned[owner.index]
        reference = self.share.references[role]
        loc: Loc = (*self.loc, "references", role)
        if reference.key is not None:
            key = reference.key
            loc = (*loc, "key")
        elif lender._places:
            transform = lender._places[0].resolved.transform
            key = key_of(lender.share, owner.role, transform)
        else:
            key = ()
        names = lender._names.get(owner.role, {})
        users: dict[str, list[_TermSite]] = {}
        missing: list[_TermSite] = []
        why = ""
        for place in self._places:
            if not self._has(role, place):
                continue
            scope = self.sites.scopes[place.site.path]
            value = tuple(key_value(scope, part, (*loc, i)) for i, part in enumerate(key))
            name = names.get(comparable(value))
            if name is None:
                missing.append(place)
                if names:
                    why = why or f"no tensor there has the key `{key_text(value)}`"
                else:
                    why = "the model has no such tensor"
            else:
                users.setdefault(name, []).append(place)
        text = tensor_text(reference.share, reference.role)
        if missing:
            path = missing[0].site.path
            fact = self._no_pool(missing)
            raise self._not_the_tensor(role, text, path, why, loc, fact)
        tensors = {tensor.name: tensor for tensor in lender.tensors}
        for name, members in users.items():
            self._fit(role, tensors[name], members)
            for place in members:
                place.tensors[role] = name
        self._taken_from |= users.keys()

    def _has(self, role: str, place: _TermSite) -> bool:
        """Return whether a site has a tensor of a role."""
        return role in place.resolved.transform.pooled or role in place.own

    def _fit(self, role: str, tensor: Tensor, members: Sequence[_TermSite]) -> None:
        """Check that a tensor has the shape that these sites need in a role.

        Raises:
            PlanError: it has another shape (BS324).
        """
        ranks = sorted({place.rank for place in members})
        rows, columns = tensor.shape
        try:
            if len(ranks) > 1:
                raise ValueError(f"its modules have the ranks {', '.join(map(str, ranks))}")
            shape = self._shared_shape(role, members)
            if (shape.rows, shape.columns) != tensor.shape:
                needed = f"{shape.rows} x {shape.columns}"
                raise ValueError(f"the shape must be {needed}, and is {rows} x {columns}")
        except ValueError as error:
            path = members[0].site.path
            loc = (*self.loc, "references", role)
            raise self._not_the_tensor(role, tensor.name, path, str(error), loc) from error

    def _no_pool(self, missing: Collection[_TermSite]) -> NoPool:
        """Describe the sites that find no tensor."""
        without = {place.site.path for place in missing}
        outside = {place.site.layer for place in missing}
        served = [place.site for place in self._places if place.site.path not in without]
        layers = [site.layer for site in served if site.layer is not None]
        if not layers:
            return NoPool(self.index, None)
        first = min(layers)
        last = max(layers)
        if not outside.isdisjoint((None, *range(first, last + 1))):
            return NoPool(self.index, None)
        return NoPool(self.index, (first, last))

    def _not_the_tensor(
        self, role: str, tensor: str, path: str, why: str, loc: Loc, fact: NoPool | None = None
    ) -> PlanError:
        """Return the error of a reference to a tensor that a site cannot have."""
        name = self.share.name
        problem = codes.NOT_THE_TENSOR(
            role=role, share=name, tensor=tensor, path=path, why=why, loc=loc, fact=fact
        )
        return PlanError(problem)

    def _covered(self, target: Set[int]) -> Set[int]:
        """Return the sites that the share covers."""
        where = self.share.where
        if where is None:
            return target
        loc: Loc = (*self.loc, "where")
        places = self.sites.site_sets
        covered = places.select(where, loc, target)
        if not covered:
            named = self.sites.words_of(where) - {"in", "out"}  # Nobody can name a width.
            count = len(self.sites.architecture.sites)
            outside = bool(named) and any(i < count for i in places.partition(where)[0])
            problem = codes.COVERS_NOTHING(
                what=f"share `{self.share.name}`",
                model=self.sites.architecture.name,
                loc=loc,
                fact=NothingSelected(where, outside=outside),
            )
            raise PlanError(problem)
        for i, part in enumerate(where.include):
            if target.isdisjoint(places.partition(part)[0] or target):
                why = f"share `{self.share.name}` means them"
                left_out = codes.LEFT_OUT(
                    what="all modules that fit this", why=why, loc=(*loc, "include", i)
                )
                self.spec_settings.add([left_out])
        return covered

    def _settings(
        self, covered: Set[int], ranks: Mapping[str, int], resolved: Mapping[int, ShareSettings]
    ) -> dict[str, ShareSettings]:
        """Return the settings at each site with a rank, by path.

        Args:
            covered: the sites of the share.
            ranks: its rank at each, by path.
            resolved: its settings at each rank, in which what depends on the site has no value yet.

        Raises:
            PlanError: a scale or a dropout has no value at a site, or a wrong one.
        """
        settings = {path: resolved[rank] for path, rank in ranks.items() if rank}
        parts = self.spec_settings.read_at_sites(self.index)
        if not parts:
            return settings
        for group in self.sites.site_sets.groups(parts, "number", covered):
            at_ranks: dict[int, ShareSettings] = {}
            for i in group:
                path = self.sites.sites[i].path
                rank = ranks[path]
                if rank and rank not in at_ranks:
                    scope = self._scope(i, covered)
                    at_ranks[rank] = self.spec_settings.at_site(
                        self.index, resolved[rank], rank, scope
                    )
                if rank:
                    settings[path] = at_ranks[rank]
        return settings

    def _key_loc(self, role: str) -> Loc:
        return (*self.loc, *(("keys", role) if role in self.share.keys else ("per",)))

    def _groups(self, role: str, key: Key, places: Sequence[_TermSite]) -> _Groups:
        """Group the sites with a tensor of this role by the values of the key."""
        groups: _Groups = {}
        loc = self._key_loc(role)
        pooled = role in places[0].resolved.transform.pooled
        # Roles with the same key share its values.
        values = self._values.get(key) or [
            tuple(key_value(scope, part, (*loc, i)) for i, part in enumerate(key))
            for scope in (self.sites.scopes[place.site.path] for place in places)
        ]
        self._values[key] = values
        for place, value in zip(places, values, strict=True):
            if pooled or role in place.own:
                groups.setdefault(value, []).append(place)
        return groups

    def _towers(self, role: str, groups: _Groups) -> None:
        """Warn of a pool that joins a layer of one tower and the layer of that number in another."""
        key = self.share.key(role)
        layer = m.Ref(ref="layer")
        if layer not in key:
            return
        loc = (*self._key_loc(role), key.index(layer))
        for members in groups.values():
            towers = list(dict.fromkeys(place.site.tower for place in members))
            if len(towers) > 1:
                problem = codes.JOINS_TOWERS(
                    layer=members[0].site.layer,
                    towers=" and ".join(f"`{tower}`" for tower in towers),
                    loc=loc,
                    fact=JoinedTowers(),
                )
                self.spec_settings.add([problem])
                return

    def _pool(
        self,
        role: str,
        key: tuple[Value, ...],
        members: Sequence[_TermSite],
        places: Sequence[_TermSite],
    ) -> None:
        """Add a pool and its tensor. ``places`` are all sites of the share."""
        paths = tuple(place.site.path for place in members)
        shown = tuple(self.short[v] if v == paths[0] else v for v in key)
        key_part = key_name(self.share.key(role), shown)
        pool = ".".join(filter(None, (self.share.name, key_part)))
        while attribute(f"{pool}.{role}") in self._taken:  # `a.b__c` and `a__b.c`
            pool += "_"
        name = f"{pool}.{role}"
        self._taken.add(attribute(name))
        shape_key = role, *((place.rank, place.width) for place in members)
        shape = self._shapes.get(shape_key) or self._shape(pool, role, members, places)
        self._shapes[shape_key] = shape
        if members[0].resolved.starts[role].init in m.SINGULAR:
            self._singular(role, shape, members)
        self._tensor(name, role, shape, members[0], _owner(members))
        self.pools.append(
            Pool(share=self.share.name, role=role, key=key, tensor=name, members=paths)
        )
        self._names.setdefault(role, {})[comparable(key)] = name
        for place in members:
            place.tensors[role] = name

    def _shape(
        self, pool: str, role: str, members: Sequence[_TermSite], places: Sequence[_TermSite]
    ) -> Own:
        """Return the shape of a pool's tensor.

        Raises:
            PlanError: the sites cannot share it (BS305, BS306).
        """
        ranks = sorted({place.rank for place in members})
        if len(ranks) > 1:
            listed = ", ".join(map(str, ranks))
            fact = UnequalPool(self.index, role, "rank")
            loc: Loc = (*self.loc, "rank")
            raise PlanError(codes.RANK_VARIES(pool=pool, found=listed, loc=loc, fact=fact))
        try:
            return self._shared_shape(role, members)
        except ValueError as error:
            what = f"have one {role} for all modules of `{pool}`"
            if len(members) == 1:
                what = f"have a factor {role} at `{members[0].site.path}`"
            key = self.share.key(role)
            constant = bool(key) and len({*self._values[key]}) == 1
            fact = UnequalPool(self.index, role, "width", constant=constant)
            raise self._unfit(what, error, fact) from error

    def _shared_shape(self, role: str, members: Sequence[_TermSite]) -> Own:
        """Return the shape of the tensor that these sites share.

        Raises:
            ValueError: the sites cannot share it.
        """
        rank = members[0].rank
        transform = members[0].resolved.transform
        if role not in transform.pooled:
            shape, *others = dict.fromkeys(place.own[role] for place in members)
            if others:
                sizes = ", ".join(f"{own.rows} x {own.columns}" for own in (shape, *others))
                raise ValueError(f"their shapes of it differ ({sizes})")
            return shape
        widths = [side for place in members for side in place.width.sides(role)]
        with guard(transform, "shared_shape", ValueError):
            common = transform.shared_shape(role, rank, widths)
        rows_columns = shape_of(transform, "shared_shape", common)
        with guard(transform, "fan_in", ValueError):
            return Own(*rows_columns, transform.fan_in(role, rank, widths))

    def _singular(self, role: str, shape: Own, members: Sequence[_TermSite]) -> None:
        """Check that the weights of these sites have enough directions for a tensor.

        Raises:
            PlanError: the weights are narrower than the tensor, or have a lower rank (BS319).
        """
        side, other = ("d_in", "d_out") if role == "A" else ("d_out", "d_in")
        rank = min(shape.columns, sum(getattr(place.site, other) for place in members))
        starts = {place.resolved.starts[role] for place in members}
        widths = {place.site.path: getattr(place.site, side) for place in members}
        first = members[0].site.path
        help = None
        if path := next((path for path in widths if widths[path] != shape.columns), None):
            why = f"it is {shape.columns} wide, and `{path}` {widths[path]}"
        elif shape.rows > rank:
            why = f"it has {shape.rows} rows, and the weight at `{first}` rank {rank}"
        elif len(starts) > 1:
            scales = sorted({abs(place.resolved.scale) for place in members})
            shown = ", ".join(f"{scale:g}" for scale in scales[:4])
            why = f"its modules have several scales ({shown}), and each needs other values"
            help = (
                "use a key that tells the scales apart; `svd_vectors` does not depend on the scale"
            )
        else:
            return
        loc: Loc = (*(self.loc if role in self.share.init else ("defaults",)), "init", role)
        problem = codes.NO_DIRECTIONS(share=self.share.name, role=role, why=why, loc=loc, help=help)
        raise PlanError(problem)

    def _unfit(self, what: str, error: ValueError, fact: UnequalPool | None = None) -> PlanError:
        """Return the error of sites that have no common tensor."""
        bare = self.share.via is None or self.share.is_magnitude
        loc: Loc = (*self.loc, "per" if bare else "via")
        name = self.share.name
        return PlanError(codes.SHAPES(share=name, what=what, why=str(error), loc=loc, fact=fact))

    def _tensor(self, name: str, role: str, shape: Own, user: _TermSite, owner: str) -> None:
        """Add a tensor of some sites, ``user`` the first of them, that the module ``owner`` holds."""
        start = user.resolved.starts[role]
        if start.init in m.STRUCTURED:
            self._structured(role, start.init, shape)
        self.tensors.append(
            Tensor(
                name=name,
                share=self.share.name,
                shape=(shape.rows, shape.columns),
                init=start.init,
                amount=start.amount,
                fan_in=shape.fan_in,
                trainable=role not in user.resolved.untrained,
                owner=owner,
            )
        )

    def _structured(self, role: str, word: str, shape: Own) -> None:
        """Check that a matrix of a tensor's shape can have a structure.

        Raises:
            PlanError: it cannot (BS325).
        """
        why = why_no_structure(word, shape.rows, shape.columns)
        if why is not None:
            loc: Loc = (*(self.loc if role in self.share.init else ("defaults",)), "init", role)
            problem = codes.NO_STRUCTURE(
                role=role, share=self.share.name, start=word, why=why, loc=loc
            )
            raise PlanError(problem)

    def _own(self, place: _TermSite) -> None:
        """Compute the shapes of a site's private tensors."""
        rank = place.rank
        width = place.width
        transform = place.resolved.transform
        try:
            with guard(transform, "own", ValueError):
                own = dict(transform.own(rank, width))
        except ValueError as error:
            raise self._unfit(f"be fitted to `{place.site.path}`", error) from error
        check_own(transform, own)
        with guard(transform, "rows"):
            place.rows = transform.rows(rank, width) if transform.linear else 0
        lengths = {GAIN_RANK: place.rows, GAIN_OUT: width.d_out}
        place.own = own | {role: Own(1, lengths[role]) for role in place.resolved.gains}

    def _private(self, place: _TermSite) -> None:
        """Add the private tensors of a site."""
        path = place.site.path
        owner = _owner([place])
        for role, shape in place.own.items():
            if role in place.tensors or role in self.share.references:
                continue
            name = f"{self.share.name}.{self.short[path]}.{role}"
            place.tensors[role] = name
            self._tensor(name, role, shape, place, owner)
            self._names.setdefault(role, {})[comparable((path,))] = name

    def _term(self, place: _TermSite) -> None:
        """Add a site's term."""
        path = place.site.path
        resolved = place.resolved
        self.terms.append(
            Term(
                share=self.share.name,
                site=path,
                transform=resolved.transform.name,
                options=resolved.options,
                rank=place.rank,
                rows=place.rows,
                scale=resolved.scale,
                dropout=resolved.dropout,
                linear=resolved.transform.linear,
                tensors=place.tensors,
            )
        )

    def _subtract(self, terms: Sequence[Term]) -> None:
        """Add frozen terms that subtract the initial values of these terms."""
        by_name = {tensor.name: tensor for tensor in self.tensors}
        copies: dict[str, Tensor] = {}
        for term in terms:
            for name in term.tensors.values():
                if by_name[name].trainable:  # A frozen tensor keeps its initial values anyway.
                    away = {"name": start_name(name), "share": start_name(term.share)}
                    copies[name] = by_name[name].model_copy(
                        update={**away, "like": name, "trainable": False}
                    )
            tensors = {r: copies[n].name if n in copies else n for r, n in term.tensors.items()}
            # Without dropout, like the part of the base that it subtracts.
            share = start_name(term.share)
            scale = -term.scale
            changed = {"share": share, "scale": scale, "dropout": 0.0, "tensors": tensors}
            self.terms.append(term.model_copy(update=changed))
        self.tensors += copies.values()

    def _ranks(self, covered: Set[int]) -> dict[str, int]:
        """Return the rank of the share at each site, by path.

        Raises:
            EvaluationError: the rank has no value at a site.
        """
        idle = list(self._idle_arms(covered))
        self.spec_settings.add(idle)
        ranks: dict[str, int] = {}
        for group in self.sites.site_sets.groups(self.share.rank, "number", covered):
            rank = self._rank(self._scope(group[0], covered))
            ranks |= {self.sites.sites[i].path: rank for i in group}
        return {} if idle else ranks

    def _idle_arms(self, covered: Set[int]) -> Iterator[Problem]:
        """Find values of match arms that match none of the share's sites."""
        for mention in mentions(self.share, loc=self.loc):
            subject = mention.compared_with
            value = mention.part
            loc = mention.loc
            if mention.purpose != "arm" or mention.domain != "share" or subject is None:
                continue
            if any(name in settings_read(loc) for name, _ in names_read(subject)):
                continue
            for problem in self.sites.vocabulary.item_problems(subject, value, loc, covered):
                what = f"`{value.ref}`" if isinstance(value, m.Ref) else "this"
                yield codes.ARM_NOTHING(
                    value=what, share=self.share.name, loc=loc, fact=problem.fact
                )

    def _scope(self, site: int, covered: Set[int]) -> Scope:
        """Return the scope of a site, with those of all modules of the share."""
        scopes = self.sites.site_sets.scopes
        return replace(scopes[site], modules=tuple(scopes[i] for i in sorted(covered)))

    def _rank(self, scope: Scope) -> int:
        """Return the rank of the share at one site."""
        return rank_of(self.share.rank, scope, (*self.loc, "rank"))

    def _review(self, rank: int, transform: Transform, widths: Sequence[Width]) -> None:
        """Collect the transform's warnings, and warn of ranks that the shapes do not allow."""
        distinct = list(dict.fromkeys(widths))
        with guard(transform, "review"):
            for problem in transform.review(rank, distinct):
                placed = located(self.share, transform, problem)
                self.spec_settings.add([placed.within(*self.loc)])
        with guard(transform, "reach"):
            short = [
                (width, reach)
                for width in distinct
                if transform.linear
                and (reach := transform.reach(rank, width)) < transform.rows(rank, width)
            ]
        if short:
            width, reach = min(short, key=lambda pair: pair[1])
            sites = f"{width.d_in} -> {width.d_out} modules"
            problem = codes.UNREACHABLE(
                share=self.share.name, rank=rank, sites=sites, reach=reach, loc=(*self.loc, "rank")
            )
            self.spec_settings.add([problem])
