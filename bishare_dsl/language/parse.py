"""From text to syntax tree, with every error of the text in one run.

The driver below reads the tables of `tables`. At an error it mends what is plainly a slip (a misspelt
keyword, a missing comma); otherwise it skips to the next clause or statement, whose first words are
reserved, and goes on from there.
"""

from __future__ import annotations

from bishare_dsl.diagnostics import Problem, Source, SourceMap, Span, SpecError, nearest
from bishare_dsl.diagnostics.codes import language as codes
from bishare_dsl.language import vocabulary
from bishare_dsl.language.build import Builder, Part
from bishare_dsl.language.lexer import BAD, tokenise
from bishare_dsl.language.syntax import (
    Glob,
    Group,
    Interval,
    Membership,
    Name,
    Number,
    Operation,
    Syntax,
    Token,
)
from bishare_dsl.language.tables import END, Rule, tables

# The longest text, all that it uses included, that any content of it lets us read in about a second.
MAX_BYTES = 2**17
MAX_DEPTH = 64
MAX_PROBLEMS = 100
# A level of nesting puts some entries on the stack: more than this is too deep whatever follows.
_MAX_STACK = 8 * MAX_DEPTH
# What an expression is made of; clauses and the like nest in nothing.
_NESTING = (Name, Number, Group, Operation, Membership, Glob, Interval)
# After these a word that is both a keyword and a value (`alpha`, `rank`) is a value.
_OPEN = frozenset(
    ["LPAR", "COMMA", "EQUAL", "COLON", "PLUS", "MINUS", "TIMES", "OVER", "FLOOR", "MODULO"]
)


class Problems:
    """Problems found so far: the first ones, and the number of all."""

    def __init__(self) -> None:
        self.kept: list[Problem] = []
        self.count = 0

    def __call__(self, problem: Problem) -> None:
        self.count += 1
        if not self.full:
            self.kept.append(problem)

    @property
    def full(self) -> bool:
        return len(self.kept) >= MAX_PROBLEMS

    def raise_any(self, where: SourceMap) -> None:
        """Raise SpecError with all of them if there is one."""
        if self.count:
            raise SpecError(self.sorted(), where)

    def sorted(self) -> list[Problem]:
        """In the order of the text, with a last one that counts those left out."""
        kept = sorted(self.kept, key=lambda problem: problem.span.start if problem.span else 0)
        if self.count > len(kept):
            kept.append(codes.MANY_MORE(count=self.count - len(kept)))
        return kept


def decode(text: str | bytes, name: str, start: int = 0, used: Span | None = None) -> Source:
    """The text as characters, line breaks as ``\\n`` and without a byte order mark.

    ``start`` and ``used`` are those of the `Source`.

    Raises:
        SpecError: BS101 (not UTF-8), BS102 (too large).
    """
    if len(text) > MAX_BYTES:
        raise SpecError(
            codes.TOO_LARGE(
                span=Span(start, start), limit=MAX_BYTES, size=f"{len(text):,} or more"
            ),
            SourceMap(Source(name, "", start, used)),
        )
    if isinstance(text, str):
        return Source(name, _lines(text), start, used)
    try:
        return Source(name, _lines(text.decode()), start, used)
    except UnicodeDecodeError as error:
        at = start + len(_lines(text[: error.start].decode()))
        raise SpecError(
            codes.NOT_UTF8(span=Span(at, at + 1), offset=error.start, byte=text[error.start]),
            SourceMap(Source(name, _lines(text.decode(errors="replace")), start, used)),
        ) from None


def _lines(text: str) -> str:
    return text.removeprefix("\ufeff").replace("\r\n", "\n").replace("\r", "\n")


def parse(source: Source, problems: Problems) -> Syntax:
    """The tree of a text; what is wrong goes to ``problems`` and is left out of the tree."""
    return _Parser(tokenise(source), problems).run(source.start)


