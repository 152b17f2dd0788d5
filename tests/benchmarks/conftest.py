"""The benchmarks are not a part of the package: their folders are where they look for what they share."""

import sys
from pathlib import Path

import bishare_dsl

BENCHMARKS = Path(bishare_dsl.__file__).parents[1] / "benchmarks"
sys.path.insert(0, str(BENCHMARKS))
