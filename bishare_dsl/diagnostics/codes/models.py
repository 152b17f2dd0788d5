"""BS5xx: finding, reading and loading models."""

from bishare_dsl.diagnostics.problem import Code
