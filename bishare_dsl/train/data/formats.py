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
from collections.abc import Mapping
from functools import cache, partial
from itertools import chain
from typing import Annotated, Any, Literal, NamedTuple

from pydantic import AfterValidator, BaseModel, ConfigDict, Strict, TypeAdapter, ValidationError
from pydantic import model_validator as validator
from pydantic_core import PydanticCustomError

from bishare_dsl.diagnostics import DataError, advise
from bishare_dsl.diagnostics.codes import data as codes
from bishare_dsl.train.data.load import Row, Rows

Format = Literal["alpaca", "prompt-completion", "messages", "text"]


class Plain(NamedTuple):
    """A text whose end, after ``prompt``, is trained on. It is one of ``options`` if there are any."""

    prompt: str
    completion: str
    options: tuple[str, ...] = ()


class Chat(NamedTuple):
    """Messages for a chat template. Assistant messages from index ``trained_from`` are trained on."""

    messages: list[dict[str, Any]]
    trained_from: int = 0


OPTIONS = "options"
"""The column of the options, one of which is the completion."""

# https://github.com/tatsu-lab/stanford_alpaca, with alpaca-lora's final line break.
_ALPACA = (
    "Below is an instruction that describes a task{context}. Write a response that appropriately completes "
    "the request.\n\n### Instruction:\n{instruction}\n\n{input}### Response:\n"
)


class BadRow(DataError):
    """A row that violates its format."""


def _not_blank(value: str) -> str:
    if not value.strip():
        raise PydanticCustomError("blank", "it is empty")
    return value


def _unicode(value: str) -> str:
    value.encode()  # A `UnicodeEncodeError` is a `ValueError`.
    return value


_Role = Literal["system", "developer", "user", "assistant", "tool"]
_Text = Annotated[str, Strict(), AfterValidator(_unicode)]
_Filled = Annotated[_Text, AfterValidator(_not_blank)]


class _Message(BaseModel):
    """A message. Templates read other keys too, such as `reasoning_content`; null means absent."""

    model_config = ConfigDict(strict=True, extra="allow")
    role: _Role
    content: _Text

    @validator(mode="before")
    @classmethod
    def _renamed(cls, value: Any) -> Any:
        """Take the names of ShareGPT too."""
        if not isinstance(value, Mapping):
            return value
        names = {} if "role" in value else {"from": "role", "value": "content"}
        found = {names.get(k, k): v for k, v in value.items()}
        if names and isinstance(by := found.get("role"), str):
            found["role"] = {"human": "user", "gpt": "assistant"}.get(by, by)
        return {k: v for k, v in found.items() if v is not None or k in cls.model_fields}

    @validator(mode="after")
    def _says(self) -> _Message:
        if self.role in ("user", "tool"):
            _not_blank(self.content)
        return self


_FOUND = {type(None): "null", bool: "true or false", list: "a list", dict: "an object", str: "text"}
_EXPECTED = {
    list[_Message]: "a list of messages, each with `role` and `content`,",
    list[_Text]: "a list of texts",
}
_reader = cache(TypeAdapter)


def _get(row: Row, place: str, name: str, kind: Any) -> Any:
    """Return a field of a row, as ``kind``.

    Raises:
        BadRow: it is missing (BS711), of another type (BS712), of no role (BS713) or empty (BS714).
    """
    if name not in row:
        raise BadRow(codes.MISSING_FIELD(place=place, field=name))
    try:
        return _reader(kind).validate_python(row[name])
    except ValidationError as error:
        fault = error.errors()[0]
    inner = (f"[{part}]" if isinstance(part, int) else f".{part}" for part in fault["loc"])
    value = fault["input"]
    where: dict[str, Any] = {"place": place, "field": name + "".join(inner)}
    if fault["type"] == "missing":
        raise BadRow(codes.MISSING_FIELD(**where, help="a message has `role` and `content`"))
    if fault["type"] == "blank":
        where["field"] += ".content" * isinstance(value, dict)
        raise BadRow(codes.EMPTY_FIELD(**where))
    if fault["type"] == "literal_error" and isinstance(value, str):
        raise BadRow(codes.UNKNOWN_ROLE(**where, found=value))
    found, help = _FOUND.get(type(value), "a number"), None
    if fault["type"] == "value_error":
        found = "text with half a surrogate pair"
    if isinstance(value, list) and any(isinstance(part, dict) and "type" in part for part in value):
        found, help = "a list of parts", "join the parts' `text` into one text"
    expected = "a message with `role` and `content`" if fault["type"] == "model_type" else "text"
    if not fault["loc"]:
        expected = _EXPECTED.get(kind, "text")
    raise BadRow(codes.WRONG_TYPE(**where, found=found, expected=expected, help=help))


