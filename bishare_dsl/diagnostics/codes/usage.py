"""BS9xx: using the command line."""

from bishare_dsl.diagnostics.problem import Code

WRONG_USAGE = Code("BS901", "{what}")
NO_SUCH_SPEC = Code(
    "BS902",
    "there is no spec `{name}`: {why}",
    "`bishare specs` lists those that ship; any other is the path of a `.share` file",
)
MALFORMED_SET = Code("BS903", "`--set {given}` {why}")
CANNOT_READ = Code(
    "BS904",
    "`{path}`: {reason}",
    "see that it is a file that you may read or write, and that the disk has room",
)
NOT_REPLACEABLE = Code(
    "BS905",
    "`{folder}` is not replaced: {why}",
    "choose another folder, or remove this one: `--force` replaces what the same command wrote",
)
UNKNOWN_CODE = Code("BS906", "no error has the code `{code}`")
BAD_BUDGET = Code(
    "BS907", "`--budget {given}` is not an amount", "such as `3M`, `12MiB` or `44% of lora`"
)
NO_SOLUTION = Code(
    "BS908",
    "no value of `{param}` is the largest within {budget} trainable parameters: {why}",
    "raise `--budget`, or name another param by `--solve`",
)
BAD_TRANSFORM_FILE = Code("BS910", "`{path}` gives no transform: {reason}")
