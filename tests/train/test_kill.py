"""A kill at any moment leaves a last checkpoint that can be gone on from."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
# A run is killed once or twice before it is through, so several are started.
ENOUGH = 4


@pytest.mark.long
def test_killed_while_saving_again_and_again(files, tmp_path):
    for name in ("small.share", "rows.jsonl"):
        shutil.copy(files / name, tmp_path)
    done = subprocess.run(
        [sys.executable, "-m", "tests.train.killed", str(tmp_path), "0", str(ENOUGH)],
        cwd=ROOT,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    kills = re.fullmatch(r"kills (\d+)\n", done.stdout)
    assert kills is not None
    assert int(kills[1]) >= ENOUGH