_COLUMNS: Mapping[Format, tuple[tuple[str, ...], ...]] = {
    "alpaca": (("instruction", "output"),),
    "prompt-completion": (("prompt", "completion"),),
    "messages": (("messages",), ("conversations",)),
    "text": (("text",),),
}
"""The columns of each format; there may be alternatives."""
COLUMNS = {OPTIONS, "input", *chain(*chain(*_COLUMNS.values()))}
"""All columns that are read."""


def find_format(rows: Rows) -> Format:
    """Return the format that fits the columns of the first row.

    Raises:
        DataError: no format fits (BS709), or several do (BS710).
    """
    first = rows.table[0].keys()
    fitting = [name for name, columns in _COLUMNS.items() if any(first >= {*c} for c in columns)]
    if not fitting:
        columns = ", ".join(f"`{name}`" for name in first) or "no columns"
        help = next(filter(None, (advise("column", name) for name in first)), None)
        raise DataError(codes.NO_FORMAT(name=rows.name, found=columns, help=help))
    if len(fitting) > 1:
        raise DataError(codes.SEVERAL_FORMATS(name=rows.name, formats=", ".join(fitting)))
    return fitting[0]


def read_row(row: Row, place: str, format: Format, *, chats: bool) -> Plain | Chat:
    """Check a row and return its content; Alpaca rows become chats if ``chats`` is true.

    Raises:
        BadRow: the row is invalid; ``place`` locates it.
    """
    get = partial(_get, row, place)
    if row.get(OPTIONS) is not None and not isinstance(row.get("completion"), str):
        reason = "they go with a `prompt` and a `completion` that are texts"
        raise BadRow(codes.BAD_OPTIONS(place=place, field=OPTIONS, reason=reason))

    def chat(name: str) -> list[dict[str, Any]]:
        return [message.model_dump() for message in get(name, list[_Message])]

    if format == "text":
        return Plain("", get("text", _Text))
    if format == "messages":
        return Chat(chat("messages" if "messages" in row else "conversations"))
    if format == "alpaca":
        asks, says = get("instruction", _Filled), get("output", _Text)
        added = "" if row.get("input") is None else get("input", _Text)
        added = added if added.strip() else ""
        if chats:
            turns = {"user": f"{asks}\n\n{added}" if added else asks, "assistant": says}
            return Chat([{"role": role, "content": text} for role, text in turns.items()])
        context = ", paired with an input that provides further context" if added else ""
        input = f"### Input:\n{added}\n\n" if added else ""
        return Plain(_ALPACA.format(context=context, instruction=asks, input=input), says)
    if isinstance(row.get("prompt"), list):
        prompt = chat("prompt")
        return Chat([*prompt, *chat("completion")], len(prompt))
    prompt, says = get("prompt", _Filled), get("completion", _Text)
    if row.get(OPTIONS) is None:
        return Plain(prompt, says)
    options = get(OPTIONS, list[_Text])
    different = {option for option in options if option.strip()}
    if len(different) < len(options) or len(different) < 2 or says not in options:
        reason = f"two different texts are needed, none empty, and `{says}` among them"
        if says not in options and says.strip().lower() in (o.strip().lower() for o in options):
            reason = f"the completion, `{says}`, and an option differ in spaces or capitals alone"
        raise BadRow(codes.BAD_OPTIONS(place=place, field=OPTIONS, reason=reason))
    return Plain(prompt, says, tuple(options))


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
    format = format or find_format(rows)
    fields = [*(name for choice in _COLUMNS[format] for name in choice)]
    fields += ["input"] * (format == "alpaca")
    columns = ([row.get(field) for field in fields] for row in rows.table)
    texts = (json.dumps(content, sort_keys=True, default=str) for content in columns)
    keys = [hashlib.sha256(f"{seed} {text}".encode()).digest() for text in texts]
    sizes, held_out = Counter(keys), set[bytes]()
    left = round(size * len(rows)) if isinstance(size, float) else size
    for key in sorted(sizes):
        if sizes[key] <= left:
            held_out.add(key)
            left -= sizes[key]
    if not held_out or len(held_out) == len(sizes):
        reason = f"no row would be left on one side ({len(sizes):,} of them are different)"
        problem = codes.TOO_FEW_TO_SPLIT(rows=len(rows), name=rows.name, wanted=size, reason=reason)
        raise DataError(problem)
    held = [i for i, key in enumerate(keys) if key in held_out]
    return rows.select({*range(len(rows))}.difference(held)), rows.select(held)
