"""BS8xx: evaluating adapters, and generating with one."""

from bishare_dsl.diagnostics.problem import Code
