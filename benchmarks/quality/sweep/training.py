"""One run: adapt, train, evaluate."""

from __future__ import annotations

import random
import tempfile
import time
import warnings
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset
from transformers import AutoModelForCausalLM, Trainer, TrainingArguments
from transformers.trainer_callback import PrinterCallback
from transformers.utils.logging import disable_progress_bar

from sweep.data import PARTS, Row, split
from sweep.methods import METHODS, adapt, save
from sweep.results import Job
from sweep.tasks import TASKS

BATCH, EVALUATION_BATCH = 16, 64
# Of the steps; the paper's 100 of about 800 are an eighth too, and the other schedule is the same for all.
WARM_UP = 1 / 8


@dataclass(frozen=True)
class Example:
    """A row as tokens. Of an option each token is predicted, and all but the last are read."""

    prompt: list[int]
    options: list[list[int]]
    answer: int

    @property
    def length(self) -> int:
        """How many tokens the model reads."""
        return len(self.prompt) + sum(len(option) - 1 for option in self.options)


class Examples(Dataset[Example]):
    """Rows of one part, as tokens."""

    def __init__(self, rows: Sequence[Row], tokenizer: Any) -> None:
        def encode(text: str) -> list[int]:
            return tokenizer.encode(text, add_special_tokens=False)

        self.items = [
            Example(encode(row.prompt), [encode(option) for option in row.options], row.answer)
            for row in rows
        ]

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> Example:
        return self.items[index]


def collate(examples: Sequence[Example]) -> dict[str, torch.Tensor]:
    """A batch, in which a row's options follow its prompt side by side and do not see each other.

    Returns:
        The model's inputs, padded on the right: ids and positions (rows, width), and what is added to
        attention, (rows, 1, width, width), 0 where a position sees another. For each of the n tokens of
        all options its `row`, the position `at` which it is predicted, its `option`, and the `token`
        itself. And the `answers` (rows).
    """
    width = max(example.length for example in examples)
    ids = torch.zeros(len(examples), width, dtype=torch.long)
    positions = torch.zeros_like(ids)
    # 0 for a prompt, 1, 2, … for its options, -1 for the padding.
    part = torch.full_like(ids, -1)
    predicted: list[tuple[int, int, int, int]] = []
    for row, example in enumerate(examples):
        end = len(example.prompt)
        ids[row, :end] = torch.tensor(example.prompt)
        positions[row, :end] = torch.arange(end)
        part[row, :end] = 0
        last = end - 1
        for number, option in enumerate(example.options):
            read = len(option) - 1
            ids[row, end : end + read] = torch.tensor(option[:-1], dtype=torch.long)
            positions[row, end : end + read] = torch.arange(last + 1, last + 1 + read)
            part[row, end : end + read] = number + 1
            places = [last, *range(end, end + read)]
            predicted += [
                (row, at, number, token) for at, token in zip(places, option, strict=True)
            ]
            end += read
    seen = (part[:, None, :] == 0) | (part[:, None, :] == part[:, :, None])
    causal = torch.ones(width, width, dtype=torch.bool).tril()
    row, at, option, token = torch.tensor(predicted).T
    return {
        "input_ids": ids,
        "position_ids": positions,
        "attention_mask": torch.where(seen & causal, 0.0, -1e9)[:, None],
        "row": row,
        "at": at,
        "option": option,
        "token": token,
        "answers": torch.tensor([example.answer for example in examples]),
    }


def batches(lengths: Sequence[int], seed: int, size: int = BATCH) -> list[list[int]]:
    """One epoch's batches of rows of like lengths, in a random order that the seed fixes, whatever trains."""
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
    """Of each row's options (rows, options) the mean log-probability of its tokens."""
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    hidden = base.model(
        input_ids=batch["input_ids"],
        position_ids=batch["position_ids"],
        attention_mask=batch["attention_mask"].to(base.dtype),
        use_cache=False,
    ).last_hidden_state
    row, option, token = batch["row"], batch["option"], batch["token"]
    # Logits for the places that need them: for all places they would cost as much as the model.
    logits = base.lm_head(hidden[row, batch["at"]]).float()
    found = logits.log_softmax(1)[torch.arange(len(token)), token]
    shape = len(batch["answers"]), int(option.max()) + 1
    total, count = torch.zeros(shape), torch.zeros(shape)
    total = total.index_put((row, option), found, accumulate=True)
    return total / count.index_put((row, option), torch.ones_like(found), accumulate=True)


