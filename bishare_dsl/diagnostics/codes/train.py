"""BS73x to BS79x: training."""

from bishare_dsl.diagnostics.problem import Code
