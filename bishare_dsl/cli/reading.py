"""Read the specs, plans and adapters that a command line names."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import click

from bishare_dsl.cli.report import CommandError, Report, silence_libraries
from bishare_dsl.diagnostics import BishareError, Problem, SourceMap, SpecError, nearest
from bishare_dsl.diagnostics.codes import usage as codes
from bishare_dsl.diagnostics.tried import near_path
from bishare_dsl.language.parse import MAX_BYTES
from bishare_dsl.language.read import read
from bishare_dsl.resources import find_spec, shipped_specs

if TYPE_CHECKING:
    from bishare_dsl.compiler import ResolvedSpec
    from bishare_dsl.folder.contents import StoredAdapter
    from bishare_dsl.models import Architecture, Source
    from bishare_dsl.spec import Spec

_Set = TypeVar("_Set")


def read_spec(name: str, model: str | Architecture | None = None) -> tuple[Spec, SourceMap]:
    """Read a spec from a path, a shipped spec by its name, or ``-`` for standard input.

    Advice on a text that is wrong is tried on the model, if one is given and can be read.

    Raises:
        SpecError: every problem of the text.
        CommandError: as `read_text`.
    """
    report = click.get_current_context().find_object(Report)
    allow_use = report is not None and report.allow_use
    try:
        return read(*read_text(name), allow_use=allow_use)
    except SpecError as error:
        from bishare_dsl.compiler import advised
        from bishare_dsl.models import architecture_of

        architecture = None
        with suppress(BishareError):
            architecture = None if model is None else architecture_of(model)
        raise advised(error, None, architecture, allow_use=allow_use) from None


def read_text(name: str) -> tuple[bytes, str]:
    """Return the text of a spec, and its name for messages.

    At most one byte more than the allowed size is read.

    Raises:
        CommandError: the spec does not exist (BS902) or cannot be read (BS904).
    """
    try:
        if name == "-":
            return sys.stdin.buffer.read(MAX_BYTES + 1), "<stdin>"
        path = find_spec(name)
        with path.open("rb") as file:
            return file.read(MAX_BYTES + 1), str(path)
    except (FileNotFoundError, ValueError) as error:  # ValueError: a NUL in the name
        raise CommandError(_no_such_spec(name)) from error
    except OSError as error:
        raise CommandError(cannot_read(name, error)) from error


def cannot_read(path: str | Path, error: OSError) -> Problem:
    """Return the problem of a file that the system refuses to read or write."""
    return codes.CANNOT_READ(path=path, reason=error.strerror or error)


def plan_of(
    name: str,
    model: str | Architecture | None,
    params: Mapping[str, int | float | str],
    report: Report,
) -> ResolvedSpec:
    """Return the plan of a spec for a model. Warnings go to the report.

    Raises:
        BishareError: every problem, with its position in the spec's text.
    """
    from bishare_dsl.compiler import make_plan

    if model is None:
        raise click.UsageError("missing option '--model', such as --model llama-7b")
    spec, where = read_spec(name, model)
    resolved = make_plan(spec, model, params, where)
    report.all(resolved.problems, where)
    return resolved


def read_specs(
    names: Iterable[str], params: Mapping[str, _Set]
) -> dict[str, tuple[Spec, SourceMap, dict[str, _Set]]]:
    """Read specs by name, each with the values for its params.

    Raises:
        SpecError: every problem of the texts, or a param that no spec has (BS207).
        CommandError: as `read_text`.
    """
    specs: dict[str, tuple[Spec, SourceMap, dict[str, _Set]]] = {}
    all_params: set[str] = set()
    for name in dict.fromkeys(names):
        spec, where = read_spec(name)
        params_of_spec = {param.name for param in spec.params}
        specs[name] = spec, where, {key: params[key] for key in params if key in params_of_spec}
        all_params |= params_of_spec
    for spec, _, _ in specs.values():
        spec.with_params({name: 0 for name in params if name not in all_params})
    return specs


def read_adapter_for(
    folder: Path, model: str | Source | Architecture, report: Report, named: str | None = None
) -> StoredAdapter:
    """Read an adapter and check that it fits a model. Warnings go to the report.

    ``named`` is the name of the model if ``model`` is its shapes.

    Raises:
        BishareError: the adapter cannot be read or does not fit, or the model cannot be found.
    """
    silence_libraries()
    from bishare_dsl.loading import read_fitting

    stored, problems = read_fitting(folder, model, named)
    report.all(problems)
    return stored


def is_adapter(name: str) -> bool:
    """Return whether a name is the folder of an adapter or library, or an adapter in a library."""
    try:
        path = Path(name.rpartition("#")[0] if "#" in name and not Path(name).exists() else name)
        return path.is_dir()
    except (OSError, ValueError):  # For example, a name that is too long.
        return False


def _no_such_spec(name: str) -> Problem:
    why = "that is a folder" if is_adapter(name) else "no such file, and none of that name ships"
    help = nearest(Path(name).stem, shipped_specs())
    if "=" in name:
        help = f"a param is given by `--set {name}`"
    elif name.replace(".", "").isdecimal():
        help = "several values of a param have commas between them, as in `--set r=2,8,16`"
    elif Path(name, "config.json").is_file():
        help = f"a base is given by `--model {name}`"
    elif Path(name, "adapter_config.json").is_file():
        help = f"it is an adapter: `bishare inspect {name}` shows it"
    elif name.endswith(".share") or Path(name).parent.is_dir():
        help = help or near_path(name, lambda beside: beside.endswith(".share"))  # Not on the Hub.
    elif re.fullmatch(r"[\w-][\w.-]*/[\w-][\w.-]*", name):
        help = f"an adapter of the Hub is fetched first: `hf download {name} --local-dir adapter`"
    return codes.NO_SUCH_SPEC(name=name, why=why, help=help)
