"""BS6xx: saving, loading, merging and exporting adapters."""

from bishare_dsl.diagnostics.problem import Code
