"""Do tasks agree? Leave some out, learn them in every way from half of their examples, judge by the rest."""

from __future__ import annotations

import json
import math
import random
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, product
from pathlib import Path
from statistics import fmean
from tempfile import TemporaryDirectory
from typing import Any, cast

from bishare_dsl.diagnostics.codes import train as codes
from bishare_dsl.models import resolve
from bishare_dsl.show.table import Table
from bishare_dsl.train.data.load import load_rows
from bishare_dsl.train.errors import TrainError, TrainingInterrupted
from bishare_dsl.train.prepare import find_trainable, load_base
from bishare_dsl.train.reporter import Reporter
from bishare_dsl.train.request import Request
from bishare_dsl.train.result import TrainResult, logged
from bishare_dsl.train.run import run

LEAST, LEFT_OUT = 3, 5
"""Tasks that are needed, and tasks that are left out at most."""
STUDENT = {3: 4.303, 4: 3.182, 5: 2.776}
"""By the number of values, the quantile at 0.975 of Student's t with one degree of freedom less."""


@dataclass
class Comparison:
    """What each way to give a new task an adapter reached.

    Attributes:
        measure: ``correct, %``, or ``minus held-out loss`` if examples have no options. More is better.
        scores: by the way, of each task that was left out.
        numbers: by the way, how many each of these tasks owns. A number has four bytes.
    """

    measure: str
    scores: Mapping[str, list[float]]
    numbers: Mapping[str, int]

    @property
    def advice(self) -> str:
        """Name the way with the fewest own numbers of those that are surely not much worse than the best.

        Not much is 5 points, or 5% of a loss. Few tasks seldom show that a difference is not chance.
        """
        best = max(self.scores.values(), key=fmean)
        gaps = {w: [a - b for a, b in zip(best, s, strict=True)] for w, s in self.scores.items()}
        most = 5.0 if "%" in self.measure else 0.05 * abs(fmean(best))
        level = [way for way, gap in gaps.items() if interval(gap)[1] <= most]
        way = min(level, key=lambda way: (self.numbers[way], -fmean(self.scores[way])))
        over = f"over {len(best)} tasks that were left out"
        return f"Take {way}: {over}, surely no way is more than {most:.2g} better."

    def as_dict(self) -> dict[str, Any]:
        """Return plain JSON values."""
        return {**vars(self), "advice": self.advice}

    def __str__(self) -> str:
        rows = list[tuple[object, ...]]()
        # A mean cannot lie beyond these.
        least, most = (0.0, 100.0) if "%" in self.measure else (-math.inf, 0.0)
        for way, scores in sorted(self.scores.items(), key=lambda found: -fmean(found[1])):
            (low, high), own = interval(scores), self.numbers[way]
            span = f"{max(low, least):.2f} to {min(high, most):.2f}"
            rows.append((way, f"{fmean(scores):.2f}", span, own, 4 * own))
        head = ["a new task's way", self.measure, "95% over tasks", "own numbers", "bytes"]
        return f"{Table(head, rows)}\n\n{self.advice}"


def interval(values: Sequence[float]) -> tuple[float, float]:
    """Return a 95% interval of the mean of three to five values, by Student's t."""
    mean, count = fmean(values), len(values)
    error = (sum((value - mean) ** 2 for value in values) / count / (count - 1)) ** 0.5
    return mean - STUDENT[count] * error, mean + STUDENT[count] * error


