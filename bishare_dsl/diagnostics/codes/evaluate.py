"""BS8xx: evaluating adapters."""

from bishare_dsl.diagnostics.problem import Code

NO_TOKENIZER = Code("BS805", "`{model}` has no tokenizer")
