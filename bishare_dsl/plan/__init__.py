"""Planning: a spec resolved against a model's sites, as pure data."""

from bishare_dsl.plan.build import build_plan
from bishare_dsl.plan.check import check_spec
from bishare_dsl.plan.plan import Base, Plan, Pool, Tensor, Term

__all__ = ["Base", "Plan", "Pool", "Tensor", "Term", "build_plan", "check_spec"]
