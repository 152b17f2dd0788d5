"""Groups of tasks: typed families, and the note's tables."""

import json
import random
from pathlib import Path

import numpy as np
from few import groups_tables, typed

NOTE = Path(__file__).parents[2] / "benchmarks" / "notes" / "2026-12-03-groups.md"


def test_types_decide_by_different_keys_and_halves_share_no_item() -> None:
    family = typed.orders(Path(), lambda text: True)
    prompts = [family.prompts[item] for item in family.half(new=False)]
    assert not {*prompts} & {family.prompts[item] for item in family.half(new=True)}
    for kind in range(3):
        task = family.task(300 + kind)
        parts = [prompt.rstrip(":").split() for prompt in family.prompts]
        values = [part[kind] for part in parts]
        labels = {value: set() for value in values}
        for value, label in zip(values, task.labels, strict=True):
            labels[value].add(label)
        assert all(len(own) == 1 for own in labels.values())


def test_a_layout_belongs_to_one_type() -> None:
    family = typed.layouts(Path(), lambda text: True)
    task = family.task(402)
    asked = {i % family.layouts for i, label in enumerate(task.labels) if label != typed.NOT_ASKED}
    assert asked == {402 % family.types}
    assert task.options == typed.LAYOUT_WORDS[2]


def test_strayed_labels_stay_labels() -> None:
    labels = typed.strayed(random.Random(0), [0, 1, 2] * 100)
    changed = sum(a != b for a, b in zip(labels, [0, 1, 2] * 100, strict=True))
    assert set(labels) == {0, 1, 2}
    assert 10 < changed < 60


def test_a_verdict_is_as_registered() -> None:
    noise = np.array([-1.0, 1.0] * 24)
    assert groups_tables.verdict(noise + 3) == "ahead"
    assert groups_tables.verdict(noise - 3) == "behind"
    assert groups_tables.verdict(5 * noise) == "level"
    # The interval includes zero, but the mean is below -2.
    assert groups_tables.verdict(20 * noise - 2.5) == "behind"


def test_the_note_has_the_tables_of_its_results() -> None:
    results = (Path(groups_tables.__file__).parent / "groups.jsonl").read_text()
    rows = [json.loads(line) for line in results.splitlines()]
    tables = "\n".join(groups_tables.lines(rows)).rstrip() + "\n"
    assert NOTE.read_text(encoding="utf-8").endswith(tables)
