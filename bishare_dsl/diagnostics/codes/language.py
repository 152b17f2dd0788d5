"""BS1xx: reading a text."""

from bishare_dsl.diagnostics.problem import Code
