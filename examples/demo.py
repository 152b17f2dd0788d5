"""What sharing is worth, in two minutes on a laptop: one task three ways, then six tasks at once.

    make demo            # or: python examples/demo.py --cache .cache

SmolLM2-135M-Instruct learns to form plurals, with `bishare_ke_ab`, with LoRA of rank 8, and with the LoRA
of as many bytes as `bishare_ke_ab`. Then six adapters are trained in one pass, listed, and asked together.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import sys
import time
import warnings
from collections.abc import Sequence
from contextlib import redirect_stdout
from pathlib import Path
from tempfile import TemporaryDirectory

os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
warnings.filterwarnings("ignore")

import torch
from smollm2 import smollm2_folder
from words import PROMPTS, TASKS, Pair

from bishare_dsl import compile_spec
from bishare_dsl.adapter.inventory import list_adapters
from bishare_dsl.cli.main import main as bishare
from bishare_dsl.models import load_model
from bishare_dsl.show.table import Table

SPEC = "bishare_ke_ab"
MAIN = "plural"
HELD_OUT = 24
BATCH = 16
STEPS = 12
MANY_STEPS = 10
SECONDS = 110
"""On two idle cores, from the command to its end, with the model in the cache."""


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    arguments.add_argument("--cache", type=Path, help="folder to keep the model in")
    arguments.add_argument(
        "--steps", type=int, default=STEPS, help=f"of training (default: {STEPS})"
    )
    options = arguments.parse_args()
    for name in ("transformers", "huggingface_hub", "kernels", "torch"):
        logging.getLogger(name).setLevel(logging.ERROR)
    began = time.perf_counter()
    say(
        f"This takes about {round(SECONDS / 60)} minutes on two idle cores; "
        "the first time it also downloads a model of 98 MB."
    )
    checkpoint = str(smollm2_folder(options.cache))
    with TemporaryDirectory(prefix="bishare-demo-") as scratch:
        here = Path.cwd()
        os.chdir(scratch)
        try:
            one_task_three_ways(checkpoint, options.steps)
            six_tasks_in_one_pass(checkpoint)
        finally:
            os.chdir(here)
    say(f"\nDone in {time.perf_counter() - began:.0f} s. Next: docs/tutorial.md, or your own spec:")
    say("    bishare plan bishare_ke_ab --model llama-7b --adapters 200")


def one_task_three_ways(checkpoint: str, steps: int) -> None:
    """Train three methods on one task, and print what each scores and weighs."""
    title("1. One task, three ways")
    words = TASKS[MAIN]
    held_out, training = words[:HELD_OUT], words[HELD_OUT:]
    say(
        f"The task: write the plural. {len(training)} words are there to learn from. {HELD_OUT} others are "
        "asked, such as " + ", ".join(f"{one.word} -> {one.answer}" for one in held_out[:3]) + "."
    )
    rows, answers = [], {}
    model, tokenizer = load_model(checkpoint, dtype=torch.float32)
    answers["untrained"] = ask(model, tokenizer, held_out)
    rows.append(["untrained", "", score(answers["untrained"], held_out), ""])
    own = 0
    for spec, params in ((SPEC, {}), ("lora", {"r": 8}), ("lora", None)):
        if params is None:  # The LoRA of equal bytes.
            params = {"r": max(1, round(own / lora_numbers(model, 1)))}
        name = spec if spec == SPEC else f"LoRA r={params['r']}"
        compile_spec(spec, model, params=params, seed=0)
        plan = model.bishare.plan
        own = own or plan.trainable
        train(name, model, tokenizer, training, steps)
        answers[name] = ask(model, tokenizer, held_out)
        folder = Path("three-ways", name.replace(" ", "-").replace("=", ""))
        model.bishare.save_pretrained(folder)
        [listed] = list_adapters(folder)
        rows.append(
            [name, f"{plan.trainable:,}", score(answers[name], held_out), f"{listed.bytes:,}"]
        )
        model = model.bishare.unload()
    say("")
    say(str(Table(["method", "numbers", "correct", "bytes"], rows)))
    asked = sorted(range(HELD_OUT), key=lambda i: answers["untrained"][i] == held_out[i].answer)[:5]
    head = ["asked", *answers, "meant"]
    shown = [
        [held_out[i].word, *(found[i][:14] for found in answers.values()), held_out[i].answer]
        for i in asked
    ]
    say("\n" + str(Table(head, shown, left=range(len(head)))))
    say(
        f"\nA lower rank saves what {SPEC} saves: compare it with the LoRA of equal bytes, not with r=8."
    )


def six_tasks_in_one_pass(checkpoint: str) -> None:
    """Train an adapter for each of six tasks together, list them, and ask all in one batch."""
    title("2. Six tasks, trained in one pass, listed, and asked in one batch")
    Path("tasks").mkdir()
    for name, pairs in TASKS.items():
        lines = (
            json.dumps({"prompt": prompt(p.word, name), "completion": f" {p.answer}"})
            for p in pairs
        )
        Path("tasks", f"{name}.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    files = [f"tasks/{name}.jsonl" for name in TASKS]
    command = ["train", SPEC, "--model", checkpoint, "--data", *files, "--output_dir", "adapters"]
    command += [
        "--max_steps",
        str(MANY_STEPS),
        "--learning_rate",
        "5e-3",
        "--per_device_train_batch_size",
        "8",
    ]
    command += ["--gradient_accumulation_steps", "1", "--quiet"]
    said = f"bishare train {SPEC} --model SmolLM2 --data tasks/*.jsonl --output_dir adapters"
    run(command, f"{said} --max_steps {MANY_STEPS} ...", quiet=True)
    run(["inspect", "adapters"])
    say(
        "\nOne batch of six rows, each with its own adapter (`adapter_names=` of PEFT), and the same word:"
    )
    from peft import PeftModel

    import bishare_dsl.peft  # noqa: F401 - makes bishare a method of PEFT

    base, tokenizer = load_model(checkpoint, dtype=torch.float32)
    first, *others = TASKS
    model = PeftModel.from_pretrained(base, f"adapters/{first}", adapter_name=first)
    for name in others:
        model.load_adapter(f"adapters/{name}", adapter_name=name)
    model.eval()
    asked = [prompt(pairs[0].word, name) for name, pairs in TASKS.items()]
    found = generate(model, tokenizer, asked, adapter_names=[*TASKS])
    rows = zip(TASKS, asked, found, (pairs[0].answer for pairs in TASKS.values()), strict=True)
    say(str(Table(["adapter", "asked", "answer", "meant"], [*rows], left=range(4))))


def prompt(word: str, task: str = MAIN) -> str:
    return PROMPTS[task].format(word)


def train(name: str, model: torch.nn.Module, tokenizer, pairs: Sequence[Pair], steps: int) -> None:
    """Train what requires a gradient; the loss is over the answers and the end."""
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=2e-3, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min((step + 1) / 4, (steps - step) / steps)
    )
    order = torch.Generator().manual_seed(0)
    model.train()
    for step in range(steps):
        chosen = torch.randperm(len(pairs), generator=order)[:BATCH].tolist()
        inputs, labels = batch(tokenizer, [pairs[i] for i in chosen])
        loss = model(**inputs, labels=labels).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
        if sys.stdout.isatty() or step == steps - 1:
            end = "\n" if step == steps - 1 else ""
            back = "\r" if sys.stdout.isatty() else ""
            sys.stdout.write(
                f"{back}training {name:14} step {step + 1}/{steps}  loss {loss.item():.3f}{end}"
            )
            sys.stdout.flush()
    model.eval()


def batch(tokenizer, pairs: Sequence[Pair]) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
    """Pad prompts and answers on the right; only answers have labels."""
    asked = [tokenizer(prompt(pair.word)).input_ids for pair in pairs]
    answered = [[*tokenizer(f" {pair.answer}").input_ids, tokenizer.eos_token_id] for pair in pairs]
    length = max(len(a) + len(b) for a, b in zip(asked, answered, strict=True))
    ids = torch.full((len(pairs), length), tokenizer.eos_token_id)
    labels, mask = torch.full_like(ids, -100), torch.zeros_like(ids)
    for row, (a, b) in enumerate(zip(asked, answered, strict=True)):
        ids[row, : len(a) + len(b)] = torch.tensor(a + b)
        labels[row, len(a) : len(a) + len(b)] = torch.tensor(b)
        mask[row, : len(a) + len(b)] = 1
    return {"input_ids": ids, "attention_mask": mask}, labels


def ask(model: torch.nn.Module, tokenizer, pairs: Sequence[Pair]) -> list[str]:
    return generate(model, tokenizer, [prompt(pair.word) for pair in pairs])


def generate(model: torch.nn.Module, tokenizer, prompts: Sequence[str], **how: object) -> list[str]:
    """Answer some prompts in one batch, greedily; an answer is its first line."""
    tokenizer.padding_side = "left"
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
    inputs = tokenizer([*prompts], return_tensors="pt", padding=True)
    with torch.no_grad():
        out = model.generate(
            **inputs, max_new_tokens=6, do_sample=False, pad_token_id=tokenizer.pad_token_id, **how
        )
    texts = tokenizer.batch_decode(out[:, inputs.input_ids.shape[1] :], skip_special_tokens=True)
    return [(text.strip().splitlines() or [""])[0].strip() for text in texts]


def score(answers: Sequence[str], pairs: Sequence[Pair]) -> str:
    right = sum(a == pair.answer for a, pair in zip(answers, pairs, strict=True))
    return f"{right} of {len(pairs)}"


def lora_numbers(model: torch.nn.Module, rank: int) -> int:
    """Count a plain LoRA on the modules that the shipped spec adapts."""
    from bishare_dsl import plan_spec

    return plan_spec("lora", model, params={"r": rank}).trainable


def run(arguments: Sequence[str], shown: str | None = None, *, quiet: bool = False) -> None:
    """Run a command as one would type it, and show it; with ``quiet`` only its errors."""
    say(f"\n$ {shown or 'bishare ' + ' '.join(arguments)}")
    with (
        Path(os.devnull).open("w", encoding="utf-8") as nowhere,
        redirect_stdout(nowhere if quiet else sys.stdout),
    ):
        code = bishare(list(arguments))
    if code:
        raise SystemExit(code)


def title(text: str) -> None:
    say(f"\n{text}\n{'-' * len(text)}")


def say(text: str) -> None:
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
