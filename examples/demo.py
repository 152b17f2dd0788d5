"""From a sharing scheme to a merged model, then many tasks and `verify`, in two minutes or so on a laptop.

    make demo            # or: python examples/demo.py --cache .cache

A spec with a mistake is rejected and mended. It is compared with LoRA, and trained on SmolLM2-135M-Instruct
with real data: what kind of file has which ending, from Python's own table. The adapter answers, is merged,
and becomes a plain LoRA of PEFT.

Then customers call prices cheap, fair or dear, each in their own way. The model learns the words of sixteen
customers in one run, as a library. Then four new customers come with eight examples each. Each gets a
sum of the library's adapters, without training, and a fresh LoRA for comparison. Two small servers claim to
serve two of these adapters, and one server ignores one.
"""

from __future__ import annotations

import argparse
import json
import logging
import mimetypes
import os
import random
import sys
import time
import warnings
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from tempfile import TemporaryDirectory
from textwrap import indent
from typing import Any, NamedTuple

os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
warnings.filterwarnings("ignore")

import torch
from small_server import Engine, serving
from smollm2 import smollm2_folder
from transformers import TrainerCallback

from bishare_dsl.cli.main import main as bishare
from bishare_dsl.models import load_model
from bishare_dsl.show.table import Table
from bishare_dsl.train import train
from bishare_dsl.train.result import TrainResult

OPTIONS = (" cheap", " fair", " dear")
PROMPT = "{} euros is"
CUSTOMERS, EACH = 16, 24
NEW, FEW, ASKED = 4, 8, 24
STEPS, NEW_STEPS = 40, 25
SECONDS = 90
"""On two idle cores, with the model in the cache."""

LORA = """spec lora_late
param r = 8
target layer in -2.. and (attention_inputs or mlp_ups or mlp_downs)
scale 2
share own  per module  rank r
"""
SCHEME = """spec tiers

param r = 4

target attention_inputs, mlp_ups, mlp_downs

scale 2

share local  per module  rank 2
share block  per layer   rank r      via SS
share whole  per model   rank 4 * r  via KE(size = auto)
"""
KINDS = ("application", "audio", "image", "text", "video")
HELD_OUT = 40


class Row(NamedTuple):
    """A price, and what a customer calls it."""

    price: int
    word: str


def limits(customer: int) -> tuple[int, int]:
    """Return from which price on a customer finds things fair, and from which dear."""
    own = random.Random(customer)
    fair = own.randint(10, 55)
    return fair, own.randint(fair + 12, 95)


def meant(customer: int, price: int) -> str:
    """Return what a customer calls a price."""
    return OPTIONS[sum(price >= limit for limit in limits(customer))].strip()


def rows_of(customer: int, count: int, *, seed: int, unlike: Sequence[Row] = ()) -> list[Row]:
    """Make a customer's rows, as many of each word, with prices that others do not have."""
    fair, dear = limits(customer)
    known = {row.price for row in unlike}
    ranges = (range(1, fair), range(fair, dear), range(dear, 100))
    prices = [[price for price in some if price not in known] for some in ranges]
    draw = random.Random(1000 * customer + seed)
    return [Row(draw.choice(prices[i % 3]), OPTIONS[i % 3]) for i in range(count)]


