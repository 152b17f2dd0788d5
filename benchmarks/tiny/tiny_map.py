"""How few numbers learn a task, by RL of one label and by SFT with noise? See notes/2026-11-27-tiny.md.

    tiny_map.py            # all runs that are not in results.jsonl yet
    tiny_map.py --tables   # the table of that page and the picture, from results.jsonl

A pass trains the adapters of one topology for all rates and seeds. The blocks below the last are run once:
what they give for each row is kept in the cache.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import statistics
import sys
import time
import warnings
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

# Before torch is loaded: a pass has one thread.
os.environ.setdefault("OMP_NUM_THREADS", "1")
HERE = Path(__file__).parent
sys.path[:0] = [str(HERE.parents[1]), str(HERE.parent), str(HERE.parent / "quality")]

import torch
from harness.page import write_below
from sweep.training import load
from torch import Tensor, nn
from torch.func import functional_call, vmap
from torch.nn import functional as F
from torch.nn.utils.rnn import pad_sequence
from transformers import AutoConfig, AutoModelForCausalLM

from bishare_dsl import compile_spec
from bishare_dsl.resources import cache_folder
from examples.smollm2 import smollm2_folder

FOUND, PAGE = HERE / "results.jsonl", HERE.parent / "notes" / "2026-11-27-tiny.md"
TASK, ROWS = "languages", 256
LATE = 2
"""Blocks that are trained, the last ones."""
STYLES, STYLE, NOISE = 64, 16, 256
"""Templates of noise, of which each row has one; the tokens of each; the tokens that they are made of."""
STEPS, BATCH, GROUP, WARM_UP = 48, 32, 8, 4
RATES, HIGH, FEW = (1e-3, 1e-2, 1e-1), (1e-2, 1e-1, 1.0), 20
"""Of what trains more than a few numbers, and of the others: rates grow as numbers fall."""
SEEDS = range(3)
JUDGED = 500
"""Rows that are tested; rates are chosen on others."""
STARTS = {
    "top": "init A svd_vectors, B svd_scaled",
    "bottom": "init A svd_vectors_bottom, B svd_vectors_bottom",
    "random": "init A kaiming_uniform, B kaiming_uniform",
}


@dataclass(frozen=True)
class Point:
    """A place of the map.

    Attributes:
        objective: ``rl`` or ``sft``.
        subspace: of `STARTS`.
        tie: which modules train the same numbers.
        count: the numbers of each tie, 0 for all of a core.
        rank: of the core.
    """

    objective: str
    subspace: str
    tie: str
    count: int
    rank: int

    @property
    def spec(self) -> str:
        """Return the text."""
        via, frozen = f"Core(count = {self.count})", "A, B, core"
        numbers = f"c per {self.tie}"
        if not self.count:
            via, frozen, numbers = "Core", "A, B", ""
        return (
            "spec tiny\n\ntarget q_proj, k_proj, v_proj, up_proj, down_proj\n\nscale 1\n\n"
            f"share tiny  per module  {numbers}  rank {self.rank}  via {via}"
            f"  {STARTS[self.subspace]}  freeze {frozen}\n"
        )


PLACES = [
    ("top", "model", 13, 4),
    ("top", "module", 0, 32),
    ("top", "module", 100, 15),
    ("top", "module", 12, 5),
    ("top", "model", 1, 2),
    ("top", "module", 0, 120),
    ("random", "model", 13, 4),
    ("bottom", "model", 13, 4),
    ("top", "layer", 7, 4),
    ("top", "kind", 3, 4),
    ("top", "module", 1, 4),
]
"""Subspace, tie, numbers of each tie (0: all of a core), rank. Six counts, three subspaces, four ties."""
POINTS = [Point(objective, *place) for place in PLACES for objective in ("rl", "sft")]


def folder() -> Path:
    """Return where the base is."""
    return smollm2_folder(cache_folder())


def base(blocks: range) -> Any:
    """Return the base with some of its blocks alone."""
    config = AutoConfig.from_pretrained(folder())
    whole = AutoModelForCausalLM.from_pretrained(
        folder(), dtype=torch.bfloat16, attn_implementation="eager"
    )
    kept = whole.model.layers[blocks.start : blocks.stop]
    for number, block in enumerate(kept):
        block.self_attn.layer_idx = number
    whole.model.layers, whole.config.num_hidden_layers = kept, len(kept)
    assert len(blocks) <= config.num_hidden_layers
    return whole.eval()


@dataclass
class Rows:
    """Rows as the late blocks read them.

    Attributes:
        hidden: (rows, length, width), padded at the end.
        ends: the place of each prompt's last token.
        labels: which option is right.
        noise: the tokens after the label (rows, STYLE), by their number among the noise's.
    """

    hidden: Tensor
    ends: Tensor
    labels: Tensor
    noise: Tensor


@torch.no_grad()
def rows(trunk: Any, examples: Any, options: list[int], noisy: bool) -> Rows:
    """Run the trunk over rows; with noise each prompt is followed by its label and its template."""
    draw = torch.Generator().manual_seed(0)
    templates = torch.randint(NOISE, (STYLES, STYLE), generator=draw)
    noise = templates[torch.randint(STYLES, (len(examples),), generator=draw)]
    labels = torch.tensor([example.answer for example in examples])
    texts = []
    for example, label, words in zip(examples, labels, noise, strict=True):
        after = [torch.tensor([options[label]]), words + FIRST_NOISE] if noisy else []
        texts.append(torch.cat([torch.tensor(example.prompt), *after]))
    ids = pad_sequence(texts, batch_first=True)
    # The norm after the last block is the late blocks' own.
    trunk.model.norm = nn.Identity()
    hidden = torch.cat([trunk.model(part, use_cache=False)[0] for part in ids.split(32)])
    ends = torch.tensor([len(example.prompt) - 1 for example in examples])
    return Rows(hidden, ends, labels, noise)


FIRST_NOISE = 1000
"""Tokens from here on are the noise's."""


