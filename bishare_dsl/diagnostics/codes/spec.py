"""BS2xx: the meaning of a spec, independent of a model."""

from bishare_dsl.diagnostics.problem import Code, note, warning

UNKNOWN_PARAM_SET = Code("BS207", "spec `{spec}` has no param `{name}`")
UNKNOWN_NAME = Code("BS201", "unknown name `{name}`")
TWICE = Code("BS202", "{what} `{name}` is declared twice")
RESERVED = Code("BS203", "`{name}` cannot be declared: {why}")
UNKNOWN_TRANSFORM = Code("BS204", "no transform is called `{name}`")
UNKNOWN_OPTION = Code("BS205", "{transform} has no option `{name}`")
BAD_OPTION = Code("BS206", "{transform} cannot take {what}: {why}")
UNKNOWN_INIT = Code("BS208", "unknown initial value `{name}`")
START = Code("BS209", "share `{share}` {what}")
NO_VALUE = Code("BS210", "this has no value: {why}")
BAD_NUMBER = Code("BS211", "{what} cannot be {value}: {why}")
NO_ALPHA = Code("BS212", "this scale reads `alpha`, and nothing sets it")
UNUSED = warning("BS213", "{what} `{name}` is never used{why}")
BROKEN_PLUGIN = Code("BS214", "the transform `{name}` of package `{package}` cannot be used: {why}")
UNKNOWN_ROLE = Code("BS215", "share `{share}` has no tensor `{role}` to {what}")
OUTDENTED = warning("BS218", "`{word}` begins a line, and is a clause of share `{share}` alone")
EMPTY_RANGE = Code("BS220", "`{first}..{last}` is empty: it ends before it begins")
CONSTANT_KEY = warning(
    "BS221", "this key is the same at every module, so that it tells nothing apart"
)
NO_KEY = Code("BS222", "share `{share}` gives `{role}` no key")
NOT_PLAIN = Code(
    "BS223", "`{role}` of `{share}` cannot start as `{start}`: {transform} makes it{only}"
)
NAMED = warning("BS226", "share `{share}` covers all: its name selects nothing")
COMMA_IS_OR = warning("BS227", "a comma or `or` takes what fits one part: {why}")
LAYER_IN_BOTH = note("BS228", "layer {layer} is in shares `{one}` and `{other}`")
SAME_SHARE = warning("BS229", "shares `{one}` and `{other}` act as one share")
COUNTS_LAYERS = warning("BS231", "`layers` is the same for every module")
NO_REFERENCE = Code("BS232", "`{role}` of share `{share}` cannot be `{tensor}`: {why}")
BAD_STEP = Code("BS233", "{transform} cannot be this step: {why}")
NO_ELSE = Code("BS234", "this `match` has no `else`")
NOT_ROUNDED = warning("BS235", "this key makes the groups of `{name}`: `/` does not round")
NOT_LINEAR = Code("BS217", "{transform} is not linear in its input, so it takes no `{what}`")
