"""Parse a text to a syntax tree, and report every error of the text in one run.

Lark splits the text into tokens, and parses one statement or clause after the other. After an error the
parser continues with the next clause or statement, which begins with a reserved word.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence, Set
from dataclasses import replace
from itertools import pairwise
from math import isfinite
from typing import NamedTuple, cast

from lark import Token, Tree

from bishare_dsl.diagnostics import Problem, Source, SourceMap, Span, SpecError
from bishare_dsl.diagnostics.codes import language as codes
from bishare_dsl.language.facts import Foreign, QuotedPattern, Stop
from bishare_dsl.language.grammar import (
    BAD,
    CLAUSE_KINDS,
    CONTEXTUAL,
    DEFAULT_KINDS,
    END,
    MAGNITUDE_KINDS,
    STATEMENT_KINDS,
    Reading,
    Word,
    expected,
    found,
    is_keyword,
    lex,
    shortened,
    spelled,
    words,
)
from bishare_dsl.language.syntax import Statement, Syntax, Words, span_of, unquoted

# The longest text, including used files, that takes about a second in the worst case.
MAX_BYTES = 2**16
MAX_DEPTH = 64
MAX_PROBLEMS = 100
# Rules of expressions, which nest.
_NESTING_RULES = (
    *("any_of", "all_of", "negation", "compare", "member", "range", "sum", "product", "group"),
    *("call", "match", "word", "number", "minus", "choice", "power", "arms"),
)
# After these a word that is both a keyword and a value (`alpha`, `rank`) is a value.
_AWAIT_VALUE = frozenset({"LPAR", "COMMA", "EQUAL", "COLON"})
_AWAIT_VALUE |= {"PLUS", "MINUS", "TIMES", "OVER", "FLOOR", "MODULO", "POWER"}

# After these a name in quotes is a condition.
_AWAIT_CONDITION = frozenset(["TARGET", "WHERE", "COMMA", "EXCEPT", "AND", "OR", "NOT"])


# Tokens that begin a value and cannot continue one.
_BEGIN_VALUE = frozenset(["NAME", "STRING", "INT", "FLOAT", "LPAR", "MATCH"])


# How a text begins that is not a spec.
_FOREIGN = {
    "TOML": r"\[\w[\w.-]*\]$",
    "XML": r"<\w",
    "JSON": r"[{[]",
    "Python": r"(from|import)\s+\w|\w+ *=|[\w.]+\(",
    "YAML": r"---$|[^\W\d]\w*:(\s|$)",
}


class Problems:
    """The first problems of a text, and the number of all."""

    def __init__(self) -> None:
        self.kept: list[Problem] = []
        self.count = 0

    def __call__(self, problem: Problem) -> None:
        self.count += 1
        if not self.full:
            self.kept.append(problem)

    def extend(self, problems: Iterable[Problem]) -> None:
        for problem in problems:
            self(problem)

    @property
    def full(self) -> bool:
        return len(self.kept) >= MAX_PROBLEMS

    def raise_any(self, where: SourceMap) -> None:
        """Raise SpecError if there are problems."""
        if self.count:
            raise SpecError(self.sorted(), where)

    def sorted(self) -> list[Problem]:
        """Sort the problems by position, and append one that counts the problems left out."""
        ordered = sorted(self.kept, key=lambda problem: problem.span.start if problem.span else 0)
        if self.count > len(ordered):
            ordered.append(codes.MANY_MORE(count=self.count - len(ordered)))
        return ordered


def decode(text: str | bytes, name: str, start: int = 0, used: Span | None = None) -> Source:
    """Decode a text, with line breaks as ``\\n`` and without a byte order mark.

    ``start`` and ``used`` are fields of the `Source`.

    Raises:
        SpecError: BS101 (not UTF-8), BS102 (too large).
    """
    problem = None
    if (size_of := byte_count(text)) > MAX_BYTES:
        size = f"{size_of:,} or more"
        problem = codes.TOO_LARGE(span=Span(start, start), limit=MAX_BYTES, size=size)
        text = ""
    try:
        decoded = text if isinstance(text, str) else text.decode()
    except UnicodeDecodeError as error:
        offset = start + len(plain_lines(error.object[: error.start].decode()))
        byte = error.object[error.start]
        problem = codes.NOT_UTF8(span=Span(offset, offset + 1), offset=error.start, byte=byte)
        decoded = error.object.decode(errors="replace")
    source = Source(name, plain_lines(decoded), start, used)
    if problem:
        raise SpecError(problem, SourceMap(source))
    return source


def byte_count(text: str | bytes) -> int:
    """Count the bytes of a text in UTF-8."""
    return len(text if isinstance(text, bytes) else text.encode(errors="surrogatepass"))


def plain_lines(text: str) -> str:
    """Convert line breaks to ``\\n``, and drop a byte order mark."""
    return text.removeprefix("\ufeff").replace("\r\n", "\n").replace("\r", "\n")


def parse(source: Source, problems: Problems) -> Syntax:
    """Parse a text to a tree. Wrong parts are reported to ``problems`` and left out of the tree."""
    tokens = _tokens(source)
    foreign = _foreign(source.text)
    if foreign is not None:
        problems(codes.NO_HEADER(span=span_of(_spoken(tokens)[0]), fact=foreign))
        return Syntax([], tokens)
    return Syntax(_Parser(source, _spoken(tokens), problems).run(), tokens)


def _foreign(text: str) -> Foreign | None:
    """Say which language a text that is not a spec has, or return None for a spec."""
    if re.search(r"^[ \t]*spec[ \t:=]+\S", text, re.MULTILINE):
        return None
    lines = (line.strip() for line in text.split("\n"))
    first = next((line for line in lines if line and not line.startswith("#")), None)
    if first is None:
        return Foreign(None)
    for language, beginning in _FOREIGN.items():
        if re.match(beginning, first):
            return Foreign(language)
    return None


class Open(NamedTuple):
    """The end of an unfinished text.

    ``words`` are the tokens of its last, unfinished statement or clause, ``allowed`` the kinds of token
    that can follow, and ``statements`` the statements before.
    """

    words: list[Token]
    allowed: Set[str]
    statements: list[Statement]


def parse_open(source: Source) -> Open:
    """Parse an unfinished text, and return its open end."""
    return _Parser(source, _spoken(_tokens(source)), Problems()).read_open()


def _tokens(source: Source) -> list[Token]:
    """Split a text into tokens, including white space, comments and an empty token at the end."""
    tokens = list(lex(source.text, everything=True))
    for token in tokens:
        token.start_pos = source.start + cast(int, token.start_pos)
        token.end_pos = source.start + cast(int, token.end_pos)
    tokens.append(Token(END, "", start_pos=source.end, end_pos=source.end))
    return tokens


def _spoken(tokens: list[Token]) -> list[Token]:
    return [token for token in tokens if token.type not in ("SPACE", "COMMENT")]


class _Parser:
    """Read the statements and clauses of a text, each with a separate parser of Lark."""

    def __init__(self, source: Source, tokens: list[Token], problems: Problems) -> None:
        self.source = source
        self.tokens = tokens
        self.problems = problems
        self.statements: list[Statement] = []
        # The statement being read, its first token, and the number of open brackets.
        self.parser: Reading | None = None
        self.first = self.open = 0
        # Kinds of token that can follow it.
        self.starters = STATEMENT_KINDS | DEFAULT_KINDS
        self.too_deep = False
        self.reported_line: int | None = 0
        # Declared names, or none if a used file declares others.
        uses = any(token.type == "USE" for token in tokens)
        pairs = [] if uses else pairwise(tokens)
        naming = ("PARAM", "LET", "SHARE")
        self.declared = frozenset(str(name) for word, name in pairs if word.type in naming)
        self.held = 0  # number of mistakes, reported or not

    def run(self) -> list[Statement]:
        """Read all tokens."""
        position = 0
        while self.parser is not None or self.tokens[position].type != END:
            position = self.step(position)
        return self.statements

    def read_open(self) -> Open:
        """Read all tokens, and leave the last statement unfinished."""
        position = 0
        while self.tokens[position].type != END:
            position = self.step(position)
        words = [] if self.parser is None else self.tokens[self.first : position]
        return Open(words, self.allowed(), self.statements)

    def step(self, position: int) -> int:
        """Read at a position, and return the next position."""
        if self.reads(position):
            return position + 1
        if self.begins(position) and self.ends(position):
            return position
        return self.recover(position)

    def allowed(self) -> Set[str]:
        """Return the kinds of token allowed next."""
        kinds = {END} if self.parser is None else self.parser.accepts()
        return kinds | self.starters if END in kinds else kinds

    def reads(self, position: int) -> bool:
        """Read a token if it continues the current statement, or begins a statement or clause."""
        token = self.tokens[position]
        if token.type == END or (self.parser is None and not self.begins(position)):
            return False
        if self.parser is not None:
            self.read_in_context(position)
            if self.ends_range(position) or self.ends_key(position):
                return False
        if self.parser is None:
            self.parser = Reading()
            self.first = position
            self.open = 0
            if token.type in STATEMENT_KINDS:
                named = self.tokens[position + (token.type == "REPLACE")]
                takes = {"SHARE": CLAUSE_KINDS, "MAGNITUDE": MAGNITUDE_KINDS}
                self.starters = STATEMENT_KINDS | takes.get(named.type, DEFAULT_KINDS)
        self.open += token.type in ("LPAR", "LBRACE")
        if self.open > MAX_DEPTH or token.type not in self.parser.choices():
            return False
        if not self.parser.feed(token):
            return False
        self.open -= token.type in ("RPAR", "RBRACE")
        return True

    def read_in_context(self, position: int) -> None:
        """Give a word of `CONTEXTUAL` its kind where the word can stand and a name cannot."""
        token = self.tokens[position]
        if token not in CONTEXTUAL or token.type not in ("NAME", BAD) or self.parser is None:
            return
        kind = words()[str(token)]
        kinds = self.parser.accepts()
        # After `via` the name of a transform can stand, too.
        places = token == "between" and self.tokens[position + 1].type in ("NAME", "STRING")
        # After `kind` in a key, a pattern can stand, too.
        refers = token == "is"
        if token == "gate" and self.gives_tensor(position):
            return  # The role of the next clause.
        if kind in kinds and (places or refers or "NAME" not in kinds):
            token.type = kind

    def begins(self, position: int) -> bool:
        """Return whether a token begins a statement or clause here: by its kind, as a role with a key or
        a reference, or as the word `plain`, which elsewhere is a name."""
        token = self.tokens[position]
        kind = token.type
        if kind in ("NAME", "STRING"):
            keyed = "RANK" in self.starters and self.gives_tensor(position)
            if "PLAIN" in self.starters and token == "plain":
                token.type = "PLAIN"
            return keyed or token.type == "PLAIN"
        return kind in self.starters

    def gives_tensor(self, position: int) -> bool:
        """Return whether a role has a key or a reference here: `per` or `is` comes after it."""
        following = self.tokens[position + 1]
        return following.type == "PER" or following == "is"

    def ends_range(self, position: int) -> bool:
        """Return whether a word that could end a range begins a clause, as in `24.. rank 8`, or comes
        after a percent sign, as in `5% rank 8`."""
        after = position + (self.tokens[position].type == "MODULO")
        if self.tokens[after].type not in ("RANK", "ALPHA"):
            return False
        previous = self.tokens[after - 1].type
        following = self.tokens[after + 1].type
        return previous in ("DOTS", "MODULO") and following in _BEGIN_VALUE

    def ends_key(self, position: int) -> bool:
        """Return whether a name after a key is the next role, as in `A per kind  core per layer`."""
        if self.tokens[position].type not in ("NAME", "STRING") or not self.begins(position):
            return False
        key = any(token.type in ("PER", "IS") for token in self.tokens[self.first : self.first + 2])
        return key and END in self.allowed()

    def ends(self, position: int) -> bool:
        """Finish the current statement if it is complete before a token."""
        tree = self.parser.finish() if self.parser else None
        if tree is None:
            return False
        self.keep(tree, position)
        return True

    def keep(self, tree: Words, position: int) -> None:
        """Add the current tree to the statements. ``position`` is after it."""
        self.parser = None
        tokens = self.tokens[self.first : position]
        for before, token in zip([tokens[0], *tokens], tokens, strict=False):
            _check_word(before, token, self.problems)
        # Fewer words cannot nest as deeply.
        if len(tokens) > MAX_DEPTH and (deep := _too_deep(tree)) is not None:
            self.report_depth(deep)
            return
        replaces = tree.data == "replace"
        start = span_of(tokens[0]).start
        end = span_of(tokens[-1]).end
        words = cast(Words, tree.children[0]) if replaces else tree
        first = tokens[replaces]
        keyed = tree.data in ("role_per", "role_is")
        word = "per" if keyed else spelled(first.type) or str(first)
        keyword = Word.new_borrow_pos(first.type, word, first)
        statement = Statement(keyword, words, start, end, replaces)
        if tokens[0].type in STATEMENT_KINDS or "PER" not in self.starters:
            self.statements.append(statement)
        else:
            self.statements[-1].clauses.append(statement)
            self.statements[-1].end = end

    def report_depth(self, span: Span) -> None:
        """Report too deep nesting, once per text."""
        if not self.too_deep:
            self.problems(codes.TOO_DEEP(span=Span(span.start, span.start + 1), limit=MAX_DEPTH))
            self.too_deep = True

    # --- errors ---

    def recover(self, position: int) -> int:
        """Report the token at ``position``, correct or skip it, and return the next position."""
        token = self.tokens[position]
        span = span_of(token)
        if self.open > MAX_DEPTH:
            self.report_depth(span)
            return self.skip(position)
        self.held += 1
        if self.problems.full or self.held > MAX_PROBLEMS:
            self.problems.count += 1
            return self.skip(position)
        if self.parser is not None:  # Its failure may have reduced what another token continues.
            self.parser = Reading()
            for read in self.tokens[self.first : position]:
                self.parser.feed(read)
        allowed = self.allowed()
        stop = self.stop(position, allowed)
        if self.is_name(position, allowed):
            named = replace(stop, keyword=True)
            self.report(token, codes.KEYWORD_AS_NAME(span=span, word=token, fact=named))
            token.type = "NAME"
            return position
        before = self.tokens[position - 1] if position else None
        what = found(token)
        if before is not None and self.is_cut_off(position, allowed):
            token = before
            span = span_of(token)
            what = "the end of the line"
        if token.type == BAD:
            problem = _unreadable(token, stop)
        else:
            if stop.opened is not None:
                span = span_of(stop.opened)
                what = f"`{stop.opened}` without an end"
            kinds = expected(allowed)
            problem = codes.UNEXPECTED(span=span, expected=kinds, found=what, fact=stop)
        self.report(token, problem)
        return self.skip(position)

    def stop(self, position: int, allowed: Set[str]) -> Stop:
        """Describe a token at which reading stopped, or the end of the line before it."""
        token = self.tokens[position]
        text = self.source.text
        before = self.tokens[position - 1] if position else None
        offset = span_of(token).start - self.source.start
        kind = token.type
        if before is not None and self.is_cut_off(position, allowed):
            offset = span_of(before).end - self.source.start
            token = Token(END, "")
        start = text.rfind("\n", 0, offset) + 1
        line = text[start : (text + "\n").find("\n", offset)]
        opened = _not_closed(self.tokens[:position])
        closed = {")", "}"} & {*line[offset - start :]}
        if closed or kind not in STATEMENT_KINDS | CLAUSE_KINDS:
            opened = None
        return Stop(
            line=line,
            start=self.source.start + start,
            column=offset - start,
            token=token,
            before=before,
            allowed=allowed,
            declared=self.declared,
            complete=END in allowed or self.parser is None,
            opened=opened,
        )

    def report(self, token: Token, problem: Problem) -> None:
        """Report a problem at a token, unless it follows from a problem in the same line."""
        if token.line != self.reported_line or not self.problems.kept:
            self.problems(problem)
        self.reported_line = token.line

    def is_cut_off(self, position: int, allowed: Set[str]) -> bool:
        """Return whether an incomplete statement ends because a token begins something new."""
        token = self.tokens[position]
        before = self.tokens[position - 1]
        begins = token.type in STATEMENT_KINDS | CLAUSE_KINDS and token.line != before.line
        return self.parser is not None and END not in allowed and (begins or token.type == END)

    def is_name(self, position: int, allowed: Set[str]) -> bool:
        """Return whether a keyword is meant as a name, and not a name missing before it."""
        previous = self.tokens[position - 1]
        token = self.tokens[position]
        if not is_keyword(token) or token == "else" or {"NAME", "INT"} & allowed != {"NAME"}:
            return False
        if previous.type in ("FREEZE", "COMMA") and token.type in CLAUSE_KINDS:
            return False
        if token.line != previous.line or span_of(token).start - span_of(previous).end >= 8:
            return False
        trial = Reading()
        for read in self.tokens[self.first : position]:
            trial.feed(read)
        trial.feed(Word.new_borrow_pos("NAME", str(token), token))
        after = self.tokens[position + 1].type
        return after in trial.accepts() or (after in self.starters and END in trial.accepts())

    def skip(self, position: int) -> int:
        """Drop the current statement if it is incomplete, and skip to the next beginning."""
        broken = self.parser is not None and not self.ends(position)
        if broken and self.tokens[self.first].type in STATEMENT_KINDS:
            self.starters = STATEMENT_KINDS  # A clause must follow a statement that could be read.
        self.parser = None
        self.open = 0
        last = self.statements[-1].keyword if self.statements else None
        if last == "use" and last.line == self.tokens[position].line:
            self.statements.pop()  # Its name is not what stands there.
        first = position
        while True:
            if self.tokens[position].type in STATEMENT_KINDS or (
                self.begins(position) and (position == first or self.starts(position))
            ):
                return position
            position += 1

    def starts(self, position: int) -> bool:
        """Return whether a word that could be a value begins a clause here."""
        previous, token, after = self.tokens[position - 1 : position + 2]
        if token.type in ("A", "B"):
            return after.type == "PER" or after == "is"
        if token.type == "INIT":
            gains = previous.type in ("GAIN", "RANK", "OUT")
            return not gains and after.type in ("A", "B", "NAME")
        if token.type in ("RANK", "ALPHA"):
            return previous.type not in _AWAIT_VALUE and after.type != "INIT"
        return True


def _too_deep(tree: Words) -> Span | None:
    """Return the span of too deep nesting, or None."""
    depths: dict[int, int] = {}
    for part in tree.iter_subtrees():
        inner = max((depths[id(c)] for c in part.children if isinstance(c, Tree)), default=0)
        depths[id(part)] = inner + (part.data in _NESTING_RULES)
        if inner >= MAX_DEPTH and part.data in _NESTING_RULES:
            return span_of(part)
    return None


def _check_word(before: Token, token: Token, problems: Problems) -> None:
    """Check a number or a quoted name, which is a pattern after some tokens (``before``)."""
    if token.type == "STRING" and unquoted(token) == token:
        may_match = before.type in ("PATH", "KIND", "PARENT") or before.type in _AWAIT_CONDITION
        fact = QuotedPattern(token[1:-1], before) if may_match else None
        problems(codes.BAD_ESCAPE(span=span_of(token), fact=fact))
    if token.type == "INT":
        # Do not convert long numbers, which takes quadratic time.
        digits = token.lstrip("0")
        fits = len(digits) < 20 and int(digits or "0") < 2**63
    elif token.type == "FLOAT":
        # Reject numbers that underflow to zero, like infinity.
        zero = token.lower().partition("e")[0].strip("0.") == ""
        fits = isfinite(float(token)) and (zero or float(token) != 0)
    else:
        return
    if not fits:
        problems(codes.NUMBER_RANGE(span=span_of(token), text=shortened(token, 23)))


def _unreadable(token: Token, stop: Stop) -> Problem:
    """Return the problem of a token that is no word of the language."""
    text = str(token)
    span = span_of(token)
    if text[0] == '"':
        return codes.UNCLOSED_QUOTE(span=span, fact=stop)
    if text[0].isascii() and text[0].isdigit():
        return codes.BAD_NUMBER(span=span, text=shortened(text), fact=stop)
    what = f"`{text[:40]}`"
    if len(text) == 1 and (text.isspace() or not text.isprintable()):
        what = f"the character U+{ord(text):04X}"
    return codes.BAD_CHARACTER(span=span, what=what, fact=stop)


def _not_closed(tokens: Sequence[Token]) -> Token | None:
    """Return the last open bracket in the last statement of these tokens, or None."""
    depth = 0
    for token in reversed(tokens):
        depth += (token in (")", "}")) - (token in ("(", "{"))
        if depth < 0 or token.type in STATEMENT_KINDS:
            return token if depth < 0 else None
    return None
