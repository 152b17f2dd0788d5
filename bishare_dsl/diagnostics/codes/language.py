"""BS1xx: reading a text."""

from bishare_dsl.diagnostics.problem import Code

NOT_UTF8 = Code("BS101", "byte {offset} (0x{byte:02x}) is not UTF-8")
TOO_LARGE = Code(
    "BS102",
    "a spec and all that it uses may have {limit:,} bytes; this has {size}",
    "name a `.share` file, or cut this one into several that one spec uses",
)
BAD_CHARACTER = Code("BS103", "{what} is not used in a spec")
UNCLOSED_QUOTE = Code(
    "BS104", "this quote is not closed on its line", 'write `"` after the name, on the same line'
)
BAD_ESCAPE = Code(
    "BS105",
    "a backslash in quotes starts an escape, and one here is none",
    "a backslash itself is written twice",
)
BAD_NUMBER = Code("BS106", "`{text}` is neither a number nor a name")
NUMBER_RANGE = Code(
    "BS107",
    "`{text}` is out of range",
    "a whole number has at most 63 bits, any other lies between 1e-308 and 1e308",
)
TOO_DEEP = Code(
    "BS108",
    "this is nested more than {limit} levels deep",
    "name a part of it with `let` or `param`",
)
UNEXPECTED = Code("BS110", "expected {expected}, found {found}")
KEYWORD_AS_NAME = Code("BS111", "`{word}` is a keyword of the language, not a name")
NO_HEADER = Code("BS120", "a spec starts with its name: `spec NAME`", "begin with `spec mine`, say")
NO_TARGET = Code("BS121", "spec `{spec}` has no target")
NO_SHARE = Code("BS122", "spec `{spec}` has no share, so it would adapt nothing")
NO_CLAUSE = Code("BS123", "share `{share}` does not say `{clause}`")
TWICE = Code("BS124", "{what} is given a second time", "leave one of the two out")
LATE_DEFAULT = Code("BS125", "`{word}` as a default for all shares stands before the first share")
USED_BEFORE = Code("BS126", "`{name}` is used before its `{keyword}`")
LATE_USE = Code(
    "BS127", "`use` stands before everything but `spec`", "move it up, directly after `spec`"
)
NOT_FOUND = Code("BS130", "there is no file `{name}`, and no spec of that name ships with bishare")
UNREADABLE = Code("BS131", "`{name}` cannot be read: {why}", "look whether you may read it")
USE_CYCLE = Code(
    "BS132", "a file cannot use itself: {chain}", "put what both need into a third file"
)
TOO_MANY_USES = Code(
    "BS133", "a spec may use {limit} files, and no more", "put several of them into one file"
)
NOT_REPLACED = Code("BS134", "{what} is declared already, at {place}")
NOTHING_TO_REPLACE = Code("BS135", "no used file has {what} to be replaced")
USES_DISAGREE = Code("BS136", "{what} is said twice by what is used, at {one} and at {two}")
OTHER_MEANING = Code("BS137", "{what} would change what {place} means", "give it another name here")
OUTSIDE = Code("BS138", "`{name}` is outside of the spec's folder")
NOT_A_SPEC = Code(
    "BS139",
    "`{name}` is not a spec: it does not begin with `spec NAME`",
    "name a file that begins with `spec NAME`",
)
NO_TEXT = Code("BS140", "no text says this spec: what is written of it says another")
INVALID = Code("BS141", "this cannot be in a spec: {why}")
BAD_CALL = Code(
    "BS142",
    "`{name}` {why}",
    "the functions are `abs(x)`, `floor(x)`, `sqrt(x)`, `min(x, y)` and `max(x, y)`",
)
MANY_MORE = Code("BS199", "{count:,} more errors are not shown")
