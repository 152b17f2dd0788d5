"""BS73x to BS79x: training."""

from bishare_dsl.diagnostics.problem import Code

# What is asked for --------------------------------------------------------------------------------

UNKNOWN_ARGUMENT = Code("BS730", "an unknown argument", "`{name}` is not an argument of training")
WRONG_VALUE = Code(
    "BS731",
    "a wrong value of an argument",
    "`{name}` cannot be `{value}`: {reason}",
    "`bishare train --help-all` lists all arguments with their defaults",
)
BAD_COMBINATION = Code(
    "BS732", "arguments that do not go together", "the arguments do not go together: {reason}"
)
REFUSED = Code(
    "BS733",
    "an argument that bishare does not take",
    "`{name}` is not supported: {reason}",
    "leave it out",
)
BAD_CONFIG = Code(
    "BS734",
    "a config file that cannot be read",
    "the config `{path}` cannot be read: {reason}",
    "a line of it reads `learning_rate: 1e-4`",
)
NEEDS_PACKAGE = Code(
    "BS735",
    "a package that is not installed",
    "{what} needs the package `{package}`, which is not installed",
    "`pip install 'bishare[train]'` for runs, `'bishare[eval]'` for evaluating, any other by its name",
)
MISSING_ARGUMENT = Code(
    "BS736",
    "a missing argument",
    "`{name}` is missing",
    "give it on the command line, or in the file of `--config`",
)
SPEC_AND_ADAPTED = Code(
    "BS737",
    "a spec for a model that is adapted",
    "the model is adapted by `{spec}` already, so it takes no spec",
    "train it further with `spec=None`, or take it out first: `model.bishare.unload()`",
)
FOREIGN_PARAMETERS = Code(
    "BS739",
    "parameters that train and are not the adapter's",
    "{count} parameters of the base would train, such as `{name}`, and no adapter can hold them",
    "freeze them (`requires_grad_(False)`), or name their modules in the spec's `target`",
)

# The output folder, and going on with a run -------------------------------------------------------

RUN_EXISTS = Code(
    "BS740",
    "the folder holds a run",
    "`{folder}` holds a run already ({status})",
    "`bishare train --resume DIR` goes on with it, and `--force` removes it and begins anew",
)
NOT_A_RUN = Code(
    "BS741",
    "a folder that holds something else",
    "a run cannot begin in `{folder}`: {reason}",
    "give a folder of its own: `--force` removes an earlier run, and nothing else",
)
NO_CHECKPOINT = Code(
    "BS742",
    "no checkpoint to resume from",
    "there is no checkpoint to resume from: {reason}",
    "name a run or a `checkpoint-N` of one; `--save_steps N` saves one every N steps",
)
BROKEN_CHECKPOINT = Code(
    "BS743",
    "a checkpoint that cannot be read",
    "the checkpoint `{folder}` cannot be read: {reason}",
    "it was changed, or copied in part: resume from an earlier one",
)
OTHER_RUN = Code(
    "BS744",
    "a checkpoint of another run",
    "the checkpoint `{folder}` is of another run: {differences}",
    "leave these as they were; or begin a new run, with this checkpoint in the place of the spec",
)
OTHER_SPLIT = Code(
    "BS745",
    "a batch that is divided otherwise",
    "the checkpoint was made by {before}, and this run is {now}: it goes on from there, but not bit for bit",
    "the steps see the same rows; sums are in another order, and each process draws its own dropout",
    severity="warning",
)
ADAPTER_ONLY = Code(
    "BS746",
    "a checkpoint without the optimizer",
    "the checkpoint `{folder}` was saved with `save_only_model`, and holds the adapter alone",
    "begin a new run from the adapter: give the folder in the place of the spec",
)
CANNOT_SAVE = Code(
    "BS747",
    "a folder that cannot be written",
    "`{folder}` cannot be written: {reason}",
    "make room or allow writing, then `bishare train --resume DIR` goes on from the last checkpoint",
)
NOT_STORABLE = Code(
    "BS748",
    "a state that a checkpoint cannot hold",
    "a checkpoint cannot hold {what}: {kind}",
    "choose another optimizer (`--optim`), or save none of its state (`--save_only_model`)",
)

# While it runs ------------------------------------------------------------------------------------

NOT_FINITE = Code(
    "BS750",
    "a loss that is not a number",
    "{what} of step {step} is {value}; {kept}",
    "lower `--learning_rate`, or look for a row of padding alone; the adapter is as it was before",
)
OUT_OF_MEMORY = Code(
    "BS751",
    "too little memory to train",
    "there is too little memory: {reason}",
    "lower `--per_device_train_batch_size` or `--max_length`, or add `--gradient_checkpointing`",
)
LONG_WARMUP = Code(
    "BS752",
    "a run shorter than its warm-up",
    "the run has {steps:,} steps, and the learning rate warms up over {warmup:,}: it never gets beyond "
    "{reached}",
    "leave out `--warmup_steps`: a run warms up over a tenth of its steps at most",
    severity="warning",
)
NO_CURVE = Code(
    "BS753",
    "no picture of the loss",
    "no loss curve is plotted: the package `matplotlib` is not installed",
    "the numbers are in log.jsonl. `pip install 'bishare[train]'` brings what plots them",
    severity="warning",
)
NOT_SHARDED = Code(
    "BS754",
    "FSDP that would not be used",
    "the model would not be sharded with FSDP2: {reason}",
    "start several processes on GPUs, and let accelerate's config say `fsdp_version: 2`",
)
NOT_A_CAUSAL_CLASS = Code(
    "BS756",
    "training another model than a causal language model",
    "`{name}` is not a causal language model, and `train` trains no other",
    "adapt it with `compile_spec`, and train it in a loop or by a Trainer of your own: any model adapts",
)
LONGER = Code(
    "BS755",
    "a run that is made longer",
    "the run had {before:,} steps and has {now:,}: it goes on with the learning rates of the longer one",
    "for the result of a run that was as long from its beginning, begin a new one",
    severity="warning",
)
