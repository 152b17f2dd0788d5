"""The record of a library's groups: which tasks the adapter of each group was trained on."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path

from pydantic import BaseModel, ConfigDict

from bishare_dsl.diagnostics import AdapterError, one_line
from bishare_dsl.diagnostics.codes.adapter import BROKEN_FILE
from bishare_dsl.reading import MAX_CONFIG, parse_json, read_file

GROUPS = "groups.json"
"""The file of the record, in a library or in the folder of the run that found the groups."""


class Groups(BaseModel):
    """Groups of tasks; each group is one adapter of a library.

    Attributes:
        tasks: the names of each group's tasks, by the name of the group.
        seed: of k-means, if the groups were found; None if the user named them.
        data: the digest of the examples in which they were found.
        newcomers: the group that later adapters were taken from, by the name of the adapter.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    tasks: Mapping[str, tuple[str, ...]]
    seed: int | None = None
    data: str | None = None
    newcomers: Mapping[str, str] = {}

    @property
    def were_found(self) -> bool:
        """Whether a run found the groups, and no user named them."""
        return self.seed is not None

    def of(self, names: Collection[str]) -> Groups:
        """Return the record with the groups of these names alone."""
        tasks = {group: theirs for group, theirs in self.tasks.items() if group in names}
        return self.model_copy(update={"tasks": tasks})

    def joined_by(self, newcomers: Mapping[str, str]) -> Groups:
        """Return the record with further adapters that were taken from groups."""
        return self.model_copy(update={"newcomers": {**self.newcomers, **newcomers}})

    def text(self) -> bytes:
        """Return the content of the file."""
        return self.model_dump_json(indent=1).encode()

    def members_of(self, group: str) -> list[str]:
        """Return the names of a group's tasks, and of the later adapters that were taken from it."""
        later = [name for name, theirs in self.newcomers.items() if theirs == group]
        return [*self.tasks[group], *later]


def read_groups(folder: Path) -> Groups | None:
    """Read the record of groups in a folder; None if there is none.

    Raises:
        AdapterError: it cannot be read (BS608).
    """
    if not (folder / GROUPS).exists():
        return None
    try:
        return Groups.model_validate(parse_json(read_file(folder, GROUPS, MAX_CONFIG)))
    except (OSError, ValueError) as error:
        help = "restore the file from a copy of the library, or remove it: its adapters are then no groups"
        problem = BROKEN_FILE(path=folder / GROUPS, reason=one_line(error), help=help)
        raise AdapterError(problem) from error
