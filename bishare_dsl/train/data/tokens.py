"""Tokenise rows and mark the trained tokens.

The assistant's turn is the text within ``{% generation %}`` in a chat template; TRL has such versions of
the templates it knows. With any other template, a turn begins after the generation prompt and ends where
the chat up to it ends. Extending the chat must not change its earlier text.
"""

from __future__ import annotations

import re
from functools import cached_property
from itertools import pairwise
from typing import Any

from jinja2 import TemplateError
from transformers import PreTrainedTokenizerBase
from transformers.utils.chat_template_utils import render_jinja_template

from bishare_dsl.diagnostics import DataError, one_line
from bishare_dsl.diagnostics.codes import data as codes
from bishare_dsl.train.data.formats import BadRow, Chat, Plain

Messages = list[dict[str, Any]]
Span = tuple[int, int]
Tokens = tuple[list[int], list[bool]]
"""Token ids and whether each is trained on; the first never is, since nothing predicts it."""

# The errors of a sandboxed template; its `raise_exception` raises TemplateError.
_REFUSALS = (TemplateError, TypeError, ValueError, LookupError, AttributeError, ArithmeticError)


class Encoder:
    """Encodes rows: chats by the tokenizer's chat template, other rows unchanged.

    Args:
        name: the name of the rows.
        tokenizer: a tokenizer, with a chat template if any row is a chat.
        whole: train on all of the text.
    """

    def __init__(self, name: str, tokenizer: PreTrainedTokenizerBase, *, whole: bool):
        self._name = name
        self._tokenizer = tokenizer
        self._whole = whole

    def __call__(self, row: Plain | Chat, place: str) -> Tokens | None:
        """Encode a row; return None if it has no trained token.

        Raises:
            BadRow: the template rejects it (BS719) or hides the turns (BS720).
            DataError: the template (BS718) or the end token (BS721) is missing.
        """
        if isinstance(row, Plain):
            text = row.prompt + row.completion
            start = 0 if self._whole else len(row.prompt)
            if not text[start:].strip():
                return None
            return self._ended(*self._tokens(text, [(start, len(text))], special=True))
        messages = row.messages
        turns = [i for i in range(row.trained_from, len(messages)) if _is_trained(messages[i])]
        if not messages or not (turns or self._whole):
            return None
        try:
            text, spans = self._render(messages, turns)
        except _HiddenError as error:
            raise BadRow(codes.TURNS_NOT_FOUND(place=place, reason=error)) from error
        except _REFUSALS as error:
            raise BadRow(codes.TEMPLATE_REFUSES(place=place, reason=one_line(error))) from error
        if len(messages) - 1 not in turns or text.rstrip().endswith(self._ends):
            return self._without_first(*self._tokens(text, spans))
        text = text.rstrip()  # The template adds no end.
        return self._ended(*self._tokens(text, [(a, min(b, len(text))) for a, b in spans]))

    def among_options(
        self, row: Plain, tokens: Tokens, place: str
    ) -> tuple[Tokens, list[list[int]]]:
        """Return the tokens of a row with options, and the ids that options allow at each trained one.

        A token without an alternative is not trained on.

        Raises:
            BadRow: the options are indistinguishable, or all tokens are trained on (BS726).
        """
        ids, trained = tokens
        start = trained.index(True)
        answers: list[list[int]] = []
        reason = ""
        for option in row.options:
            spans = [(len(row.prompt), len(row.prompt + option))]
            answer, _ = self._ended(*self._tokens(row.prompt + option, spans, special=True))
            if answer[:start] != ids[:start]:
                reason = f"the prompt is read otherwise before `{option}`"
            answers.append(answer[start:])
        if len({*map(tuple, answers)}) < len(answers):
            reason = "two of them are the same tokens"
        if self._whole:
            reason = "only the completion is one of them: `train_on` must be `completion`"
        if reason:
            raise BadRow(codes.BAD_OPTIONS(place=place, reason=reason))
        truth = ids[start:]
        choices = [
            sorted({option[i] for option in answers if option[:i] == truth[:i] and len(option) > i})
            for i in range(len(truth))
        ]
        learned = [*trained[:start], *(len(choice) > 1 for choice in choices)]
        return (ids, learned), [choice for choice in choices if len(choice) > 1]

    def _tokens(self, text: str, spans: list[Span], *, special: bool = False) -> Tokens:
        """Tokenise a text; with ``special``, add the tokenizer's initial tokens.

        A token never spans trained and untrained text, as in generation: the parts are tokenised
        separately. The exception is a tokenizer that would change the text, such as by adding spaces.
        """
        ids = self._ids("", special)
        trained = [False] * len(ids)
        for start, end in pairwise(sorted({0, len(text), *(edge for s in spans for edge in s)})):
            longer = self._ids(text[:end], special)
            known = len(ids)
            if longer[:known] != ids:
                apart = ids + self._ids(text[start:end], special=False)
                if self._tokenizer.decode(apart) == self._tokenizer.decode(longer):
                    longer = apart
                else:
                    pairs = enumerate(zip(ids, longer, strict=False))
                    known = next(i for i, (a, b) in pairs if a != b)
            trained = trained[:known] + [(start, end) in spans] * (len(longer) - known)
            ids = longer
        return ids, trained

    def _ids(self, text: str, special: bool) -> list[int]:
        """Tokenise a text without adding end tokens."""
        how = {"add_special_tokens": special, "return_special_tokens_mask": True}
        encoded = self._tokenizer(text, verbose=False, **how)
        ids = encoded["input_ids"]
        added = encoded["special_tokens_mask"]
        while special and ids and added[len(ids) - 1] and ids[-1] != self._tokenizer.bos_token_id:
            ids = ids[:-1]
        return list(ids)

    def _ended(self, ids: list[int], trained: list[bool]) -> Tokens:
        """Add a trained end token to a text, unless it is there already."""
        eos = self._tokenizer.eos_token_id
        if eos is None:
            raise DataError(codes.NO_END_TOKEN())
        while ids and ids[-1] == eos:
            ids = ids[:-1]
            trained = trained[:-1]
        return self._without_first([*ids, eos], [*trained, True])

    def _without_first(self, ids: list[int], trained: list[bool]) -> Tokens:
        """Mask the first token, and drop a duplicate beginning-of-text token."""
        if len(ids) > 1 and ids[0] == ids[1] == self._tokenizer.bos_token_id:
            ids = ids[1:]
            trained = trained[1:]
        return ids, [False, *trained[1:]]

    def _render(self, messages: Messages, turns: list[int]) -> tuple[str, list[Span]]:
        """Render a chat, and find the trained turns."""
        text = self._apply(messages)
        if self._whole:
            return text, [(0, len(text))]
        if _has_markers(self._template):
            return self._generated(messages, turns)
        spans: list[Span] = []
        for turn in turns:
            if not turn:
                raise ValueError("an answer stands first, without a question before it")
            prompt = self._apply(messages[:turn], add_generation_prompt=True)
            through = self._apply(messages[: turn + 1]).rstrip()
            if not through.startswith(prompt):
                raise _HiddenError(f"turn {turn + 1} does not begin as the model is prompted to")
            start = len(prompt)
            answer = through[len(prompt) :]
            if not text.startswith(through):  # Such as a system prompt that moves to the last turn.
                start = text.find(answer, spans[-1][1] if spans else 0)
                if start < 0 or not answer.endswith(self._ends):
                    raise _HiddenError(f"turn {turn + 1} is written otherwise where more follows")
            spans.append((start, start + len(answer)))
        return text, spans

    def _generated(self, messages: Messages, turns: list[int]) -> tuple[str, list[Span]]:
        """Render a chat by a template with markers, and find the marked spans and their end tokens."""
        how: dict[str, Any] = {
            **self._tokenizer.special_tokens_map,
            "chat_template": self._template,
        }
        # Its return annotation is wrong.
        result: Any = render_jinja_template([messages], return_assistant_tokens_mask=True, **how)
        [text], [generated] = result
        before = len(self._apply(messages[: turns[0]])) if turns[0] else 0
        after = re.compile(rf"\s*{re.escape(str(self._tokenizer.eos_token or ''))}")
        spans = []
        for start, end in generated:
            if start >= before and text[start:end].strip():
                end = start + len(text[start:end].rstrip())
                following = after.match(text, end)
                spans.append((start, following.end() if following else end))
        if not spans:
            raise _HiddenError("the template marks nothing as generated")
        return text, spans

    def _apply(self, messages: Messages, **options: Any) -> str:
        text = self._tokenizer.apply_chat_template(
            messages, chat_template=self._template, tokenize=False, **options
        )
        return str(text)

    @cached_property
    def _template(self) -> str:
        if self._tokenizer.chat_template is None:
            raise DataError(codes.NO_CHAT_TEMPLATE(name=self._name))
        template = self._tokenizer.get_chat_template()
        if self._whole or _has_markers(template):
            return template
        try:
            from trl.chat_template_utils import get_training_chat_template

            return get_training_chat_template(self._tokenizer) or template
        except (ImportError, ValueError):  # TRL does not know this template.
            return template

    @cached_property
    def _ends(self) -> tuple[str, ...]:
        """The tokens that may end a turn: all special tokens except the beginning-of-text token."""
        special = {t.content for t in self._tokenizer.added_tokens_decoder.values() if t.special}
        return tuple({*special, str(self._tokenizer.eos_token)} - {str(self._tokenizer.bos_token)})


class _HiddenError(Exception):
    """A template hides where a turn is."""


def _has_markers(template: str) -> bool:
    return re.search(r"\{%-?\s*generation\s*-?%\}", template) is not None


def _is_trained(message: dict[str, Any]) -> bool:
    return message["role"] == "assistant" and bool(message["content"].strip())
