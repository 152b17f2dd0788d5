"""BS85x: analysing adapters, and proposing specs."""

from bishare_dsl.diagnostics.problem import Code

NOTHING_ADDED = Code(
    "BS850",
    "the adapter in `{folder}` adds nothing to any module, so there is nothing to measure",
    "give an adapter that was trained: a new one has a B of zeros, and so no update",
)
SMALL_BUDGET = Code(
    "BS851",
    "no share fits into {budget} parameters: the least takes {least}",
    "raise `--budget`, or let it adapt fewer modules: rank 1 takes more already",
)
