"""Do groups of tasks help newcomers? See notes/2026-12-03-groups.md.

    groups.py            # all cells that groups.jsonl does not have yet
    groups.py --tables   # the tables of the note

Interrupt it as you like: a cell is stored when it is over, and is not run again.
Libraries are kept in the cache.
"""

from __future__ import annotations

import argparse
import math
import os
import shutil
import sys
import time
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

# Before torch is loaded: one thread.
os.environ.setdefault("OMP_NUM_THREADS", "1")
HERE = Path(__file__).parent
sys.path[:0] = [str(HERE.parents[1]), str(HERE.parent)]

import torch
from harness.page import write_below
from torch import Tensor
from torch.nn import functional as F

from bishare_dsl.train.many import groups as grouping
from few import members
from few.bench import Bench
from few.groups_tables import lines
from few.late import Site
from few.methods import lora
from few.training import (
    BATCH,
    LIBRARY_BATCH,
    LIBRARY_EACH,
    LORA,
    STEPS,
    Adam,
    Batch,
    Library,
    Subject,
    adapted,
    drawn,
    folder,
    is_private,
    judged,
    train,
)
from few.typed import Typed

RESULTS, PAGE = HERE / "groups.jsonl", HERE.parent / "notes" / "2026-12-03-groups.md"
TYPED_FAMILIES = ("orders", "words", "countries", "layouts", "raters")
"""In the order in which they run."""
UNTYPED_FAMILIES = ("thresholds", "patients")
WRONG_GROUPS = 3
"""Groups for families without types."""
CONTROL = "renames"
"""A family in which tasks agree on little: for the rules of a start alone."""
MEMBERS, NEWCOMERS, EXAMPLES = 24, 24, 8
STEPS_OF_LIBRARY = 80
"""With `LIBRARY_BATCH` examples of each member in a step."""
SETTINGS = ((24, 3e-3), (24, 1e-2), (160, 3e-3))
"""Further steps and rates of a library, in `SETTING_FAMILIES`."""
SETTING_FAMILIES = ("orders", "words", "thresholds")
LIBRARIES = (0, 1)
LIBRARY_RATES = (3e-3, 1e-2)
"""Of what members train; the better one by the members' own test items in library 0."""
NEW_RATES = {"zero": (1e-2, 3e-2), "trained on": (1e-3, 3e-3), "fresh": (1e-2, 3e-2)}
"""Of what a newcomer trains; a table has the better one of library 0, by the newcomers themselves."""
WIDE = 16
"""The rank of `wide`, a library of the groups found."""
WARM_RATE = 1e-2
"""Of training that starts at the weighted sum of members."""
COUNTS = (1, 2, 3, 4)
"""Numbers of groups that are scored on held-out members."""


TWINS = {"named": "found", "known": "found loras"}
"""Kinds of libraries that are equal if the groups found are the types."""


def numbers_of_members(library: int) -> list[int]:
    return [2400 * (library + 1) + i for i in range(MEMBERS)]


def numbers_of_newcomers(library: int) -> list[int]:
    return [12_000 * (library + 1) + i for i in range(NEWCOMERS)]


def agreement(groups: Sequence[int], types: Sequence[int]) -> float:
    """Return the share of members whose group's commonest type is their own."""
    right = 0
    for group in set(groups):
        own = [kind for g, kind in zip(groups, types, strict=True) if g == group]
        right += max(own.count(kind) for kind in set(own))
    return right / len(types)


def spread(tensors: Library, groups: Tensor) -> Library:
    """Return the tensors of each task, whose group's tensors they are; shared ones stay."""
    return {site: p if p.shape[1] == 1 else p[:, groups] for site, p in tensors.items()}


def train_groups(
    subject: Subject, tensors: Library, groups: Tensor, batch: Batch, rate: float, steps: int
) -> list[float]:
    """Train the tensors of groups in place, and return the mean loss of each step.

    A step has `LIBRARY_BATCH` examples of every member, whatever the number of groups.
    """
    losses = []

    def logits(rows: Tensor) -> Tensor:
        return adapted(subject, spread(tensors, groups), batch)(rows)

    optimizer = Adam(list(tensors.values()), torch.tensor([rate]), steps)
    draw = torch.Generator().manual_seed(0)
    lanes, count = batch.rows.shape[:2], batch.rows.shape[2]
    order = torch.zeros(0)
    for step in range(steps):
        first = step * LIBRARY_BATCH % count
        if first == 0:
            order = torch.rand(*lanes, count, generator=draw).argsort(-1)
        chosen = order[..., first : first + LIBRARY_BATCH]
        found = logits(batch.rows.gather(2, chosen))
        labels = batch.labels.gather(2, chosen)
        loss = F.cross_entropy(found.flatten(0, 2), labels.flatten(), reduction="sum")
        (loss / LIBRARY_BATCH).backward()
        losses.append(float(loss.detach()) / labels.numel())
        optimizer.step()
    for tensor in tensors.values():
        tensor.requires_grad_(False)
    return losses


