"""A lexer for Pygments, registered by an entry point: ``pygmentize -l share my.share``."""

from __future__ import annotations

from collections.abc import Iterator
from typing import ClassVar

from pygments.lexer import Lexer
from pygments.token import Token, _TokenType, string_to_tokentype

from bishare_dsl.highlight.rules import tokens


class ShareLexer(Lexer):  # type: ignore[misc]  # Pygments has no types
    """Highlight specs."""

    name = "bishare"
    aliases: ClassVar[list[str]] = ["share", "bishare"]
    filenames: ClassVar[list[str]] = ["*.share"]

    def get_tokens_unprocessed(self, text: str) -> Iterator[tuple[int, _TokenType, str]]:
        """Yield the position, type and text of each token, as Pygments requires."""
        end = 0
        for start, stop, part in tokens(text):
            if start > end:
                yield end, Token.Text.Whitespace, text[end:start]
            yield start, string_to_tokentype(part.pygments), text[start:stop]
            end = stop
        if end < len(text):
            yield end, Token.Text.Whitespace, text[end:]
