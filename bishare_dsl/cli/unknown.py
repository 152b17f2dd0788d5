"""Advise on options that a command does not have. No advice names an option that refuses the value."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import suppress
from itertools import zip_longest
from pathlib import Path
from typing import Annotated, Any, Literal

import click
from pydantic import Field

from bishare_dsl.cli.options import read_value
from bishare_dsl.cli.report import CommandError
from bishare_dsl.diagnostics import BishareError, advise_option
from bishare_dsl.diagnostics.codes import usage as codes
from bishare_dsl.resources import shipped_specs


def unknown_options(context: click.Context, words: Sequence[str], first: str) -> CommandError:
    """Return the error for all options in the words of a command that it does not have (BS901).

    ``first`` is the option that click refused.
    """
    options = {o: p for p in context.command.params for o in p.opts if o.startswith("-")}
    types = {name[2:]: _type(option) for name, option in options.items() if name[:2] == "--"}
    takes = ", ".join(f"`--{name}`" for name in types)
    unknown = dict(_unknown(words, {*options, *context.help_option_names})) or {first: None}
    problems = []
    for name, value in unknown.items():
        word = name.lstrip("-").replace("-", "_")
        help = param_advice(words, word, value) if "set" in types else None
        help = help or advise_option("flag", f"{context.command.name}:{word}", value, types)
        help = (help or f"it takes {takes}").replace("mean `", "mean `--")
        problems.append(codes.WRONG_USAGE(what=f"no such option '{name}'", help=help))
    return CommandError(problems)


def _unknown(words: Sequence[str], known: set[str]) -> Iterator[tuple[str, str | None]]:
    """Yield the unknown long options, each with its value: what is after `=`, or the next word."""
    for word, after in zip_longest(words, words[1:]):
        name, equals, value = word.partition("=")
        if name.startswith("--") and name not in known:
            yield name, value if equals else value_in(after)


def value_in(word: str | None) -> str | None:
    """Return the word after an option if it can be its value."""
    return None if word is None or word.startswith("--") else word


def _type(option: click.Parameter) -> Any:
    """Return the type of an option's values."""
    if isinstance(option.type, click.Choice):
        return Literal[tuple(option.type.choices)]
    if option.name == "params":
        return Annotated[str, Field(pattern="=")]
    return {"boolean": bool, "integer range": int}.get(option.type.name, str)


def param_advice(words: Sequence[str], name: str, value: str | None) -> str | None:
    """Advise to set a param with the name of an option, if one of the words is a spec that has it."""
    from bishare_dsl.cli.reading import read_text
    from bishare_dsl.language.read import read

    if value is None or read_value(value) is None:
        return None
    ranks = ("r", "rank", "lora_r", "lora_rank")
    names = ranks if name in ranks else (name, f"lora_{name}", name.removeprefix("lora_"))
    for word in words:
        if Path(word).stem in shipped_specs() or word.endswith(".share"):
            with suppress(BishareError):
                params = {param.name for param in read(*read_text(word))[0].params}
                if meant := next((name for name in names if name in params), None):
                    return f"it is a param of the spec: `--set {meant}={value}`"
    return None
