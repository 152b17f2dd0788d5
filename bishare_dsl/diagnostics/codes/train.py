"""BS73x to BS79x: training."""

from bishare_dsl.diagnostics.problem import Code

# What is asked for --------------------------------------------------------------------------------

UNKNOWN_ARGUMENT = Code(
    "BS730",
    "an unknown argument",
    "`{name}` is not an argument of training",
    "Training takes its own arguments (`bishare train --help`) and those of transformers' "
    "`TrainingArguments` (`bishare train --help-all`), on the command line, in the file of `--config` and in "
    "Python by the same names. One that is not known is never passed over: a misspelt learning rate would "
    "cost a run.",
    bad="bishare train lora --model smollm2-135m --data rows.jsonl --output_dir out --learning_rat 2e-4",
    shell=True,
)
WRONG_VALUE = Code(
    "BS731",
    "a wrong value of an argument",
    "`{name}` cannot be `{value}`: {reason}",
    "Each argument has a type, and some have a few words or a range to choose from.",
    bad="bishare train lora --model smollm2-135m --data rows.jsonl --output_dir out --learning_rate fast",
    shell=True,
    remedy="`bishare train --help-all` lists all arguments with their defaults",
)
BAD_COMBINATION = Code(
    "BS732",
    "arguments that do not go together",
    "the arguments do not go together: {reason}",
    "The reason is given in the words of transformers, which checks its arguments before anything is loaded.",
    bad="bishare train lora --model smollm2-135m --data rows.jsonl --output_dir out "
    "--load_best_model_at_end",
    shell=True,
)
REFUSED = Code(
    "BS733",
    "an argument that bishare does not take",
    "`{name}` is not supported: {reason}",
    "It is an argument of transformers' Trainer that would break what a run of bishare promises.",
    bad="bishare train lora --model smollm2-135m --data rows.jsonl --output_dir out --push_to_hub",
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
NEEDS_PACKAGE = Code(
    "BS735",
    "a package that training needs",
    "{what} needs the package `{package}`, which is not installed",
    remedy=(
        "what most runs need comes with `pip install 'bishare[train]'`; what a run reports to, such "
        "as TensorBoard, is installed apart"
    ),
)
MISSING_ARGUMENT = Code(
    "BS736",
    "a missing argument",
    "`{name}` is missing",
    "A run needs a spec, a model, data and a folder for what it makes, on the command line or in the file of "
    "`--config`.",
    bad="bishare train lora --model smollm2-135m --output_dir out",
    shell=True,
)
SPEC_AND_ADAPTED = Code(
    "BS737",
    "a spec for a model that is adapted",
    "the model is adapted by `{spec}` already, so it takes no spec",
    remedy=(
        "a model that has an adapter is trained further with `spec=None`. To begin anew, take the "
        "adapter out first: `model.bishare.unload()`"
    ),
)
NO_TOKENIZER = Code(
    "BS738",
    "a model without a tokenizer",
    "`{model}` has no tokenizer",
    remedy=(
        "rows are text, and must be cut into the tokens that the model knows. Give a checkpoint that "
        "has its tokenizer files beside the weights; in Python, `tokenizer=`"
    ),
)
FOREIGN_PARAMETERS = Code(
    "BS739",
    "parameters that train and are not the adapter's",
    "{count} parameters of the base would train, such as `{name}`, and no adapter can hold them",
    remedy=(
        "checkpoints and the result hold the adapter alone, so that what the base learnt would be "
        "lost. Freeze them (`requires_grad_(False)`), or name their modules in the spec's `target`"
    ),
)

# The output folder, and going on with a run -------------------------------------------------------

RUN_EXISTS = Code(
    "BS740",
    "the folder holds a run",
    "`{folder}` holds a run already ({status})",
    remedy=(
        "a run is never overwritten without being asked. `bishare train --resume DIR` goes on with "
        "it, and `--force` removes it and begins anew"
    ),
)
NOT_A_RUN = Code(
    "BS741",
    "a folder that holds something else",
    "a run cannot begin in `{folder}`: {reason}",
    remedy=(
        "a run keeps its adapter, checkpoints and log in a folder of its own. `--force` removes an "
        "earlier run, and nothing else: what is not a run's own has to go another way"
    ),
)
NO_CHECKPOINT = Code(
    "BS742",
    "no checkpoint to resume from",
    "there is no checkpoint to resume from: {reason}",
    remedy=(
        "`--resume DIR` takes the newest `checkpoint-N` of a run, and `--resume DIR/checkpoint-N` "
        "that one; what else the run was asked is in its run.json. Folders whose name begins with a "
        "dot were never finished and do not count. With `--save_steps N` a checkpoint is saved every "
        "N steps"
    ),
)
BROKEN_CHECKPOINT = Code(
    "BS743",
    "a checkpoint that cannot be read",
    "the checkpoint `{folder}` cannot be read: {reason}",
    remedy=(
        "a checkpoint gets its name once all of it is on the disk, and `checkpoint.json` holds the "
        "digest of every file. This one was changed, or copied in part. Resume from an earlier one"
    ),
)
OTHER_RUN = Code(
    "BS744",
    "a checkpoint of another run",
    "the checkpoint `{folder}` is of another run: {differences}",
    remedy=(
        "a run that is gone on with ends where it would have ended without the interruption, so what "
        "decides that must be the same: the plan, the data, the seed, the effective batch, the "
        "schedule. How often is saved, logged and evaluated may change. To train an adapter further "
        "in another way, begin a new run from it: a checkpoint, like any adapter folder, may stand in "
        "the place of the spec"
    ),
)
OTHER_SPLIT = Code(
    "BS745",
    "a batch that is divided otherwise",
    "the checkpoint was made by {before}, and this run is {now}: it goes on from there, but not bit for bit",
    severity="warning",
    remedy=(
        "the effective batch is the same, and so are the rows of each step. But sums are made in "
        "another order, and each process draws its own dropout"
    ),
)
ADAPTER_ONLY = Code(
    "BS746",
    "a checkpoint without the optimizer",
    "the checkpoint `{folder}` was saved with `save_only_model`, and holds the adapter alone",
    remedy=(
        "without the optimizer's and the generators' state a run cannot be gone on with. A new run "
        "can begin from the adapter: give the folder in the place of the spec"
    ),
)
CANNOT_SAVE = Code(
    "BS747",
    "a folder that cannot be written",
    "`{folder}` cannot be written: {reason}",
    remedy=(
        "the system refused: the disk is full, or its permissions do not allow it. The checkpoints "
        "before are as they were, and `bishare train --resume DIR` goes on from the last"
    ),
)
NOT_STORABLE = Code(
    "BS748",
    "a state that a checkpoint cannot hold",
    "a checkpoint cannot hold {what}: {kind}",
    remedy=(
        "a checkpoint is tensors and JSON, so that reading one never runs code. The state of this "
        "optimizer or scheduler has something else in it. Choose another one (`--optim`), or save "
        "none of it (`--save_only_model`)"
    ),
)

# While it runs ------------------------------------------------------------------------------------

NOT_FINITE = Code(
    "BS750",
    "a loss that is not a number",
    "{what} of step {step} is {value}; {kept}",
    remedy=(
        "the step was not applied. Kept is the adapter as it was when its loss was last known to be a "
        "number. Usual causes: a learning rate that is too high (`--learning_rate`), float16, or a "
        "row that is nothing but padding"
    ),
)
OUT_OF_MEMORY = Code(
    "BS751",
    "too little memory to train",
    "there is too little memory: {reason}",
    remedy=(
        "the activations of the examples that go through the model at once take most of it. "
        "`--per_device_train_batch_size` sets how many these are (the effective batch stays 64), "
        "`--max_length` how long, `--gradient_checkpointing` computes activations twice instead of "
        "keeping them, `--dtype bfloat16` halves the base"
    ),
)
LONG_WARMUP = Code(
    "BS752",
    "a run shorter than its warm-up",
    "the run has {steps:,} steps, and the learning rate warms up over {warmup:,}: it never gets beyond "
    "{reached}",
    severity="warning",
    remedy=(
        "the paper warms up over 100 steps, for runs of a thousand and more. Without `--warmup_steps` "
        "and `--recipe paper` a run warms up over a tenth of its steps at most"
    ),
)
NO_CURVE = Code(
    "BS753",
    "no picture of the loss",
    "no loss curve is plotted: the package `matplotlib` is not installed",
    severity="warning",
    remedy="the numbers are in log.jsonl. `pip install 'bishare[train]'` brings what plots them",
)
NOT_SHARDED = Code(
    "BS754",
    "FSDP that would not be used",
    "the model would not be sharded with FSDP2: {reason}",
    remedy=(
        "`--fsdp`, or a config of `accelerate launch`, asks to spread the model over several "
        "processes. accelerate leaves that undone, without a word, on a CPU and where there is one "
        "process. And FSDP 1, which accelerate takes where its config names no version, melts a "
        "layer's parameters into one, from which an adapter cannot be saved; bishare needs FSDP2"
    ),
)
LONGER = Code(
    "BS755",
    "a run that is made longer",
    "the run had {before:,} steps and has {now:,}: it goes on with the learning rates of the longer one",
    severity="warning",
    remedy=(
        "`--max_steps` or `--num_train_epochs` was raised. The rate falls to 0 at the end of a run; "
        "where the run goes on it is what it would be there in the longer one. So the result is not "
        "that of a run that was as long from its beginning"
    ),
)
