"""The pretrained model for benchmarks, which is the demo's."""

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parents[2] / "examples"))

from smollm2 import smollm2_folder

__all__ = ["smollm2_folder"]
