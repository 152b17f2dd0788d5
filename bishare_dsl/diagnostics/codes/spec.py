"""BS2xx: what a spec means, whatever the model."""

from bishare_dsl.diagnostics.problem import Code

UNKNOWN_PARAM_SET = Code(
    "BS207", "unknown param given from outside", "spec `{spec}` has no param `{name}`"
)
UNKNOWN_NAME = Code("BS201", "unknown name", "nothing here is called `{name}`")
TWICE = Code("BS202", "one name, two meanings", "{what} `{name}` is declared twice")
RESERVED = Code(
    "BS203",
    "a name that cannot be taken",
    "`{name}` cannot be declared: {why}",
    "give it another name",
)
UNKNOWN_TRANSFORM = Code("BS204", "unknown transform", "no transform is called `{name}`")
UNKNOWN_OPTION = Code("BS205", "unknown option", "{transform} has no option `{name}`")
BAD_OPTION = Code(
    "BS206", "a value that an option cannot take", "{transform} cannot take {name} = {value}: {why}"
)
UNKNOWN_INIT = Code("BS208", "unknown start", "no tensor can start as `{name}`")
START = Code(
    "BS209", "a start that is not the base model, or that never leaves it", "share `{share}` {what}"
)
NO_VALUE = Code(
    "BS210",
    "an expression without a value",
    "this has no value here: {why}",
    "write an expression that has a number at every module",
)
BAD_NUMBER = Code("BS211", "a number out of its range", "{what} cannot be {value}: {why}")
NO_ALPHA = Code(
    "BS212",
    "a scale that reads an alpha that is not given",
    "this scale reads `alpha`, and nothing sets it",
    "give one: `alpha 16` before the first share, say",
)
UNUSED = Code(
    "BS213",
    "declared and never used",
    "{what} `{name}` is never used",
    "leave it out, or use it",
    severity="warning",
)
BROKEN_PLUGIN = Code(
    "BS214",
    "a package's transform that cannot be used",
    "the transform `{name}` of package `{package}` cannot be used: {why}",
)
UNKNOWN_ROLE = Code(
    "BS215",
    "a tensor that this share does not have",
    "share `{share}` has no tensor `{role}` to {what}",
    "leave it out",
)
OUTDENTED = Code(
    "BS218",
    "a setting of one share that looks like one of all",
    "`{word}` begins a line, and is a clause of share `{share}` alone",
    severity="warning",
)
FINE_KEY = Code(
    "BS219",
    "a key that divides and does not round",
    "this key tells apart all that {divided} tells apart: `/` does not round",
    severity="warning",
)
EMPTY_RANGE = Code(
    "BS220",
    "a range that ends before it begins",
    "`{first}..{last}` is empty: it ends before it begins",
)
CONSTANT_KEY = Code(
    "BS221",
    "a key that is the same everywhere",
    "this key is the same at every module, so that it tells nothing apart",
    "for one pool of all write `per model`",
    severity="warning",
)
NO_KEY = Code("BS222", "a shared tensor without a key", "share `{share}` gives `{role}` no key")
NOT_PLAIN = Code(
    "BS223",
    "a start that is read from a weight, for a tensor of another shape",
    "`{role}` of share `{share}` cannot start as `{start}`: {transform} makes factors of it",
    "start it otherwise, or take another transform",
)
NOT_LINEAR = Code(
    "BS217",
    "a setting that needs a linear update",
    "{transform} is not linear in its input, so it takes no `{what}`",
    "leave it out; `gain out` is possible",
)
