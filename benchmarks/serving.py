"""What a shared adapter costs where it is served: Figure 6 of the paper, measured in vLLM.

    make test-vllm                                       # makes .venv-vllm
    .venv-vllm/bin/python benchmarks/serving.py --rows first_token tokens_a_second  # 7 minutes, idle cores
    .venv-vllm/bin/python benchmarks/serving.py          # half an hour; --smoke: small, to see that it runs

Engines stand side by side, each in a process, and take turns, so that a busy machine slows all alike; the
base stands there twice, as a control. Ratios are medians over rounds, with their quartiles. A row that is in
`results/serving.json` already is not measured again unless it is named with `--rows`.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import warnings
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from itertools import groupby
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, TypeVar

import torch
from harness.model import smollm2_folder
from harness.result import RESULTS, machine, versions
from harness.stopping import quietly_interrupted

from bishare_dsl import compile_spec, parse_spec, plan_spec
from bishare_dsl.batched.bank import Layout
from bishare_dsl.models import load_model
from bishare_dsl.resources import find_spec

PARAMS = {"size": 64}  # KE {2, 4, 16}: it divides 192, 576 and 1536.
BYTES = 80 * 10**9
KINDS = {"compact": "bishare_ke", "plain": "lora"}
Name = TypeVar("Name")


@dataclass(frozen=True)
class Sizes:
    """How much is measured."""

    adapters: int = 64
    resident: int = 1024
    tokens: int = 24
    rounds: int = 5


@dataclass(frozen=True)
class Bench:
    """The model, the adapters' folders, the sizes, and the threads of each engine."""

    model: Path
    adapters: Path
    sizes: Sizes
    threads: int

    def folders(self, mode: str, count: int) -> list[str]:
        """The folders of ``count`` adapters; there are 64, so that the more come again."""
        return [
            str(self.adapters / f"{mode}-{i % self.sizes.adapters}")
            for i in range(0 if mode == "base" else count)
        ]


class Engine:
    """A vLLM in a separate process, see `serving_vllm`."""

    def __init__(self, bench: Bench, mode: str, count: int | None = None):
        count = count or bench.sizes.adapters
        self.mode = mode
        settings = {
            "mode": mode,
            "model": str(bench.model),
            "folders": bench.folders(mode, count),
            "slots": count,
            "seats": bench.sizes.adapters,
        }
        command = [
            sys.executable,
            Path(__file__).with_name("serving_vllm.py"),
            json.dumps(settings),
        ]
        environment = os.environ | {
            "HF_HUB_OFFLINE": "1",
            "VLLM_CPU_KVCACHE_SPACE": "1",
            # Not bound to cores: on a busy machine threads would wait for each other.
            "VLLM_CPU_OMP_THREADS_BIND": "nobind",
            "OMP_NUM_THREADS": str(bench.threads),
            "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
            "VLLM_LOGGING_LEVEL": "ERROR",
            "VLLM_NO_USAGE_STATS": "1",
        }
        if mode != "compact":
            environment["VLLM_PLUGINS"] = ""
        self._process = subprocess.Popen(
            [str(word) for word in command],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            env=environment,
        )
        try:
            self.started = self._answer()
        except BaseException:
            self.__exit__()
            raise

    def __enter__(self) -> Engine:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.wait()

    def ask(self, *command: object) -> dict[str, float]:
        assert self._process.stdin is not None
        print(json.dumps(command), file=self._process.stdin, flush=True)
        return self._answer()

    def load(self, count: int, seats: int) -> None:
        """Have each adapter used once."""
        for first in range(0, count, seats):
            self.ask("generate", list(range(first, min(first + seats, count))), 1)

    def _answer(self) -> dict[str, float]:
        assert self._process.stdout is not None
        if not (line := self._process.stdout.readline()):
            raise RuntimeError(f"the engine `{self.mode}` has stopped")
        found: dict[str, float] = json.loads(line)
        return found


# Rows ---------------------------------------------------------------------------------------------


def bytes_an_adapter(bench: Bench) -> list[dict[str, Any]]:
    """Bytes an adapter in vLLM's slots, and in its host cache, counted from the tensors there."""
    found = {}
    for mode in KINDS:
        with Engine(bench, mode) as engine:
            engine.load(bench.sizes.adapters, bench.sizes.adapters)
            found[mode] = engine.ask("bytes_each")
    return [
        {
            "where": where,
            "compact KE": int(found["compact"][where]),
            "plain LoRA r=8": int(found["plain"][where]),
            "ratio": found["compact"][where] / found["plain"][where],
            "goal": "<= 0.30",
        }
        for where in ("slots", "host")
    ]


