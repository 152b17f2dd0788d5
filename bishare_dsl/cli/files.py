"""Check whether a command may write a folder."""

from __future__ import annotations

import re
from pathlib import Path

from bishare_dsl.cli.report import CommandError
from bishare_dsl.diagnostics import AdapterError
from bishare_dsl.diagnostics.codes import usage as codes
from bishare_dsl.diagnostics.codes.adapter import FOLDER_EXISTS
from bishare_dsl.reading import real_path
from bishare_dsl.writing import Standing, standing_at


def check_out(folder: Path, command: str | None = None, *, force: bool = False) -> Standing:
    """Check that a folder is new or empty, or that ``force`` is set and it is a result of the same command.

    Args:
        folder: to write.
        command: the name of the command, if it has ``--force``.
        force: replace an earlier result.

    Returns:
        What the command may replace there when it is through.

    Raises:
        AdapterError: something is there (BS618), or the system refuses (BS616).
        CommandError: the command did not write what ``force`` would replace (BS905).
    """
    from bishare_dsl.folder.files import writing
    from bishare_dsl.folder.standing import Kind, obstacle_at

    with writing(folder):
        seen = standing_at(folder)
        obstacle = obstacle_at(folder, {Kind.RESULT} if force else (), command=command)
    if obstacle is None:
        return seen
    if not force or obstacle.kind in (Kind.FILE, Kind.DANGLING):
        help = "give another `--out`"
        if obstacle.kind is Kind.RESULT:
            help = f"`--force` replaces it, or {help}"
        raise AdapterError(FOLDER_EXISTS(folder=folder, help=help))
    why = f"{obstacle.kind.value}, which the command did not write"
    raise CommandError(codes.NOT_REPLACEABLE(folder=folder, why=why))


def find_adapters(folder: Path) -> list[Path]:
    """Return the folders of adapters and libraries at a path, or one or two levels below it.

    They are sorted by name; checkpoints of runs are omitted, and links to folders that are listed already.
    """
    from bishare_dsl.folder.files import CONFIG, place_of

    place, _ = place_of(folder)
    if (place / CONFIG).is_file():
        return [folder]
    folders: dict[Path, Path] = {}
    for file in sorted([*place.glob(f"*/{CONFIG}"), *place.glob(f"*/*/{CONFIG}")]):
        names = file.parent.relative_to(place).parts
        aside = any(re.match(r"\.|checkpoint-\d+$", name) for name in names)
        if not aside and not (len(names) > 1 and (file.parents[1] / CONFIG).is_file()):
            folders.setdefault(real_path(file.parent), file.parent)
    return [*folders.values()]
