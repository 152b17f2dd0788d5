"""Join plans into one, for adapters that run together."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from bishare_dsl.plan.in_full import TRAIN
from bishare_dsl.plan.names import share_of
from bishare_dsl.plan.plan import Plan, Tensor, Term, Trained


def name_of(number: int, name: str) -> str:
    """Return the name of a tensor or share of plan ``number`` in the joined plan."""
    return f"{number}:{name}"


def number_of(name: str) -> str:
    """Return which of several plans a share is of, as `name_of` writes it; of a plan alone ``""``."""
    return name.rpartition(":")[0]


def plan_together(plans: Sequence[Plan]) -> Plan:
    """Join the terms of several plans in one, with distinct names (see `name_of`)."""
    sites = {site.path: site for plan in plans for site in plan.sites}
    tensors: list[Tensor] = []
    terms: list[Term] = []
    trained: list[Trained] = []
    for i, plan in enumerate(plans):
        for tensor in plan.tensors:
            own = {"name": name_of(i, tensor.name), "share": name_of(i, tensor.share)}
            tensors.append(tensor.model_copy(update=own))
        for term in plan.terms:
            names = {role: name_of(i, name) for role, name in term.tensors.items()}
            joined = {"share": name_of(i, term.share), "tensors": names}
            terms.append(term.model_copy(update=joined))
        trained += (w.model_copy(update={"tensor": name_of(i, w.tensor)}) for w in plan.trained)
    return Plan(
        spec=" + ".join(plan.spec for plan in plans),
        params={},
        base=plans[0].base,
        sites=tuple(sites.values()),
        tensors=tuple(tensors),
        pools=(),
        terms=tuple(terms),
        trained=tuple(trained),
    )


def scaled_plan(plan: Plan, scale: float) -> Plan:
    """Return the plan with the scale of every term multiplied by ``scale``."""
    terms = tuple(term.model_copy(update={"scale": term.scale * scale}) for term in plan.terms)
    return _with_terms(plan, terms, plan.trained)


def share_names(plan: Plan) -> list[str]:
    """Return the names of the spec's shares; ``train`` stands for the parameters trained in full."""
    return list(dict.fromkeys(share_of(name) for name in plan.shares))


def plan_of_shares(plan: Plan, shares: Collection[str]) -> Plan:
    """Return the plan with the terms of some shares alone; it keeps the tensors of all.

    Args:
        plan: of one adapter.
        shares: of its `share_names`.
    """
    terms = tuple(term for term in plan.terms if share_of(term.share) in shares)
    return _with_terms(plan, terms, plan.trained if TRAIN in shares else ())


def _with_terms(plan: Plan, terms: tuple[Term, ...], trained: tuple[Trained, ...]) -> Plan:
    fields = {name: getattr(plan, name) for name in Plan.model_fields}
    return Plan(**fields | {"terms": terms, "trained": trained})