def private_rows(library: Library) -> tuple[Tensor, list[Site]]:
    """Return the private numbers of each member, (M, n), and their tensors' sites in order."""
    sites = sorted(site for site in library if is_private(site))
    return torch.cat([library[site][0].flatten(1) for site in sites], 1), sites


def with_private(library: Library, rows: Tensor) -> Library:
    """Return the library with other private numbers, (K, n)."""
    found, first = dict(library), 0
    for site in private_rows(library)[1]:
        shape = library[site].shape[2:]
        size = math.prod(shape)
        found[site] = rows[:, first : first + size].unflatten(1, shape)[None]
        first += size
    return found


class GroupBench(Bench):
    """The model, the families, and what was measured."""

    def types(self, family: str) -> int:
        loaded = self.subject(family).family
        return loaded.types if isinstance(loaded, Typed) else 1

    def count(self, family: str) -> int:
        """Return the number of groups: of the types, or `WRONG_GROUPS` where there are none."""
        types = self.types(family)
        return types if types > 1 else WRONG_GROUPS

    def member_batch(self, family: str, library: int) -> Batch:
        lanes = [[(number, 0) for number in numbers_of_members(library)]]
        return self.subject(family).batch(lanes, LIBRARY_EACH, new=False)

    def new_batch(self, family: str, library: int) -> Batch:
        lanes = [[(number, 0) for number in numbers_of_newcomers(library)]]
        return self.subject(family).batch(lanes, EXAMPLES, new=True)

    def groups(self, family: str, library: int, kind: str) -> Tensor:
        """Return the group of each member in a kind of library."""
        if kind == "core":
            return torch.arange(MEMBERS)
        if kind == "joint":
            return torch.zeros(MEMBERS, dtype=torch.long)
        if kind.startswith(("named", "known")):
            return torch.tensor(numbers_of_members(library)) % self.types(family)
        private, _ = private_rows(self.library(family, library, "core"))
        points = grouping.directions(private)
        return grouping.k_means(points, self.count(family), seed=library)

    def library(self, family: str, library: int, kind: str) -> Library:
        """Return a trained library at its rate, which is chosen on library 0.

        Args:
            family: its name.
            library: its number, which is its seed.
            kind: ``core`` (a core for each member), ``joint`` (one LoRA), ``found``, ``named`` (a core for
                each group), ``found loras``, ``known`` (a LoRA for each group).
        """
        rate = self.library_rate(family, kind)
        self.train_library(family, library, kind, rate)
        return self.kept(family, library, kind, rate)

    def library_rate(self, family: str, kind: str) -> float:
        rows = [self.train_library(family, 0, kind, rate) for rate in LIBRARY_RATES]
        return float(max(rows, key=lambda row: row["members"])["rate"])

    def kept_in(
        self, family: str, library: int, kind: str, rate: float, steps: int = STEPS_OF_LIBRARY
    ) -> Path:
        name = f"groups-{family}-{library}-{kind.replace(' ', '-')}-{rate}-{steps}.pt"
        return folder() / name

    def kept(
        self, family: str, library: int, kind: str, rate: float, steps: int = STEPS_OF_LIBRARY
    ) -> Library:
        file = self.kept_in(family, library, kind, rate, steps)
        plain = torch.load(file, weights_only=True)
        return {Site(*site): p for site, p in plain.items()}

    def train_library(
        self, family: str, library: int, kind: str, rate: float, steps: int = STEPS_OF_LIBRARY
    ) -> dict[str, Any]:
        """Train a library unless it is stored, and return its row.

        ``members`` is the share of right answers on the members' own test items.
        """
        key = {"part": "library", "family": family, "library": library, "kind": kind}
        key |= {"rate": rate, "steps": steps}
        known = self.known(**key)
        if known is not None:
            return known
        groups = self.groups(family, library, kind)
        twin = TWINS.get(kind)
        if twin and torch.equal(groups, self.groups(family, library, twin)):
            # Groups are numbered by their first member, as types are.
            row = self.train_library(family, library, twin, rate, steps)
            source = self.kept_in(family, library, twin, rate)
            shutil.copyfile(source, self.kept_in(family, library, kind, rate))
            self.add(**{**row, **key, "same_as": twin, "cpu_s": 0.0})
            return self.found[-1]
        began = time.process_time()
        subject, batch = self.subject(family), self.member_batch(family, library)
        count = int(groups.max()) + 1
        if kind in ("core", "found", "named"):
            start = subject.late.start("library_core", library, r=8)
        elif kind == "wide":
            start = subject.late.start("library_core", library, r=WIDE)
        else:
            start = subject.late.start(LORA, library, r=8)
        tensors = {}
        for site, p in start.items():
            private = is_private(site) or kind in ("found loras", "known")
            tensors[site] = drawn(site, p, (1, count), 100 + library) if private else p.clone()
        if kind == "continued":
            tensors = {site: p.clone() for site, p in self.means(family, library).items()}
        losses = train_groups(subject, tensors, groups, batch, rate, steps)
        own = spread(tensors, groups)
        right = judged(adapted(subject, own, batch), batch)[1]
        plain = {tuple(site): p for site, p in tensors.items()}
        torch.save(plain, self.kept_in(family, library, kind, rate, steps))
        types = [number % self.types(family) for number in numbers_of_members(library)]
        more = {"agreement": round(agreement(groups.tolist(), types), 4)}
        more |= {"sizes": torch.bincount(groups).tolist()} if kind != "core" else {}
        more |= {"first": round(sum(losses[:6]) / 6, 4), "last": round(sum(losses[-6:]) / 6, 4)}
        seconds = round(time.process_time() - began, 1)
        self.add(**key, members=round(float(right.float().mean()), 4), **more, cpu_s=seconds)
        return self.found[-1]

    def cell(
        self,
        family: str,
        library: int,
        method: str,
        judge: Callable[[], dict[str, Any]],
        **key: Any,
    ) -> None:
        """Judge newcomers by a method, if it is not stored."""
        key = {"part": "newcomers", "family": family, "library": library, "method": method, **key}
        if self.known(**key) is None:
            began = time.process_time()
            more = judge()
            self.add(**key, **more, cpu_s=round(time.process_time() - began, 1))

    def judge_sum(self, family: str, library: int) -> dict[str, Any]:
        """Judge the weighted sum of members (`mixture`), its sharpness by leaving members out."""
        subject, trained = self.subject(family), self.library(family, library, "core")
        batch = self.new_batch(family, library)
        mix, sharpness = self.mix(family, library)
        tensors = members.mixed(trained, mix)
        row = right_answers(subject, tensors, batch)
        examples = batch._replace(tested=batch.rows, answers=batch.labels)
        on_examples = right_answers(subject, tensors, examples)["right"]
        return {**row, "sharpness": sharpness, "on_examples": on_examples}

    def mix(self, family: str, library: int) -> tuple[Tensor, float]:
        """Return the weights of members for each newcomer, (1, T, M), and their sharpness."""
        subject, trained = self.subject(family), self.library(family, library, "core")
        sharpness = sharpness_left_out(subject, trained, self.member_batch(family, library))
        known = members.losses(subject, trained, self.new_batch(family, library)).sum(-1)
        return torch.stack([members.weights(known[0], sharpness)]), sharpness

    def judge_trained(self, family: str, library: int, method: str, rate: float) -> dict[str, Any]:
        """Judge newcomers that train on their examples."""
        subject, batch = self.subject(family), self.new_batch(family, library)
        frozen: Library = {}
        if method in ("zero", "warm"):
            trained = self.library(family, library, "core")
            frozen = {site: p for site, p in trained.items() if not is_private(site)}
            start = trained
            if method == "warm":
                start = members.mixed(trained, self.mix(family, library)[0])
            own = {}
            for site in private_rows(trained)[1]:
                if method == "warm":
                    own[site] = start[site].clone()
                else:
                    own[site] = torch.zeros(1, NEWCOMERS, *start[site].shape[2:])
        elif method == "trained on":
            joint = self.library(family, library, "joint")
            own = {s: p.expand(1, NEWCOMERS, *p.shape[2:]).clone() for s, p in joint.items()}
        else:
            own = lora(8)(subject.late, {}, (1, NEWCOMERS), library)[1]
        logits = adapted(subject, {**frozen, **own}, batch)
        rates = torch.tensor([rate])
        train(logits, list(own.values()), batch, rates, STEPS[EXAMPLES], BATCH)
        return right_answers(subject, {**frozen, **own}, batch)

    def means(self, family: str, library: int) -> Library:
        """Return the library of members with the means of each group's cores."""
        trained = self.library(family, library, "core")
        private, _ = private_rows(trained)
        groups = self.groups(family, library, "found")
        return with_private(trained, grouping.group_means(private, groups))

    def judged_library(self, family: str, library: int, kind: str) -> Library:
        """Return a trained library, or the means of groups, which are not trained."""
        if kind == "means":
            return self.means(family, library)
        return self.library(family, library, kind)

    def judge_nearest(self, family: str, library: int, kind: str) -> dict[str, Any]:
        """Judge newcomers that take the group with the least loss; with ``known`` their type's."""
        subject, batch = self.subject(family), self.new_batch(family, library)
        trained = self.judged_library(family, library, kind)
        losses = members.losses(subject, trained, batch)[0].sum(-1)
        choice, margin = grouping.nearest_group(losses)
        if kind == "known":
            choice = torch.tensor(numbers_of_newcomers(library)) % self.types(family)
        row = right_answers(subject, spread(trained, choice), batch)
        return {**row, "choice": choice.tolist(), "margin": [round(m, 3) for m in margin.tolist()]}

    def judge_scores(self, family: str, library: int) -> None:
        """Score numbers of groups on held-out members, which trains nothing."""
        key = {"part": "scores", "family": family, "library": library}
        if self.known(**key) is not None:
            return
        subject, batch = self.subject(family), self.member_batch(family, library)
        trained = self.library(family, library, "core")
        private, _ = private_rows(trained)
        began = time.process_time()
        first = grouping.CHOOSING_ROWS

        def losses(adapters: Tensor, held: list[int]) -> Tensor:
            rows = Batch(
                rows=batch.rows[:, held, :first],
                labels=batch.labels[:, held, :first],
                tested=batch.tested[:, held],
                answers=batch.answers[:, held],
                options=batch.options[:, held],
            )
            return members.losses(subject, with_private(trained, adapters), rows)[0].sum(-1)

        def correct(adapters: Tensor, held: list[int], choice: Tensor) -> Tensor:
            rest = Batch(
                rows=batch.rows[:, held],
                labels=batch.labels[:, held],
                tested=batch.rows[:, held, first:],
                answers=batch.labels[:, held, first:],
                options=batch.options[:, held],
            )
            own = spread(with_private(trained, adapters), choice)
            return judged(adapted(subject, own, rest), rest)[1][0].float().mean(-1)

        found = grouping.scores(private, COUNTS, library, losses, correct)
        agreements = []
        types = [number % self.types(family) for number in numbers_of_members(library)]
        for count in COUNTS:
            groups = grouping.k_means(grouping.directions(private), count, library)
            agreements.append(round(agreement(groups.tolist(), types), 4))
        rows = [[s.groups, s.correct, s.ahead, s.error] for s in found]
        seconds = round(time.process_time() - began, 1)
        proposal = grouping.proposed(found)
        self.add(**key, scores=rows, agreements=agreements, proposed=proposal, cpu_s=seconds)

    def judge_library(self, family: str, library: int) -> None:
        """Judge all methods on one library."""
        kinds = ["found", "joint"]
        if self.types(family) > 1:
            kinds += ["named", "found loras", "known"]
        self.judge_scores(family, library)
        self.judge_start(family, library)
        for kind in kinds:
            # Libraries are trained before a cell's time is taken.
            self.library(family, library, kind)
            self.cell(
                family,
                library,
                kind,
                lambda kind=kind: self.judge_nearest(family, library, kind),
            )
        for method in ("trained on", "fresh"):
            rates = NEW_RATES[method]
            if library:
                rates = (self.new_rate(family, method),)
            self.judge_rates(family, library, method, rates)

    def judge_variants(self, family: str, library: int) -> None:
        """Judge other ways to have a core for each group."""
        for kind in ("continued", "wide"):
            self.library(family, library, kind)
        for kind in ("means", "continued", "wide"):
            self.cell(
                family,
                library,
                kind,
                lambda kind=kind: self.judge_nearest(family, library, kind),
            )

    def judge_start(self, family: str, library: int) -> None:
        """Judge the ways to start a newcomer's core."""
        self.library(family, library, "core")
        self.cell(family, library, "mixture", lambda: self.judge_sum(family, library))
        if library:
            self.judge_rates(family, library, "zero", (self.new_rate(family, "zero"),))
            return
        self.judge_rates(family, library, "zero", NEW_RATES["zero"])

    def judge_rates(self, family: str, library: int, method: str, rates: Sequence[float]) -> None:
        for rate in rates:
            self.cell(
                family,
                library,
                method,
                lambda rate=rate: self.judge_trained(family, library, method, rate),
                rate=rate,
            )

    def new_rate(self, family: str, method: str) -> float:
        """Return the rate that is better for the newcomers of library 0."""
        key = {"part": "newcomers", "family": family, "library": 0, "method": method}
        rows = [self.known(**key, rate=rate) for rate in NEW_RATES[method]]
        return float(max((row for row in rows if row), key=lambda row: sum(row["right"]))["rate"])

    def judge_settings(self, family: str, most: int) -> None:
        """Judge other steps and rates up to a number of steps, and the two rates of all libraries."""
        rates = [(STEPS_OF_LIBRARY, rate) for rate in LIBRARY_RATES]
        for steps, rate in (*SETTINGS, *rates):
            if steps <= max(most, STEPS_OF_LIBRARY):
                self.judge_setting(family, steps, rate)

    def judge_setting(self, family: str, steps: int, rate: float) -> None:
        """Judge members and newcomers of library 0 with other steps and another rate."""
        self.train_library(family, 0, "core", rate, steps)
        subject, batch = self.subject(family), self.new_batch(family, 0)
        trained = self.kept(family, 0, "core", rate, steps)

        def judge() -> dict[str, Any]:
            sharpness = sharpness_left_out(subject, trained, self.member_batch(family, 0))
            known = members.losses(subject, trained, batch).sum(-1)
            mix = members.weights(known, sharpness)
            return right_answers(subject, members.mixed(trained, mix), batch)

        self.cell(family, 0, "mixture of setting", judge, steps=steps, rate=rate)


