"""BS85x: fitting specs to adapters."""

from bishare_dsl.diagnostics.problem import Code, warning

FAR_FROM_GIVEN = warning(
    "BS851",
    "{what} {error} away from what was given, more than {limit:.0%} of the norm of the updates",
)
LEFT_OUT = warning(
    "BS853",
    "a fit leaves out parameters trained in full, which are no low-rank updates: `{parameter}` "
    "of {names}",
)
NO_LEAST_SQUARES = Code("BS854", "a fit cannot find `{tensor}`: {why}")
