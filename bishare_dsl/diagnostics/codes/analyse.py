"""BS85x: analysing adapters, and proposing specs."""

from bishare_dsl.diagnostics.problem import Code

NOTHING_ADDED = Code(
    "BS850",
    "an adapter that adds nothing",
    "the adapter in `{folder}` adds nothing to any module, so there is nothing to measure",
    remedy=(
        "an adapter starts with a B of zeros: what was compiled and not trained has no update yet. "
        "Give the folder of one that was trained"
    ),
)
SMALL_BUDGET = Code(
    "BS851",
    "a budget for no share",
    "no share fits into {budget} parameters: the least takes {least}",
    remedy=(
        "`bishare propose` looks for shares whose parameters are within `--budget`. Even at rank 1, "
        "each of those that it weighs takes more on these modules"
    ),
)
