"""Resolve specs against models. A plan is pure data."""

from typing import TYPE_CHECKING

from bishare_dsl.lazy import lazy

if TYPE_CHECKING:
    from bishare_dsl.plan.build import build_plan
    from bishare_dsl.plan.check import check_spec
    from bishare_dsl.plan.plan import Plan, Pool, Tensor, Term

__getattr__ = lazy(
    __name__, {"build": "build_plan", "check": "check_spec", "plan": "Plan Pool Tensor Term"}
)
