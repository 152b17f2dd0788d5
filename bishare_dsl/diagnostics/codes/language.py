"""BS1xx: reading a text."""

from bishare_dsl.diagnostics.problem import Code

_GOOD = "spec example\ntarget q_proj, v_proj\nshare local  per module  rank 4\n"

NOT_UTF8 = Code(
    "BS101",
    "the file is not UTF-8 text",
    "byte {offset} (0x{byte:02x}) is not UTF-8",
    "A spec is text in UTF-8. This file was written in another encoding, or is not text at all. Save it "
    "as UTF-8; outside comments and quoted names, plain ASCII is all that a spec uses.",
    bad="# gr\udcf6\udcdfe\n" + _GOOD,
    good="# größe\n" + _GOOD,
)

TOO_LARGE = Code(
    "BS102",
    "the file is too large",
    "a spec and all that it uses may have {limit:,} bytes; this has {size}",
    "The largest specs have some thousands of bytes. A file above the limit is almost surely something "
    "else, such as a checkpoint, and is refused before it is read.",
    good=_GOOD,
    remedy="name a `.share` file, or cut this one into several that one spec uses",
)

BAD_CHARACTER = Code(
    "BS103",
    "a character that the language does not use",
    "{what} is not used in a spec",
    "Names are made of the letters a to z and A to Z, digits and `_`. A name with any other character, "
    "such as a dot, a hyphen or a letter with an accent, is written in quotes. Everything that is not "
    "for the compiler goes behind `#`.",
    bad=_GOOD.replace("q_proj", "größe"),
    good=_GOOD.replace("q_proj", '"größe"'),
)

UNCLOSED_QUOTE = Code(
    "BS104",
    "a quote that is not closed on its line",
    "this quote is not closed on its line",
    'A quoted name begins and ends with `"` on one line. A quote inside it is written `\\"`.',
    bad=_GOOD.replace("q_proj", 'path "*.mlp.*'),
    good=_GOOD.replace("q_proj", 'path "*.mlp.*"'),
    remedy='write `"` behind the name, on the same line',
)

BAD_ESCAPE = Code(
    "BS105",
    "an escape that means nothing",
    "a backslash in quotes starts an escape, and one here is none",
    'In quotes a backslash starts an escape, as in JSON: `\\"`, `\\\\`, `\\n`, `\\t`, `\\u00e9`. '
    "Write a backslash itself twice.",
    bad=_GOOD.replace("q_proj", r'"q\proj"'),
    good=_GOOD.replace("q_proj", r'"q\\proj"'),
    remedy="a backslash itself is written twice",
)

BAD_NUMBER = Code(
    "BS106",
    "a malformed number",
    "`{text}` is neither a number nor a name",
    "Numbers are whole (`16`) or have digits on both sides of their point (`0.05`), with an exponent if "
    "need be (`1e-4`). Names begin with a letter or `_`; quote one that does not.",
    bad=_GOOD.replace("rank 4", "rank 4x"),
    good=_GOOD,
)

NUMBER_RANGE = Code(
    "BS107",
    "a number out of range",
    "`{text}` is out of range",
    "Whole numbers have at most 63 bits, other numbers lie between about 1e-308 and 1e308.",
    bad=_GOOD + "dropout 1e999\n",
    good=_GOOD + "dropout 0.1\n",
    remedy="a whole number has at most 63 bits, any other lies between 1e-308 and 1e308",
)

TOO_DEEP = Code(
    "BS108",
    "an expression nested too deeply",
    "this is nested more than {limit} levels deep",
    "Parentheses, operators and `not` may be nested 64 deep, which is more than anyone can read. A chain "
    "`a + b + c` counts one level for each operator; `and`, `or` and lists count one in all.",
    bad=_GOOD.replace("rank 4", "rank " + 70 * "(" + "4" + 70 * ")"),
    good=_GOOD.replace("rank 4", "rank ((4))"),
    remedy="name a part of it with `let` or `param`",
)

UNEXPECTED = Code(
    "BS110",
    "something that does not belong here",
    "expected {expected}, found {found}",
    "The text cannot be read further at this place. Statements are `spec`, `use`, `param`, `let`, "
    "`target` and `share`; `replace` may stand before `param`, `let` and `share`. The clauses of a share are "
    "`where`, `per` (or `A per` and `B per`), `rank`, `via`, `alpha`, `scale`, `dropout`, `init`, `freeze`, "
    "`gain` and `start nonzero`. Reading goes on behind the place, so that other mistakes are found too.",
    bad=_GOOD.replace("share", "sahre"),
    good=_GOOD,
)

