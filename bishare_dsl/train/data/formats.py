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
import re
from collections import Counter
from collections.abc import Mapping
from itertools import chain
from typing import Any, Literal, NamedTuple

from bishare_dsl.diagnostics import DataError, advise, nearest
from bishare_dsl.diagnostics.codes import data as codes
from bishare_dsl.diagnostics.tried import names_meant
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


_ROLES = ("system", "developer", "user", "assistant", "tool")
_FOUND = {type(None): "null", bool: "true or false", int: "a number", float: "a number"}
_FOUND |= {list: "a list", dict: "an object", str: "text"}


def _wrong(where: Mapping[str, Any], value: Any, expected: str) -> BadRow:
    """Return the error for a value of another type (BS712). The advice depends on both types."""
    kind = _FOUND.get(type(value), f"a {type(value).__name__}")
    if isinstance(value, str) and expected == "text":
        kind = "text with half a surrogate pair"
    elif isinstance(value, list) and any(isinstance(v, dict) and "type" in v for v in value):
        kind = "a list of parts"
    elif value != value:
        kind = "NaN, a missing value"
    kinds = f"{expected.split()[-1]}:{kind.split()[-1]}"
    last = where["field"].rpartition(".")[2]
    help = advise("found", f"{last}:{kind}") or advise("found", kinds)
    if kinds in ("text:number", "text:false"):
        help = f"as text it is `{json.dumps(json.dumps(value))}`"
    return BadRow(codes.WRONG_TYPE(**where, found=kind, expected=expected, help=help))


def _text(value: Any, where: Mapping[str, Any], *, filled: bool = False) -> str:
    """Return a text, which has a letter at least if it is ``filled`` (BS714)."""
    if not isinstance(value, str) or re.search("[\ud800-\udfff]", value):
        raise _wrong(where, value, "text")
    if filled and not value.strip():
        raise BadRow(codes.EMPTY_FIELD(**where))
    return value


def _message(value: Any, place: str, field: str) -> dict[str, Any]:
    """Return a message; it may have the names of ShareGPT. Null means absent, but for `content`."""
    if not isinstance(value, Mapping):
        raise _wrong({"place": place, "field": field}, value, "a message")
    names: Any = {} if "role" in value else {"from": "role", "value": "content"}
    fields = {names.get(name, name): part for name, part in value.items()}
    places: Any = {n: {"place": place, "field": f"{field}.{n}"} for n in ("role", "content")}
    for name, where in places.items():
        if name not in fields:
            keys = ", ".join(f"`{key}`" for key in value) or "nothing"
            help = f"a message has `role` and `content`, and this one has {keys}"
            raise BadRow(codes.MISSING_FIELD(**where, help=help))
    role = _text(fields["role"], places["role"])
    role = {"human": "user", "gpt": "assistant"}.get(role, role) if names else role
    if role not in _ROLES:
        near = advise("turn", role, _ROLES)
        raise BadRow(codes.UNKNOWN_ROLE(**places["role"], found=role, help=near))
    content = _text(fields["content"], places["content"], filled=role in ("user", "tool"))
    # Templates read other keys too, such as `reasoning_content`.
    others = {name: part for name, part in fields.items() if part is not None}
    return {**others, "role": role, "content": content}


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
    first = rows.table[0]
    fitting = [name for name, columns in _COLUMNS.items() if any({*c} <= {*first} for c in columns)]
    if not fitting:
        columns = ", ".join(f"`{name}`" for name in first) or "no columns"
        wanted = [("instruction", "output", "input"), *chain(*_COLUMNS.values())]
        wanted = wanted if "instruction" in first else wanted[2:]  # Without Alpaca's.
        meant = names_meant([n for n, v in first.items() if not isinstance(v, dict)], wanted)
        help = next(filter(None, (advise("column", name) for name in first)), meant)
        raise DataError(codes.NO_FORMAT(name=rows.name, found=columns, help=help))
    if len(fitting) > 1:
        raise DataError(codes.SEVERAL_FORMATS(name=rows.name, formats=", ".join(fitting)))
    return fitting[0]


