"""Resolve specs against models. A plan is pure data."""

from typing import TYPE_CHECKING

from bishare_dsl.lazy import lazy

if TYPE_CHECKING:
    from bishare_dsl.plan.build import build_plan
    from bishare_dsl.plan.check import check_spec
    from bishare_dsl.plan.plan import Plan, Pool, Tensor, Term

__getattr__ = lazy(
    __name__,
    {
        "build_plan": "bishare_dsl.plan.build",
        "check_spec": "bishare_dsl.plan.check",
        **dict.fromkeys(("Plan", "Pool", "Tensor", "Term"), "bishare_dsl.plan.plan"),
    },
)
