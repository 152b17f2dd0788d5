"""The benchmark is not part of the package: its folder is where its scripts look for their parts."""

import sys
from pathlib import Path

import bishare_dsl

ROOT = Path(bishare_dsl.__file__).parents[1]
sys.path[:0] = [str(ROOT / "benchmarks" / "tiny"), str(ROOT)]
