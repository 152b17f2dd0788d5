"""BS85x: analysing adapters."""

from bishare_dsl.diagnostics.problem import Code

NOTHING_ADDED = Code(
    "BS850", "the adapter in `{folder}` adds nothing to any module, so there is nothing to measure"
)
