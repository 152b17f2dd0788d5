"""Chats as text, and where in it the assistant's turns are.

Templates differ: they trim, move a system prompt, strip the thinking of earlier turns, open a thinking
block in the generation prompt. So nothing is searched for by its words. The content of each message gets a
mark at its end, and the chat is rendered with marks and without: but for the marks both must be the same
text, and then the marks say where the contents end.

A turn begins where the generation prompt ends: what follows is what the model has to write. How far that
prompt reaches behind the message before is read off the chat up to there, rendered with the prompt. Where
prompt and chat part ways (the one opens a thinking block, the other has none), the turn begins there.

A turn ends with its end-of-turn token: the special token that follows its content, with at most white space
between. What comes behind that, such as ChatML's line break, is not the turn's.

Where a template has ``{% generation %}`` markers, what they enclose is the turn, and with it the
end-of-turn token. The marks see to it that they enclose the content.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

from jinja2 import TemplateError
from transformers.utils.chat_template_utils import render_jinja_template

from bishare_dsl.diagnostics import DataError, one_line
from bishare_dsl.diagnostics.codes import data as codes
from bishare_dsl.train.data.formats import BadRow, Chat, Plain

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Messages = list[dict[str, Any]]
Span = tuple[int, int]

_MARK = "\ufdd0{}\ufdd1"  # Unicode keeps these two characters out of all text.
_MARKS = re.compile("\ufdd0([0-9]+)\ufdd1")

# What a template in the sandbox can fail with; `raise_exception` in it gives a TemplateError.
_REFUSALS = (TemplateError, TypeError, ValueError, LookupError, AttributeError, ArithmeticError)


@dataclass(frozen=True, slots=True)
class Rendered:
    """A text, and the characters of it that are trained on.

    Attributes:
        text: to be tokenised.
        spans: of each trained part the first character and the one behind the last, in order.
        ended: whether the text has an end of its own, or needs none; else one is to be put behind it.
        by_template: whether the text has all of its special tokens but for that end.
    """

    text: str
    spans: list[Span]
    ended: bool
    by_template: bool


class Renderer:
    """Writes rows as texts: chats by the chat template of a tokenizer, others as they are.

    Args:
        name: of the rows.
        tokenizer: has a chat template, if any row is a chat.
        whole: learn all of the text, and look for no turns.
    """

    def __init__(self, name: str, tokenizer: PreTrainedTokenizerBase, *, whole: bool):
        self._name, self._tokenizer, self._whole = name, tokenizer, whole

    def __call__(self, row: Plain | Chat, place: str) -> Rendered | None:
        """Render a row; None where there is nothing to learn.

        Raises:
            BadRow: the template refuses it (BS719), or hides the turns (BS720).
            DataError: there is no template (BS718).
        """
        if isinstance(row, Plain):
            text = row.prompt + row.completion
            start = 0 if self._whole else len(row.prompt)
            learns = text[start:].strip()
            return Rendered(text, [(start, len(text))], False, False) if learns else None
        messages = row.messages
        trained = [i for i in range(row.trained_from, len(messages)) if _is_trained(messages[i])]
        if not messages or not (trained or self._whole):
            return None
        try:
            text = self._render(messages)
            spans = [] if self._whole else self._spans(messages, trained, text)
            last_is_trained = len(messages) - 1 in trained
            ended = not last_is_trained or text.rstrip().endswith(self._end_tokens)
        except _HiddenError as error:
            raise BadRow(codes.TURNS_NOT_FOUND(place=place, reason=error)) from error
        except _REFUSALS as error:
            raise BadRow(codes.TEMPLATE_REFUSES(place=place, reason=one_line(error))) from error
        text = text if ended else text.rstrip()
        return Rendered(text, [(0, len(text))] if self._whole else spans, ended, True)

    @cached_property
    def _template(self) -> str:
        if self._tokenizer.chat_template is None:
            raise DataError(codes.NO_CHAT_TEMPLATE(name=self._name))
        return self._tokenizer.get_chat_template()

    @cached_property
    def _has_markers(self) -> bool:
        return re.search(r"\{%-?\s*generation\s*-?%\}", self._template) is not None

    def _render(self, messages: Messages, *, prompt: bool = False) -> str:
        rendered = self._tokenizer.apply_chat_template(
            messages,
            chat_template=self._template,
            tokenize=False,
            add_generation_prompt=prompt,
        )
        assert isinstance(rendered, str)
        return rendered

    def _spans(self, messages: Messages, trained: list[int], text: str) -> list[Span]:
        marked = [_marked(message, index) for index, message in enumerate(messages)]
        if self._has_markers:
            chat, generated = self._render_generated(marked)
        else:
            chat, generated = _Unmarked(self._render(marked)), []
        if chat.text != text:
            raise _HiddenError("what is written around a turn depends on what is in it")
        if self._has_markers:
            return self._generated(chat, generated, trained)
        spans: list[Span] = []
        for turn in trained:
            # The last message before with a content; others have no mark.
            before = max((i for i in range(turn) if marked[i] is not messages[i]), default=-1)
            start = chat.end(before) + self._header(marked, before, turn, text[chat.end(before) :])
            if not (spans[-1][1] if spans else 0) <= start <= chat.end(turn):
                raise _HiddenError(f"turn {turn + 1} is not where it should be")
            spans.append((start, self._turn_end(text, chat.end(turn))))
        return spans

    def _header(self, marked: Messages, before: int, turn: int, text: str) -> int:
        """Count the characters of ``text``, which follows message ``before``, that the model is given."""
        prompt = _Unmarked(self._render(marked[:turn], prompt=True))
        header = prompt.text[prompt.end(before) :]
        if text.startswith(header):
            return len(header)
        other = [*marked]
        other[turn] = {"role": "assistant", "content": _MARK.format(turn)}
        chat, plain = _Unmarked(self._render(other)), _Unmarked(self._render(marked[:turn]))
        any_turn = chat.text[chat.end(before) : chat.end(turn)]
        common = _common(header, any_turn, text)
        for token in self._added_tokens.finditer(header):
            if token.start() < common < token.end():
                common = token.start()
        if common <= len(plain.text) - plain.end(before):
            raise _HiddenError(
                f"turn {turn + 1} does not begin as the model is prompted to begin it"
            )
        return common

    def _generated(self, chat: _Unmarked, generated: list[Span], trained: list[int]) -> list[Span]:
        """Find what the template marks as generated, of the turns that are trained on."""
        spans, found = [], set()
        for start, end in generated:
            # A turn may be generated in several parts; they follow its content.
            place, turn = max(((p, i) for i, p in chat.ends.items() if p <= end), default=(-1, -1))
            if turn in trained:
                end = start + len(chat.text[start:end].rstrip())
                if not chat.text[start:end].endswith(self._end_tokens):
                    end = self._turn_end(chat.text, end)
                spans.append((start, end))
                found |= {turn} if place >= start else set()
        if missing := set(trained) - found:
            raise _HiddenError(f"turn {min(missing) + 1} is not marked as generated")
        return spans

    def _render_generated(self, messages: Messages) -> tuple[_Unmarked, list[Span]]:
        options: dict[str, Any] = {"return_assistant_tokens_mask": True}
        options |= self._tokenizer.special_tokens_map
        # It is annotated as giving a text.
        result: Any = render_jinja_template([messages], chat_template=self._template, **options)
        [text], [generated] = result
        return _Unmarked(text), [
            (len(_MARKS.sub("", text[:start])), len(_MARKS.sub("", text[:end])))
            for start, end in generated
        ]

    def _turn_end(self, text: str, end: int) -> int:
        """Find the place behind the end-of-turn token, for a turn with a content that ends at ``end``."""
        match = self._end_token.match(text, end)
        return match.end() if match else end

    @cached_property
    def _end_tokens(self) -> tuple[str, ...]:
        """What may end a turn, the longest first."""
        tokenizer = self._tokenizer
        special = {t.content for t in tokenizer.added_tokens_decoder.values() if t.special}
        special.discard(str(tokenizer.bos_token))  # It begins what comes next.
        special |= {str(tokenizer.eos_token)} if tokenizer.eos_token else set()
        # Some templates end a turn with words that are not tokens of the tokenizer.
        turns = [{"role": "user", "content": "?"}, {"role": "assistant", "content": "!"}]
        try:
            marked = _Unmarked(self._render([_marked(turn, i) for i, turn in enumerate(turns)]))
        except (*_REFUSALS, _HiddenError):
            tail = ""  # Its chats begin in another way.
        else:
            tail = marked.text[marked.ends.get(1, len(marked.text)) :].strip()
        if tail and not tail.startswith(tuple(special)):
            special.add(tail)
        return tuple(sorted(special, key=len, reverse=True))

    @cached_property
    def _end_token(self) -> re.Pattern[str]:
        # Cohere's templates end a turn with a token of their own, and then with the one that stops.
        stop = re.escape(str(self._tokenizer.eos_token or ""))
        return re.compile(rf"\s*(?:{_any_of(self._end_tokens)})(?:{stop})?")

    @cached_property
    def _added_tokens(self) -> re.Pattern[str]:
        return re.compile(_any_of(t.content for t in self._tokenizer.added_tokens_decoder.values()))


class _HiddenError(Exception):
    """A template does not show where a turn is."""


class _Unmarked:
    """A rendered text without its marks, and the places where they were."""

    def __init__(self, rendered: str):
        self.text = _MARKS.sub("", rendered)
        self.ends: dict[int, int] = {}
        removed = 0
        for match in _MARKS.finditer(rendered):
            index = int(match[1])
            self.ends[index] = match.start() - removed if index not in self.ends else -1
            removed += len(match[0])

    def end(self, index: int) -> int:
        """Return where the content of a message ends."""
        if (end := self.ends.get(index, -1)) < 0:
            raise _HiddenError(f"turn {index + 1} is not written once")
        return end


def _any_of(texts: Iterable[str]) -> str:
    """Make a pattern of any of the texts, and of nothing where there are none."""
    return "|".join(map(re.escape, texts)) or "(?!)"


def _common(*texts: str) -> int:
    """Return the length of the longest prefix that the texts have in common."""
    different = (i for i, chars in enumerate(zip(*texts, strict=False)) if len({*chars}) > 1)
    return next(different, min(map(len, texts)))


def _is_trained(message: dict[str, Any]) -> bool:
    return message["role"] == "assistant" and bool(message["content"].strip())


def _marked(message: dict[str, Any], index: int) -> dict[str, Any]:
    """Put a mark behind a message's content, but before white space there, which templates may trim."""
    content = message["content"].rstrip()
    if not content:
        return message  # Templates may ask whether there is any.
    rest = message["content"][len(content) :]
    return {**message, "content": content + _MARK.format(index) + rest}
