"""Remedies for a text that cannot be read: known mistakes, and small corrections where reading stopped."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from functools import cache
from unicodedata import combining, normalize

from bishare_dsl.advice.question import Question, Remedy, listed
from bishare_dsl.diagnostics import Edit, Span, near_names
from bishare_dsl.diagnostics.record import Record
from bishare_dsl.diagnostics.words import meaning_of, peft_advice
from bishare_dsl.language.facts import Foreign, QuotedPattern, Stop
from bishare_dsl.language.grammar import (
    BAD,
    CLAUSES,
    IN_EXPRESSIONS,
    STATEMENTS,
    spelled,
    words,
)
from bishare_dsl.language.syntax import span_of
from bishare_dsl.resources import table
from bishare_dsl.spec.expression import globs_of

LONGEST = 400
"""The longest line that is searched for known mistakes."""
_KEYWORDS = "|".join((*STATEMENTS, *CLAUSES))
_KEYS = ("layer", "kind", "module", "parent", "model", "expert")
# Letters of other alphabets that look like Latin letters; NFKD replaces wide letters.
_LOOKALIKES = str.maketrans(
    "авгеікмнопрстухһѕјАВЕІКМНОРСТХЅЈαβγεικνορτυχΑΒΕΗΙΚΜΝΟΡΤΥΧΖı",
    "abreikmhonpctyxhsjABEIKMHOPCTXSJabyeikvoptuxABEHIKMNOPTYXZi",
)
_SIGNS = {
    "≥": ">=", "≤": "<=", "≠": "!=", "×": "*", "÷": "//", "…": "..", "–": "-", "−": "-", "—": "-",
    "∧": "and", "∨": "or", "¬": "not", "∈": "in", "；": ";", "，": ",", "：": ":",
}  # fmt: skip
_NAMING = ("SPEC", "USE", "SHARE", "PARAM", "LET")
_OPERATOR = re.compile(r"[*/+%<>.^&|~!$@-]")


class Mistake(Record):
    """A known mistake: its pattern in a line, the texts to write instead, and what to say.

    Without a text to write, the sentence is the cause alone.
    """

    pattern: re.Pattern[str]
    instead: tuple[str, ...]
    help: str


@cache
def mistakes() -> list[Mistake]:
    """Read the table of known mistakes, whose header explains it."""
    rows = []
    for row, help in table("slips.txt"):
        pattern, certain, instead = row.partition(" =>")
        pattern = pattern.replace("<KEYWORD>", f"(?:{_KEYWORDS})")
        pattern = pattern.replace("<KEY>", f"(?:{'|'.join(_KEYS)})")
        texts = tuple(text.replace("·", " ") for text in instead.removeprefix(" ").split(" OR "))
        rows.append(Mistake(re.compile(pattern), texts if certain else (), help))
    return rows


class _Correction(Record):
    """The columns of a line to replace, the new text and the help."""

    first: int
    last: int
    text: str
    help: str


def unreadable(stop: Stop, question: Question) -> Iterator[Remedy]:
    """Yield remedies for the text where reading stopped, the likeliest first."""
    span = question.problem.span
    doubled = stop.before is not None and str(stop.before) == str(stop.token)
    if stop.keyword and span is not None and stop.token not in ("A", "B") and not doubled:
        quoted = f'"{stop.token}"'
        yield Remedy(f"in quotes it is a name: `{quoted}`", (Edit(span, quoted),))
    if len(stop.line) <= LONGEST:
        yield from _of_known_mistakes(stop)
        for correction in _corrections(stop):
            yield _corrected(stop, correction)
    yield from _causes(stop)


def _causes(stop: Stop) -> Iterator[Remedy]:
    """Yield what is wrong, where no text is known that mends it."""
    if stop.opened is not None:
        yield Remedy(f"close the `{stop.opened}` of line {stop.opened.line}")
    if stop.complete:
        advice = peft_advice(str(stop.token), stop.line[stop.column + len(stop.token) :])
        if advice is not None:
            yield Remedy(advice)
    for mistake in mistakes():
        if not mistake.instead and mistake.pattern.search(stop.line):
            yield Remedy(mistake.help)
    token = str(stop.token)
    if stop.token.type == BAD and token[:1].isdigit():
        if stop.before is not None and stop.before.type in _NAMING:
            yield Remedy(f'start a name with a letter, or quote it: `"{token}"`')
        yield Remedy(
            "a number has digits, a point and an exponent alone; a name begins with a letter"
        )


def _of_known_mistakes(stop: Stop) -> Iterator[Remedy]:
    """Yield remedies of the mistakes in the line that touch the place where reading stopped."""
    for mistake in mistakes():
        for match in mistake.pattern.finditer(stop.line):
            between = stop.line[match.end() : stop.column]
            if match.start() > stop.column or re.search(r"\w\W+\w", between):
                continue
            for instead in mistake.instead:
                new = match.expand(instead)
                # `↓` takes one from the number before it.
                new = re.sub(r"(\d+)↓", lambda number: f"{int(number[1]) - 1}", new)
                shown = new.strip().replace("\\", "")
                help = match.expand(mistake.help.replace("{new}", shown))
                yield _corrected(stop, _Correction(match.start(), match.end(), new, help))


def _corrected(stop: Stop, correction: _Correction) -> Remedy:
    """Return the remedy that replaces some columns of the line. One space is left of two."""
    before = stop.line[: correction.first]
    after = stop.line[correction.last :]
    if not correction.text:
        gap = f"{before[-1:]}{after[:1]}"
        before = before.rstrip()
        after = f" {after.lstrip()}" if " " in gap else after.lstrip()
    line = f"{before}{correction.text}{after}".rstrip()
    return Remedy(correction.help, (edit_between(stop.line, line, stop.start),))


def edit_between(old: str, new: str, start: int) -> Edit:
    """Return the edit that turns a text, which starts at an offset, into another one."""
    first = _same(old, new)
    last = _same(old[first:][::-1], new[first:][::-1])
    return Edit(Span(start + first, start + len(old) - last), new[first : len(new) - last])


def _same(one: str, other: str) -> int:
    """Count the characters with which both texts begin."""
    count = 0
    for a, b in zip(one, other, strict=False):
        if a != b:
            break
        count += 1
    return count


def _corrections(stop: Stop) -> Iterator[_Correction]:
    """Yield corrections at the token where reading stopped."""
    token = str(stop.token)
    if stop.before is not None and token and token == str(stop.before):
        last = stop.column + len(token)
        yield _Correction(stop.column, last, "", f"leave the second `{token}` out")
    if stop.token.type == BAD:
        yield from _of_odd_letters(stop)
        yield from _of_numbers(stop)
    if stop.token.type in ("NAME", "STRING") or token in words():
        yield from _of_words(stop)
    yield from _of_percent(stop)
    if re.fullmatch(r"[^\w\s\"]+", token) and token.isascii():
        yield from _of_signs(stop)
    yield from _of_lists(stop)
    yield from _of_brackets(stop)


def _of_odd_letters(stop: Stop) -> Iterator[_Correction]:
    """Yield corrections of characters that the language does not use."""
    token = str(stop.token)
    first = stop.column
    last = first + len(token)
    plain = normalize("NFKD", token).translate(_LOOKALIKES)
    latin = "".join(letter for letter in plain if not combining(letter))
    if token in _SIGNS:
        yield _Correction(first, last, _SIGNS[token], f"write `{_SIGNS[token]}`")
    elif token.isspace():
        yield _Correction(first, last, " ", "write a plain space")
    elif not token.isprintable():
        yield _Correction(first, last, "", "leave this invisible character out")
    elif latin != token and re.fullmatch(r"[A-Za-z_]\w*", latin, re.ASCII):
        odd = next(letter for letter in token if not letter.isascii())
        help = f"did you mean `{latin}`? U+{ord(odd):04X} is not one of the letters a to z"
        yield _Correction(first, last, latin, help)
    if token.isalpha():
        yield _Correction(first, last, f'"{token}"', f'put the name in quotes: `"{token}"`')


def _of_numbers(stop: Stop) -> Iterator[_Correction]:
    """Yield corrections of a number that is run together with a name."""
    token = str(stop.token)
    first = stop.column
    last = first + len(token)
    if not (token[0].isascii() and token[0].isdigit()):
        return
    if stop.before is not None and stop.before.type in _NAMING:
        help = f'start a name with a letter, or quote it: `"{token}"`'
        yield _Correction(first, last, f'"{token}"', help)
        return
    product = re.fullmatch(r"(\d+)([A-Za-z]\w*)", token)
    if product is None:
        return
    number, name = product.groups()
    if name == "r" and "r" not in stop.declared:
        name = "rank"
    if name in stop.declared | IN_EXPRESSIONS | {"layer", "layers"}:
        yield _Correction(first, last, f"{number} * {name}", f"write `{number} * {name}`")


def _of_percent(stop: Stop) -> Iterator[_Correction]:
    """Yield a number for a percentage before the token."""
    percent = re.search(
        r"\b(?:dropout|scale)\W+(([\d.]+)\s*%)\s*(?:\w+ )?$", stop.line[: stop.column + 1]
    )
    if percent and percent[2].count(".") < 2 and percent[2] != ".":
        number = f"{float(percent[2]) / 100:g}"
        help = f"write {percent[2]} percent as `{number}`"
        yield _Correction(percent.start(1), percent.end(1), number, help)


def _of_signs(stop: Stop) -> Iterator[_Correction]:
    """Yield other signs in place of a sign, and nothing."""
    token = str(stop.token)
    first = stop.column
    last = first + len(token)
    signs = ["==" if token == "=" else "="]
    # An operator means something, and the bracket may be missing that another one closes.
    operator = _OPERATOR.search(stop.line[max(first - 1, 0) : last + 1])
    if operator is None and token not in ")}":
        signs.append("")
    signs += ",;:)}({".replace(token, "")
    for sign in signs:
        help = f"write `{sign}` instead of `{token}`" if sign else f"leave `{token}` out"
        yield _Correction(first, last, sign, help)


def _of_lists(stop: Stop) -> Iterator[_Correction]:
    """Yield a comma or the one word that may stand before the token."""
    token = stop.token
    before = stop.before
    last = stop.column + len(token)
    listable = ["NAME", "STRING", "KIND", "PARENT", "PATH"]
    if before is not None and before.type == "INT":
        listable.append("INT")
    if before is not None and before.line == token.line and token.type in listable:
        gap = len(stop.line[: stop.column].rstrip())
        help = "put a comma between the parts of a list"
        yield _Correction(gap, last, f", {token}", help)
    missing = [word for word in map(spelled, stop.allowed) if word and word.isalpha()]
    if len(missing) == 1:
        word = missing[0]
        help = f"write `{word}` before `{token}`" if token else f"write `{word}` here"
        yield _Correction(stop.column, stop.column, f"{word} ", help)


def _of_brackets(stop: Stop) -> Iterator[_Correction]:
    """Yield a closing bracket before the token."""
    last = stop.column + len(stop.token)
    for sign in ")}":
        text = f"{sign} {stop.token}"
        yield _Correction(stop.column, last, text, f"close the bracket: write `{sign}`")


def _of_words(stop: Stop) -> Iterator[_Correction]:
    """Yield corrections of a word that is misspelt or of another program."""
    token = str(stop.token)
    first = stop.column
    last = first + len(token)
    rest = stop.line[last:]
    bare = re.sub(r"[\"'\[\](){}]", "", re.sub(r"^\s*[=:]\s*", " ", rest))
    for word, help in _meant(stop):
        yield _Correction(first, last, word, help)
        if bare != rest:
            help = f"{help.rstrip('?')}: `{word}{bare}`"
            yield _Correction(first, len(stop.line), word + bare, help)
    for word in _allowed_words(stop):
        ending = token[len(word) :].lstrip("_")
        if token.startswith(word) and (ending.isdigit() or ending in _KEYS):
            help = f"a space is missing: `{word} {ending}`"
            yield _Correction(first, last, f"{word} {ending}", help)
    before = stop.before
    if before is None or not stop.line[:first].endswith(f"{before} "):
        return
    start = first - len(before) - 1
    if before.type == "NAME":
        for word in _near(before, [word for word in words() if len(word) > 2]):
            yield _Correction(start, last, f"{word} {token}", f"did you mean `{word}`?")
    swapped = f"{token} {before}"
    yield _Correction(start, last, swapped, f"write `{swapped}`")


def _meant(stop: Stop) -> Iterator[tuple[str, str]]:
    """Yield words that the token may be meant as, each with the help."""
    token = str(stop.token)
    meaning = meaning_of("keyword", token)
    if meaning is not None and meaning.instead is not None:
        yield meaning.instead, meaning.help
    small = token.lower()
    if small != token and small in words():
        yield small, f"write keywords in small letters: `{small}`"
    for word in _near(token, _allowed_words(stop)):
        yield word, f"did you mean `{word}`?"


def _allowed_words(stop: Stop) -> list[str]:
    """Return the keywords that may stand at the token."""
    return [word for word in map(spelled, stop.allowed) if word and len(word) > 2]


def _near(word: str, among: Iterable[str]) -> list[str]:
    """Return the nearest of some words. Few letters are near to much, so they share the first."""
    near = near_names(str(word), among)
    if len(near) > 3:
        return []
    return [one for one in near[:1] if len(word) > 3 or one[0] == word[0].lower()]


def foreign(fact: Foreign, question: Question) -> Iterator[Remedy]:
    """Say what a text seems to be, and how a spec looks."""
    reason = "there is nothing in this text"
    if fact.language is not None:
        reason = f"this looks like {fact.language}"
    lines = "a spec has lines: `spec NAME`, `target MODULES`, and one for each `share`"
    yield Remedy(f"{reason}; {lines}")


def quoted_pattern(fact: QuotedPattern, question: Question) -> Iterator[Remedy]:
    """Write globs in place of a regular expression."""
    span = question.span
    globs = globs_of(fact.pattern)
    if not globs or span is None:
        return
    matches = fact.before.type in ("PATH", "KIND", "PARENT")
    word = str(spelled(fact.before.type)) if matches else "kind"
    if "." in "".join(globs):
        word = "path"
    text = ", ".join(f'{word} "{glob}"' for glob in globs)
    start = span_of(fact.before).start if matches else span.start
    help = f"a pattern is not a regular expression: {listed([text])}"
    yield Remedy(help, (Edit(Span(start, span.end), text),))
