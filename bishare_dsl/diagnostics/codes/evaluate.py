"""BS8xx: evaluating adapters, and generating with one."""

from bishare_dsl.diagnostics.problem import Code

UNKNOWN_TASK = Code("BS802", "no task is called `{name}`", "`lm-eval ls tasks` lists them")
TASK_NOT_LOADED = Code("BS803", "the task `{name}` cannot be loaded: {reason}")
NO_TOKENIZER = Code(
    "BS805",
    "`{model}` has no tokenizer",
    "give a checkpoint with its tokenizer files beside the weights",
)
RUN_FAILED = Code("BS806", "`{model}` failed: {reason}", "`BISHARE_DEBUG=1` shows the traceback")
NOT_NUMBERS = Code(
    "BS809", "{count:,} likelihoods of {model} are not numbers (NaN)", severity="warning"
)
