"""What the benchmarks share: interleaved timing, and results with the machine they come from."""

from harness.result import write
from harness.timing import Timing, interleave

__all__ = ["Timing", "interleave", "write"]
