"""BS4xx: rewriting a model's graphs."""

from bishare_dsl.diagnostics.problem import Code
