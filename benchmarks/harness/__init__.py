"""Shared code of the benchmarks: interleaved timing, and results with a description of the machine."""

from harness.result import write
from harness.timing import Timing, interleave

KINDS = ["q_proj", "k_proj", "v_proj", "up_proj", "down_proj"]
"""What PEFT's methods adapt here: what `target attention_inputs, mlp_ups, mlp_downs` of the specs does."""

__all__ = ["KINDS", "Timing", "interleave", "write"]
