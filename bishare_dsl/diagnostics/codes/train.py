"""BS73x to BS79x: training."""

from bishare_dsl.diagnostics.problem import Code

_RUN = "bishare train lora --model smollm2-135m --data rows.jsonl --output_dir out"

# What is asked for --------------------------------------------------------------------------------

UNKNOWN_ARGUMENT = Code(
    "BS730",
    "an unknown argument",
    "`{name}` is not an argument of training",
    "Training takes its own arguments (`bishare train --help`) and those of transformers' "
    "`TrainingArguments` (`bishare train --help-all`), on the command line, in the file of `--config` and in "
    "Python by the same names. One that is not known is never passed over: a misspelt learning rate would "
    "cost a run.",
    bad=f"{_RUN} --learning_rat 2e-4",
    shell=True,
)
WRONG_VALUE = Code(
    "BS731",
    "a wrong value of an argument",
    "`{name}` cannot be `{value}`: {reason}",
    "Each argument has a type, and some have a few words or a range to choose from.",
    bad=f"{_RUN} --learning_rate fast",
    shell=True,
    remedy="`bishare train --help-all` lists all arguments with their defaults",
)
BAD_COMBINATION = Code(
    "BS732",
    "arguments that do not go together",
    "the arguments do not go together: {reason}",
    "The reason is given in the words of transformers, which checks its arguments before anything is loaded.",
    bad=f"{_RUN} --load_best_model_at_end",
    shell=True,
)
REFUSED = Code(
    "BS733",
    "an argument that bishare does not take",
    "`{name}` is not supported: {reason}",
    "It is an argument of transformers' Trainer that would break what a run of bishare promises.",
    bad=f"{_RUN} --push_to_hub",
    shell=True,
    remedy="leave it out",
)
BAD_CONFIG = Code(
    "BS734",
    "a config file that cannot be read",
    "the config `{path}` cannot be read: {reason}",
    "`--config` names a YAML file with one `name: value` on each line: the arguments of training, without "
    "dashes. Flags on the command line win over it.",
    bad="bishare train --config no-such.yaml",
    shell=True,
    remedy="a line of it reads `learning_rate: 1e-4`",
)
NEEDS_PACKAGE = Code.brief(
    "BS735",
    "a package that is not installed",
    "{what} needs the package `{package}`, which is not installed",
    "`pip install 'bishare[train]'` for runs, `'bishare[eval]'` for evaluating, any other by its name",
)
MISSING_ARGUMENT = Code(
    "BS736",
    "a missing argument",
    "`{name}` is missing",
    "A run needs a spec, a model, data and a folder for what it makes, on the command line or in the file of "
    "`--config`.",
    bad="bishare train lora --model smollm2-135m --output_dir out",
    shell=True,
    remedy="give it on the command line, or in the file of `--config`",
)
SPEC_AND_ADAPTED = Code.brief(
    "BS737",
    "a spec for a model that is adapted",
    "the model is adapted by `{spec}` already, so it takes no spec",
    "train it further with `spec=None`, or take it out first: `model.bishare.unload()`",
)
FOREIGN_PARAMETERS = Code.brief(
    "BS739",
    "parameters that train and are not the adapter's",
    "{count} parameters of the base would train, such as `{name}`, and no adapter can hold them",
    "freeze them (`requires_grad_(False)`), or name their modules in the spec's `target`",
)

# The output folder, and going on with a run -------------------------------------------------------

RUN_EXISTS = Code.brief(
    "BS740",
    "the folder holds a run",
    "`{folder}` holds a run already ({status})",
    "`bishare train --resume DIR` goes on with it, and `--force` removes it and begins anew",
)
NOT_A_RUN = Code.brief(
    "BS741",
    "a folder that holds something else",
    "a run cannot begin in `{folder}`: {reason}",
    "give a folder of its own: `--force` removes an earlier run, and nothing else",
)
NO_CHECKPOINT = Code.brief(
    "BS742",
    "no checkpoint to resume from",
    "there is no checkpoint to resume from: {reason}",
    "name a run or a `checkpoint-N` of one; `--save_steps N` saves one every N steps",
)
BROKEN_CHECKPOINT = Code.brief(
    "BS743",
    "a checkpoint that cannot be read",
    "the checkpoint `{folder}` cannot be read: {reason}",
    "it was changed, or copied in part: resume from an earlier one",
)
OTHER_RUN = Code.brief(
    "BS744",
    "a checkpoint of another run",
    "the checkpoint `{folder}` is of another run: {differences}",
    "leave these as they were; or begin a new run, with this checkpoint in the place of the spec",
)
OTHER_SPLIT = Code.brief(
    "BS745",
    "a batch that is divided otherwise",
    "the checkpoint was made by {before}, and this run is {now}: it goes on from there, but not bit for bit",
    "the steps see the same rows; sums are in another order, and each process draws its own dropout",
    "warning",
)
ADAPTER_ONLY = Code.brief(
    "BS746",
    "a checkpoint without the optimizer",
    "the checkpoint `{folder}` was saved with `save_only_model`, and holds the adapter alone",
    "begin a new run from the adapter: give the folder in the place of the spec",
)
CANNOT_SAVE = Code.brief(
    "BS747",
    "a folder that cannot be written",
    "`{folder}` cannot be written: {reason}",
    "make room or allow writing, then `bishare train --resume DIR` goes on from the last checkpoint",
)
NOT_STORABLE = Code.brief(
    "BS748",
    "a state that a checkpoint cannot hold",
    "a checkpoint cannot hold {what}: {kind}",
    "choose another optimizer (`--optim`), or save none of its state (`--save_only_model`)",
)

# While it runs ------------------------------------------------------------------------------------

NOT_FINITE = Code.brief(
    "BS750",
    "a loss that is not a number",
    "{what} of step {step} is {value}; {kept}",
    "lower `--learning_rate`, or look for a row of padding alone; the adapter is as it was before",
)
OUT_OF_MEMORY = Code.brief(
    "BS751",
    "too little memory to train",
    "there is too little memory: {reason}",
    "lower `--per_device_train_batch_size` or `--max_length`, or add `--gradient_checkpointing`",
)
LONG_WARMUP = Code.brief(
    "BS752",
    "a run shorter than its warm-up",
    "the run has {steps:,} steps, and the learning rate warms up over {warmup:,}: it never gets beyond "
    "{reached}",
    "leave out `--warmup_steps`: a run warms up over a tenth of its steps at most",
    "warning",
)
NO_CURVE = Code.brief(
    "BS753",
    "no picture of the loss",
    "no loss curve is plotted: the package `matplotlib` is not installed",
    "the numbers are in log.jsonl. `pip install 'bishare[train]'` brings what plots them",
    "warning",
)
NOT_SHARDED = Code.brief(
    "BS754",
    "FSDP that would not be used",
    "the model would not be sharded with FSDP2: {reason}",
    "start several processes on GPUs, and let accelerate's config say `fsdp_version: 2`",
)
NOT_A_CAUSAL_CLASS = Code.brief(
    "BS756",
    "training another model than a causal language model",
    "`{name}` is not a causal language model, and `train` trains no other",
    "adapt it with `compile_spec`, and train it in a loop or by a Trainer of your own: any model adapts",
)
LONGER = Code.brief(
    "BS755",
    "a run that is made longer",
    "the run had {before:,} steps and has {now:,}: it goes on with the learning rates of the longer one",
    "for the result of a run that was as long from its beginning, begin a new one",
    "warning",
)