class Late:
    """The late blocks with adapters of one topology, all rates and seeds of a pass."""

    def __init__(self, point: Point, options: list[int]) -> None:
        model = base(range(30 - LATE, 30))
        tokens = [*options, *range(FIRST_NOISE, FIRST_NOISE + NOISE)]
        # Of all tokens only the options' and the noise's logits are wanted.
        self.head = model.lm_head.weight.detach()[tokens].float()
        # The whole model is called, which owns what all layers share, for what its head would read.
        model.lm_head = nn.Identity()
        self.model = compile_spec(point.spec, model, seed=0).train()
        trained = {n: p for n, p in self.model.named_parameters() if p.requires_grad}
        self.shapes = {name: p.shape for name, p in trained.items()}
        self.start = torch.cat([p.detach().flatten() for p in trained.values()])

    def logits(self, numbers: Tensor, hidden: Tensor) -> Tensor:
        """Return of each adapter (adapters, rows, length, tokens); its numbers are (adapters, n)."""
        length = hidden.shape[-2]
        mask = torch.full((length, length), -1e9).triu(1)[None, None]

        def one(own: Tensor, read: Tensor) -> Tensor:
            pieces = own.split([shape.numel() for shape in self.shapes.values()])
            tensors = {
                name: piece.view(shape)
                for (name, shape), piece in zip(self.shapes.items(), pieces, strict=True)
            }
            given = {
                "inputs_embeds": read,
                "attention_mask": mask.expand(len(read), -1, -1, -1),
                "position_ids": torch.arange(length).expand(len(read), -1),
                "use_cache": False,
            }
            return functional_call(self.model, tensors, (), given).logits

        return vmap(one)(numbers, hidden).float() @ self.head.t()


def at_ends(logits: Tensor, ends: Tensor) -> Tensor:
    """Return the logits at the last token of each prompt, (adapters, rows, tokens)."""
    index = ends[..., None, None].expand(-1, -1, 1, logits.shape[-1])
    return logits.gather(2, index)[:, :, 0]


