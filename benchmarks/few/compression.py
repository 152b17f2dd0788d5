"""A hundred LoRAs in fewer bits: `fit`, truncation, or fewer numbers. See notes/2026-11-29-compression.md.

compression.py                     # every row of the first family that compression.jsonl does not have yet
compression.py --family bands      # of another setting: bands, bands_qv
compression.py --tables            # the tables of the note
"""

from __future__ import annotations

import argparse
import os
import sys
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import cached_property, partial
from pathlib import Path
from typing import Any, NamedTuple

# Before torch is loaded: one thread.
os.environ.setdefault("OMP_NUM_THREADS", "1")
HERE = Path(__file__).parent
sys.path[:0] = [str(HERE.parents[1]), str(HERE.parent)]

import numpy as np
import torch
from harness.page import write_below
from torch import Tensor

from bishare_dsl.adapter.stored import dequantise, quantise
from bishare_dsl.compiler import make_plan
from bishare_dsl.export.effective import effective_factors
from bishare_dsl.fit.fit import fit
from bishare_dsl.fit.pairs import GivenPairs
from bishare_dsl.plan import Plan
from bishare_dsl.plan.bits import GROUP, SCALES, quantisable
from bishare_dsl.plan.plan import Tensor as Planned
from few.late import SCALE, Site
from few.methods import METHODS
from few.run import FOUND, VALIDATION, Bench
from few.tables import accuracies, interval
from few.training import (
    KINDS,
    LADDER,
    LIBRARY_BATCH,
    LIBRARY_STEPS,
    STEPS,
    Batch,
    Subject,
    adapted,
    drawn,
    folder,
    is_private,
    libraries,
    score,
    train,
)

ROWS, PAGE = HERE / "compression.jsonl", HERE.parent / "notes" / "2026-11-29-compression.md"
PEOPLE, FIRST = 100, 6000
RATIOS = (8, 16, 32, 64, 128, 256)


class Setting(NamedTuple):
    """How a family is judged.

    Attributes:
        family: of tasks.
        examples: of each person.
        sized: budgets of which `fit` tries the size that they have room for in int4.
        starts: whether each LoRA has its own initial A, or all have the same.
        given: the method that makes the LoRAs.
        anew: methods with fewer numbers.
        target: the modules, in the language.
    """

    family: str
    examples: int
    sized: tuple[int, ...]
    starts: tuple[str, ...]
    given: str = "lora"
    anew: tuple[str, ...] = ("lora7", "lora3", "lora1", "lora3_up", "lora1_up", "lora1_late")
    target: str = "attention_inputs or mlp_ups or mlp_downs"


QV = ("lora7_qv", "lora3_qv", "lora1_qv", "lora1_qv_late", "lora1_v_late")
SETTINGS = {
    "thresholds": Setting("thresholds", 32, RATIOS[3:], ("own", "same")),
    "bands": Setting("bands", 144, RATIOS, ("own",)),
    "bands_qv": Setting("bands", 144, RATIOS, ("own",), "lora8_qv", QV, "q_proj or v_proj"),
}
FORMS = ("float32", "int8", "int4")
SWEEPS = 2
WIDEST = 192
"""The largest size: the width of the narrowest module."""
UNIFORM = (7, 3, 1)
SPECS = {
    "core": "A per module  B per module  core per adapter, module  rank size  via Core",
}
SPEC = """spec compressed
param size = 8
target {target}
scale 1
share family  {groups}
"""
LEVEL = 1 - 0.05 / len(RATIOS)

Place = tuple[int, str]
"""A block and a kind of module."""

Pair = tuple[Tensor, Tensor]
"""A ``(people, rank, d_in)`` and B ``(people, rank, d_out)``: dW = B^T A, with the scale in B."""

Adapters = dict[Place, Pair]


class Candidate(NamedTuple):
    """Adapters of all people as they are loaded, and what they take.

    Attributes:
        what: in words.
        form: of the stored numbers.
        bits: of all people.
        made: returns the adapters.
        worth: chooses among candidates.
    """

    what: str
    form: str
    bits: int
    made: Callable[[], Adapters]
    worth: float


