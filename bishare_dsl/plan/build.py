"""Resolve a spec against a model's sites: the one place where sharing is worked out."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from bishare_dsl.diagnostics import (
    Loc,
    PlanError,
    Problem,
    SpecError,
    raise_errors,
)
from bishare_dsl.diagnostics.codes import plan as codes
from bishare_dsl.models.site import Architecture, Site
from bishare_dsl.plan.check import check_spec, rank_problem
from bishare_dsl.plan.names import attribute, key_name, owner, short_path
from bishare_dsl.plan.plan import Base, Plan, Pool, Tensor, Term
from bishare_dsl.plan.select import Sites
from bishare_dsl.plan.settings import Resolved, Unresolved, at_via, resolve
from bishare_dsl.spec import Keys, RankMatch, Ref, Selection, Spec
from bishare_dsl.spec.evaluate import EvaluationError, Value
from bishare_dsl.transforms import (
    GAIN_OUT,
    GAIN_RANK,
    Own,
    Transform,
    Width,
    broken,
    guarded,
    shape_of,
)


def build_plan(spec: Spec, architecture: Architecture) -> tuple[Plan, tuple[Problem, ...]]:
    """The plan of a spec for a model, and the warnings that came up.

    Raises:
        SpecError: the spec is wrong whatever the model; problems with the model's names come along.
        PlanError: it does not fit the model.
    """
    problems = check_spec(spec)
    wrong = any(problem.severity == "error" for problem in problems)
    sites = Sites(spec, architecture)
    problems += _names(spec, sites)
    raise_errors(SpecError if wrong else PlanError, problems)

    target = sites.select(architecture.sites, spec.target, ("target",))
    builder = _Builder(spec, sites, problems)
    if not target:
        problems.append(
            codes.COVERS_NOTHING(what="`target`", model=architecture.name, loc=("target",))
        )
    else:
        problems += _idle_exceptions(sites, architecture.sites, spec)
        for index in range(len(spec.shares)):
            builder.share(index, target)
    raise_errors(PlanError, problems)
    if not builder.terms:
        why = "no share has a rank above 0"
        raise PlanError(codes.NOTHING_TO_TRAIN(spec=spec.name, why=why, loc=("shares",)))
    if not any(tensor.trainable for tensor in builder.tensors):
        why = "every tensor is frozen"
        raise PlanError(
            codes.NOTHING_TO_TRAIN(spec=spec.name, why=why, loc=("shares", 0, "freeze"))
        )
    problems += _uncovered(target, {term.site for term in builder.terms})
    plan = Plan(
        spec=spec.name,
        params={param.name: param.value for param in spec.params},
        base=Base.of(architecture),
        sites=tuple(target),
        tensors=tuple(builder.tensors),
        pools=tuple(builder.pools),
        terms=tuple(builder.terms),
    )
    return plan, tuple(dict.fromkeys(problems))


def _names(spec: Spec, sites: Sites) -> Iterator[Problem]:
    """Every name, pattern and layer of the spec that the model does not have."""
    for i, let in enumerate(spec.lets):
        yield from sites.selection_problems(let.selection, ("lets", i, "selection"))
    yield from sites.selection_problems(spec.target, ("target",))
    for i, share in enumerate(spec.shares):
        if share.where is not None:
            yield from sites.selection_problems(share.where, ("shares", i, "where"))
        loc: Loc = ("shares", i, "per")
        if isinstance(share.per, Keys):
            keys = [((*loc, "A"), share.per.A), ((*loc, "B"), share.per.B)]
        else:
            keys = [(loc, share.per)]
        for place, key in keys:
            for j, part in enumerate(key):
                yield from sites.key_problems(part, (*place, j))


def _idle_exceptions(sites: Sites, everything: Sequence[Site], spec: Spec) -> Iterator[Problem]:
    """Exceptions that take nothing away from what stands before them."""
    places: list[tuple[Loc, Selection | None]] = [(("target",), spec.target)]
    places += [(("lets", i, "selection"), let.selection) for i, let in enumerate(spec.lets)]
    places += [(("shares", i, "where"), share.where) for i, share in enumerate(spec.shares)]
    for loc, selection in places:
        if selection is None or not selection.exclude:
            continue
        included = sites.select(everything, selection.model_copy(update={"exclude": ()}))
        for i, part in enumerate(selection.exclude):
            if not sites.any_holds(included, part):
                yield codes.EXCLUDES_NOTHING(loc=(*loc, "exclude", i))


def _uncovered(target: Sequence[Site], covered: set[str]) -> Iterator[Problem]:
    missing: dict[str, int] = {}
    for site in target:
        if site.path not in covered:
            missing[site.kind] = missing.get(site.kind, 0) + 1
    if missing:
        what = ", ".join(f"`{kind}` ({count} modules)" for kind, count in missing.items())
        yield codes.UNCOVERED(what=what, loc=("target",))


@dataclass
class _Builder:
    """Collects what each share adds."""

    spec: Spec
    sites: Sites
    problems: list[Problem]
    tensors: list[Tensor] = field(default_factory=list)
    pools: list[Pool] = field(default_factory=list)
    terms: list[Term] = field(default_factory=list)
    taken: set[str] = field(default_factory=set)  # the attributes of pooled tensors

    def __post_init__(self) -> None:
        paths = [site.path for site in self.sites.architecture.sites]
        short = Counter(map(short_path, paths))
        # Two towers of one model may both have a `layers.0`.
        self.short = {p: short_path(p) if short[short_path(p)] == 1 else p for p in paths}

    def share(self, index: int, target: Sequence[Site]) -> None:
        try:
            self._share(index, target)
        except SpecError as error:  # a package's transform
            self.problems += at_via(self.spec, index, error)

    def _share(self, index: int, target: Sequence[Site]) -> None:
        share, loc = self.spec.shares[index], ("shares", index)
        covered = list(target)
        if share.where is not None:
            covered = self.sites.select(target, share.where, (*loc, "where"))
            if len(share.where.include) > 1:
                self.problems += (
                    codes.ADDS_NOTHING(share=share.name, loc=(*loc, "where", "include", i))
                    for i, part in enumerate(share.where.include)
                    if not self.sites.any_holds(target, part)
                )
        if not covered:
            self.problems.append(
                codes.COVERS_NOTHING(
                    what=f"share `{share.name}`",
                    model=self.sites.architecture.name,
                    loc=(*loc, "where"),
                )
            )
            return
        ranks = self._ranks(index, covered)
        if ranks is None:
            return
        resolved = self._resolve(index, set(ranks.values()) - {0})
        if resolved is None:
            return
        covered = [site for site in covered if ranks[site.path]]
        tensors: dict[str, dict[str, str]] = {site.path: {} for site in covered}
        for role in self._roles(resolved):
            for key, members in self._pools(index, role, covered).items():
                name = self._pool_name(index, role, key, members)
                found = sorted({ranks[site.path] for site in members})
                if len(found) > 1:
                    self.problems.append(
                        codes.RANK_VARIES(
                            pool=name, found=", ".join(map(str, found)), loc=(*loc, "rank")
                        )
                    )
                    return
                if not self._pool(index, role, name, key, members, found[0], resolved[found[0]]):
                    return
                for site in members:
                    tensors[site.path][role] = f"{name}.{role}"
        for site in covered:
            rank = ranks[site.path]
            if not self._term(index, site, rank, resolved[rank], tensors[site.path]):
                return
        for rank, settings in resolved.items():
            widths = [_width(site) for site in covered if ranks[site.path] == rank]
            self._review(index, rank, settings.transform, widths)

    def _resolve(self, index: int, ranks: set[int]) -> dict[int, Resolved] | None:
        """The settings of a share at each of its ranks; None where there is a problem."""
        try:
            return {rank: resolve(self.spec, index, rank) for rank in sorted(ranks)}
        except Unresolved as error:
            self.problems += error.problems
            return None

    @staticmethod
    def _roles(resolved: Mapping[int, Resolved]) -> tuple[str, ...]:
        """What a share pools; its rank has no say in that."""
        return next((settings.transform.pooled for settings in resolved.values()), ())

    def _pools(
        self, index: int, role: str, covered: Sequence[Site]
    ) -> dict[tuple[Value, ...], list[Site]]:
        """The sites of each distinct value of the key of a tensor."""
        pools: dict[tuple[Value, ...], list[Site]] = {}
        for site in covered:
            scope = self.sites.scopes[site.path]
            key = tuple(
                scope.value(part)
                if not isinstance(part, Ref) or part.ref in scope.values
                else scope.holds(part)  # A let or a kind, as a key: in it, or not.
                for part in self.spec.shares[index].key(role)
            )
            pools.setdefault(key, []).append(site)
        return pools

    def _pool_name(
        self,
        index: int,
        role: str,
        key: tuple[Value, ...],
        members: Sequence[Site],
    ) -> str:
        share = self.spec.shares[index]
        shown = tuple(self.short[v] if v == members[0].path else v for v in key)
        name = ".".join(part for part in (share.name, key_name(share.key(role), shown)) if part)
        while attribute(f"{name}.{role}") in self.taken:  # `a.b__c` and `a__b.c`
            name += "_"
        self.taken.add(attribute(f"{name}.{role}"))
        return name

    def _pool(
        self,
        index: int,
        role: str,
        name: str,
        key: tuple[Value, ...],
        members: Sequence[Site],
        rank: int,
        resolved: Resolved,
    ) -> bool:
        """Add one pool and its tensor; whether it could be done."""
        share = self.spec.shares[index]
        try:
            widths = [side for site in members for side in _width(site).sides(role)]
            with guarded(resolved.transform, "shared_shape", ValueError):
                found = resolved.transform.shared_shape(role, rank, widths)
            shape = shape_of(resolved.transform, "shared_shape", found)
            with guarded(resolved.transform, "fan_in", ValueError):
                fan_in = resolved.transform.fan_in(role, rank, widths)
        except ValueError as error:
            self._unfit(index, f"share its {role} in the pool `{name}`", error)
            return False
        paths = [site.path for site in members]
        self._tensor(index, f"{name}.{role}", role, Own(*shape, fan_in), owner(paths), resolved)
        self.pools.append(
            Pool(
                share=share.name,
                role=role,
                key=key,
                tensor=f"{name}.{role}",
                members=tuple(paths),
            )
        )
        return True

    def _unfit(self, index: int, what: str, error: ValueError) -> None:
        share = self.spec.shares[index]
        self.problems.append(
            codes.SHAPES(
                share=share.name,
                what=what,
                why=str(error),
                loc=("shares", index, "per" if share.via is None else "via"),
                help="give it a transform (`via SS`, `via KE`, `via GT`), or a key under which widths "
                "are equal (`per layer, kind`)"
                if share.via is None
                else None,
            )
        )

    def _tensor(
        self, index: int, name: str, role: str, shape: Own, owned_by: str, resolved: Resolved
    ) -> None:
        share, start = self.spec.shares[index], resolved.start(role)
        self.tensors.append(
            Tensor(
                name=name,
                share=share.name,
                shape=(shape.rows, shape.columns),
                init=start.init,
                amount=start.amount,
                fan_in=shape.fan_in,
                trainable=role not in share.freeze,
                owner=owned_by,
            )
        )

    def _term(
        self, index: int, site: Site, rank: int, resolved: Resolved, tensors: dict[str, str]
    ) -> bool:
        """Add a site's term, and the tensors that it has for itself; whether it could be done."""
        share, width, transform = self.spec.shares[index], _width(site), resolved.transform
        try:
            with guarded(transform, "own", ValueError):
                own = dict(transform.own(rank, width))
        except ValueError as error:
            self._unfit(index, f"be fitted to `{site.path}`", error)
            return False
        self._check_own(transform, own)
        with guarded(transform, "rows"):
            rows = transform.rows(rank, width) if transform.linear else 0
        lengths = {GAIN_RANK: rows, GAIN_OUT: width.d_out}
        own |= {role: Own(1, lengths[role]) for role in resolved.gains}
        for role, shape in own.items():
            tensors[role] = f"{share.name}.{self.short[site.path]}.{role}"
            self._tensor(index, tensors[role], role, shape, owner([site.path]), resolved)
        self.terms.append(
            Term(
                share=share.name,
                site=site.path,
                transform=transform.name,
                options=transform.options(),
                rank=rank,
                rows=rows,
                scale=resolved.scale,
                dropout=resolved.dropout,
                linear=transform.linear,
                tensors=tensors,
            )
        )
        return True

    @staticmethod
    def _check_own(transform: Transform, own: Mapping[str, object]) -> None:
        if own.keys() != set(transform.owned):
            found, said = sorted(own), sorted(transform.owned)
            raise broken(transform, f"`own` gives the roles {found}, and `owned` says {said}")
        for shape in own.values():
            shape_of(transform, "own", tuple(shape)[:2] if isinstance(shape, tuple) else shape)

    def _ranks(self, index: int, covered: Sequence[Site]) -> dict[str, int] | None:
        """The rank of the share at each site, by path; None where that was a problem."""
        share = self.spec.shares[index]
        before = len(self.problems)
        ranks: dict[str, int] = {}
        try:
            if isinstance(share.rank, RankMatch):
                self.problems += self._idle_arms(index, share.rank, covered)
            for site in covered:
                ranks[site.path] = self._rank(index, site)
        except EvaluationError as error:
            self.problems.append(error.problem)
        return ranks if len(self.problems) == before else None

    def _idle_arms(
        self, index: int, match: RankMatch, covered: Sequence[Site]
    ) -> Iterator[Problem]:
        """Values of match arms that match none of the share's sites."""
        for i, arm in enumerate(match.arms):
            for j, value in enumerate(arm.values):
                loc: Loc = ("shares", index, "rank", "arms", i, "values", j)
                for problem in self.sites.item_problems(match.subject, value, covered, loc):
                    yield codes.ARM_NOTHING(
                        value=f"`{value.ref}`" if isinstance(value, Ref) else "this",
                        share=self.spec.shares[index].name,
                        loc=loc,
                        help=problem.help,
                    )

    def _rank(self, index: int, site: Site) -> int:
        """The rank of a share at one site."""
        share = self.spec.shares[index]
        loc: Loc = ("shares", index, "rank")
        scope = self.sites.scopes[site.path]
        rank = share.rank
        if isinstance(rank, RankMatch):
            subject = scope.value(rank.subject, (*loc, "subject"))
            for i, arm in enumerate(rank.arms):
                if any(scope.includes(v, subject, rank.subject, loc) for v in arm.values):
                    rank, loc = arm.rank, (*loc, "arms", i, "rank")
                    break
            else:
                if rank.otherwise is None:
                    raise EvaluationError(codes.NO_ARM(site=site.path, loc=loc))
                rank, loc = rank.otherwise, (*loc, "otherwise")
        value = scope.number(rank, loc)
        if problem := rank_problem(value, loc):
            raise EvaluationError(problem)
        return int(value)

    def _review(self, index: int, rank: int, transform: Transform, widths: Sequence[Width]) -> None:
        """What the transform warns of, and ranks that the shapes do not allow."""
        share, loc = self.spec.shares[index], ("shares", index)
        distinct = list(dict.fromkeys(widths))
        with guarded(transform, "review"):
            self.problems += [p.within(*loc) for p in transform.review(rank, distinct)]
        with guarded(transform, "reach"):
            short = [
                (width, reach)
                for width in distinct
                if transform.linear
                and (reach := transform.reach(rank, width)) < transform.rows(rank, width)
            ]
        if short:
            width, reach = min(short, key=lambda pair: pair[1])
            self.problems.append(
                codes.UNREACHABLE(
                    share=share.name,
                    rank=rank,
                    sites=f"{width.d_in} -> {width.d_out} modules",
                    reach=reach,
                    loc=(*loc, "rank"),
                )
            )


def _width(site: Site) -> Width:
    return Width(site.d_in, site.d_out)
