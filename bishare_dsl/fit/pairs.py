"""The given LoRAs: each site's update as a pair of factors, on disk until needed."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save

from bishare_dsl.adapter.contents import StoredAdapter
from bishare_dsl.export.effective import check_linear, finite_factors
from bishare_dsl.models.site import Site
from bishare_dsl.writing import replace_file

Pair = tuple[torch.Tensor, torch.Tensor]


class GivenPairs:
    """Pairs by adapter and site, in one memory-mapped file per adapter, so hundreds need little memory."""

    def __init__(self, files: Mapping[str, Path]) -> None:
        self._open: dict[str, Any] = {
            name: safe_open(str(path), framework="pt") for name, path in files.items()
        }
        self._rows: dict[tuple[str, str], int] = {}
        for name, opened in self._open.items():
            for key in opened.keys():  # noqa: SIM118 - it is not a mapping
                path, _, label = key.rpartition(":")
                if label == "A":
                    self._rows[name, path] = opened.get_slice(key).get_shape()[0]

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(self._open)

    def rows(self, adapter: str, site: Site) -> int:
        """Count the rows of a site's pair; 0 if the adapter does not change the site."""
        return self._rows.get((adapter, site.path), 0)

    def stacked(self, places: Sequence[tuple[str, Site]]) -> Pair:
        """Return the pairs of n places with equal shapes: A ``(n, rows, d_in)``, B ``(n, rows, d_out)``."""
        site = places[0][1]
        if not self.rows(*places[0]):
            empty = torch.empty(len(places), 0, site.d_in, dtype=torch.float64)
            return empty, torch.empty(len(places), 0, site.d_out, dtype=torch.float64)
        a, b = (
            torch.stack([self._open[name].get_tensor(f"{s.path}:{label}") for name, s in places])
            for label in "AB"
        )
        return a.double(), b.double()


@contextmanager
def open_pairs(adapters: Iterable[tuple[str, StoredAdapter]]) -> Iterator[GivenPairs]:
    """Yield the updates of adapters as pairs, computed one adapter at a time, for the duration of a block.

    Raises:
        AdapterError: an update is nonlinear (BS633), scales the base (BS675) or is not finite (BS628, BS694).
    """
    with TemporaryDirectory(prefix="bishare-fit-") as scratch:
        files = {}
        for number, (name, stored) in enumerate(adapters):
            check_linear(stored.plan.terms, f"fit a spec to `{name}`")
            tensors = stored.tensors()
            pairs: dict[str, torch.Tensor] = {}
            for site in stored.plan.sites:
                if stored.plan.rows(site.path) or stored.plan.terms_of[site.path]:
                    down, up = finite_factors(stored.plan, tensors, site, "fitting")
                    pairs |= {
                        f"{site.path}:A": down.contiguous(),
                        f"{site.path}:B": up.contiguous(),
                    }
            files[name] = Path(scratch, f"{number}.safetensors")
            replace_file(files[name], save(pairs))  # Its errors are the system's.
        yield GivenPairs(files)
