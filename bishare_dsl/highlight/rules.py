"""Rules for highlighting `.share` texts, shared by all tools."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cache

from bishare_dsl.language.grammar import STATEMENTS, lark, words
from bishare_dsl.spec.expression import ATTRIBUTES, FUNCTIONS

_DECLARING = ("spec", "share", "param", "let")
_OPERATORS = frozenset({"and", "or", "not", "in", "if"})
_OF_GATES = frozenset({"softmax", "top", "of", "x"})
"""Words of a gate, which are names elsewhere."""
_PUNCTUATION = frozenset(",;:(){}=.") | {".."}


@dataclass(frozen=True)
class Part:
    """The type of a token: its TextMate scope, without the language's name, and its Pygments type."""

    scope: str
    pygments: str


COMMENT = Part("comment.line.number-sign", "Comment.Single")
STRING = Part("string.quoted.double", "String.Double")
NUMBER = Part("constant.numeric", "Number")
STATEMENT = Part("keyword.control", "Keyword.Declaration")
CLAUSE = Part("keyword.other", "Keyword")
WORD_OPERATOR = Part("keyword.operator.word", "Operator.Word")
OPERATOR = Part("keyword.operator", "Operator")
PUNCTUATION = Part("punctuation", "Punctuation")
ATTRIBUTE = Part("variable.language", "Name.Builtin")
DECLARED = Part("entity.name.type", "Name.Class")
TRANSFORM = Part("support.class", "Name.Function")
FUNCTION = Part("support.function", "Name.Function")
NAME = Part("variable.other", "Name")
WRONG = Part("invalid.illegal", "Error")


@dataclass(frozen=True)
class Rule:
    """A pattern for Python and Oniguruma, with the type of each group or of the whole match.

    If several rules match at a position, the first one counts. No rule matches white space.
    """

    pattern: str
    parts: tuple[Part, ...]


@cache
def rules() -> tuple[Rule, ...]:
    """Derive the rules from the grammar's terminals."""
    patterns = {t.name: t.pattern.value for t in lark().terminals if t.pattern.type == "re"}
    keywords = [word for word in words() if word.isalpha()]
    signs = [word for word in words() if not word.isalpha()]
    name = patterns["NAME"]
    clauses = [word for word in keywords if word not in {*STATEMENTS, *_OPERATORS, *_OF_GATES}]
    return (
        Rule(patterns["COMMENT"], (COMMENT,)),
        Rule(patterns["STRING"], (STRING,)),
        # The names of spec, shares, params and lets, where they are declared on one line.
        Rule(
            rf"{_any_word(_DECLARING, group=True)}\s+(?!{_any_word(keywords)})({name})",
            (STATEMENT, DECLARED),
        ),
        Rule(rf"\b(via)\s+(?!{_any_word(keywords)})({name})", (CLAUSE, TRANSFORM)),
        Rule(r"\b(gate)\s+(softmax|top)\b", (CLAUSE, CLAUSE)),
        Rule(r"\b(of)\s+(x)\b", (CLAUSE, CLAUSE)),
        Rule(r"\b(of)\s+(A)\s+(x)\b", (CLAUSE, CLAUSE, CLAUSE)),
        Rule(_any_word(STATEMENTS), (STATEMENT,)),
        Rule(_any_word(_OPERATORS), (WORD_OPERATOR,)),
        Rule(_any_word(clauses), (CLAUSE,)),
        Rule(_any_word(set(ATTRIBUTES) - set(keywords)), (ATTRIBUTE,)),
        Rule(rf"{_any_word(FUNCTIONS)}(?=\s*\()", (FUNCTION,)),
        Rule(patterns["FLOAT"], (NUMBER,)),
        Rule(patterns["INT"], (NUMBER,)),
        Rule(_any(sign for sign in signs if sign not in _PUNCTUATION), (OPERATOR,)),
        Rule(_any(sign for sign in signs if sign in _PUNCTUATION), (PUNCTUATION,)),
        Rule(name, (NAME,)),
        Rule(r"[0-9][\w.]*|\"[^\n]*|[^\W\d]\w*|\S", (WRONG,)),
    )


def tokens(text: str) -> Iterator[tuple[int, int, Part]]:
    """Yield the start, end and type of each token of a text, including comments."""
    compiled = [(re.compile(rule.pattern), rule) for rule in rules()]
    position = 0
    while position < len(text):
        matches = ((pattern.match(text, position), rule) for pattern, rule in compiled)
        match, rule = next(((m, rule) for m, rule in matches if m), (None, None))
        if match is None or rule is None:
            position += 1  # white space
            continue
        for group, part in enumerate(rule.parts, start=len(rule.parts) > 1):
            yield *match.span(group), part
        position = match.end()


def _any(choices: Iterable[str]) -> str:
    """Return a pattern for one of these texts, the longest first."""
    return "|".join(map(re.escape, sorted(choices, key=lambda choice: (-len(choice), choice))))


def _any_word(choices: Iterable[str], *, group: bool = False) -> str:
    return rf"\b({'' if group else '?:'}{_any(choices)})\b"
