"""BS70x to BS72x: reading, checking and encoding training data."""

from bishare_dsl.diagnostics.problem import Code, note

# Finding and reading data -------------------------------------------------------------------------

NO_SUCH_DATA = Code("BS701", "the file `{source}` does not exist")
NO_SUCH_PART = Code("BS703", "the data set `{name}` cannot be loaded: {reason}")
UNKNOWN_FILE = Code("BS704", "`{path}` is not a kind of file that training data is read from")
UNREADABLE = Code("BS705", "`{path}` cannot be read: {reason}")
BAD_LINE = Code("BS706", "{place}: {reason}")
NO_ROWS = Code("BS707", "`{name}` has no rows")

# Rows ---------------------------------------------------------------------------------------------

NO_FORMAT = Code(
    "BS709", "the first row of `{name}` has the columns {found}, and no format has these"
)
SEVERAL_FORMATS = Code("BS710", "the columns of `{name}` fit several formats: {formats}")
MISSING_FIELD = Code("BS711", "{place}: `{field}` is missing")
WRONG_TYPE = Code("BS712", "{place}: `{field}` is {found}; {expected} is expected")
UNKNOWN_ROLE = Code("BS713", "{place}: `{field}` is `{found}`, which is not a role")
EMPTY_FIELD = Code("BS714", "{place}: `{field}` is empty")
MORE_PROBLEMS = note("BS717", "{count:,} more like these in `{name}`")

# Encoding -----------------------------------------------------------------------------------------

NO_CHAT_TEMPLATE = Code(
    "BS718",
    "the rows of `{name}` are chats, and the tokenizer has no chat template to write them with",
)
TEMPLATE_REFUSES = Code("BS719", "{place}: the chat template refuses: {reason}")
TURNS_NOT_FOUND = Code(
    "BS720",
    "{place}: the loss is of the assistant's turns, and the chat template does not show where "
    "they are: {reason}",
)
NO_END_TOKEN = Code("BS721", "the tokenizer has no end-of-sequence token to put after a completion")
NOTHING_TO_LEARN = Code("BS723", "none of the {rows:,} rows of `{name}` has anything to learn")
TOO_FEW_TO_SPLIT = Code(
    "BS724",
    "{wanted} of the {rows:,} rows of `{name}` cannot be held out: {reason}",
)
BAD_OPTIONS = Code("BS726", "{place}: `options` cannot be used: {reason}")
