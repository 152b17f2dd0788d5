"""Compare two checkouts of bishare: steps, decoding and a server's layers.

    python benchmarks/against.py ../old            # a work tree of the other version, against this one
    python benchmarks/against.py ../old --measure server --rounds 25

Each checkout runs in a process of its own, on one thread. They take turns, and every second round starts
with the other one. Prints medians over rounds of the ratio of processor times, this checkout by the other.
"base" is the control.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import statistics
import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

SPECS = ("lora", "bishare_ss", "bishare_gt", "bishare_ke")
SUBJECTS = {
    "step": ("base", *SPECS),
    "decode": ("base", *SPECS),
    "server": SPECS,
}
SLOTS = 64


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("other", type=Path, help="the root of the other checkout")
    parser.add_argument("--measure", nargs="+", default=[*SUBJECTS], choices=SUBJECTS)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument(
        "--hidden", type=int, default=1024, help="width of the Llama with two blocks"
    )
    options = parser.parse_args()
    trees = {"other": options.other.resolve(), "this": Path(__file__).resolve().parents[1]}
    for measure in options.measure:
        workers = {name: Worker(tree, measure, options.hidden) for name, tree in trees.items()}
        for subject in SUBJECTS[measure]:
            times: dict[str, list[float]] = {name: [] for name in trees}
            for number in range(-1, options.rounds):  # The first round does not count.
                for name in sorted(trees, reverse=bool(number % 2)):
                    seconds = workers[name].run(subject)
                    if number >= 0:
                        times[name].append(seconds)
            ratios = [a / b for a, b in zip(times["this"], times["other"], strict=True)]
            low, _, high = statistics.quantiles(ratios, n=4)
            least = min(times["this"]) / min(times["other"])
            spread = f"quartiles {low:.3f} to {high:.3f}, least by least {least:.3f}"
            print(
                f"{measure:11} {subject:20} {statistics.median(ratios):.3f} ({spread})", flush=True
            )
        for worker in workers.values():
            worker.stop()


class Worker:
    """A process that measures one checkout."""

    def __init__(self, tree: Path, measure: str, hidden: int) -> None:
        env = {**os.environ, "PYTHONPATH": str(tree), "OMP_NUM_THREADS": "1"}
        command = [sys.executable, "-c", f"import runpy; runpy.run_path({__file__!r})['work']()"]
        self._process = subprocess.Popen(
            [*command, measure, str(hidden)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=env,
            cwd=tree,  # `python -c` imports from here first.
        )
        assert json.loads(self._answer()) == str(tree / "bishare_dsl")

    def _answer(self) -> str:
        assert self._process.stdout
        if line := self._process.stdout.readline():
            return line
        raise SystemExit("a worker has stopped")

    def run(self, subject: str) -> float:
        assert self._process.stdin
        print(subject, file=self._process.stdin, flush=True)
        return float(self._answer())

    def stop(self) -> None:
        self._process.communicate()


def work() -> None:
    """Answer each subject on standard input with the processor seconds of one run."""
    import bishare_dsl

    warnings.simplefilter("ignore")
    measure, hidden = sys.argv[1:]
    runs = {"step": steps, "decode": decoding, "server": server}[measure](int(hidden))
    print(json.dumps(str(Path(bishare_dsl.__file__).parent)), flush=True)
    for line in sys.stdin:
        began = time.process_time()
        runs(line.strip())
        print(time.process_time() - began, flush=True)


def models(hidden: int) -> dict[str, Any]:
    """A Llama of two blocks, and one of equal weights for each spec, with random adapters."""
    import torch
    from transformers import AutoModelForCausalLM, LlamaConfig

    from bishare_dsl import compile_spec

    torch.set_num_threads(1)
    torch.manual_seed(0)
    config = LlamaConfig(
        num_hidden_layers=2,
        hidden_size=hidden,
        intermediate_size=hidden * 11 // 4,
        num_attention_heads=hidden // 64,
        num_key_value_heads=hidden // 64,
        vocab_size=1024,
    )
    base = AutoModelForCausalLM.from_config(config).requires_grad_(False)
    found: dict[str, Any] = {"base": base}
    for spec in SPECS:
        model = AutoModelForCausalLM.from_config(config).requires_grad_(False)
        model.load_state_dict(base.state_dict())
        found[spec] = compile_spec(spec, model)
        for parameter in found[spec].parameters():
            if parameter.requires_grad:
                torch.nn.init.normal_(parameter, std=0.01)
    return found


def steps(hidden: int) -> Callable[[str], object]:
    """A forward and a backward of 512 tokens, to the first input."""
    import torch

    adapted = models(hidden)
    ids, inputs = torch.randint(1024, (1, 512)), torch.randn(1, 512, hidden) * 0.02

    def run(name: str) -> None:
        model = adapted[name].train()
        model(inputs_embeds=inputs.clone().requires_grad_(), labels=ids).loss.backward()
        model.zero_grad()

    return run


def decoding(hidden: int) -> Callable[[str], object]:
    """24 tokens after 16."""
    import torch

    adapted = {name: model.eval() for name, model in models(hidden).items()}
    ids = torch.randint(1024, (1, 16))
    given = {"max_new_tokens": 24, "min_new_tokens": 24, "do_sample": False, "pad_token_id": 0}
    return lambda name: adapted[name].generate(ids, **given)


def server(_: int) -> Callable[[str], object]:
    """What a CPU server computes for the layers of SmolLM2-135M: 64 tokens, each of another adapter."""
    import torch

    from bishare_dsl import plan_spec
    from bishare_dsl.models.presets import preset

    of_0_3 = False
    try:
        from bishare_dsl.batched.bank import Slots
        from bishare_dsl.batched.grouping import group_tokens
        from bishare_dsl.batched.layer import LayerTerms, Outputs
    except ImportError:
        of_0_3 = True
        from bishare_dsl.serve.bank import Bank as Slots
        from bishare_dsl.serve.batch import group_tokens
        from bishare_dsl.serve.layer import LayerTerms, Outputs
    torch.set_num_threads(1)
    torch.manual_seed(0)
    order = random.Random(0).sample(range(SLOTS), SLOTS)
    served = {}
    for spec in SPECS:
        params = {"bishare_ke": {"size": 64}, "bishare_gt": {"size": 64}}.get(spec)
        plan = plan_spec(spec, preset("smollm2-135m"), params)
        bank: Any = Slots(plan, SLOTS, {}, torch.float32)
        write, old = getattr(bank, "write_slot", None), getattr(bank, "put", None)
        for slot in range(SLOTS):
            (write or old)(slot, bank.pack({t.name: torch.randn(t.shape) for t in plan.tensors}))
        sites = {site.path: site for site in plan.sites}
        layers: dict[str, list[Outputs]] = {}
        for path, site in sites.items():
            parent, _, kind = path.rpartition(".")
            together = layers.setdefault(
                parent if kind in ("q_proj", "k_proj", "v_proj") else path, []
            )
            first = together[-1].place.stop if together else 0
            together.append(Outputs(path, slice(first, first + site.d_out)))
        terms = [LayerTerms(bank.layout if of_0_3 else bank, parts) for parts in layers.values()]
        rooms = [
            (torch.randn(SLOTS, t.width), torch.zeros(SLOTS, parts[-1].place.stop))
            for t, parts in zip(terms, layers.values(), strict=True)
        ]
        served[spec] = bank, terms, rooms

    def run(spec: str) -> None:
        bank, terms, rooms = served[spec]
        with torch.inference_mode():
            batch = group_tokens(bank, order)
            for term, (x, output) in zip(terms, rooms, strict=True):
                term.add(output, x, batch)

    return run


if __name__ == "__main__":
    main()
