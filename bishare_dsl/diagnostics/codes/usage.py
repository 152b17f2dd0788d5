"""BS9xx: using the command line."""

from bishare_dsl.diagnostics.problem import Code

WRONG_USAGE = Code("BS901", "a command that cannot be understood", "{what}")
NO_SUCH_SPEC = Code(
    "BS902",
    "no such spec",
    "there is no spec `{name}`: {why}",
    "`bishare specs` lists those that ship; any other is the path of a `.share` file",
)
MALFORMED_SET = Code("BS903", "a malformed --set", "`--set {given}` {why}")
CANNOT_READ = Code(
    "BS904",
    "a file that cannot be read or written",
    "`{path}`: {reason}",
    "see that it is a file that you may read or write, and that the disk has room",
)
NOT_REPLACEABLE = Code(
    "BS905",
    "a folder that --force does not replace",
    "`{folder}` is not replaced: {why}",
    "choose another folder, or remove this one: `--force` replaces what the same command wrote",
)
UNKNOWN_CODE = Code("BS906", "unknown error code", "no error has the code `{code}`")
BAD_BUDGET = Code(
    "BS907",
    "a budget that cannot be understood",
    "`--budget {given}` is not an amount",
    "such as `3M`, `12MiB` or `44% of lora`",
)
NO_SOLUTION = Code(
    "BS908",
    "a budget that no value of a param uses",
    "no value of `{param}` is the largest within {budget} trainable parameters: {why}",
    "raise `--budget`, or name another param by `--solve`",
)
BAD_TRANSFORM_FILE = Code(
    "BS910", "a --spec-transform that cannot be used", "`{path}` gives no transform: {reason}"
)
FILE_EXISTS = Code(
    "BS909",
    "a file that is in the way",
    "`{path}` exists",
    "a spec is not overwritten unless `--force` is given",
)
NEEDS_PACKAGE = Code(
    "BS920",
    "a command that needs another package",
    "this command needs the package `{package}`",
    "`pip install 'bishare[lsp]'` brings what the language server needs",
)