def loss_of(
    point: Point, logits: Tensor, batch: Rows, options: int, draw: torch.Generator
) -> Tensor:
    """Return each adapter's loss; the batch's rows are (adapters, rows, …)."""
    here = at_ends(logits, batch.ends)
    if point.objective == "rl":
        chances = here[..., :options].log_softmax(-1)
        flat = chances.detach().exp().flatten(0, 1)
        drawn = torch.multinomial(flat, GROUP, True, generator=draw).view(*here.shape[:2], GROUP)
        reward = (drawn == batch.labels[..., None]).float()
        # GRPO: a row's answers are judged by one another.
        spread = reward.std(-1, keepdim=True) + 1e-4
        advantage = (reward - reward.mean(-1, keepdim=True)) / spread
        return -(advantage * chances.gather(2, drawn)).mean((1, 2))
    noise = (at_ends(logits, batch.ends + 1 + place) for place in range(STYLE))
    every = torch.stack([here, *noise], 2)
    targets = torch.cat([batch.labels[..., None], batch.noise + options], -1)
    found = F.cross_entropy(every.flatten(0, 2), targets.flatten(), reduction="none")
    return found.view(targets.shape).mean((1, 2))


def run(point: Point, data: Mapping[str, Rows], options: list[int]) -> list[dict[str, Any]]:
    """Train all rates and seeds of a point."""
    began = time.process_time()
    late = Late(point, options)
    rates = HIGH if len(late.start) <= FEW else RATES
    plain = [(rate, seed) for rate in rates for seed in SEEDS]
    numbers = [nn.Parameter(late.start.clone()) for _ in plain]
    groups = [{"params": [p], "lr": rate} for p, (rate, _) in zip(numbers, plain, strict=True)]
    optimizer = torch.optim.AdamW(groups, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min(1.0, (step + 1) / WARM_UP) * (1 - step / STEPS)
    )
    train = data["rl" if point.objective == "rl" else "sft"]
    orders = [torch.Generator().manual_seed(seed) for _, seed in plain]
    draw = torch.Generator().manual_seed(0)
    for _ in range(STEPS):
        chosen = torch.stack([torch.randint(ROWS, (BATCH,), generator=g) for g in orders])
        batch = Rows(*(getattr(train, f)[chosen] for f in ("hidden", "ends", "labels", "noise")))
        logits = late.logits(torch.stack(list(numbers)), batch.hidden)
        loss_of(point, logits, batch, len(options), draw).sum().backward()
        for p in numbers:
            torch.nn.utils.clip_grad_norm_([p], 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
    end = torch.stack(list(numbers))
    validation, right = (
        evaluate(late, end, data[part], len(options)) for part in ("validation", "test")
    )
    untrained = evaluate(late, late.start[None], data["test"], len(options))[0]
    seconds = round((time.process_time() - began) / len(plain), 1)
    return [
        {
            **asdict(point),
            "numbers": len(late.start),
            "rate": rate,
            "seed": seed,
            "validation": round(validation[i], 4),
            "right": round(right[i], 4),
            "untrained": round(untrained, 4),
            "cpu_s": seconds,
        }
        for i, (rate, seed) in enumerate(plain)
    ]


@torch.no_grad()
def evaluate(late: Late, numbers: Tensor, test: Rows, options: int) -> list[float]:
    """Return what part of the test rows each adapter has right."""
    hits = torch.zeros(len(numbers))
    for part in torch.arange(len(test.labels)).split(50):
        hidden = test.hidden[part].expand(len(numbers), -1, -1, -1)
        ends = test.ends[part].expand(len(numbers), -1)
        chances = at_ends(late.logits(numbers, hidden), ends)[..., :options]
        hits += (chances.argmax(-1) == test.labels[part]).sum(-1)
    return (hits / len(test.labels)).tolist()


def prepared() -> tuple[dict[str, Rows], list[int]]:
    """Return the rows of each objective and of the test, and the options' tokens; the cache keeps them."""
    kept = cache_folder() / f"tiny-{TASK}-{ROWS}-{JUDGED}-{LATE}.pt"
    if kept.exists():
        data, options = torch.load(kept, weights_only=True)
        return {name: Rows(*tensors) for name, tensors in data.items()}, options
    parts = load(TASK, "small", folder(), cache_folder() / "wheels")
    options = [option[0] for option in parts["train"][0].options]
    assert len(set(options)) == len(options)
    trunk = base(range(30 - LATE))
    train = parts["train"][:ROWS]
    data = {
        "rl": rows(trunk, train, options, False),
        "sft": rows(trunk, train, options, True),
        "validation": rows(trunk, parts["validation"], options, False),
        "test": rows(trunk, parts["test"][:JUDGED], options, False),
    }
    plain = {n: (r.hidden, r.ends, r.labels, r.noise) for n, r in data.items()}
    torch.save((plain, options), kept)
    return data, options


def found() -> list[dict[str, Any]]:
    """Return what was run so far."""
    return list(map(json.loads, FOUND.read_text().splitlines())) if FOUND.exists() else []


@dataclass(frozen=True)
class Found:
    """What a point has at the rate that is best on the validation rows, in the mean over the seeds.

    Attributes:
        numbers: trained.
        rate: the best one.
        right: what part of the test rows, of each seed.
        untrained: the same of the base.
    """

    numbers: int
    rate: float
    right: Sequence[float]
    untrained: float

    @property
    def gain(self) -> float:
        """Return by how much more is right than untrained, in the mean."""
        return statistics.fmean(self.right) - self.untrained


def best(results: list[dict[str, Any]]) -> dict[Point, Found]:
    """Return what each point has at its best rate."""
    by_rate: dict[Point, dict[float, list[dict[str, Any]]]] = defaultdict(lambda: defaultdict(list))
    for row in results:
        point = Point(**{name: row[name] for name in Point.__dataclass_fields__})
        by_rate[point][row["rate"]].append(row)
    chosen = {}
    for point, tried in by_rate.items():
        means = {
            rate: statistics.fmean(r["validation"] for r in rows) for rate, rows in tried.items()
        }
        rate = max(means, key=lambda r: means[r])
        first, right = tried[rate][0], [row["right"] for row in tried[rate]]
        chosen[point] = Found(first["numbers"], rate, right, first["untrained"])
    return chosen


def lines(chosen: Mapping[Point, Found]) -> Iterator[str]:
    """Yield the table."""
    yield "| numbers | subspace | tie | objective | rate | right | of the largest gain |"
    yield "|---:|---|---|---|---:|---:|---:|"
    for point, found in sorted(chosen.items(), key=lambda one: one[0].subspace != "top"):
        most = max(f.gain for p, f in chosen.items() if p.objective == point.objective)
        part = found.gain / most if most > 0 else math.nan
        right = f"{statistics.fmean(found.right):.1%} ± {statistics.stdev(found.right):.1%}"
        words = f"{point.subspace} | {point.tie} | {point.objective}"
        yield f"| {found.numbers:,} | {words} | {found.rate:g} | {right} | {part:.0%} |"


def picture(chosen: Mapping[Point, Found]) -> None:
    """Draw accuracy against numbers, the largest singular directions alone."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 3.5), layout="constrained")
    axes = figure.subplots()
    for objective, label in (("rl", "RL of one label"), ("sft", "SFT with 16 tokens of noise")):
        line = sorted(
            (found.numbers, 100 * statistics.fmean(found.right))
            for point, found in chosen.items()
            if (point.objective, point.subspace) == (objective, "top")
            # Of a dozen numbers the model's, which all else at that count is beside.
            and not (10 <= found.numbers <= FEW and point.tie != "model")
        )
        axes.plot(*zip(*line, strict=True), marker="o", label=label)
    axes.axhline(
        100 * next(iter(chosen.values())).untrained, color="grey", ls=":", label="untrained"
    )
    axes.set(xscale="log", xlabel="trained numbers", ylabel="right, %")
    axes.legend()
    # So that the file changes with the numbers alone.
    with rc_context({"svg.hashsalt": "map"}):
        figure.savefig(HERE / "map.svg", metadata={"Date": None})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--points", type=int, default=len(POINTS), help="at most so many more")
    parser.add_argument("--tables", action="store_true")
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    if options.tables:
        chosen = best(found())
        write_below(PAGE, "tiny_map.py", lines(chosen))
        picture(chosen)
        return
    known = {Point(**{n: row[n] for n in Point.__dataclass_fields__}) for row in found()}
    data, tokens = prepared()
    for point in [point for point in POINTS if point not in known][: options.points]:
        for row in run(point, data, tokens):
            with FOUND.open("a") as file:
                file.write(json.dumps(row) + "\n")
            print(row, flush=True)


if __name__ == "__main__":
    main()
