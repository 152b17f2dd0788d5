"""The benchmarks are not a part of the package: their folder is where they look for what they share."""

import sys
from pathlib import Path

import bishare_dsl

sys.path.insert(0, str(Path(bishare_dsl.__file__).parents[1] / "benchmarks"))
