"""BS9xx: using the command line."""

from bishare_dsl.diagnostics.problem import Code
