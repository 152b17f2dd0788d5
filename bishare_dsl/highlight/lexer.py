"""A lexer for Pygments, which finds it by its entry point: ``pygmentize -l share my.share``."""

from __future__ import annotations

from collections.abc import Iterator
from typing import ClassVar

from pygments.lexer import Lexer
from pygments.token import Token, _TokenType, string_to_tokentype

from bishare_dsl.highlight.rules import tokens


class ShareLexer(Lexer):  # type: ignore[misc]  # Pygments has no types
    """Highlights the specs of bishare."""

    name = "bishare"
    aliases: ClassVar[list[str]] = ["share", "bishare"]
    filenames: ClassVar[list[str]] = ["*.share"]

    def get_tokens_unprocessed(self, text: str) -> Iterator[tuple[int, _TokenType, str]]:
        """Yield what Pygments asks for: each piece of the text with its place and its type."""
        end = 0
        for start, stop, part in tokens(text):
            if start > end:
                yield end, Token.Text.Whitespace, text[end:start]
            yield start, string_to_tokentype(part.pygments), text[start:stop]
            end = stop
        if end < len(text):
            yield end, Token.Text.Whitespace, text[end:]
