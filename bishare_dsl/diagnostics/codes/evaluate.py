"""BS8xx: evaluating adapters, and generating with one."""

from bishare_dsl.diagnostics.problem import Code

UNKNOWN_TASK = Code(
    "BS802",
    "unknown task",
    "no task is called `{name}`",
    "`--tasks` takes the names of lm_eval's tasks, groups and tags (`lm-eval ls tasks` lists them, and "
    "patterns such as `mmlu_*` choose among them), the names that `bishare eval --list-tasks` prints, paths "
    "of task files, and what the files under `--include_path` define. Names are separated by commas.",
)
TASK_NOT_LOADED = Code(
    "BS803",
    "a task that cannot be loaded",
    "the task `{name}` cannot be loaded: {reason}",
    "Every task is loaded, with its data, before the model is. Its data set cannot be fetched, its file does "
    "not describe a task, or it asks of a model what a language model cannot do. Without a connection these "
    "work: data sets that are in the Hugging Face cache already (`HF_HOME`), and task files whose data are "
    "local files.",
)
NO_TASK_FILES = Code.brief(
    "BS804",
    "an --include_path without tasks",
    "`{path}` holds no tasks: {reason}",
    "name a folder of lm_eval's task files: YAML, with `task`, `dataset_path` and so on",
)
NO_TOKENIZER = Code.brief(
    "BS805",
    "a model without a tokenizer",
    "`{model}` has no tokenizer",
    "give a checkpoint with its tokenizer files beside the weights; in Python, `tokenizer=`",
)
RUN_FAILED = Code.brief(
    "BS806",
    "an evaluation that failed",
    "evaluating {model} failed: {reason}",
    "results of the models before stand; `BISHARE_DEBUG=1` shows the traceback",
)
NO_CHAT_TEMPLATE = Code.brief(
    "BS807",
    "a model without a chat template",
    "the tokenizer of `{model}` has no chat template",
    "leave out `--apply_chat_template`, `--chat` and `--system`",
)
UNSAFE_TASK = Code(
    "BS808",
    "a task that runs what the model writes",
    "the task `{name}` runs code that the model writes",
    "Tasks such as humaneval execute the model's answers on this machine. lm_eval asks for a flag before it "
    "does so, and bishare passes that flag on and never gives it itself.",
)
NOT_NUMBERS = Code(
    "BS809",
    "likelihoods that are not numbers",
    "{count:,} of {total:,} likelihoods of {model} are not numbers (NaN)",
    "The model's logits are NaN, for instance because the adapter diverged in training, and lm_eval counts "
    "the answer as if it had been given. The figures of this model mean nothing.",
    severity="warning",
)
PROMPT_TOO_LONG = Code.brief(
    "BS810",
    "a prompt that is too long",
    "a prompt of {prompt:,} tokens and {new:,} new ones do not fit into the {limit:,} positions of `{model}`",
    "shorten the prompt, or lower `--max_new_tokens`",
)
