"""BS9xx: using the command line."""

from bishare_dsl.diagnostics.problem import Code

WRONG_USAGE = Code("BS901", "{what}")
NO_SUCH_SPEC = Code("BS902", "cannot find spec `{name}`: {why}")
MALFORMED_SET = Code("BS903", "`--set {given}` {why}")
CANNOT_READ = Code("BS904", "`{path}`: {reason}")
NOT_REPLACEABLE = Code("BS905", "`{folder}` is not replaced: {why}")
UNKNOWN_CODE = Code("BS906", "no error has the code `{code}`")
MALFORMED_MATCH = Code("BS907", "`--match {given}` {why}")
NOT_FREE = Code("BS908", "`{name}` of `{spec}` cannot be chosen to meet a budget: {why}")
BUDGET_NOT_MET = Code(
    "BS909", "`{spec}` does not come within {percent}% of {budget} parameters: {why}"
)
BAD_TRANSFORM_FILE = Code("BS910", "`{path}` gives no transform: {reason}")
NOT_COMPARABLE = Code("BS911", "the runs cannot be compared: {reason}")
