"""A new transform is four places: its file, a row of the registry, its reference, a row of docs/transforms.md."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

TRANSFORM = '''"""Mirror: factors of a few columns, there and back again."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar

from pydantic import Field, PositiveInt

from bishare_dsl.transforms.transform import Tensors, Transform, Width

if TYPE_CHECKING:
    from torch import Tensor


class Mirror(Transform):
    """``A = [A_s, reversed A_s, A_s, ...]``, cropped to the width; B likewise."""

    name: ClassVar[str] = "Mirror"
    title: ClassVar[str] = "Mirrored Factors"

    columns: PositiveInt = Field(8, description="columns of the shared factors")

    def shared_shape(self, role: str, rank: int, widths: Sequence[int]) -> tuple[int, int]:
        return rank, self.columns

    def reach(self, rank: int, width: Width) -> int:
        return min(rank, self.columns, *width)

    def factor(self, role: str, tensors: Tensors, rank: int, side: int) -> Tensor:
        import torch

        there_and_back = torch.cat([tensors[role], tensors[role].flip(1)], 1)
        return there_and_back.repeat(1, math.ceil(side / (2 * self.columns)))[:, :side]
'''

REFERENCE = '''

@reference("Mirror")
def mirror(term):
    """Compute each entry from the nearer end."""

    def whole(shared, width):
        there = [*range(shared.shape[1])]
        columns = (there + there[::-1]) * width
        return torch.stack([shared[:, column] for column in columns[:width]], dim=1)

    return whole(term["B"], term.d_out).T, whole(term["A"], term.d_in)
'''

ROW = "| `Mirror` | `(rank, columns)` | | `columns = 8` |\n"


@pytest.fixture
def checkout(tmp_path):
    """A copy of the files that git knows."""
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    for name in filter(None, listed.stdout.split("\0")):
        source, target = ROOT / name, tmp_path / name
        if source.is_file():
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source, target)
    return tmp_path


def run(folder, *command):
    environment = os.environ | {"PYTHONPATH": str(folder), "PYTHONDONTWRITEBYTECODE": "1"}
    done = subprocess.run(
        [sys.executable, "-m", *command],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, f"{command}\n{done.stdout[-6000:]}\n{done.stderr[-2000:]}"


def insert(path, before, text):
    old = path.read_text(encoding="utf-8")
    assert before in old
    path.write_text(old.replace(before, text + before, 1), encoding="utf-8")


@pytest.mark.long
def test_a_transform_is_four_places(checkout):
    package = checkout / "bishare_dsl" / "transforms"
    (package / "shipped" / "mirror.py").write_text(TRANSFORM, encoding="utf-8")
    insert(package / "registry.py", '    "Experts":', '    "Mirror": "mirror:Mirror",\n')
    references = checkout / "tests" / "support" / "references.py"
    insert(references, "\n\ndef dense_delta(", REFERENCE)
    insert(checkout / "docs" / "transforms.md", "| `Experts`, of", ROW)

    run(checkout, "ruff", "check", "-q", ".")
    run(checkout, "ruff", "format", "-q", "--check", ".")
    run(checkout, "mypy")
    folders = [f"tests/{name}" for name in ("transforms", "testing", "language", "docs", "folder")]
    run(checkout, "pytest", "-q", "-p", "no:cacheprovider", "-m", "not long", *folders)