@torch.no_grad()
def right_answers(subject: Subject, tensors: Library, batch: Batch) -> dict[str, Any]:
    """Return how many test items each newcomer has right, and how many there are."""
    right = judged(adapted(subject, tensors, batch), batch)[1][0].sum(-1)
    return {"right": right.tolist(), "asked": batch.tested.shape[2]}


def sharpness_left_out(subject: Subject, library: Library, batch: Batch) -> float:
    """Return the sharpness with the most right answers of members that are left out in turn."""
    left, first = members.LEFT, members.WEIGHING
    judge = batch._replace(
        rows=batch.rows[:, :left, :first],
        labels=batch.labels[:, :left, :first],
        tested=batch.rows[:, :left, first:],
        answers=batch.labels[:, :left, first:],
        options=batch.options[:, :left],
    )
    known = members.losses(subject, library, judge).sum(-1)
    known = known.masked_fill(torch.eye(*known.shape[1:], dtype=torch.bool), math.inf)
    found = {}
    for sharpness in members.SHARPNESS:
        tensors = members.mixed(library, members.weights(known, sharpness))
        loss, right = judged(adapted(subject, tensors, judge), judge)
        found[sharpness] = members.Score(float(right.float().mean()), float(loss.mean()))
    return members.sharpest(found)


def run(bench: GroupBench) -> None:
    """Run every cell in order."""
    for family in TYPED_FAMILIES[:4]:
        for library in LIBRARIES:
            bench.judge_library(family, library)
            bench.judge_variants(family, library)
    for family in UNTYPED_FAMILIES:
        bench.judge_library(family, 0)
    bench.judge_start(CONTROL, 0)
    for family in (*TYPED_FAMILIES[:4], *UNTYPED_FAMILIES, CONTROL):
        bench.judge_rates(family, 0, "warm", (WARM_RATE,))
    # The short runs first.
    for steps in sorted({steps for steps, _ in SETTINGS}):
        for family in SETTING_FAMILIES:
            bench.judge_settings(family, steps)
    for family in TYPED_FAMILIES[4:]:
        for library in LIBRARIES:
            bench.judge_library(family, library)
    for family in UNTYPED_FAMILIES:
        bench.judge_library(family, 1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tables", action="store_true", help="only write the tables again")
    parser.add_argument("--results", type=Path, default=RESULTS)
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    bench = GroupBench(options.results)
    if options.tables:
        write_below(PAGE, "groups.py", lines(bench.found))
        return
    run(bench)


if __name__ == "__main__":
    main()
