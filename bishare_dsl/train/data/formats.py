"""The formats of rows: known by their columns, and checked for every row.

| format | columns |
|---|---|
| ``alpaca`` | ``instruction``, ``output``, and ``input`` where there is one |
| ``prompt-completion`` | ``prompt``, ``completion``: both texts, or both lists of messages |
| ``messages`` | ``messages`` or ``conversations``: each with ``role``, ``content`` (or ``from``, ``value``) |
| ``text`` | ``text`` |

A checked row is a `Plain` text or a `Chat`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from bishare_dsl.diagnostics import DataError, Problem, nearest
from bishare_dsl.diagnostics.codes import data as codes
from bishare_dsl.train.data.rows import Row, Rows

Format = Literal["alpaca", "prompt-completion", "messages", "text"]


@dataclass(frozen=True, slots=True)
class Plain:
    """A text of which the end is learnt: what follows ``prompt``."""

    prompt: str
    completion: str


@dataclass(frozen=True, slots=True)
class Chat:
    """Messages as a chat template takes them. The assistant's are learnt from ``learnt_from`` on."""

    messages: list[dict[str, Any]]
    trained_from: int = 0


COLUMNS: Mapping[Format, tuple[tuple[str, ...], ...]] = {
    "alpaca": (("instruction", "output"),),
    "prompt-completion": (("prompt", "completion"),),
    "messages": (("messages",), ("conversations",)),
    "text": (("text",),),
}

_ROLES = ("system", "developer", "user", "assistant", "tool")
_SHAREGPT = {"human": "user", "gpt": "assistant", **{role: role for role in _ROLES}}
_MAY_BE_EMPTY = ("system", "developer", "assistant")

_KINDS: Mapping[type, str] = {
    type(None): "null",
    bool: "true or false",
    int: "a number",
    float: "a number",
    str: "text",
    list: "a list",
    dict: "an object",
}

# https://github.com/tatsu-lab/stanford_alpaca, with the line break that alpaca-lora puts at the end.
_ALPACA = (
    "Below is an instruction that describes a task. Write a response that appropriately completes the "
    "request.\n\n### Instruction:\n{instruction}\n\n### Response:\n"
)
_ALPACA_INPUT = (
    "Below is an instruction that describes a task, paired with an input that provides further context. "
    "Write a response that appropriately completes the request.\n\n### Instruction:\n{instruction}\n\n"
    "### Input:\n{input}\n\n### Response:\n"
)


def find_format(rows: Rows) -> Format:
    """Return the format that the columns of the first row have.

    Raises:
        DataError: they have none (BS709) or several (BS710).
    """
    first = rows[0]
    found = [f for f, choices in COLUMNS.items() if any(first.keys() >= {*c} for c in choices)]
    if not found:
        columns = ", ".join(f"`{name}`" for name in first)
        raise DataError(codes.NO_FORMAT(name=rows.name, found=columns or "no columns"))
    if len(found) > 1:
        raise DataError(codes.SEVERAL_FORMATS(name=rows.name, formats=", ".join(found)))
    return found[0]


def content_fields(format: Format) -> tuple[str, ...]:
    """List all columns that a format may read."""
    optional = ("input",) if format == "alpaca" else ()
    return (*(name for choice in COLUMNS[format] for name in choice), *optional)


class BadRow(Exception):
    """A row that is not as its format says."""

    def __init__(self, problem: Problem):
        super().__init__(problem)
        self.problem = problem


@dataclass(frozen=True)
class RowReader:
    """Checks rows of one format and gives what is to be encoded.

    Args:
        format: of the rows.
        chat: whether Alpaca's rows are written as chats.
    """

    format: Format
    chat: bool

    def __call__(self, row: Row, place: str) -> Plain | Chat:
        """Read one row.

        Raises:
            BadRow: with the problem, at ``place``.
        """
        return _READERS[self.format](_Fields(row, place), self.chat)