def read_row(row: Row, place: str, format: Format, *, chats: bool) -> Plain | Chat:
    """Check a row and return its content; Alpaca rows become chats if ``chats`` is true.

    Raises:
        BadRow: the row is invalid; ``place`` locates it.
    """
    says = row.get("completion")
    options = row.get(OPTIONS)
    if options is not None and not isinstance(says, str):
        reason = "they go with a `completion` that is a text"
        help = "write the right option as it"
        raise BadRow(codes.BAD_OPTIONS(place=place, reason=reason, help=help))

    def field(name: str) -> Any:
        if name not in row:
            has = ", ".join(f"`{other}`" for other in row)
            help = f"this row has {has}, and all rows have `{name}`: add it, or mend a name"
            raise BadRow(codes.MISSING_FIELD(place=place, field=name, help=help))
        return row[name]

    def text(name: str, filled: bool = False) -> str:
        return _text(field(name), {"place": place, "field": name}, filled=filled)

    def chat(name: str) -> list[dict[str, Any]]:
        if not isinstance(messages := field(name), list):
            raise _wrong({"place": place, "field": name}, messages, "a list of messages")
        return [_message(part, place, f"{name}[{i}]") for i, part in enumerate(messages)]

    if format == "text":
        return Plain("", text("text"))
    if format == "messages":
        return Chat(chat("messages" if "messages" in row else "conversations"))
    if format == "alpaca":
        asks = text("instruction", filled=True)
        says = text("output")
        added = "" if row.get("input") is None else text("input")
        return _alpaca(asks, added if added.strip() else "", says, chats=chats)
    if isinstance(row.get("prompt"), list):
        asked = chat("prompt")
        return Chat([*asked, *chat("completion")], len(asked))
    prompt = text("prompt", filled=True)
    says = text("completion")
    return Plain(prompt, says, () if options is None else _options(options, says, place))


def _alpaca(instruction: str, added: str, output: str, *, chats: bool) -> Plain | Chat:
    """Return an Alpaca row, with an input that may be empty, as a chat or in Alpaca's own words."""
    if chats:
        question = f"{instruction}\n\n{added}" if added else instruction
        return Chat(
            [{"role": "user", "content": question}, {"role": "assistant", "content": output}]
        )
    context = ", paired with an input that provides further context" if added else ""
    input = f"### Input:\n{added}\n\n" if added else ""
    return Plain(_ALPACA.format(context=context, instruction=instruction, input=input), output)


def _options(options: Any, says: str, place: str) -> tuple[str, ...]:
    """Check the options of a row whose completion is ``says`` (BS712, BS726)."""
    if not isinstance(options, list):
        raise _wrong({"place": place, "field": OPTIONS}, options, "a list of texts")
    for number, option in enumerate(options):
        _text(option, {"place": place, "field": f"{OPTIONS}[{number}]"})
    same = [one for one in options if one.strip().lower() == says.strip().lower()]
    help = f"write `{same[0]}` as the completion, or `{says}` as the option" if same else None
    faults = {
        "an option stands twice": len({*options}) < len(options),
        "an option is empty": not all(map(str.strip, options)),
        "a choice has two or more": len(options) < 2,
        f"the completion, `{says}`, is not among them": says not in options,
    }
    for reason, is_so in faults.items():
        if is_so:
            help = None if says in options else help or nearest(says, options)
            raise BadRow(codes.BAD_OPTIONS(place=place, reason=reason, help=help))
    return tuple(options)


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
    fields = list(chain(*_COLUMNS[format]))
    if format == "alpaca":
        fields.append("input")
    columns = ([row.get(field) for field in fields] for row in rows.table)
    texts = (json.dumps(content, sort_keys=True, default=str) for content in columns)
    keys = [hashlib.sha256(f"{seed} {text}".encode()).digest() for text in texts]
    sizes = Counter(keys)
    held_out: set[bytes] = set()
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