def stored(tensor: Tensor, form: str) -> tuple[Tensor, int]:
    """Return a tensor as it is loaded again, and its bits."""
    if form == "float32" or tensor.numel() < GROUP:
        return tensor, 32 * tensor.numel()
    rows = tensor.reshape(-1, tensor.shape[-1])
    parts = quantise(rows, form)
    shape = (len(rows), rows.shape[1])
    planned = Planned(name="rows", share="", shape=shape, init="zeros", fan_in=shape[1], owner="")
    loaded = dequantise(planned, form, parts[form], parts[SCALES]).view(tensor.shape)
    return loaded, sum(8 * part.nbytes for part in parts.values())


def inner(left: Pair, right: Pair) -> Tensor:
    """Return <dW, dW'> of each person."""
    return ((left[0] @ right[0].mT) * (left[1] @ right[1].mT)).sum((1, 2))


def error(given: Adapters, found: Adapters) -> float:
    """Return the relative distance of all updates."""
    far = norm = 0.0
    for place, (a, b) in given.items():
        norm += float(inner((a, b), (a, b)).sum())
        if place in found:
            a, b = torch.cat([a, found[place][0]], 1), torch.cat([b, -found[place][1]], 1)
        far += float(inner((a, b), (a, b)).sum())
    return (max(far, 0.0) / norm) ** 0.5


def by_place(tensors: Mapping[Site, Tensor]) -> Adapters:
    """Return LoRAs of lanes (1, people) as pairs."""
    return {
        (s.block, s.kind): (a[0], SCALE * tensors[s._replace(role="B")][0])
        for s, a in tensors.items()
        if s.role == "A"
    }


def singular(a: Tensor, b: Tensor) -> tuple[Pair, Tensor]:
    """Return a module's updates by their singular directions, and the singular values (people, rank)."""
    (qa, ra), (qb, rb) = (torch.linalg.qr(p.mT.double()) for p in (a, b))
    u, s, v = torch.linalg.svd(rb @ ra.mT)
    roots = s.sqrt()[..., None]
    return ((roots * (v @ qa.mT)).float(), (roots * (qb @ u).mT).float()), s.float()


def truncated(given: Adapters, keeps: Mapping[Place, Tensor]) -> Adapters:
    """Keep some singular directions; ``keeps[place]`` is (people, rank) and 0 or 1."""
    return {
        place: (pair[0] * keeps[place][..., None], pair[1] * keeps[place][..., None])
        for place, pair in given.items()
    }


def loaded(adapters: Adapters, form: str) -> Adapters:
    """Return adapters after quantisation; no group has numbers of two rows."""
    return {place: (stored(a, form)[0], stored(b, form)[0]) for place, (a, b) in adapters.items()}


def candidate(
    what: str,
    form: str,
    bits: int,
    given: Adapters,
    rounded: Adapters,
    keeps: Mapping[Place, Tensor],
) -> Candidate:
    """Return a truncation, whose worth is how little of dW it loses."""
    made = partial(truncated, rounded, keeps)
    return Candidate(what, form, bits, made, -error(given, made()))


def greedy(
    values: Mapping[Place, Tensor],
    widths: Mapping[Place, int],
    budget: float,
    each: float,
) -> tuple[dict[Place, Tensor], int]:
    """Keep the largest s^2 for each number within a budget for each person, and count bits."""
    keeps = {place: torch.zeros_like(s) for place, s in values.items()}
    bits = 0.0
    for person in range(len(next(iter(values.values())))):
        order = sorted(
            (-(float(s) ** 2) / widths[place], place, i)
            for place, all_ in values.items()
            for i, s in enumerate(all_[person])
        )
        # The rank of each module is stored too, in a byte.
        left = budget - 8 * len(values)
        for _, place, i in order:
            if widths[place] * each <= left:
                left -= widths[place] * each
                keeps[place][person, i] = 1
        bits += budget - left
    return keeps, round(bits) if any(k.any() for k in keeps.values()) else 0