class _Parser:
    def __init__(self, tokens: list[Token], problems: Problems) -> None:
        known = tables()
        self.states, self.rules = known.states, known.rules
        self.tokens, self.problems = tokens, problems
        self.build = Builder(problems)
        # Three stacks side by side: states, what was read to come there, and how deep it is nested.
        self.path: list[int] = [0]
        self.parts: list[Part] = []
        self.depths: list[int] = []
        self.too_deep = False

    def run(self, start: int) -> Syntax:
        tokens, position = self.tokens, 0
        while position < len(tokens):
            token = tokens[position]
            action = self.states[self.path[-1]].get(token.kind)
            if action is None:
                position = self.recover(position)
            elif action < 0:
                self.reduce(self.rules[-1 - action])
            elif len(self.path) > _MAX_STACK:
                self.report_depth(token.span)
                break
            else:
                self.path.append(action)
                self.parts.append(token)
                self.depths.append(0)
                position += 1
        statements = self.parts[0] if len(self.parts) == 2 else []
        return Syntax(start, tokens[-1].end, statements, tokens)

    def reduce(self, rule: Rule) -> None:
        at = len(self.parts) - rule.length
        given = self.parts[at:]
        depth = max(self.depths[at:], default=0)
        if rule.name[0] == "_" and given and isinstance(given[0], list):
            # A list grows in place: nothing else holds it, and copies would take quadratic time.
            made: Part = given[0]
            made += _flat(given[1:])
        else:
            parts = _flat(given)
            if len(parts) == 1 and (rule.name[0] == "_" or rule.inline):
                made = parts[0]
            elif rule.name[0] == "_":
                made = parts
            else:
                made = self.build(rule.name, parts)
                depth = depth + 1 if isinstance(made, _NESTING) else 0
                if depth > MAX_DEPTH:
                    self.report_depth(Span(parts[0].start, parts[-1].end))
        del self.path[at + 1 :], self.parts[at:], self.depths[at:]
        self.path.append(self.states[self.path[-1]][rule.name])
        self.parts.append(made)
        self.depths.append(depth)

    def report_depth(self, span: Span) -> None:
        if not self.too_deep:
            self.problems(
                codes.TOO_DEEP(
                    span=Span(span.start, min(span.end, span.start + 1)), limit=MAX_DEPTH
                )
            )
            self.too_deep = True

    # --- errors ---

    def accepts(self, kind: str, top: int | None = None) -> bool:
        """Whether a token of ``kind`` could come next if only the first ``top`` states were there."""
        kept = len(self.path) if top is None else top
        pushed: list[int] = []
        while True:
            state = pushed[-1] if pushed else self.path[kept - 1]
            action = self.states[state].get(kind)
            if action is None:
                return False
            if action >= 0:
                return True
            rule = self.rules[-1 - action]
            drop = min(rule.length, len(pushed))
            del pushed[len(pushed) - drop :]
            kept -= rule.length - drop
            state = pushed[-1] if pushed else self.path[kept - 1]
            pushed.append(self.states[state][rule.name])

    def recover(self, position: int) -> int:
        """Report the token at ``position``, mend or skip, and say where to read on."""
        token = self.tokens[position]
        if self.problems.full:
            self.problems.count += 1
            return self.skip(position)
        if token.kind == BAD:
            self.problems(_unreadable(token))
            return self.skip(position)

        allowed = {
            kind for kind in self.states[self.path[-1]] if kind.isupper() and self.accepts(kind)
        }
        if self.accepts(END):
            allowed.add(END)
        keyword = vocabulary.is_keyword(token.text)
        mend: Token | None = None
        help_line = None
        if token.kind == "NAME":
            words = [
                word for kind in allowed if (word := vocabulary.spelled(kind)) and word.isalpha()
            ]
            if (near := nearest(token.text, words)) and near.startswith("did you mean"):
                help_line = near
                word = near.split("`")[1]
                mend = Token(tables().words[word], word, token.start, token.end)
        elif keyword and "NAME" in allowed and "INT" not in allowed and self.is_meant(position):
            self.problems(
                codes.KEYWORD_AS_NAME(
                    span=token.span,
                    word=token.text,
                    help=f'in quotes it is a name: `"{token.text}"`',
                )
            )
            self.tokens[position] = Token("NAME", token.text, token.start, token.end)
            return position
        elif keyword and "NAME" in allowed:
            help_line = f'`{token.text}` is a keyword; in quotes it is a name: `"{token.text}"`'
        if allowed == {"PER"}:
            help_line = "a list has commas (`A, B`); a key for one factor reads `A per layer`"
        if mend is None and "COMMA" in allowed and self.accepts_after_comma(token.kind):
            help_line = "a comma stands between the parts of a list"
            mend = Token("COMMA", ",", token.start, token.start)
            self.tokens.insert(position, mend)
            self.report(token, allowed, help_line)
            return position
        self.report(token, allowed, help_line)
        if mend is not None:
            self.tokens[position] = mend
            return position
        return self.skip(position)

    def report(self, token: Token, allowed: set[str], help_line: str | None) -> None:
        expected, found = vocabulary.expected(allowed), vocabulary.found(token)
        self.problems(
            codes.UNEXPECTED(span=token.span, expected=expected, found=found, help=help_line)
        )

    def is_meant(self, position: int) -> bool:
        """Whether a keyword stands where it is to be the name, rather than the name is missing before it."""
        previous, token = self.tokens[position - 1], self.tokens[position]
        if previous.kind == "FREEZE" and token.kind in vocabulary.CLAUSE_KINDS:
            return False
        return not token.before and previous.after is None and token.start - previous.end < 8

    def accepts_after_comma(self, kind: str) -> bool:
        return kind in ("NAME", "STRING", "INT", "FLOAT", "PATH", "KIND", "PARENT")

    def skip(self, position: int) -> int:
        """Drop tokens, and what was read of a broken part, until a clause or statement can start."""
        first = position
        while True:
            token = self.tokens[position]
            statement = token.kind in vocabulary.STATEMENT_KINDS
            if statement or (
                token.kind in vocabulary.CLAUSE_KINDS and self.starts(position, first)
            ):
                for top in range(len(self.path), 0, -1):
                    # Where `scale` cannot stand, a word such as `rank` would be taken for a value.
                    if self.accepts(token.kind, top) and (statement or self.accepts("SCALE", top)):
                        del self.path[top:], self.parts[top - 1 :], self.depths[top - 1 :]
                        return position
                    # A clause goes on with the statement that it stands in, or not at all.
                    read = self.parts[top - 2] if top > 1 else None
                    if (
                        not statement
                        and isinstance(read, Token)
                        and read.kind in vocabulary.STATEMENT_KINDS
                    ):
                        break
            position += 1

    def starts(self, position: int, first: int) -> bool:
        """Whether a word that could also be a value starts a clause here."""
        if position == first:
            return True
        previous, token, after = self.tokens[position - 1 : position + 2]
        if token.kind in ("A", "B"):
            return after.kind == "PER"
        if token.kind == "INIT":
            return after.kind in ("A", "B")  # Otherwise it is a gain's.
        if token.kind in ("RANK", "ALPHA"):
            return previous.kind not in _OPEN and after.kind != "INIT"
        return True


def _flat(parts: list[Part]) -> list[Part]:
    flat: list[Part] = []
    for part in parts:
        if isinstance(part, list):
            flat += part
        else:
            flat.append(part)
    return flat


def _unreadable(token: Token) -> Problem:
    text = token.text
    if text[0] == '"':
        return codes.UNCLOSED_QUOTE(span=token.span)
    if text[0].isascii() and text[0].isdigit():
        return codes.BAD_NUMBER(
            span=token.span, text=text if len(text) <= 40 else f"{text[:37]}..."
        )
    help_line = None
    if len(text) > 1:
        what = f"`{text[:40]}`"
        help_line = "put a name in quotes that has letters beyond a to z"
    elif text.isprintable() and not text.isspace():
        what = f"`{text}`"
        if text in ".-":
            help_line = (
                "put a name in quotes that has other characters than letters, digits and `_`"
            )
    else:
        what = f"the character U+{ord(text):04X}"
    return codes.BAD_CHARACTER(span=token.span, what=what, help=help_line)