def fit_in_80_gb(bench: Bench) -> list[dict[str, Any]]:
    """Count the adapters that fit into 80 GB with a Llama 1 7B in 16 bits, in 4 bytes a parameter."""
    del bench
    plans = {
        spec: plan_spec(spec, "llama-7b")
        for spec in ("lora", "bishare_ke", "bishare_ss", "bishare_gt")
    }
    room = BYTES - 2 * plans["lora"].base.parameters
    fit = {spec: room // (4 * plan.trainable) for spec, plan in plans.items()}
    # In vLLM's slots for plain LoRA the gate projection has its place too.
    gate = 32 * 8 * (4096 + 11008)
    fit["lora in vLLM's slots"] = room // (4 * (plans["lora"].trainable + gate))
    return [
        {
            "adapters": spec,
            "fit": int(count),
            "x plain LoRA r=8": count / fit["lora"],
            "goal": ">= 3.2" if spec == "bishare_ke" else "",
        }
        for spec, count in fit.items()
    ]


def where_the_bytes_are(bench: Bench) -> list[dict[str, Any]]:
    """Bytes of an adapter of some methods, in float32: counted from their plans, no engine is started.

    An expanded slot has vLLM's next rank at every layer with a site. What a token reads is the tensors of its
    adapter at each layer, each once a layer. `thirteen` is `tiny_lora` with 13 numbers for all modules, in a
    folder that has its frozen tensors as recipes.
    """
    rows = []
    specs = [
        "lora",
        "bishare_ke",
        "bishare_ss",
        "bishare_gt",
        "vera",
        "lora_xs",
        "nola",
        "thirteen",
    ]
    for spec in specs:
        params = {"bishare_ke": PARAMS, "thirteen": {"count": 13}}.get(spec)
        tied = (
            find_spec("tiny_lora").read_text("utf-8").replace("tiny  per", "tiny  c per model  per")
        )
        source = parse_spec(tied) if spec == "thirteen" else spec
        plan = plan_spec(source, str(bench.model), params=params)
        layout, sites = Layout(plan), [site for site in plan.sites if plan.terms_of[site.path]]
        most = max(plan.rows(site.path) for site in sites)
        limit = next(rank for rank in (8, 16, 32, 64, 128, 256) if rank >= most)
        read = 0
        for _, found in groupby(sites, key=lambda s: (s.path.rpartition(".")[0], s.d_in)):
            terms = [term for site in found for term in plan.terms_of[site.path]]
            names = {name for term in terms for name in term.tensors.values()}
            read += sum(plan.tensor[name].size for name in names)
        rows.append(
            {
                "method": spec,
                "disk and host": 4 * (plan.trainable if spec == "thirteen" else plan.stored),
                "compact slot": layout.nbytes(1, torch.float32) - layout.nbytes(0, torch.float32),
                "once for all": layout.nbytes(0, torch.float32),
                "expanded slot": 4 * limit * sum(site.d_in + site.d_out for site in sites),
                "a token reads": 4 * read,
            }
        )
    return rows


def tokens_a_second(bench: Bench) -> list[dict[str, Any]]:
    """64 requests with 64 adapters, by the base and by plain LoRA; and the memory beyond the base's."""
    sizes = bench.sizes
    with ExitStack() as stack:
        engines = {
            name: stack.enter_context(Engine(bench, mode))
            for name, mode in {
                "base": "base",
                "plain": "plain",
                "compact": "compact",
                "base again": "base",
            }.items()
        }
        for name, engine in engines.items():
            if not name.startswith("base"):
                engine.load(sizes.adapters, sizes.adapters)
        chosen = list(range(sizes.adapters))
        rounds = in_turn(
            {
                name: lambda e=engine, name=name: e.ask(
                    "generate", [] if name.startswith("base") else chosen, sizes.tokens
                )
                for name, engine in engines.items()
            },
            sizes.rounds,
        )
    return [
        {
            "what": f"vLLM, {sizes.adapters} adapters, tokens a second: {name} / {by}",
            **ratios(rounds[by], rounds[name]),
            "goal": goal,
            "tokens a second": [
                round(sizes.adapters * sizes.tokens / median(rounds[which], "seconds"))
                for which in (name, by)
            ],
            "MiB beyond": round(
                rounds[name][-1]["resident, MiB"] - rounds[by][-1]["resident, MiB"]
            ),
        }
        for name, by, goal in (
            ("compact", "base", 0.85),
            ("compact", "plain", 1.8),
            ("plain", "base", None),
            ("base again", "base", None),
        )
    ]


def adapters_in_memory(bench: Bench) -> list[dict[str, Any]]:
    """1,024 adapters in memory against 64, with the same 64 in use, spread over the slots."""
    sizes = bench.sizes
    few, many = sizes.adapters, sizes.resident
    with Engine(bench, "compact") as small, Engine(bench, "compact", many) as large:
        small.load(few, few)
        large.load(many, few)
        spread = list(range(0, many, many // few))
        rounds = in_turn(
            {
                f"{few}": lambda: small.ask("generate", list(range(few)), sizes.tokens),
                f"{many}": lambda: large.ask("generate", spread, sizes.tokens),
                f"{many}, side by side": lambda: large.ask(
                    "generate", list(range(few)), sizes.tokens
                ),
            },
            sizes.rounds,
        )
    return [
        {
            "adapters in memory": name,
            "tokens a second": few * sizes.tokens / median(found, "seconds"),
            "x 64": ratio(rounds[f"{few}"], found, "seconds"),
            "x 64, processor time": ratio(rounds[f"{few}"], found, "processor seconds"),
            "resident, MiB": found[-1]["resident, MiB"],
            "goal": ">= 0.95" if name == f"{many}" else "",
        }
        for name, found in rounds.items()
    ]


def speed_by_adapters(bench: Bench) -> list[dict[str, Any]]:
    """64 requests that have 1, 8 and 64 adapters among them, by the base."""
    sizes = bench.sizes
    counts = [count for count in (1, 8, 64) if count <= sizes.adapters]
    with ExitStack() as stack:
        base = stack.enter_context(Engine(bench, "base"))
        engines = {mode: stack.enter_context(Engine(bench, mode)) for mode in KINDS}
        for engine in engines.values():
            engine.load(sizes.adapters, sizes.adapters)
        subjects = {("base", 0): lambda: base.ask("generate", [], sizes.tokens)}
        for mode, engine in engines.items():
            for count in counts:
                chosen = [number % count for number in range(sizes.adapters)]
                subjects[mode, count] = partial(engine.ask, "generate", chosen, sizes.tokens)
        rounds = in_turn(subjects, sizes.rounds)
    return [
        {
            "engine": mode,
            "adapters": count,
            "tokens a second": sizes.adapters * sizes.tokens / median(found, "seconds"),
            "x base": ratio(rounds["base", 0], found, "seconds"),
        }
        for (mode, count), found in rounds.items()
    ]


def prompts_alone(bench: Bench) -> list[dict[str, Any]]:
    """Prompts of 512 tokens, each with a different adapter, and one answered token, relative to the base."""
    count = min(16, bench.sizes.adapters)
    with ExitStack() as stack:
        engines = {
            name: stack.enter_context(Engine(bench, name.partition(" ")[0]))
            for name in ("base", "compact", "base again")
        }
        engines["compact"].load(count, count)
        rounds = in_turn(
            {
                name: partial(
                    engine.ask,
                    "generate",
                    [*range(count)] if name == "compact" else [],
                    1,
                    512,
                    count,
                )
                for name, engine in engines.items()
            },
            bench.sizes.rounds,
        )
    return [
        {
            "engine": name,
            "tokens a second": count * 512 / median(found, "seconds"),
            "x base": ratio(rounds["base"], found, "seconds"),
            "x base, processor time": ratio(rounds["base"], found, "processor seconds"),
            "goal": ">= 0.9 x base" if name == "compact" else "",
        }
        for name, found in rounds.items()
    ]


def a_sync(bench: Bench) -> list[dict[str, Any]]:
    """The tensors of an adapter written into the engine from memory."""
    with Engine(bench, "compact") as engine:
        engine.load(1, 1)
        found = [engine.ask("write", number % bench.sizes.adapters) for number in range(40)][8:]
    return [
        {
            "median, ms": 1e3 * median(found, "seconds"),
            "processor, ms": 1e3 * median(found, "processor seconds"),
            "bytes": found[0]["bytes"],
        }
    ]


def first_token(bench: Bench) -> list[dict[str, Any]]:
    """The first token of an adapter that is only on disk, and of one in memory: each adapter once."""
    half = bench.sizes.adapters // 2
    with ExitStack() as stack:
        engines = {mode: stack.enter_context(Engine(bench, mode)) for mode in KINDS}
        # The control is another adapter of the same engine: each is on disk alone only once.
        asked = [("compact", 0), ("plain", 0), ("plain", half)]
        first, again = ({which: [] for which in asked} for _ in range(2))
        for times in (first, again):
            for number in range(half):
                for mode, more in asked if number % 2 else reversed(asked):
                    found = engines[mode].ask("generate", [number + more], 1)
                    if number >= half // 8:
                        times[mode, more].append(found)
    ours, plain, control = asked
    return [
        {
            "what": f"first token of an adapter {where}: {name} / plain LoRA",
            **ratios(times[which], times[plain]),
            "goal": goal,
            "ms": [round(1e3 * median(times[w], "seconds")) for w in (which, plain)],
        }
        for where, times, name, which, goal in (
            ("on disk", first, "bishare KE", ours, 1.0),
            ("on disk", first, "plain LoRA again", control, None),
            ("in memory", again, "bishare KE", ours, None),
            ("in memory", again, "plain LoRA again", control, None),
        )
    ]


ROWS: dict[str, Callable[[Bench], list[dict[str, Any]]]] = {
    row.__name__: row
    for row in (
        fit_in_80_gb,
        where_the_bytes_are,
        bytes_an_adapter,
        tokens_a_second,
        speed_by_adapters,
        adapters_in_memory,
        prompts_alone,
        a_sync,
        first_token,
    )
}


# Helpers ------------------------------------------------------------------------------------------


def in_turn(
    subjects: dict[Name, Callable[[], dict[str, float]]], rounds: int
) -> dict[Name, list[dict[str, float]]]:
    """Run each subject once a round, every other round backwards, after one that does not count."""
    found: dict[Name, list[dict[str, float]]] = {name: [] for name in subjects}
    for number in range(rounds + 1):
        for name in list(subjects) if number % 2 else list(reversed(subjects)):
            answer = subjects[name]()
            if number:
                found[name].append(answer)
        print(f"round {number}/{rounds}", file=sys.stderr, flush=True)
    return found


def median(found: Sequence[dict[str, float]], what: str) -> float:
    return statistics.median(answer[what] for answer in found)


def ratio(
    reference: Sequence[dict[str, float]], found: Sequence[dict[str, float]], what: str
) -> float:
    """The median over rounds of how many times as fast as the reference this was in the same round."""
    return statistics.median(
        theirs[what] / mine[what] for theirs, mine in zip(reference, found, strict=True)
    )


def ratios(
    reference: Sequence[dict[str, float]], found: Sequence[dict[str, float]]
) -> dict[str, Any]:
    """How many times as fast as the reference this was in the same round: medians, and quartiles."""
    shown: dict[str, Any] = {}
    for label, what in (("ratio", "seconds"), ("processor time", "processor seconds")):
        of_rounds = [
            theirs[what] / mine[what] for theirs, mine in zip(reference, found, strict=True)
        ]
        shown[label] = round(statistics.median(of_rounds), 3)
        if len(of_rounds) > 1:
            low, _, high = statistics.quantiles(of_rounds, n=4)
            shown[f"{label}, quartiles"] = f"{low:.3f} to {high:.3f}"
    return shown


def save_adapters(model: Path, root: Path, count: int) -> None:
    """Adapters with random values: as bishare's folders, and plain LoRA as PEFT's."""
    for mode, spec in KINDS.items():
        if (root / f"{mode}-{count - 1}").exists():
            continue
        base, _ = load_model(str(model), dtype=torch.float32)
        compile_spec(spec, base, params=PARAMS if mode == "compact" else None)
        for i in range(count):
            torch.manual_seed(i)
            with torch.no_grad():
                for tensor in base.bishare.tensors().values():
                    tensor.normal_(0, 0.05)
            folder = root / f"{mode}-{i}"
            if mode == "compact":
                base.bishare.save_pretrained(folder)
            else:
                base.bishare.export(folder)
        base.bishare.unload()


def main() -> None:
    arguments = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    arguments.add_argument("--smoke", action="store_true", help="small, and nothing is written")
    arguments.add_argument("--rows", nargs="+", choices=ROWS, help="measure these, again")
    arguments.add_argument("--adapters", type=Path, help="folder to keep the adapters in")
    arguments.add_argument("--threads", type=int, default=2, help="of each engine (default: 2)")
    options = arguments.parse_args()
    warnings.simplefilter("ignore")
    sizes = Sizes(4, 8, 4, 2) if options.smoke else Sizes()
    with ExitStack() as stack:
        root = options.adapters
        if root is None:
            root = Path(stack.enter_context(TemporaryDirectory(prefix="bishare-serving-")))
        model = smollm2_folder()
        save_adapters(model, root, sizes.adapters)
        measure(Bench(model, root, sizes, options.threads), options.rows, writes=not options.smoke)


def measure(bench: Bench, chosen: Sequence[str] | None, *, writes: bool) -> None:
    """Print rows as they are measured, and write them to the results."""
    path = RESULTS / "serving.json"
    results = json.loads(path.read_text()) if path.exists() and writes else {}
    for name in chosen or ROWS:
        if name in results and not chosen:
            continue
        rows = ROWS[name](bench)
        results[name] = {
            "machine": machine() | {"threads": bench.threads},
            "versions": versions(),
            "rows": rows,
        }
        for row in rows:
            print(name, json.dumps(row), flush=True)
        if writes:
            path.parent.mkdir(exist_ok=True)
            path.write_text(json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    with quietly_interrupted():
        main()