KEYWORD_AS_NAME = Code(
    "BS111",
    "a keyword where a name is needed",
    "`{word}` is a keyword of the language, not a name",
    "Keywords are reserved, so that every statement and clause can be told by its first word. In quotes, "
    "any word is a name.",
    bad=_GOOD.replace("share local", "share model"),
    good=_GOOD.replace("share local", 'share "model"'),
)

NO_HEADER = Code(
    "BS120",
    "no `spec` at the start",
    "a spec starts with its name: `spec NAME`",
    "The first statement of a file gives the spec its name, which names adapters, tables and folders.",
    bad=_GOOD.replace("spec example\n", ""),
    good=_GOOD,
    remedy="begin with `spec mine`, say",
)

NO_TARGET = Code(
    "BS121",
    "no `target`",
    "spec `{spec}` has no target",
    "`target` selects the linear layers that may be adapted; every share covers some of them. A spec without "
    "shares, which trains parameters of the base alone (`train norms`), has none.",
    bad=_GOOD.replace("target q_proj, v_proj\n", ""),
    good=_GOOD,
)

NO_SHARE = Code(
    "BS122",
    "no `share`",
    "spec `{spec}` has no share, so it would adapt nothing",
    "Every low-rank term is a `share` statement. `share local per module rank 4` is plain LoRA. A spec that "
    "trains parameters of the base alone, by `train`, has no `target` either.",
    bad="spec example\ntarget q_proj, v_proj\n",
    good=_GOOD,
)

NO_CLAUSE = Code(
    "BS123",
    "a share without `per` or `rank`",
    "share `{share}` does not say `{clause}`",
    "`per` says which modules use the same factors (`per module`: none, `per layer`, `per model`: all), "
    "`rank` how wide the factors are. Neither has a default.",
    bad=_GOOD.replace("  rank 4", ""),
    good=_GOOD,
)

TWICE = Code(
    "BS124",
    "something said twice",
    "{what} is given a second time",
    "A spec has one name and one target, a share each clause at most once, and so have the defaults, the "
    "options of a transform, the factors of an `init` and what a `gain` or a `freeze` names. The second is "
    "refused, not taken for the first.",
    bad=_GOOD + "rank 8\n",
    good=_GOOD,
    remedy="leave one of the two out",
)

LATE_DEFAULT = Code(
    "BS125",
    "a default behind a share",
    "`{word}` as a default for all shares stands before the first share",
    "`alpha`, `scale`, `dropout` and `init` are defaults for all shares where they stand before the first "
    "one, and clauses of a share where they follow one. Behind another statement they could be meant "
    "either way.",
    bad=_GOOD + "param p = 0.1\ndropout p\n",
    good="spec example\nparam p = 0.1\ntarget q_proj, v_proj\ndropout p\nshare local  per module  rank 4\n",
)

USED_BEFORE = Code(
    "BS126",
    "used before it is declared",
    "`{name}` is used before its `{keyword}`",
    "`param` and `let` come before use, so that a spec can be read from top to bottom. Nothing else "
    "depends on order. A `let` cannot use itself.",
    bad=_GOOD.replace("rank 4", "rank r") + "param r = 4\n",
    good=_GOOD.replace("target", "param r = 4\ntarget").replace("rank 4", "rank r"),
)

LATE_USE = Code(
    "BS127",
    "a `use` below other statements",
    "`use` stands before everything but `spec`",
    "What a file uses is known before its first statement, so that a spec can be read from top to bottom.",
    bad='spec example\ntarget q_proj, v_proj\nuse "lora"\n',
    good='spec example\nuse "lora"\ntarget q_proj, v_proj\n',
    remedy="move it up, directly behind `spec`",
)

NOT_FOUND = Code(
    "BS130",
    "a used file that is not there",
    "there is no file `{name}`, and no spec of that name ships with bishare",
    "`use` takes the path of a file, from the folder of the file that says so (for a text that is not one: "
    "from the current folder), or the name of a spec that ships with bishare. A file goes before a name.",
    bad='spec example\nuse "lroa"\n',
    good='spec example\nuse "lora"\n',
)

UNREADABLE = Code(
    "BS131",
    "a used file that cannot be read",
    "`{name}` cannot be read: {why}",
    "The file is there, or seems to be, but the system does not let it be read.",
    good='spec example\nuse "lora"\n',
    remedy="look whether you may read it",
)

