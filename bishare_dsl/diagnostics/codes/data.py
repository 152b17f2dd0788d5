"""BS70x to BS72x: reading, checking and encoding training data."""

from bishare_dsl.diagnostics.problem import Code

# Finding and reading a set ------------------------------------------------------------------------

NO_SUCH_DATA = Code(
    "BS701",
    "there is no file `{source}`",
    "give a .json, .jsonl, .csv or .parquet file, or the id of a data set on the Hub, `owner/name`",
)
NO_SUCH_PART = Code(
    "BS703",
    "the data set `{name}` cannot be loaded: {reason}",
    "data sets on the Hub have splits, such as `train`, and some have configurations: name one",
)
UNKNOWN_FILE = Code(
    "BS704",
    "`{path}` is not a kind of file that training data is read from",
    "give .json, .jsonl or .ndjson, .csv with a header, or .parquet",
)
UNREADABLE = Code(
    "BS705",
    "`{path}` cannot be read: {reason}",
    "the file as a whole is broken, or the system refuses to open it",
)
BAD_LINE = Code(
    "BS706",
    "{place}: {reason}",
    "JSON Lines has one whole object a line, a CSV file a field for each column; all text is UTF-8",
)
NO_ROWS = Code(
    "BS707",
    "`{name}` has no rows",
    "there is nothing to train on. An empty file often means that the program that wrote it failed",
)

# Rows ---------------------------------------------------------------------------------------------

NO_FORMAT = Code(
    "BS709",
    "`{name}` has the columns {found}, and no format has these",
    "rename columns: `instruction` and `output`; `prompt` and `completion`; `messages`; or `text`",
)
SEVERAL_FORMATS = Code(
    "BS710",
    "the columns of `{name}` fit several formats: {formats}",
    "say which is meant by `--format`, or leave out the columns of the others",
)
MISSING_FIELD = Code(
    "BS711", "{place}: `{field}` is missing", "every row has the fields of the first row's format"
)
WRONG_TYPE = Code(
    "BS712",
    "{place}: `{field}` is {found}; {expected} is expected",
    "write text as text: `null` and numbers are not turned into it",
)
UNKNOWN_ROLE = Code(
    "BS713",
    "{place}: `{field}` is `{found}`, which is not a role",
    "the roles are `system`, `developer`, `user`, `assistant` and `tool`, or `human` and `gpt`",
)
EMPTY_FIELD = Code(
    "BS714",
    "{place}: `{field}` is empty",
    "say what the model is to answer; for text without a prompt use the column `text`",
)
MORE_PROBLEMS = Code(
    "BS717",
    "{count:,} more like these in `{name}`",
    "mend these first: the others may well be of the same kind",
    severity="note",
)

# Encoding -----------------------------------------------------------------------------------------

NO_CHAT_TEMPLATE = Code(
    "BS718",
    "the rows of `{name}` are chats, and the tokenizer has no chat template",
    "use the tokenizer of the instruct version, or write chats as `prompt` and `completion`",
)
TEMPLATE_REFUSES = Code(
    "BS719",
    "{place}: the chat template refuses: {reason}",
    "leave out what the template refuses: some know no `system`, some want user and assistant in turn",
)
TURNS_NOT_FOUND = Code(
    "BS720",
    "{place}: what the assistant says cannot be told apart in the chat template's text: {reason}",
)
NO_END_TOKEN = Code(
    "BS721",
    "the tokenizer has no end-of-sequence token to put after a completion",
    "set `tokenizer.eos_token` to the token that the model ends with",
)
NOTHING_TO_LEARN = Code(
    "BS723",
    "none of the {rows:,} rows of `{name}` has anything to learn",
    "give rows with a completion or a turn of the assistant, or raise `--max_length`",
)
TOO_FEW_TO_SPLIT = Code(
    "BS724",
    "of the {rows:,} rows of `{name}`, {wanted} cannot be held out: {reason}",
    "hold out fewer rows, or give more: those with the same content stay on one side",
)
LEAKY_PACKING = Code("BS725", "examples cannot be packed for {model}: {reason}")
