"""Interleaved timing, so that a busy machine affects all subjects equally."""

from __future__ import annotations

import gc
import math
import statistics
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TypeVar

Name = TypeVar("Name")


@dataclass(frozen=True)
class Timing:
    """Seconds of each round."""

    seconds: tuple[float, ...]

    @property
    def median(self) -> float:
        return statistics.median(self.seconds)

    def quartiles(self, scale: float = 1, digits: int = 3) -> str:
        """Return the first and the third, in seconds or another unit."""
        first, _, third = (scale * q for q in statistics.quantiles(self.seconds, n=4))
        return f"{first:.{digits}f} to {third:.{digits}f}"

    def ratio(self, other: Timing) -> float:
        """The median over rounds of this time by the other's in the same round.

        What slows one round down slows both, so this is steadier than the ratio of medians.
        """
        return self.by(other).median

    def by(self, other: Timing) -> Timing:
        """This time by the other's, of each round."""
        pairs = zip(self.seconds, other.seconds, strict=True)
        return Timing(tuple(mine / theirs for mine, theirs in pairs))


def interleave(
    subjects: Mapping[Name, Callable[[], Callable[[], object]]],
    rounds: int,
    *,
    collect: bool = False,
    settle: Callable[[], object] = lambda: None,
    clock: Callable[[], float] = time.perf_counter,
    limit: float = math.inf,
) -> dict[Name, Timing]:
    """Time each subject once a round, after one round that does not count.

    Args:
        subjects: by name, what prepares a run (not timed) and returns the run (timed).
        rounds: every other one goes backwards, so that none always follows the same one.
        collect: look for garbage before each run, so that none pays for what another has left; for runs
            that make many objects.
        settle: waits for what a run has begun, such as `torch.cuda.synchronize`; a run takes that long.
        clock: `time.process_time` on a machine that others use, for runs of one thread.
        limit: in seconds, all in all: no round begins that would end after it, but two always count.
    """
    began, longest = time.monotonic(), 0.0
    seconds: dict[Name, list[float]] = {name: [] for name in subjects}
    for number in range(rounds + 1):
        round_began = time.monotonic()
        if number > 2 and round_began + longest > began + limit:
            break
        names = list(subjects) if number % 2 else list(reversed(subjects))
        for name in names:
            run = subjects[name]()
            if collect:
                gc.collect()
            settle()
            started = clock()
            run()
            settle()
            elapsed = clock() - started
            if number:
                seconds[name].append(elapsed)
            del run
        longest = max(longest, time.monotonic() - round_began)
        print(f"round {number}/{rounds}", file=sys.stderr, flush=True)
    return {name: Timing(tuple(times)) for name, times in seconds.items()}
