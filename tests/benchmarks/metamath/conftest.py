"""The benchmark is not a part of the package: its folder is where its scripts look for their parts."""

import sys
from pathlib import Path

import bishare_dsl

FOLDER = Path(bishare_dsl.__file__).parents[1] / "benchmarks" / "metamath"
sys.path.insert(0, str(FOLDER))
