"""BS73x to BS79x: training."""

from bishare_dsl.diagnostics.problem import Code

# What is asked for --------------------------------------------------------------------------------

UNKNOWN_ARGUMENT = Code("BS730", "`{name}` is not an argument of training")
WRONG_VALUE = Code(
    "BS731",
    "`{name}` cannot be `{value}`: {reason}",
    "the page of transformers' `TrainingArguments` says what each of them takes",
)
BAD_COMBINATION = Code(
    "BS732",
    "the arguments do not go together: {reason}",
    "leave one of them out, or give what it asks for",
)
BAD_CONFIG = Code(
    "BS734",
    "the config `{path}` cannot be read: {reason}",
    "a line of it reads `learning_rate: 1e-4`",
)
NEEDS_PACKAGE = Code(
    "BS735",
    "{what} needs the package `{package}`, which is not installed",
    "`pip install 'bishare[train]'` for runs, `'bishare[eval]'` for evaluating, any other by its name",
)
MISSING_ARGUMENT = Code(
    "BS736", "`{name}` is missing", "give it on the command line, or in the file of `--config`"
)
SPEC_AND_ADAPTED = Code(
    "BS737",
    "the model is adapted by `{spec}` already, so it takes no spec",
    "train it further with `spec=None`, or take it out first: `model.bishare.unload()`",
)

# The output folder, and going on with a run -------------------------------------------------------

RUN_EXISTS = Code(
    "BS740",
    "`{folder}` holds a run already",
    "`bishare train --resume DIR` goes on with it, and `--force` removes it and begins anew",
)
NOT_A_RUN = Code(
    "BS741",
    "a run cannot begin in `{folder}`: {reason}",
    "give a folder of its own: `--force` removes an earlier run, and nothing else",
)
NO_CHECKPOINT = Code(
    "BS742",
    "there is no checkpoint to resume from: {reason}",
    "name a run or a `checkpoint-N` of one; `--save_steps N` saves one every N steps",
)
BROKEN_CHECKPOINT = Code(
    "BS743",
    "the checkpoint `{folder}` was not saved to its end, or files of it are missing",
    "name the folder of the run: the last whole checkpoint is taken",
)
CANNOT_SAVE = Code(
    "BS747",
    "`{folder}` cannot be written: {reason}",
    "make room or allow writing, then `bishare train --resume DIR` goes on from the last checkpoint",
)

# While it runs ------------------------------------------------------------------------------------

NOT_FINITE = Code(
    "BS750",
    "the {what} of step {step} is {value}, and the step is not applied; {kept}",
    "lower `--learning_rate`, or look for a row of padding alone",
)
OUT_OF_MEMORY = Code(
    "BS751",
    "there is too little memory: {reason}",
    "lower `--per_device_train_batch_size` or `--max_length`, or add `--gradient_checkpointing`",
)
NOT_SHARDED = Code(
    "BS754",
    "the model would not be sharded with FSDP2: {reason}",
    "start several processes on GPUs, and let accelerate's config say `fsdp_version: 2`",
)
NOT_A_CAUSAL_CLASS = Code(
    "BS756",
    "`{name}` is not a causal language model, and `train` trains no other",
    "adapt it with `compile_spec`, and train it in a loop or by a Trainer of your own: any model adapts",
)