def library_bits(plan: Plan, form: str) -> int:
    """Return the bits of a library of all people."""
    quantised, bits = quantisable(plan) if form != "float32" else set(), 0
    for tensor in plan.tensors:
        each = 32 * tensor.size
        if tensor.name in quantised:
            each = 16 * -(-tensor.size // GROUP) + 8 * -(-tensor.size * int(form[3:]) // 8)
        bits += each * (1 if tensor.name in plan.common else PEOPLE)
    return bits


def library(plan: Plan, names: Sequence[str], tensors: Mapping[Any, Tensor], form: str) -> Adapters:
    """Return the adapters of a library after quantisation."""
    quantised = quantisable(plan)
    read = {v: stored(p, form)[0] if v[1] in quantised else p for v, p in tensors.items()}
    found: dict[Place, list[Pair]] = {}
    for name in names:
        own = {t.name: read["" if t.name in plan.common else name, t.name] for t in plan.tensors}
        for site in plan.sites:
            pair = effective_factors(plan, own, site, scaled=True)
            found.setdefault((int(site.layer or 0), site.kind), []).append(pair)
    return {
        place: (torch.stack([a for a, _ in pairs]), torch.stack([b for _, b in pairs]))
        for place, pairs in found.items()
    }


class Compression:
    """The hundred LoRAs of a setting, and what they become in fewer bits."""

    def __init__(self, name: str) -> None:
        self.bench, self.name, self.setting = Bench(FOUND, ROWS), name, SETTINGS[name]
        self.examples = self.setting.examples
        self.subject: Subject = self.bench.subject(self.setting.family)
        lanes = [[(FIRST + i, 0) for i in range(PEOPLE)]]
        self.batch = self.subject.batch(lanes, self.examples, new=True)
        made = METHODS[self.setting.given].make(self.subject.late, {}, (1, 1), 0)[1]
        self.full = PEOPLE * 32 * sum(p.numel() for p in made.values())

    def trained(self, method: str, batch: Batch, *, same: bool = False) -> dict[Site, Tensor]:
        """Train a fresh LoRA for each person of a batch."""
        people = batch.rows.shape[1]
        tensors = METHODS[method].make(self.subject.late, {}, (1, 1 if same else people), 0)[1]
        tensors = {s: p.expand(1, people, *p.shape[2:]).clone() for s, p in tensors.items()}
        rate = torch.tensor([LADDER[self.bench.place(self.setting.family, method, self.examples)]])
        logits = adapted(self.subject, tensors, batch)
        train(logits, list(tensors.values()), batch, rate, STEPS[self.examples])
        return tensors

    def kept(self, name: str, make: Callable[[], dict[Site, Tensor]]) -> dict[Site, Tensor]:
        """Train once."""
        path = folder() / f"compression-{self.name}-{name}.pt"
        if not path.exists():
            torch.save({tuple(s): p for s, p in make().items()}, path)
        return {Site(*s): p for s, p in torch.load(path, weights_only=True).items()}

    def right(self, adapters: Adapters, batch: Batch | None = None) -> list[int]:
        """Return how many test items each person's adapter has correct."""
        batch, found = batch or self.batch, list[int]()
        for some in torch.arange(batch.rows.shape[1]).split(20):
            tensors = {
                Site("joint", *place, role): p[None, some] / (1 if role == "A" else SCALE)
                for place, pair in adapters.items()
                for role, p in zip("AB", pair, strict=True)
            }
            part = Batch(*(t[:, some] for t in batch))
            found += score(adapted(self.subject, tensors, part), part)[0].tolist()
        return found

    def add(self, start: str, method: str, ratio: int, one: Candidate, given: Adapters) -> None:
        """Judge adapters and store the result, if it is not stored."""
        key = {"part": "compression", "family": self.name, "start": start}
        key |= {"method": method, "ratio": ratio}
        if self.bench.known(**key) is None:
            made = one.made()
            self.bench.add(
                **key,
                what=one.what,
                form=one.form,
                of=round(self.full / one.bits, 1) if one.bits else None,
                error=round(error(given, made), 4),
                right=[self.right(made)],
                asked=48,
            )

    def best(self, start: str, method: str, given: Adapters, some: Iterable[Candidate]) -> None:
        """Judge the best candidate of each budget."""
        candidates = list(some)
        for ratio in RATIOS:
            fitting = [one for one in candidates if one.bits * ratio <= self.full]
            if fitting:
                self.add(start, method, ratio, max(fitting, key=lambda one: one.worth), given)

    # Candidates -----------------------------------------------------------------------------------------

    def truncations(self, given: Adapters) -> Iterator[Candidate]:
        """Yield truncations, rank by rank where it is worth most for a number, in each form."""
        directions, values = {}, {}
        for place, pair in given.items():
            directions[place], values[place] = singular(*pair)
        widths = {place: a.shape[-1] + b.shape[-1] for place, (a, b) in directions.items()}
        for form, each in (("float32", 32.0), ("int8", 8.25), ("int4", 4.25)):
            rounded = loaded(directions, form)
            for ratio in RATIOS:
                budget = self.full / PEOPLE / ratio
                keeps, bits = greedy(values, widths, budget, each)
                if bits:
                    yield candidate(
                        "rank where singular values are largest", form, bits, given, rounded, keeps
                    )

    def uniform(self, given: Adapters) -> Iterator[Candidate]:
        """Yield truncations to one rank, in each form."""
        directions = {place: singular(*pair)[0] for place, pair in given.items()}
        for form in FORMS:
            for rank in UNIFORM:
                cut = {place: (a[:, :rank], b[:, :rank]) for place, (a, b) in directions.items()}
                bits = sum(stored(p, form)[1] for pair in cut.values() for p in pair)
                keeps = {place: torch.ones(PEOPLE, rank) for place in cut}
                yield candidate(f"rank {rank}", form, bits, given, loaded(cut, form), keeps)

    def anew(self, given: Adapters) -> Iterator[Candidate]:
        """Yield LoRAs of fewer numbers, trained on the same examples."""
        tasks = [[(9000 + i, 0) for i in range(VALIDATION)]]
        few = self.subject.batch(tasks, self.examples, new=True)
        for method in self.setting.anew:
            tried = by_place(self.kept(f"{method}-few", partial(self.trained, method, few)))
            made = by_place(self.kept(method, partial(self.trained, method, self.batch)))
            for form in FORMS:
                bits = sum(stored(p, form)[1] for pair in made.values() for p in pair)
                worth = sum(self.right(loaded(tried, form), few)) / VALIDATION / 48
                yield Candidate(
                    METHODS[method].label.removeprefix("fresh "),
                    form,
                    bits,
                    partial(loaded, made, form),
                    worth,
                )

    @cached_property
    def sizes(self) -> dict[str, list[int]]:
        """The sizes of each spec, the largest in int4 for a budget."""
        return {
            spec: sorted(set(filter(None, map(partial(self.size, spec), self.setting.sized))))
            for spec in SPECS
        }

    def plan(self, spec: str, size: int) -> Plan:
        text = SPEC.format(target=self.setting.target, groups=SPECS[spec])
        return make_plan(text, self.subject.late.short, {"size": size}).plan

    def size(self, spec: str, ratio: int) -> int:
        """Return the largest size of a spec whose int4 form has 1/ratio of the bits, or 0."""
        low, high = 0, WIDEST + 1
        while high - low > 1:
            middle = (low + high) // 2
            fits = library_bits(self.plan(spec, middle), "int4") * ratio <= self.full
            low, high = (middle, high) if fits else (low, middle)
        return low

    def fits(self, start: str, given: Adapters) -> Iterator[Candidate]:
        """Yield libraries that `fit` makes, in each form."""
        for spec, sizes in self.sizes.items():
            for size in sizes:
                plan = self.plan(spec, size)
                names, tensors = self.fitted(start, spec, plan, size, given)
                for form in FORMS:
                    made = partial(library, plan, names, tensors, form)
                    bits = library_bits(plan, form)
                    if bits * RATIOS[0] > self.full:
                        continue
                    worth = -error(given, made())
                    print(start, spec, size, form, round(self.full / bits, 1), -worth, flush=True)
                    yield Candidate(f"`{spec}` {size}", form, bits, made, worth)

    def fitted(
        self, start: str, spec: str, plan: Plan, size: int, given: Adapters
    ) -> tuple[list[str], dict[tuple[str, str], Tensor]]:
        """Fit a spec to LoRAs, once, by `fit`'s own function."""
        path = folder() / f"compression-{self.name}-{start}-{spec}-{size}.pt"
        names = [f"person{i}" for i in range(PEOPLE)]
        if not path.exists():
            pairs: dict[str, dict[str, tuple[Tensor, Tensor]]] = {name: {} for name in names}
            for site in plan.sites:
                a, b = given[int(site.layer or 0), site.kind]
                for i, name in enumerate(names):
                    pairs[name][site.path] = a[i], b[i]
            values = fit(plan, GivenPairs(pairs), sweeps=SWEEPS)[1]
            torch.save({v: p.float() for v, p in values.items()}, path)
        return names, torch.load(path, weights_only=True)

    # Runs -----------------------------------------------------------------------------------------------

    def run(self) -> None:
        """Judge everything that is not stored."""
        for start in self.setting.starts:
            same = start == "same"
            make = partial(self.trained, self.setting.given, self.batch, same=same)
            lora = self.kept(f"lora-{start}", make)
            given = by_place(lora)
            whole = Candidate("rank 8", "float32", self.full, lambda given=given: given, 0)  # type: ignore[misc]
            self.add(start, "given", 1, whole, given)
            self.add(start, "given, int4", 1, self.int4(given), given)
            self.best(start, "truncated", given, self.truncations(given))
            self.best(start, "truncated evenly", given, self.uniform(given))
            if not same:
                anew = list(self.anew(given))
                self.best(start, "trained anew", given, anew)
                # The gate: rank 1 at its best place, in float32.
                ones = [c for c in anew if c.form == "float32" and "r=1" in c.what]
                self.add(start, "rank 1 anew", 1, max(ones, key=lambda one: one.worth), given)
                self.add(start, "no adapter", 1, Candidate("", "", 0, dict, 0), given)
                self.add(start, "mean of all", 1, self.mean(given), given)
                if self.setting.given == "lora":  # On all kinds of modules, as the libraries are.
                    self.add(start, "library_core, trained", 1, self.trained_library(given), given)
            self.best(start, "fit", given, self.fits(start, given))

    def int4(self, given: Adapters) -> Candidate:
        bits = sum(stored(p, "int4")[1] for pair in given.values() for p in pair)
        return Candidate("rank 8", "int4", bits, partial(loaded, given, "int4"), 0)

    def mean(self, given: Adapters) -> Candidate:
        """Return one adapter for all: their mean update, cut to rank 8."""
        found, bits = {}, 0
        for place, (a, b) in given.items():
            every = a.flatten(0, 1)[None], b.flatten(0, 1)[None] / PEOPLE
            update = every[1][0].T @ every[0][0]
            u, s, v = torch.linalg.svd(update, full_matrices=False)
            roots = s[:8].sqrt()[:, None]
            pair = [stored(roots * v[:8], "int4"), stored(roots * u[:, :8].T, "int4")]
            bits += sum(taken for _, taken in pair)
            one, two = (p.expand(PEOPLE, *p.shape) for p, _ in pair)
            found[place] = one, two
        return Candidate("rank 8 for all", "int4", bits, lambda: found, 0)

    def trained_library(self, given: Adapters) -> Candidate:
        """Return `library_core`, trained on all data sets together."""

        def make() -> dict[Site, Tensor]:
            start = self.subject.late.start("library_core", 0, **KINDS["core"].params)
            tensors = {
                s: drawn(s, p, (1, PEOPLE), 0) if is_private(s) else p for s, p in start.items()
            }
            rate = torch.tensor([LADDER[libraries(self.subject, "core", 16)[1]]])
            logits = adapted(self.subject, tensors, self.batch)
            train(logits, list(tensors.values()), self.batch, rate, LIBRARY_STEPS, LIBRARY_BATCH)
            return tensors

        tensors = self.kept("library", make)
        bits, found = 0, {}
        for site, a in tensors.items():
            if site.role != "A":
                continue
            down, taken = stored(a[0, 0], "int4")
            up, more = stored(tensors[site._replace(role="B")][0, 0], "int4")
            cores = [stored(core, "int4") for core in tensors[site._replace(role="core")][0]]
            bits += taken + more + sum(one for _, one in cores)
            core = torch.stack([c for c, _ in cores])
            found[site.block, site.kind] = (
                down.expand(PEOPLE, *down.shape),
                SCALE * core @ up,
            )
        return Candidate("r=8", "int4", bits, lambda: found, 0)


# Tables -------------------------------------------------------------------------------------------------


def lines(found: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """Yield the tables as Markdown."""
    rows = [row for row in found if row["part"] == "compression"]
    for family in dict.fromkeys(row["family"] for row in rows):
        of = {(r["start"], r["method"], r["ratio"]): r for r in rows if r["family"] == family}
        for title, table in TABLES.items():
            yield f"### {family}: {title}"
            yield ""
            yield from table(of)
            yield ""


METHOD = ("fit", "truncated", "truncated evenly", "trained anew")
_Rows = Mapping[tuple[str, str, int], Mapping[str, Any]]


def _mean(row: Mapping[str, Any]) -> float:
    return float(accuracies(row).mean())


def _budgets(rows: _Rows) -> Iterator[str]:
    yield "| initial A | budget | method | stored | type | of the bits | error of dW | correct |"
    yield "|---|---|---|---|---|---|---:|---:|"
    for start in ("own", "same"):
        for ratio in RATIOS:
            for method in METHOD:
                if (start, method, ratio) in rows:
                    r = rows[start, method, ratio]
                    yield (
                        f"| {start} | 1/{ratio} | {method} | {r['what']} | {r['form']} | 1/{r['of']} "
                        f"| {_error(r)} | {_mean(r):.1f} |"
                    )


def _error(row: Mapping[str, Any]) -> str:
    anew = row["method"] in ("trained anew", "rank 1 anew", "library_core, trained")
    return "" if anew else f"{100 * row['error']:.1f}%"


def _gaps(rows: _Rows) -> Iterator[str]:
    yield f"| initial A | budget | rival | difference | 95% | {100 * LEVEL:.2f}% | minus the LoRAs as given |"
    yield "|---|---|---|---:|---|---|---|"
    for start in ("own", "same"):
        for ratio in RATIOS:
            rivals = [
                rows[key]
                for method in METHOD[1:]
                if (key := (start if method != "trained anew" else "own", method, ratio)) in rows
            ]
            if not rivals or (start, "fit", ratio) not in rows:
                continue
            mine, rival = accuracies(rows[start, "fit", ratio]), max(rivals, key=_mean)
            gaps = mine - accuracies(rival)
            wide = interval(gaps, LEVEL)
            mean = f"{gaps.mean():+.1f}"
            shown = f"**{mean}**" if wide[0] > 0 or wide[1] < 0 else mean
            given = mine - accuracies(rows[start, "given", 1])
            yield (
                f"| {start} | 1/{ratio} | {rival['method']}, {rival['what']} | {shown} | "
                f"{_shown(interval(gaps))} | {_shown(wide)} | {given.mean():+.1f} {_shown(interval(given))} |"
            )


def _whole(rows: _Rows) -> Iterator[str]:
    yield "| | type | of the bits | correct | the LoRAs (own A) minus it |"
    yield "|---|---|---|---:|---|"
    for (start, method, ratio), row in rows.items():
        if ratio == 1:
            gaps: np.ndarray = accuracies(rows["own", "given", 1]) - accuracies(row)
            gap = f"{gaps.mean():+.1f} {_shown(interval(gaps))}" if gaps.any() else ""
            of = f"1/{row['of']}" if row["of"] else "0"
            name = method if start == "own" else f"{method}, same initial A"
            yield f"| {name}: {row['what']} | {row['form']} | {of} | {_mean(row):.1f} | {gap} |"


TABLES = {
    "correct, and what was chosen": _budgets,
    "`fit` minus the better rival, and minus the LoRAs as given": _gaps,
    "beside them": _whole,
}


def _shown(both: tuple[float, float]) -> str:
    return f"({both[0]:+.1f} to {both[1]:+.1f})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tables", action="store_true", help="only write the tables again")
    parser.add_argument("--family", choices=SETTINGS, default=next(iter(SETTINGS)))
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    if not options.tables:
        Compression(options.family).run()
    write_below(PAGE, "compression.py", lines(Bench(ROWS).found))


if __name__ == "__main__":
    main()
