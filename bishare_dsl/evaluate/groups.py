"""Names that stand for several evaluations: the paper's benchmarks."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from types import MappingProxyType


@dataclass(frozen=True)
class TaskGroup:
    """What stands behind one name.

    ``tasks`` are lm_eval's own; they are evaluated once for each of ``num_fewshot``. With ``mean_of``,
    lm_eval adds the plain mean of that metric over them.
    """

    about: str
    tasks: tuple[str, ...]
    num_fewshot: tuple[int, ...]
    mean_of: str | None = None


_EIGHT = "boolq piqa social_iqa hellaswag winogrande arc_easy arc_challenge openbookqa"

GROUPS: Mapping[str, TaskGroup] = MappingProxyType(
    {
        "commonsense": TaskGroup(
            "the paper's eight, by likelihood (Tables 2, 9 and 10)",
            tuple(_EIGHT.split()),
            (0,),
            "acc",
        ),
        "mmlu": TaskGroup("57 subjects, by likelihood (Table 3)", ("mmlu",), (0, 5)),
        "gsm8k": TaskGroup("grade-school mathematics, generated (Tables 4 to 8)", ("gsm8k",), (5,)),
    }
)

Wanted = dict[int | None, dict[str, TaskGroup | None]]
"""What to evaluate in one go, by its number of shots (None: each task's own): names of lm_eval's, or of
groups here that are more than their tasks."""


def expand(names: Iterable[str], num_fewshot: int | None, own: Iterable[str] = ()) -> Wanted:
    """Return what names ask for.

    Args:
        names: in the order that they were given.
        num_fewshot: that the user asks for, instead of a group's.
        own: the user's own tasks. One of them is meant rather than a group of that name, but for a
            group that is about a task of its own name.
    """
    wanted: Wanted = {}
    for name in names:
        group = GROUPS.get(name)
        if group is None or (name in own and name not in group.tasks):
            wanted.setdefault(num_fewshot, {})[name] = None
            continue
        for shots in group.num_fewshot if num_fewshot is None else (num_fewshot,):
            here = wanted.setdefault(shots, {})
            here |= {name: group} if group.mean_of else dict.fromkeys(group.tasks)
    return wanted
