"""Options and arguments that several commands take."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from shutil import get_terminal_size
from textwrap import wrap
from typing import Any, TypeAlias, TypeVar

import click

from bishare_dsl.cli.report import CommandError, Report
from bishare_dsl.diagnostics.codes import usage as codes

_Decorated = TypeVar("_Decorated", bound=Callable[..., Any])
_WORD = re.compile(r"[^\W\d]\w*")
_INT = re.compile(r"[+-]?\d+")


def _switch(name: str, *words: str, help: str) -> click.Option:
    """Create a switch that sets a field of the report, before other options are read."""

    def callback(ctx: click.Context, parameter: click.Parameter, value: bool) -> None:
        if value:
            setattr(ctx.find_object(Report), name, True)

    return click.Option(
        [*words],
        is_flag=True,
        expose_value=False,
        callback=callback,
        is_eager=True,
        help=help,
    )


quiet = _switch("quiet", "-q", "--quiet", help="Print only results and problems.")
as_json = _switch(
    "as_json", "--json", help="Write one JSON object, including problems, to standard output."
)
strict = _switch("strict", "--strict", help="Refuse a base that the adapter was not saved on.")
allow_use = _switch("allow_use", "--allow-use", help="Let a spec `use` files outside its folder.")


def _run_transforms(
    ctx: click.Context, parameter: click.Parameter, files: tuple[Path, ...]
) -> None:
    if files and not ctx.resilient_parsing:  # Run no code during shell completion.
        from bishare_dsl.cli.local_transforms import run_transforms

        for file in files:
            run_transforms(file)


spec_transform = click.Option(
    ["--spec-transform"],
    multiple=True,
    type=click.Path(path_type=Path),
    metavar="FILE",
    expose_value=False,
    is_eager=True,
    callback=_run_transforms,
    help="Run a Python file with transforms, or all files of a folder; may be repeated.",
)
"""`bishare_dsl.cli.main` adds these to the commands that take them."""


dtype = click.option(
    "--dtype",
    type=click.Choice(["float32", "bfloat16", "float16"]),
    help="Dtype of the weights; by default the checkpoint's.",
)
device = click.option(
    "--device",
    metavar="NAME",
    help="cuda, cuda:1, cpu or auto; by default the GPU if there is one.",
)
stored_dtype = click.option(
    "--dtype",
    type=click.Choice(["float32", "bfloat16"]),
    default="float32",
    help="Dtype in the file; loaded tensors are float32.",
)
rank = click.option(
    "--rank",
    type=click.IntRange(min=1),
    metavar="N",
    help="Truncate to this rank; the loss is measured and reported.",
)
force = click.option("--force", is_flag=True, help="Replace an earlier result of the command.")

seed = click.option(
    "--seed",
    type=click.IntRange(0, 2**32 - 1),
    default=0,
    metavar="N",
    help="Seed of all random numbers; by default 0.",
)


def out(
    help: str, metavar: str = "DIR", *, required: bool = True
) -> Callable[[_Decorated], _Decorated]:
    """Take ``--out``: a folder (DIR), a file (FILE) or either (PATH), depending on ``metavar``."""
    kind = click.Path(path_type=Path, dir_okay=metavar != "FILE")
    return click.option("-o", "--out", required=required, type=kind, metavar=metavar, help=help)


def spec(
    name: str = "file", metavar: str = "FILE", **settings: Any
) -> Callable[[_Decorated], _Decorated]:
    """Take a spec: a file, the name of a shipped spec, or ``-``."""
    return click.argument(name, type=click.Path(allow_dash=True), metavar=metavar, **settings)


specs = spec("files", "FILE...", nargs=-1, required=True)

folder = click.argument("folder", type=click.Path(path_type=Path), metavar="DIR")


def folders(
    metavar: str = "DIR...", *, required: bool = True
) -> Callable[[_Decorated], _Decorated]:
    """Take the folders of adapters, any number of them."""
    kind = click.Path(path_type=Path)
    return click.argument("folders", nargs=-1, required=required, type=kind, metavar=metavar)


def model(
    *, required: bool = True, weights: bool = False, many: bool = False
) -> Callable[[_Decorated], _Decorated]:
    """Take ``--model``, with ``weights`` if shapes are not enough, and with ``many`` any number of times."""
    kinds = "checkpoint folder, .gguf file or Hub id"
    if weights:
        help = f"A {kinds}."
    else:
        help = f"A preset such as llama-7b (`bishare specs` lists them), config.json, {kinds}."
    if many:
        help += " May be repeated."
    return click.option(
        "-m",
        "--model",
        "models" if many else "model",
        required=required,
        multiple=many,
        metavar="MODEL",
        help=help,
    )


Value: TypeAlias = int | float | str


def _read_settings(ctx: click.Context, parameter: click.Parameter, words: Sequence[str]) -> Any:
    """Read ``("r=4", "kernel=ones")`` as ``{"r": 4, "kernel": "ones"}``; `many_values` keeps tuples.

    Raises:
        CommandError: a setting has another form (BS903).
    """
    settings: dict[str, tuple[Value, ...]] = {}
    problems = []
    many = "," in str(parameter.metavar)
    for setting in words:
        name, equals, text = setting.partition("=")
        name = name.strip()
        texts = text.split(",") if many else [text]
        values = [read_value(part.strip()) for part in texts]
        meant = re.match(r"\W*(\w+)\s*[:= ]+\s*([\w.]+)", setting)
        help = f"write `--set {meant[1]}={meant[2]}`" if meant else "write it as in `--set r=8`"
        if not equals or not name:
            why = "is not of the form name=value"
        elif None in values:
            why = "gives no number and no word"
            help = f"write `--set {name}=8`, say"
            if "=" in text:
                why = "sets several params"
                help = f"write `--set {re.sub(', *', ' --set ', setting)}`"
        elif name in settings:
            why = f"sets `{name}` a second time"
            help = "leave one of the two out"
        else:
            settings[name] = tuple(dict.fromkeys(value for value in values if value is not None))
            continue
        problems.append(codes.MALFORMED_SET(given=setting, why=why, help=help))
    if problems:
        raise CommandError(problems)
    return settings if many else {name: value for name, (value,) in settings.items()}


def read_value(text: str) -> Value | None:
    """Read a number or a word; None is neither."""
    if _INT.fullmatch(text):
        # Numbers in specs are shorter, and Python refuses to convert thousands of digits.
        return int(text) if len(text) < 20 else None
    if _WORD.fullmatch(text):
        return text
    try:
        number = float(text)
    except ValueError:
        return None
    return number if math.isfinite(number) else None


def _set(metavar: str, help: str) -> Callable[[_Decorated], _Decorated]:
    return click.option(
        *("-s", "--set", "params"),
        multiple=True,
        callback=_read_settings,
        metavar=metavar,
        help=help,
    )


values = _set("NAME=VALUE", "Set a param of the spec; may be repeated.")
many_values = _set(
    "NAME=VALUE[,VALUE...]", "Set a param to several values and compare; may be repeated."
)


def _read_names(
    ctx: click.Context, parameter: click.Parameter, words: Sequence[str]
) -> tuple[str, ...]:
    """Read ``("r_local,r_intra", "r")`` as three names."""
    names = list[str]()
    for word in words:
        names += [name for name in re.split(r"[,\s]+", word) if name]
    return tuple(names)


def budget(command: _Decorated) -> _Decorated:
    """Take ``--match``, ``--free`` and ``--within``."""
    match = click.option(
        "--match",
        metavar="SPEC[:NAME=VALUE,...]|N",
        help="Choose the --free params so that a spec trains as many parameters as this one, or 9.46M.",
    )
    free = click.option(
        "--free",
        multiple=True,
        callback=_read_names,
        metavar="NAME[,NAME...]",
        help="Params that --match chooses, in the proportions of the spec's own values.",
    )
    within = click.option(
        "--within",
        type=click.FloatRange(0.1),
        metavar="PERCENT",
        help="How far from --match the number of parameters may be; by default 1.",
    )
    return match(free(within(command)))


def examples(*lines: str) -> str:
    """Write the examples of a command's help. Long lines break before an option."""
    room = max(min(get_terminal_size().columns, 80) - len("       \\"), 20)
    written = []
    for line in lines:
        # Break lines only before an option, a pipe or a redirection.
        unbreakable = re.sub(r" (?!--?\w|[|>] )", "\0", line)
        parts = wrap(unbreakable, room, break_on_hyphens=False, break_long_words=False)
        written.append(" \\\n     ".join(parts).replace("\0", " "))
    return "\b\nExamples:\n" + "\n".join(f"  {line}" for line in written)