class AnswerTrainer(Trainer):
    """transformers' Trainer, with the loss of choosing the right option and batches in our order."""

    def __init__(self, *args: Any, order: list[list[int]], **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.order = order

    def get_train_dataloader(self) -> DataLoader[Example]:
        return DataLoader(self.train_dataset, batch_sampler=self.order, collate_fn=collate)

    def compute_loss(
        self, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        found = scores(model, inputs)
        loss = F.cross_entropy(found, inputs["answers"])
        return (loss, {"logits": found}) if return_outputs else loss


@torch.no_grad()
def evaluate(model: Any, examples: Examples) -> tuple[list[bool], float]:
    """For each row whether the right option has the best score; the mean loss."""
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
    """Rows as hexadecimal digits, four rows to a digit, the first row the highest bit."""
    bits = "".join("1" if hit else "0" for hit in right)
    bits += "0" * (-len(bits) % 4)
    return f"{int(bits, 2):0{len(bits) // 4}x}"


@dataclass(frozen=True)
class Loaded:
    """A task's parts as tokens, and how many steps a run trains (one epoch by default)."""

    parts: dict[str, Examples]
    steps: int | None


def load(task: str, size: str, tokenizer: Any, wheels: Path) -> Loaded:
    """A task, ready to train on."""
    limits = TASKS[task].sizes[size]

    def fits(row: Row) -> bool:
        # In characters too, which spares the tokeniser the long rows.
        longest = limits.longest
        return longest is None or (
            len(row.prompt) <= 6 * longest and len(tokenizer.encode(row.prompt)) <= longest
        )

    rows = split(*TASKS[task].read(wheels), limits, fits)
    parts = {part: Examples(rows[part], tokenizer) for part in PARTS}
    return Loaded(parts, limits.steps)


def load_base(folder: Path) -> Any:
    """The model in bfloat16, to run on one thread."""
    torch.set_num_threads(1)
    disable_progress_bar()
    # On the CPU, for texts as short as these, eager attention saves a fifth of a step.
    return AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.bfloat16, attn_implementation="eager"
    )


def prepare(job: Job, folder: Path, task: Loaded, steps: int, **settings: Any) -> AnswerTrainer:
    """A trainer of the adapted model: the base in bfloat16, the adapter in float32."""
    warnings.simplefilter("ignore")
    method = METHODS[job.method]
    model = adapt(method, {**method.params, **job.params}, load_base(folder), job.seed)
    train = task.parts["train"]
    trainer = AnswerTrainer(
        model=model,
        order=batches([example.length for example in train.items], job.seed),
        train_dataset=train,
        args=TrainingArguments(
            max_steps=steps,
            learning_rate=job.rate,
            warmup_steps=round(WARM_UP * steps),
            lr_scheduler_type="linear",
            weight_decay=0.0,
            seed=job.seed,
            logging_steps=max(1, steps // 12),
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
            use_cpu=True,
            remove_unused_columns=False,
            **settings,
        ),
    )
    trainer.remove_callback(PrinterCallback)
    return trainer


def tested(model: Any, examples: Examples, name: str) -> dict[str, Any]:
    """What is recorded of one part."""
    right, loss = evaluate(model, examples)
    return {
        f"{name}_accuracy": sum(right) / len(right),
        f"{name}_loss": loss,
        f"{name}_right": bitmask(right),
        f"{name}_rows": len(right),
    }


def run(job: Job, folder: Path, task: Loaded) -> dict[str, Any]:
    """Train and evaluate once; what a row of the results holds besides the job.

    The method `base` is the model as it is, with how often the commonest answer of the test part is right.
    """
    began = time.process_time()
    if job.method == "base":
        model = load_base(folder)
        test = task.parts["test"]
        commonest = Counter(example.answer for example in test.items).most_common(1)[0][1]
        found: dict[str, Any] = {"commonest_answer": commonest / len(test)}
    else:
        model, found = _trained(job, folder, task)
    return {
        **tested(model, task.parts["validation"], "validation"),
        **tested(model, task.parts["test"], "test"),
        **found,
        "cpu_s": round(time.process_time() - began, 1),
    }


def _trained(job: Job, folder: Path, task: Loaded) -> tuple[Any, dict[str, Any]]:
    steps = task.steps or -(-len(task.parts["train"]) // BATCH)
    with tempfile.TemporaryDirectory() as scratch:
        trainer = prepare(job, folder, task, steps, output_dir=scratch)
        model, wall = trainer.model, time.perf_counter()
        trainer.train()
        wall = time.perf_counter() - wall
        adapter = Path(scratch) / "adapter"
        save(METHODS[job.method], model, adapter)
        size = sum(path.stat().st_size for path in adapter.rglob("*.safetensors"))
    curve = [round(entry["loss"], 4) for entry in trainer.state.log_history if "loss" in entry]
    return model, {
        "parameters": sum(p.numel() for p in model.parameters() if p.requires_grad),
        "bytes": size,
        "steps": steps,
        "train_loss": curve,
        "train_wall_s": round(wall, 1),
    }
