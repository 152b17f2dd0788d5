"""Do my tasks agree? Compare the ways to give a new task an adapter, on your own files.

    python examples/compare.py library_core MODEL customers/*.jsonl --learning_rate 5e-3 --max_steps 24

Up to five tasks are left out. A library of SPEC and one LoRA are trained on the others. Then each way learns
the tasks that were left out from half of their examples, and the other half judges: by correct answers if
rows have `options`, else by the held-out loss. Other words, such as --learning_rate, are arguments of
`train`, and the same for all ways; each way has its best learning rate, so try several.
"""

import random
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean, quantiles
from tempfile import TemporaryDirectory
from typing import Any

LEFT_OUT, HELD_OUT, DRAWS = 5, 0.5, 2_000
"""Tasks that are left out at most, the part of their examples that judges, and bootstrap draws."""
Scores = dict[str, list[float]]


def interval(values: Sequence[float]) -> tuple[float, float]:
    """Return a 95% bootstrap interval of the mean."""
    draw = random.Random(0)
    means = [fmean(draw.choices(values, k=len(values))) for _ in range(DRAWS)]
    low, *_, high = quantiles(means, n=40)
    return low, high


def score(result: Any, task: Any, *, first: bool = False) -> float:
    """Return a task's correct answers in percent, or minus its held-out loss, at the end or at the start."""
    from bishare_dsl.train.watch import logged

    key, factor = ("eval_loss", -1) if task.accuracy is None else ("eval_accuracy", 100)
    found = logged(result.history, key, task.name if len(result.tasks) > 1 else None)
    return factor * found[min(found) if first else max(found)]


def compare(
    spec: str, model: str, files: Mapping[str, str], **how: Any
) -> tuple[Scores, dict[str, int]]:
    """Leave tasks out, and learn them in every way.

    Args:
        spec: of the library.
        model: a folder or a name.
        files: the examples of each task, as .jsonl.
        **how: arguments of `train`.

    Returns:
        The scores of the tasks that were left out, and the numbers that each of them owns, for each way.
    """
    from bishare_dsl.train import train

    left = dict(random.Random(0).sample([*files.items()], min(LEFT_OUT, len(files) // 2)))
    rest = {name: file for name, file in files.items() if name not in left}
    lora: dict[str, Any] = {"spec": "lora", "params": {"r": 8}}
    scores: Scores = {}
    with TemporaryDirectory() as place:
        folder = Path(place)

        def run(name: str, data: Any, **more: Any) -> Any:
            return train(model=model, data=data, output_dir=folder / name, quiet=True, **how | more)

        def judged(name: str, data: Any, **more: Any) -> Any:
            return run(name, data, eval_split=HELD_OUT, eval_on_start=True, **more)

        run("made", rest, spec=spec)
        run("joint", rest, together=True, **lora)
        fresh = judged("fresh", left, **lora)
        scores["no adapter"] = [score(fresh, task, first=True) for task in fresh.tasks]
        scores["a fresh LoRA, r=8"] = [score(fresh, task) for task in fresh.tasks]
        joint = [judged(f"joint-{n}", file, spec=f"{place}/joint") for n, file in left.items()]
        scores["one LoRA for all, as it is"] = [score(r, r.tasks[0], first=True) for r in joint]
        scores["one LoRA for all, trained on"] = [score(r, r.tasks[0]) for r in joint]
        sizes = dict.fromkeys(scores, 0) | dict.fromkeys([*scores][1::2], fresh.trainable)
        for start in ("zero", "nearest", "mean", "mixture", "auto"):
            more = {} if start in ("zero", "auto") else {"max_steps": 0}
            library = f"{place}/made/library"
            found = judged(start, left, library=library, start=start, **more)
            way = f"the library, {'trained from zero' if start == 'zero' else start}"
            scores[way] = [score(found, task) for task in found.tasks]
            sizes[way] = found.trainable
    return scores, sizes


def table(scores: Scores, sizes: Mapping[str, int]) -> str:
    """Return a table of the ways, best first, and one sentence of advice."""
    from bishare_dsl.show.table import Table

    best = max(scores, key=lambda way: fmean(scores[way]))
    rows, level = [], list[str]()
    for way, found in sorted(scores.items(), key=lambda one: -fmean(one[1])):
        (low, high), size = interval(found), sizes[way]
        rows.append((way, f"{fmean(found):.2f}", f"{low:.2f} to {high:.2f}", size, 4 * size))
        gaps = [a - b for a, b in zip(scores[best], found, strict=True)]
        level += [way] * (interval(gaps)[0] <= 0)
    what = "minus held-out loss" if any(min(s) < 0 for s in scores.values()) else "correct, %"
    head = ["a new task's way", what, "95% over tasks", "own numbers", "bytes"]
    fewest = min(level, key=lambda way: (sizes[way], -fmean(scores[way])))
    tasks = f"{len(scores[best])} tasks that were left out"
    advice = f"Take {fewest}: over {tasks}, no way is measurably better."
    return f"{Table(head, rows)}\n\n{advice}"


def main(words: Sequence[str]) -> None:
    at = next((i for i, word in enumerate(words) if word.startswith("--")), len(words))
    (spec, model, *files), rest = words[:at], words[at:]
    if len(files) < 4:
        raise SystemExit("error: at least four files are needed, one for each task")
    names = (word.removeprefix("--") for word in rest[::2])
    how = dict(zip(names, rest[1::2], strict=True))
    print(table(*compare(spec, model, {Path(file).stem: file for file in files}, **how)))


if __name__ == "__main__":
    main(sys.argv[1:])