def compare(request: Request, reporter: Reporter) -> Comparison:
    """Compare ways to give new tasks an adapter, and write nothing.

    Up to five tasks are left out: together if there are more than ten, otherwise in turn. A library of the
    spec and one LoRA are trained on the others. Arguments such as the learning rate hold for all ways.

    Raises:
        TrainError: there are fewer than three tasks, or the spec makes no library (BS732).
        BishareError: see `bishare_dsl.train.train`.
    """
    files = cast("dict[str, str]", request.data)
    if not request.several or len(files) < LEAST or request.library or request.resume:
        reason = f"to compare takes a new library of at least {LEAST} tasks"
        help = "name a spec, such as `library_core`, and a file for each task, without `--together`"
        raise TrainError(codes.BAD_COMBINATION(reason=reason, help=help))
    base = resolve(request.model)
    if not find_trainable(request, base, reporter).plan.is_library:
        reason, help = "the spec shares nothing between tasks", "name `library_core`"
        raise TrainError(codes.BAD_COMBINATION(reason=reason, help=help))
    how: Any = {"split": request.data_split, "subset": request.data_subset}
    read = (load_rows(file, **how).table for file in files.values())
    texts = [{json.dumps(row, sort_keys=True, default=str) for row in table} for table in read]
    if leaks := len([*chain(*texts)]) - len(set().union(*texts)):
        reporter.warn(f"{leaks:,} rows stand in several files: what judges has been trained on too")
    model, tokenizer = load_base(request, base, reporter)
    left = random.Random(0).sample(sorted(files), min(LEFT_OUT, len(files)))
    groups = [left] if len(files) > 2 * LEFT_OUT else [[name] for name in left]
    scores, numbers, measures = defaultdict[str, list[float]](list), dict[str, int](), set[str]()
    lora: Any = {"spec": "lora", "params": {"r": 8}}

    def learn(folder: str, data: Any, ways: Mapping[str, Any] = {}, **how: Any) -> TrainResult:
        """Train, and note what each way reached at the first or at the last evaluation, `min` or `max`."""
        how |= {"model": model, "data": data, "output_dir": Path(place, folder)}
        how |= {"eval_split": (request.eval_split or 0.5) if ways else None, "eval_delay": 0}
        how |= {"eval_strategy": "steps" if ways else "no", "eval_on_start": min in ways.values()}
        how |= {"eval_steps": 0.9999}  # A fraction of the run: at its last step alone.
        (quiet := Reporter(quiet=True)).silence()
        try:
            result = run(request.model_copy(update=how), quiet, tokenizer=tokenizer)
        except TrainingInterrupted:
            raise KeyboardInterrupt from None  # The checkpoint goes with its folder.
        finally:
            if hasattr(model, "bishare"):
                cast(Any, model).bishare.unload()
        for (way, at), task in product(ways.items(), result.tasks):
            right = task.accuracy is not None
            key, factor = ("eval_accuracy", 100) if right else ("eval_loss", -1)
            found = logged(result.history, key, task.name) or logged(result.history, key, None)
            measures.add("correct, %" if right else "minus held-out loss")
            scores[way].append(factor * found[at(found)])
            numbers[way] = result.trainable if at is max else 0
        return result

    for number, group in enumerate(groups, 1):
        reporter.note(f"{number} of {len(groups)}: without {', '.join(group)} ...")
        new = {name: files[name] for name in group}
        rest = {name: file for name, file in files.items() if name not in group}
        with TemporaryDirectory() as place:
            learn("made", rest, start="auto")
            learn("joint", rest, together=True, **lora)
            learn("fresh", new, {"no adapter": min, "a fresh LoRA, r=8": max}, **lora)
            both = {"one LoRA for all, as it is": min, "one LoRA for all, trained on": max}
            for name, file in new.items():
                learn(f"joint-{name}", file, both, spec=f"{place}/joint", params={})
            library: Any = {"spec": None, "params": {}, "library": f"{place}/made/library"}
            for start in ("zero", "nearest", "mean", "mixture", "auto"):
                way, trains = {f"the library, --start {start}": max}, start in ("zero", "auto")
                steps: Any = {} if trains else {"max_steps": 0}
                learn(start, new, way, start=start, **library, **steps)
    if len(measures) > 1:
        raise TrainError(codes.BAD_COMBINATION(reason="only some files have `options`"))
    return Comparison(measures.pop(), scores, numbers)
