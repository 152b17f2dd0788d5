"""BS8xx: evaluating adapters, and generating with one."""

from bishare_dsl.diagnostics.problem import Code

UNKNOWN_TASK = Code("BS802", "no task is called `{name}`")
TASK_NOT_LOADED = Code("BS803", "the task `{name}` cannot be loaded: {reason}")
NO_TOKENIZER = Code("BS805", "`{model}` has no tokenizer")
RUN_FAILED = Code("BS806", "`{model}` failed: {reason}")
NOT_NUMBERS = Code(
    "BS809", "{count:,} likelihoods of {model} are not numbers (NaN)", severity="warning"
)
