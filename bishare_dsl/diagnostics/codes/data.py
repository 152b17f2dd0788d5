"""BS70x to BS72x: reading, checking and encoding training data."""

from bishare_dsl.diagnostics.problem import Code
