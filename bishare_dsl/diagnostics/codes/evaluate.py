"""BS8xx: evaluating adapters, and generating with one."""

from bishare_dsl.diagnostics.problem import Code

UNKNOWN_TASK = Code("BS802", "unknown task", "no task is called `{name}`")
TASK_NOT_LOADED = Code(
    "BS803", "a task that cannot be loaded", "the task `{name}` cannot be loaded: {reason}"
)
NO_TASK_FILES = Code(
    "BS804",
    "an --include_path without tasks",
    "`{path}` holds no tasks: {reason}",
    "name a folder of lm_eval's task files: YAML, with `task`, `dataset_path` and so on",
)
NO_TOKENIZER = Code(
    "BS805",
    "a model without a tokenizer",
    "`{model}` has no tokenizer",
    "give a checkpoint with its tokenizer files beside the weights; in Python, `tokenizer=`",
)
RUN_FAILED = Code(
    "BS806",
    "an evaluation that failed",
    "evaluating {model} failed: {reason}",
    "results of the models before stand; `BISHARE_DEBUG=1` shows the traceback",
)
NO_CHAT_TEMPLATE = Code(
    "BS807",
    "a model without a chat template",
    "the tokenizer of `{model}` has no chat template",
    "leave out `--apply_chat_template`, `--chat` and `--system`",
)
UNSAFE_TASK = Code(
    "BS808",
    "a task that runs what the model writes",
    "the task `{name}` runs code that the model writes",
)
NOT_NUMBERS = Code(
    "BS809",
    "likelihoods that are not numbers",
    "{count:,} of {total:,} likelihoods of {model} are not numbers (NaN)",
    severity="warning",
)
PROMPT_TOO_LONG = Code(
    "BS810",
    "a prompt that is too long",
    "a prompt of {prompt:,} tokens and {new:,} new ones do not fit into the {limit:,} positions of `{model}`",
    "shorten the prompt, or lower `--max_new_tokens`",
)
