"""BS73x to BS79x: training."""

from bishare_dsl.diagnostics.problem import Code

# Arguments ----------------------------------------------------------------------------------------

UNKNOWN_ARGUMENT = Code("BS730", "`{name}` is not an argument of training")
WRONG_VALUE = Code("BS731", "`{name}` cannot be `{value}`: {reason}")
BAD_COMBINATION = Code("BS732", "the arguments do not go together: {reason}")
BAD_CONFIG = Code("BS734", "the config `{path}` cannot be read: {reason}")
NEEDS_PACKAGE = Code("BS735", "{what} needs the package `{package}`, which is not installed")
MISSING_ARGUMENT = Code("BS736", "`{name}` is missing")
NO_RECORD = Code("BS738", "no `{path}` can be read: sharpness 1 is a guess", severity="warning")
MEMBER_LEFT_OUT = Code(
    "BS739",
    "`{name}` of `{library}` is left out: its loss on the examples is not finite",
    severity="warning",
)

# The output folder, and resuming a run ------------------------------------------------------------

RUN_EXISTS = Code("BS740", "a run would replace `{folder}`: {why}")
NOT_A_RUN = Code("BS741", "another training is at work in `{folder}`")
NO_CHECKPOINT = Code("BS742", "cannot resume: {reason}")
BROKEN_CHECKPOINT = Code("BS743", "the checkpoint `{folder}` cannot be used: {reason}")
CANNOT_SAVE = Code("BS747", "`{folder}` cannot be written: {reason}")

# Groups of tasks ----------------------------------------------------------------------------------

BAD_GROUPS = Code("BS749", "the tasks cannot be grouped: {reason}")
UNCERTAIN_GROUPS = Code(
    "BS757", "the groups that are found may be noise: {reason}", severity="warning"
)

# During a run -------------------------------------------------------------------------------------

NOT_FINITE = Code("BS750", "the {what} of step {step} is {value}: it is not applied; {kept}")
OUT_OF_MEMORY = Code("BS751", "there is too little memory: {reason}")
NOT_A_CAUSAL_CLASS = Code("BS756", "`train` needs a causal language model, and `{name}` is none")