@dataclass(frozen=True)
class _Fields:
    """The fields of a row, or of a message in it, and how they are called in a problem."""

    values: Row
    place: str
    prefix: str = ""

    def get(self, name: str) -> Any:
        if name not in self.values:
            raise BadRow(codes.MISSING_FIELD(place=self.place, field=self.prefix + name))
        return self.values[name]

    def text(self, name: str, *, empty: bool = False) -> str:
        value = self.get(name)
        if not isinstance(value, str):
            raise self.wrong(name, _kind(value), "text")
        if not value.isascii():
            try:
                value.encode()
            except UnicodeEncodeError:
                raise self.wrong(name, "text with half a surrogate pair", "Unicode text") from None
        if not empty and not value.strip():
            raise BadRow(codes.EMPTY_FIELD(place=self.place, field=self.prefix + name))
        return value

    def wrong(self, name: str, found: str, expected: str) -> BadRow:
        return BadRow(
            codes.WRONG_TYPE(
                place=self.place, field=self.prefix + name, found=found, expected=expected
            )
        )

    def messages(self, name: str) -> list[dict[str, Any]]:
        values = self.get(name)
        if not isinstance(values, list):
            raise self.wrong(name, _kind(values), "a list of messages")
        read = []
        for index, value in enumerate(values):
            if not isinstance(value, dict):
                raise self.wrong(f"{name}[{index}]", _kind(value), "a message")
            read.append(_Fields(value, self.place, f"{self.prefix}{name}[{index}].").message())
        return read

    def message(self) -> dict[str, Any]:
        sharegpt = "from" in self.values and "role" not in self.values
        by, says = ("from", "value") if sharegpt else ("role", "content")
        roles = _SHAREGPT if sharegpt else {role: role for role in _ROLES}
        role = self.text(by)
        if role not in roles:
            field = self.prefix + by
            help = nearest(role, roles)
            raise BadRow(codes.UNKNOWN_ROLE(place=self.place, field=field, found=role, help=help))
        if self.values.get("tool_calls"):
            field = self.prefix.rstrip(".")
            raise BadRow(codes.TOOL_CALLS(place=self.place, field=field))
        content = self.text(says, empty=roles[role] in _MAY_BE_EMPTY)
        # Templates read other keys too, such as `reasoning_content`; null stands for none of them.
        others = {k: v for k, v in self.values.items() if k not in (by, says) and v is not None}
        return {**others, "role": roles[role], "content": content}


def _alpaca(fields: _Fields, chat: bool) -> Plain | Chat:
    instruction = fields.text("instruction")
    given = fields.values.get("input")
    given = "" if given is None else fields.text("input", empty=True)
    output = fields.text("output", empty=True)
    if chat:
        asked = f"{instruction}\n\n{given}" if given.strip() else instruction
        return Chat([{"role": "user", "content": asked}, {"role": "assistant", "content": output}])
    template = _ALPACA_INPUT if given.strip() else _ALPACA
    return Plain(template.format(instruction=instruction, input=given), output)


def _prompt_completion(fields: _Fields, chat: bool) -> Plain | Chat:
    if isinstance(fields.get("prompt"), list):
        prompt, completion = fields.messages("prompt"), fields.messages("completion")
        if not prompt:
            raise BadRow(codes.EMPTY_FIELD(place=fields.place, field="prompt"))
        return Chat([*prompt, *completion], len(prompt))
    return Plain(fields.text("prompt"), fields.text("completion", empty=True))


def _messages(fields: _Fields, chat: bool) -> Chat:
    name = "messages" if "messages" in fields.values else "conversations"
    messages = fields.messages(name)
    if messages and messages[0]["role"] == "assistant":
        raise BadRow(codes.NOTHING_BEFORE(place=fields.place, field=name))
    return Chat(messages)


def _text(fields: _Fields, chat: bool) -> Plain:
    return Plain("", fields.text("text", empty=True))


_READERS: Mapping[Format, Callable[[_Fields, bool], Plain | Chat]] = {
    "alpaca": _alpaca,
    "prompt-completion": _prompt_completion,
    "messages": _messages,
    "text": _text,
}


def _kind(value: Any) -> str:
    return _KINDS.get(type(value), type(value).__name__)