USE_CYCLE = Code(
    "BS132",
    "a file that uses itself",
    "a file cannot use itself: {chain}",
    "Files may use one another in any way that is not a circle. Put what both need into a third file.",
    good='spec example\nuse "lora"\n',
    remedy="put what both need into a third file",
)

TOO_MANY_USES = Code(
    "BS133",
    "too many used files",
    "a spec may use {limit}, and no more",
    "A spec may use 64 files, itself or through others, and one through another 16 deep.",
    good='spec example\nuse "lora"\n',
    remedy="put several of them into one file",
)

NOT_REPLACED = Code(
    "BS134",
    "a name that a used file has already",
    "{what} is declared already, at {place}",
    "A name of a used file keeps its meaning unless it is replaced on purpose: `replace` stands before the "
    "`param`, `let` or `share`. What replaces stands where the replaced one stood. A `target` or a default "
    "needs no `replace`: the file's own goes before a used one.",
    bad='spec example\nuse "lora"\nparam r = 4\n',
    good='spec example\nuse "lora"\nreplace param r = 4\n',
)

NOTHING_TO_REPLACE = Code(
    "BS135",
    "nothing to replace",
    "no used file has {what} to be replaced",
    "`replace` is for what `use` brings in. Without a used file that declares the name, leave it out.",
    bad=_GOOD.replace("share", "replace share"),
    good=_GOOD,
)

USES_DISAGREE = Code(
    "BS136",
    "two used files that say different things",
    "{what} is said twice by what is used, at {one} and at {two}",
    "The order of `use` means nothing, so neither of the two goes before the other. The file that uses both "
    "decides: with `replace`, or with a `target` or a default of its own. A file that is used along two ways "
    "is one file, and agrees with itself.",
    bad='spec example\nuse "lora"\nuse "bishare_ke"\ntarget q_proj\n',
    good='spec example\nuse "lora"\nuse "bishare_ke"\ntarget q_proj\n'
    "replace share local  per module  rank r\n",
)

OTHER_MEANING = Code(
    "BS137",
    "a name that means something else in a used file",
    "{what} would change what {place} means",
    "The used file has the name for something else, such as a kind of module, and does not know this `param` "
    "or `let`. Give that another name.",
    bad='spec example\nuse "lora"\nlet mlp_ups = v_proj\n',
    good='spec example\nuse "lora"\nlet values = v_proj\n',
    remedy="give it another name here",
)

OUTSIDE = Code(
    "BS138",
    "a used file outside of the spec's folder",
    "`{name}` is outside of the spec's folder",
    "A spec that a stranger wrote should not read what it likes. It reaches the files below its own folder, "
    "links followed, and the specs that ship with bishare. `--allow-use`, or `allow_use=True` of "
    "`parse_spec` in Python, lets it use any file.",
    bad='spec example\nuse "../other/base.share"\n',
    good='spec example\nuse "lora"\n',
)

NOT_A_SPEC = Code(
    "BS139",
    "a used file that is not a spec",
    "`{name}` is not a spec: it does not begin with `spec NAME`",
    "What `use` names is read as a spec, and a spec begins with its name, comments aside. Nothing is shown "
    "of a file that does not.",
    good='spec example\nuse "lora"\n',
    remedy="name a file that begins with `spec NAME`",
)

NO_TEXT = Code(
    "BS140",
    "a part of a spec that no text says",
    "no text says {what}",
    "A spec that Python has built may have parts that the language has no words for, such as a list with "
    "nothing in it. It cannot be printed.",
    good=_GOOD,
)

INVALID = Code(
    "BS141",
    "a part that no spec may have",
    "this cannot be in a spec: {why}",
    "What a text says is validated before it becomes a spec. A text that can be read and is refused here has "
    "found a gap between the language and the spec: please report it.",
    good=_GOOD,
)

BAD_CALL = Code(
    "BS142",
    "a function that is not called so",
    "`{name}` {why}",
    "The functions are `abs`, `floor` and `sqrt`, of one number, and `min` and `max`, of two or more.",
    bad="spec example\ntarget q_proj\nshare local per module rank sqr(64)",
    good="spec example\ntarget q_proj\nshare local per module rank sqrt(64)",
    remedy="the functions are `abs(x)`, `floor(x)`, `sqrt(x)`, `min(x, y)` and `max(x, y)`",
)

MANY_MORE = Code(
    "BS199",
    "more errors than are shown",
    "{count:,} more errors are not shown",
    "Only the first errors of a text are shown; the others may well follow from them.",
    good=_GOOD,
)