def write(folder: str, customers: Mapping[str, Sequence[Row]]) -> dict[str, str]:
    """Write a file of examples for each customer."""
    Path(folder).mkdir()
    files = {}
    for name, rows in customers.items():
        lines = [
            {"prompt": PROMPT.format(row.price), "completion": row.word, "options": OPTIONS}
            for row in rows
        ]
        files[name] = f"{folder}/{name}.jsonl"
        Path(files[name]).write_text("\n".join(map(json.dumps, lines)), encoding="utf-8")
    return files


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    arguments.add_argument("--cache", type=Path, help="folder to keep the model in")
    arguments.add_argument(
        "--steps", type=int, default=STEPS, help=f"of training the library (default: {STEPS})"
    )
    options = arguments.parse_args()
    for name in ("transformers", "huggingface_hub", "kernels", "torch", "datasets"):
        logging.getLogger(name).setLevel(logging.ERROR)
    say(
        f"This takes about {SECONDS} seconds on two idle cores. "
        "The first time, a model of 98 MB is fetched and unpacked before."
    )
    checkpoint = str(smollm2_folder(options.cache))
    began = time.perf_counter()
    with TemporaryDirectory(prefix="bishare-demo-") as scratch:
        here = Path.cwd()
        os.chdir(scratch)
        try:
            Path("base").symlink_to(checkpoint)
            scheme("base", max(1, options.steps // 2))
            new = many_tasks(Demo(checkpoint), options.steps)
            is_it_applied("base", list(new)[:2])
        finally:
            os.chdir(here)
    say(f"\nDone in {time.perf_counter() - began:.0f} s. Next: docs/first-spec.md")


class Dots(TrainerCallback):
    """Print a dot for every few steps, to show that training goes on."""

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if state.global_step % 5 == 0:
            say(".", end="")


class Demo:
    """The model, and what it has been taught."""

    def __init__(self, checkpoint: str) -> None:
        self.model, self.tokenizer = load_model(checkpoint, dtype=torch.float32)
        self.words = [
            self.tokenizer(word, add_special_tokens=False).input_ids[0] for word in OPTIONS
        ]

    def teach(
        self, spec: str | None, files: Mapping[str, str], out: str, what: str, **how: Any
    ) -> TrainResult:
        """Train an adapter for each file, in one run."""
        if hasattr(self.model, "bishare"):
            self.model = self.model.bishare.unload()
        began = time.perf_counter()
        say(f"  {what} ", end="")
        found = train(
            spec, self.model, files, out,
            tokenizer=self.tokenizer, quiet=True, save_strategy="no", warmup_steps=4,
            gradient_accumulation_steps=1, rows_at_once=128, weight_decay=0.0, callbacks=[Dots()],
            **how,
        )  # fmt: skip
        self.model = found.model
        losses = f"loss {found.loss_first:.2f} to {found.loss_last:.2f}"
        losses = losses if found.steps else "not trained"
        say(f" {time.perf_counter() - began:.0f} s, {losses}")
        return found

    @torch.no_grad()
    def ask(self, asked: Sequence[tuple[str | None, int]]) -> list[str]:
        """Let each row of one batch be answered by its own adapter; None is the base."""
        texts = [PROMPT.format(price) for _, price in asked]
        self.tokenizer.padding_side = "left"
        self.tokenizer.pad_token = self.tokenizer.pad_token or self.tokenizer.eos_token
        inputs = self.tokenizer(texts, return_tensors="pt", padding=True)
        names = [name for name, _ in asked]
        self.model.eval()
        with self.model.bishare.rows(names) if any(names) else nullcontext():
            logits = self.model(**inputs, logits_to_keep=1).logits[:, -1]
        return [OPTIONS[number] for number in logits[:, self.words].argmax(1).tolist()]


def many_tasks(demo: Demo, steps: int) -> Mapping[str, Sequence[Row]]:
    """Make a library, add customers to it, and ask all in one batch; return the new customers."""
    title("2. Many related tasks on one base")
    first = rows_of(0, EACH, seed=0)
    shown = ", ".join(f"{PROMPT.format(row.price)}{row.word}" for row in first[:3])
    say(f"Sixteen customers have {EACH} examples each, such as {shown}.")
    old = {f"customer{i}": rows_of(i, EACH, seed=0) for i in range(CUSTOMERS)}
    how: dict[str, Any] = {"per_device_train_batch_size": 4, "max_steps": steps}
    demo.teach("library_core", write("old", old), "out", "a library", learning_rate=8e-3, **how)

    say(f"\n{NEW} new customers have {FEW} examples each.")
    new = {f"new{i}": rows_of(100 + i, FEW, seed=0) for i in range(NEW)}
    questions = [
        (name, row)
        for i, name in enumerate(new)
        for row in rows_of(100 + i, ASKED, seed=1, unlike=new[name])
    ]
    files = write("new", new)
    how = {
        "per_device_train_batch_size": FEW,
        "max_steps": max(1, round(NEW_STEPS * steps / STEPS)),
    }
    if hasattr(demo.model, "bishare"):
        demo.model = demo.model.bishare.unload()
    answers = demo.ask([(None, row.price) for _, row in questions])
    table = [["untrained", "", "", score(answers, questions)]]
    library = {"library": "out/library", "start": "mixture", **how, "max_steps": 0}
    for what, spec, out, more in (
        ("a fresh LoRA r=8, trained", LORA, "alone", {"learning_rate": 3e-3, **how}),
        ("a sum of the library's adapters", None, "later", library),
    ):
        found = demo.teach(spec, files, out, what, **more)
        plan = demo.model.bishare[next(iter(files))].plan
        numbers = plan.trainable if spec else plan.private
        answers = demo.ask([(name, row.price) for name, row in questions])
        size = own_bytes(str(found.tasks[0].folder))
        table.append([what, f"{numbers:,}", f"{size:,}", score(answers, questions)])
    say("")
    say(str(Table(["each new customer gets", "numbers", "bytes", "correct"], table)))
    say(f"Chance is a third. Each was asked about {ASKED} prices that it had not shown.")
    say("One LoRA for all customers is the rival to beat: docs/measured.md compares it.")

    say("\nAll were asked in one batch, each row with its own adapter. One row of each customer:")
    rows = []
    for i in range(NEW):
        name, row = questions[i * (ASKED + 1)]
        answer = answers[i * (ASKED + 1)].strip()
        rows.append([name, PROMPT.format(row.price), answer, meant(100 + i, row.price)])
    say(str(Table(["adapter", "asked", "answer", "meant"], rows, left=range(4))))
    return new


def is_it_applied(checkpoint: str, names: Sequence[str]) -> None:
    """Serve adapters on two small servers, one of which ignores an adapter, and verify both."""
    title("3. Is my adapter applied?")
    folders = {name: f"later/library#{name}" for name in names}
    engine = Engine(checkpoint, folders)
    with serving(engine) as good, serving(engine, without=names[1:2]) as bad:
        say(f"Two servers list the adapters {' and '.join(names)}. The second one ignores one.")
        command = ["verify", *folders.values(), "--model", checkpoint, "--server", good]
        show([*command, "--server", bad])


def write_kinds() -> None:
    """Write what kind of file has which ending, from the table of Python's `mimetypes`, to two files."""
    table = mimetypes.MimeTypes(filenames=()).types_map[True]
    rows = []
    for ending, kind in sorted(table.items()):
        answer = kind.partition("/")[0]
        if answer in KINDS:
            prompt = f"A file that ends in {ending} is"
            options = [f" {name}" for name in KINDS]
            rows.append({"prompt": prompt, "completion": f" {answer}", "options": options})
    random.Random(0).shuffle(rows)
    for name, part in (("kinds.jsonl", rows[HELD_OUT:]), ("held-out.jsonl", rows[:HELD_OUT])):
        Path(name).write_text("\n".join(map(json.dumps, part)), encoding="utf-8")


def scheme(base: str, steps: int) -> None:
    """Have a spec rejected, mend it, compare it, train it, ask it, merge it and export it."""
    title("1. A sharing scheme, from its text to a merged model")
    mistake = SCHEME.replace("      via SS", "")
    Path("mistake.share").write_text(mistake, encoding="utf-8")
    say(f"mistake.share:\n\n{indent(mistake, '    ')}")
    show(["check", "mistake.share", "--model", base, "--quiet"])
    Path("tiers.share").write_text(SCHEME, encoding="utf-8")
    say("tiers.share has `via SS` there.")
    show(["check", "tiers.share", "--model", base, "--quiet"])
    show(["plan", "tiers.share", "lora", "--model", base])
    write_kinds()
    say("kinds.jsonl says what kind of file has which ending; held-out.jsonl has other endings.")
    training = ["--quiet", "train", "tiers.share", "--model", base, "--data", "kinds.jsonl"]
    training += ["--output_dir", "tiers", "--max_steps", str(steps), "--learning_rate", "2e-3"]
    training += ["--warmup_steps", "4", "--per_device_train_batch_size", "8"]
    training += ["--gradient_accumulation_steps", "1", "--save_strategy", "no"]
    show(training)
    show(["eval", "tiers", "--base", "--model", base, "--data", "held-out.jsonl"])
    show(["merge", "tiers", "--model", base, "--out", "merged"])
    show(["convert", "tiers", "--model", base, "--out", "lora"])


def show(command: Sequence[str]) -> None:
    """Print a command, shortened, and run it."""
    shown = " ".join(Path(word).name if Path(word).is_absolute() else word for word in command)
    say(f"$ bishare {shown}")
    bishare(list(command))
    say("")


def own_bytes(place: str) -> int:
    """Count the bytes of what an adapter has for itself: of one of a library, its file."""
    folder, _, name = place.partition("#")
    files = (
        [Path(folder, "adapters", f"{name}.safetensors")]
        if name
        else [*Path(folder).glob("adapter_*")]
    )
    return sum(file.stat().st_size for file in files)


def score(answers: Sequence[str], questions: Sequence[tuple[str, Row]]) -> str:
    right = sum(answer == row.word for answer, (_, row) in zip(answers, questions, strict=True))
    return f"{right} of {len(questions)}"


def title(text: str) -> None:
    say(f"\n{text}\n{'-' * len(text)}")


def say(text: str, end: str = "\n") -> None:
    sys.stdout.write(f"{text}{end}")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
