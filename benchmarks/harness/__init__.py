"""What the benchmarks share: interleaved timing, and results with the machine they come from."""

from harness.result import write
from harness.timing import Timing, interleave

KINDS = ["q_proj", "k_proj", "v_proj", "up_proj", "down_proj"]
"""What PEFT's methods adapt here: what `target attention_inputs, mlp_ups, mlp_downs` of the specs does."""

__all__ = ["KINDS", "Timing", "interleave", "write"]
