"""Packages with transforms, as an installer leaves them: a module, and metadata with entry points."""

import sys

import pytest

from bishare_dsl.transforms import registry

# Two terms of the protocol that the built-in transforms leave alone: an own tensor that starts at one, and
# a shared shape that is not a site's.
CYCLIC = """
import math
from typing import ClassVar

from pydantic import PositiveInt

from bishare_dsl.transforms import Own, Start, Transform


class Cyclic(Transform):
    name: ClassVar[str] = "Cyclic"
    title: ClassVar[str] = "Cyclic sharing"
    owned: ClassVar[tuple[str, ...]] = ("S_A", "S_B")

    period: PositiveInt = 64

    def shared_shape(self, role, rank, widths):
        return rank, self.period

    def start(self, role):
        return Start("ones") if role in self.owned else super().start(role)

    def own(self, rank, width):
        turns_in, turns_out = (math.ceil(side / self.period) for side in width)
        return {"S_A": Own(1, turns_in, turns_in), "S_B": Own(1, turns_out)}

    def reach(self, rank, width):
        return min(rank, self.period, *width)

    def factors(self, tensors, rank, width):
        return (
            self.repeat(tensors["S_A"], tensors["A"], width.d_in),
            self.repeat(tensors["S_B"], tensors["B"], width.d_out),
        )

    def repeat(self, scales, shared, width):
        return (scales.unsqueeze(2) * shared.unsqueeze(1)).flatten(1)[:, :width]
"""


def write_package(site, package, module, source, **points):
    """Write a package into a folder of ``sys.path``, with the entry points of `registry.GROUP`."""
    (site / f"{module}.py").write_text(source)
    info = site / f"{package.replace('-', '_')}-2.1.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: 2.1\n")
    lines = [f"[{registry.GROUP}]", *(f"{name} = {value}" for name, value in points.items())]
    (info / "entry_points.txt").write_text("\n".join(lines))


@pytest.fixture
def install(tmp_path, monkeypatch):
    """Installs a package for the time of a test, in this process."""
    site = tmp_path / "site"
    site.mkdir()
    before = set(sys.modules)
    monkeypatch.syspath_prepend(site)

    def run(package, module, source, **points):
        write_package(site, package, module, source, **points)
        forget()
        return site

    yield run
    for name in set(sys.modules) - before:
        if str(site) in str(getattr(sys.modules[name], "__file__", None)):
            del sys.modules[name]
    forget()


def forget():
    registry._entry_points.cache_clear()
    registry._load.cache_clear()
