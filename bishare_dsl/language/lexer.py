"""From text to tokens. What is no token becomes one of kind ``BAD``, and the parser reports it."""

from __future__ import annotations

import re
from functools import cache

from bishare_dsl.diagnostics import Source
from bishare_dsl.language.syntax import Comment, Token
from bishare_dsl.language.tables import END, tables

BAD = "BAD"

# What stands where a token should: a number or a name run together with something, a string that does not
# end, or any other character.
_BAD = r'[0-9][\w.]*|"[^\n]*|[^\W\d]\w*|(?s:.)'


@cache
def _pattern() -> re.Pattern[str]:
    known = tables()
    signs = sorted((word for word in known.words if not word.isalpha()), key=len, reverse=True)
    parts = [f"(?P<{name}>{pattern})" for name, pattern in known.patterns.items()]
    # A name must not stop in the middle of a word: `größe` is one mistake, not three.
    parts = [part.replace("(?P<NAME>", r"(?P<NAME>(?!\w*[^\W\dA-Za-z_])") for part in parts]
    return re.compile(
        "|".join([*parts, f"(?P<SIGN>{'|'.join(map(re.escape, signs))})", f"(?P<{BAD}>{_BAD})"])
    )


def tokenise(source: Source) -> list[Token]:
    """The tokens of a text, the last one empty."""
    text, base = source.text, source.start
    words = tables().words
    tokens: list[Token] = []
    comments: list[Comment] = []
    same_line = blank = False
    for match in _pattern().finditer(text):
        kind = match.lastgroup or BAD
        if kind == "SPACE":
            breaks = match[0].count("\n")
            same_line = same_line and not breaks
            blank = breaks > 1
            continue
        if kind == "COMMENT":
            comment = Comment(match[0].rstrip(), base + match.start(), blank)
            if same_line and tokens:
                tokens[-1].after = comment
            else:
                comments.append(comment)
            blank = False
            continue
        word = match[0]
        if kind in ("NAME", "SIGN"):
            kind = words.get(word, kind)
        tokens.append(Token(kind, word, base + match.start(), base + match.end(), blank))
        if comments:
            tokens[-1].before = tuple(comments)
            comments.clear()
        same_line, blank = True, False
    end = base + len(text)
    tokens.append(Token(END, "", end, end, blank, tuple(comments)))
    return tokens
