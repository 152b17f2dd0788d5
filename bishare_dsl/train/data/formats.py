"""Detect and check the formats of rows, and split off held-out rows.

| format | columns |
|---|---|
| ``alpaca`` | ``instruction``, ``output``, and optionally ``input`` |
| ``prompt-completion`` | ``prompt``, ``completion``: two texts, or two lists of messages |
| ``messages`` | ``messages`` or ``conversations``: each with ``role``, ``content`` (or ``from``, ``value``) |
| ``text`` | ``text`` |

A checked row is a `Plain` text or a `Chat`.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

from bishare_dsl.diagnostics import Code, DataError, nearest
from bishare_dsl.diagnostics.codes import data as codes
from bishare_dsl.train.data.rows import Row, Rows

Format = Literal["alpaca", "prompt-completion", "messages", "text"]


@dataclass(frozen=True, slots=True)
class Plain:
    """A text whose end, after ``prompt``, is trained on. It is one of ``options`` if there are any."""

    prompt: str
    completion: str
    options: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Chat:
    """Messages for a chat template. Assistant messages from index ``trained_from`` are trained on."""

    messages: list[dict[str, Any]]
    trained_from: int = 0


OPTIONS = "options"
"""The column of the options, one of which is the completion."""

_ROLES = ("system", "developer", "user", "assistant", "tool")
_SHAREGPT = {"human": "user", "gpt": "assistant", **{role: role for role in _ROLES}}
_MAY_BE_EMPTY = ("system", "developer", "assistant")

_KINDS = {
    type(None): "null",
    bool: "true or false",
    int: "a number",
    float: "a number",
    str: "text",
    list: "a list",
    dict: "an object",
}

# https://github.com/tatsu-lab/stanford_alpaca, with alpaca-lora's final line break.
_ALPACA = (
    "Below is an instruction that describes a task{context}. Write a response that appropriately completes "
    "the request.\n\n### Instruction:\n{instruction}\n\n{input}### Response:\n"
)


class BadRow(DataError):
    """A row that violates its format."""


@dataclass(frozen=True)
class _Fields:
    """The fields of a row or of one of its messages, and their names in error messages."""

    values: Row
    place: str
    prefix: str = ""

    def bad(self, code: Code, name: str, **more: Any) -> BadRow:
        return BadRow(code(place=self.place, field=self.prefix + name, **more))

    def wrong(self, name: str, value: Any, expected: str) -> BadRow:
        kind, help = _KINDS.get(type(value), type(value).__name__), None
        if (
            isinstance(value, list)
            and value
            and all(isinstance(v, dict) and "type" in v for v in value)
        ):
            kind, help = "a list of parts", "join the parts' `text` into one text"
        return self.bad(codes.WRONG_TYPE, name, found=kind, expected=expected, help=help)

    def get(self, name: str) -> Any:
        if name not in self.values:
            raise self.bad(codes.MISSING_FIELD, name)
        return self.values[name]

    def text(self, name: str, *, empty: bool = False) -> str:
        value = self.get(name)
        if not isinstance(value, str):
            raise self.wrong(name, value, "text")
        try:
            value.encode()
        except UnicodeEncodeError:
            half = {"found": "text with half a surrogate pair", "expected": "Unicode text"}
            raise self.bad(codes.WRONG_TYPE, name, **half) from None
        if not empty and not value.strip():
            raise self.bad(codes.EMPTY_FIELD, name)
        return value

    def options(self, completion: str) -> tuple[str, ...]:
        """Return the options, which must contain the completion; empty without such a column."""
        values = self.values.get(OPTIONS)
        if values is None:
            return ()
        if not isinstance(values, list) or not all(isinstance(value, str) for value in values):
            raise self.wrong(OPTIONS, values, "a list of texts")
        if len(set(values)) < 2 or len(set(values)) < len(values):
            raise self.bad(
                codes.BAD_OPTIONS, OPTIONS, reason="two different texts are needed, and none twice"
            )
        if not all(value.strip() for value in values):
            raise self.bad(codes.BAD_OPTIONS, OPTIONS, reason="one of them is empty")
        if completion not in values:
            reason = f"the completion `{completion}` is none of them"
            raise self.bad(codes.BAD_OPTIONS, OPTIONS, reason=reason)
        return tuple(values)

    def messages(self, name: str) -> list[dict[str, Any]]:
        values = self.get(name)
        if not isinstance(values, list):
            raise self.wrong(name, values, "a list of messages")
        read = []
        for index, value in enumerate(values):
            if not isinstance(value, dict):
                raise self.wrong(f"{name}[{index}]", value, "a message")
            read.append(_Fields(value, self.place, f"{self.prefix}{name}[{index}].").message())
        return read

    def message(self) -> dict[str, Any]:
        sharegpt = "from" in self.values and "role" not in self.values
        by, says = ("from", "value") if sharegpt else ("role", "content")
        roles = _SHAREGPT if sharegpt else {role: role for role in _ROLES}
        role = self.text(by)
        if role not in roles:
            raise self.bad(codes.UNKNOWN_ROLE, by, found=role, help=nearest(role, roles))
        content = self.text(says, empty=roles[role] in _MAY_BE_EMPTY)
        # Templates read other keys too, such as `reasoning_content`; null means absent.
        others = {k: v for k, v in self.values.items() if k not in (by, says) and v is not None}
        return {**others, "role": roles[role], "content": content}


def _alpaca(fields: _Fields, chat: bool) -> Plain | Chat:
    instruction = fields.text("instruction")
    added = fields.values.get("input")
    added = "" if added is None else fields.text("input", empty=True)
    output = fields.text("output", empty=True)
    if chat:
        asks = f"{instruction}\n\n{added}" if added.strip() else instruction
        return Chat([{"role": "user", "content": asks}, {"role": "assistant", "content": output}])
    context = ", paired with an input that provides further context" if added.strip() else ""
    input = f"### Input:\n{added}\n\n" if added.strip() else ""
    return Plain(_ALPACA.format(context=context, instruction=instruction, input=input), output)


def _prompt_completion(fields: _Fields, chat: bool) -> Plain | Chat:
    if isinstance(fields.get("prompt"), list):
        prompt, completion = fields.messages("prompt"), fields.messages("completion")
        if not prompt:
            raise fields.bad(codes.EMPTY_FIELD, "prompt")
        return Chat([*prompt, *completion], len(prompt))
    right = fields.text("completion", empty=True)
    return Plain(fields.text("prompt"), right, fields.options(right))


def _messages(fields: _Fields, chat: bool) -> Chat:
    name = "messages" if "messages" in fields.values else "conversations"
    return Chat(fields.messages(name))


class _Format(NamedTuple):
    columns: tuple[tuple[str, ...], ...]
    """Required columns; there may be alternatives."""
    read: Callable[[_Fields, bool], Plain | Chat]
    optional: tuple[str, ...] = ()


_FORMATS: Mapping[Format, _Format] = {
    "alpaca": _Format((("instruction", "output"),), _alpaca, ("input",)),
    "prompt-completion": _Format((("prompt", "completion"),), _prompt_completion),
    "messages": _Format((("messages",), ("conversations",)), _messages),
    "text": _Format((("text",),), lambda fields, _: Plain("", fields.text("text", empty=True))),
}


def find_format(rows: Rows) -> Format:
    """Return the format that fits the columns of the first row.

    Raises:
        DataError: no format fits (BS709), or several do (BS710).
    """
    first = rows[0].keys()
    fitting = [name for name, f in _FORMATS.items() if any(first >= {*c} for c in f.columns)]
    if not fitting:
        columns = ", ".join(f"`{name}`" for name in first)
        raise DataError(codes.NO_FORMAT(name=rows.name, found=columns or "no columns"))
    if len(fitting) > 1:
        raise DataError(codes.SEVERAL_FORMATS(name=rows.name, formats=", ".join(fitting)))
    return fitting[0]


def read_row(row: Row, place: str, format: Format, *, chats: bool) -> Plain | Chat:
    """Check a row and return its content; Alpaca rows become chats if ``chats`` is true.

    Raises:
        BadRow: the row is invalid; ``place`` locates it.
    """
    fields = _Fields(row, place)
    read = _FORMATS[format].read(fields, chats)
    if row.get(OPTIONS) is not None and not (isinstance(read, Plain) and read.options):
        raise fields.bad(
            codes.BAD_OPTIONS,
            OPTIONS,
            reason="they go with a `prompt` and a `completion` that are texts",
        )
    return read


def split_off(
    rows: Rows, size: int | float, seed: int, *, format: Format | None = None
) -> tuple[Rows, Rows]:
    """Split rows into a training set and a held-out set; both keep their order.

    Rows with the same content stay together. A group larger than the remaining size is skipped, so at most
    ``size`` rows are held out. The choice depends only on content and seed, not on the order of rows.

    Args:
        rows: rows of one format; columns outside the format do not count as content.
        size: the number of held-out rows (int, at least 1), or their fraction (float between 0 and 1).
        seed: selects the rows.
        format: as in `encode`.

    Returns:
        The training rows and the held-out rows.

    Raises:
        DataError: the format is unknown or ambiguous (BS709, BS710), or one side would be empty (BS724).
    """
    columns_of = _FORMATS[format or find_format(rows)]
    fields = [*(name for choice in columns_of.columns for name in choice), *columns_of.optional]
    columns = ([rows[i].get(field) for field in fields] for i in range(len(rows)))
    texts = (json.dumps(content, sort_keys=True, default=str) for content in columns)
    keys = [hashlib.sha256(f"{seed} {text}".encode()).digest() for text in texts]
    sizes, held_out = Counter(keys), set[bytes]()
    left = round(size * len(rows)) if isinstance(size, float) else size
    for key in sorted(sizes):
        if sizes[key] <= left:
            held_out.add(key)
            left -= sizes[key]
    if not held_out or len(held_out) == len(sizes):
        reason = "no row would be left on one side"
        if len(sizes) < len(rows):
            reason += f" ({len(sizes):,} of them are different)"
        problem = codes.TOO_FEW_TO_SPLIT(rows=len(rows), name=rows.name, wanted=size, reason=reason)
        raise DataError(problem)
    trained, held = (
        rows.select(i for i, key in enumerate(keys) if (key in held_out) is side)
        for side in (False, True)
    )
    return trained, held
