"""BS9xx: using the command line."""

from bishare_dsl.diagnostics.problem import Code

WRONG_USAGE = Code(
    "BS901",
    "a command that cannot be understood",
    "{what}",
    "The command line names a command, an option or a value that does not exist, or leaves out one that "
    "is needed. `bishare COMMAND --help` says what a command takes, with examples.",
    bad="bishare plan specs/lora.share --modle llama-7b",
    good="bishare plan specs/lora.share --model llama-7b",
    shell=True,
)
NO_SUCH_SPEC = Code(
    "BS902",
    "no such spec",
    "there is no spec `{name}`: {why}",
    "A spec is given as the path of a `.share` file, as the name of one that ships with bishare "
    "(`bishare specs` lists them), or as `-` for standard input. A file of that name wins over a shipped "
    "spec.",
    bad="bishare check bishare_kee",
    good="bishare check bishare_ke",
    shell=True,
    remedy="`bishare specs` lists those that ship; any other is the path of a `.share` file",
)
MALFORMED_SET = Code(
    "BS903",
    "a malformed --set",
    "`--set {given}` {why}",
    "`--set` takes `name=value`: the name of a param of the spec, and a whole number, a decimal number or "
    "a word. Each param is set once.",
    bad="bishare plan specs/lora.share --model llama-7b --set r:4",
    good="bishare plan specs/lora.share --model llama-7b --set r=4",
    shell=True,
)
CANNOT_READ = Code(
    "BS904",
    "a file that cannot be read or written",
    "`{path}`: {reason}",
    remedy="see that it is a file that you may read or write, and that the disk has room",
)
NOT_REPLACEABLE = Code(
    "BS905",
    "a folder that --force does not replace",
    "`{folder}` is not replaced: {why}",
    remedy="choose another folder, or remove this one: `--force` replaces what the same command wrote",
)
UNKNOWN_CODE = Code(
    "BS906",
    "unknown error code",
    "no error has the code `{code}`",
    "Every message of bishare begins with a code such as BS201; `bishare explain BS201` says more about it.",
    bad="bishare explain BS2001",
    good="bishare explain BS201",
    shell=True,
)
BAD_BUDGET = Code(
    "BS907",
    "a budget that cannot be understood",
    "`--budget {given}` is not an amount",
    "A budget is a number of trainable parameters (`3000000`, `3M`, `500k`), the size of the adapter "
    "(`12MiB`), or a fraction of another spec's parameters on the same model (`44% of lora`, or "
    "`44% of lora r=8` with a param set). `bishare propose` takes a fraction by itself, too (`44%`): of a "
    "LoRA of rank 8 on the modules that it adapts.",
    bad="bishare plan lora --model llama-7b --budget much --solve r",
    good="bishare plan lora --model llama-7b --budget 3M --solve r",
    shell=True,
    remedy="such as `3M`, `12MiB` or `44% of lora`",
)
NO_SOLUTION = Code(
    "BS908",
    "a budget that no value of a param uses",
    "no value of `{param}` is the largest within {budget} trainable parameters: {why}",
    "`--solve` looks for the largest whole number that keeps the spec within `--budget`. There is none "
    "where even the least takes more, or where the param does not change how many parameters there are.",
    bad="bishare plan lora --model llama-7b --budget 3M --solve lora_alpha",
    good="bishare plan lora --model llama-7b --budget 3M --solve r",
    shell=True,
    remedy="raise `--budget`, or name another param by `--solve`",
)
BAD_TRANSFORM_FILE = Code(
    "BS910",
    "a --spec-transform that cannot be used",
    "`{path}` gives no transform: {reason}",
    "`--spec-transform` names a Python file, or a folder of them, that is run and whose transforms a spec "
    "may use then. Each is a class with a `name`, as the page on writing a transform says; its name is not "
    "one that is taken. The file imports what is installed, and not its neighbours.",
)
FILE_EXISTS = Code(
    "BS909",
    "a file that is in the way",
    "`{path}` exists",
    remedy="a spec is not overwritten unless `--force` is given",
)
NEEDS_PACKAGE = Code(
    "BS920",
    "a command that needs another package",
    "this command needs the package `{package}`",
    remedy="`pip install 'bishare[lsp]'` brings what the language server needs",
)
