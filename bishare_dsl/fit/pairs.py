"""The given LoRAs: each site's update as a pair of factors."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch

from bishare_dsl.convert.effective import check_linear, finite_factors
from bishare_dsl.folder.contents import StoredAdapter
from bishare_dsl.models.site import Site

Pair = tuple[torch.Tensor, torch.Tensor]


@dataclass(frozen=True)
class GivenPairs:
    """The float32 pairs of adapters by their sites' paths, by adapter."""

    pairs: Mapping[str, Mapping[str, Pair]]

    def rows(self, adapter: str, site: Site) -> int:
        """Count the rows of a site's pair; 0 if the adapter does not change the site."""
        pair = self.pairs[adapter].get(site.path)
        return len(pair[0]) if pair else 0

    def stacked(self, places: Sequence[tuple[str, Site]]) -> Pair:
        """Return the pairs of n places with equal shapes: A ``(n, rows, d_in)``, B ``(n, rows, d_out)``."""
        site = places[0][1]
        none = torch.empty(0, site.d_in), torch.empty(0, site.d_out)
        pairs = [self.pairs[name].get(site.path, none) for name, site in places]
        a = torch.stack([pair[0] for pair in pairs])
        b = torch.stack([pair[1] for pair in pairs])
        return a.double(), b.double()


def read_pairs(adapters: Iterable[tuple[str, StoredAdapter]]) -> GivenPairs:
    """Compute the updates of adapters as pairs, reading one adapter at a time.

    Raises:
        AdapterError: an update is nonlinear (BS633), scales the base (BS675) or is not finite (BS628, BS694).
    """
    pairs: dict[str, dict[str, Pair]] = {}
    for name, stored in adapters:
        check_linear(stored.plan.terms, f"fit a spec to `{name}`")
        tensors = stored.tensors()
        pairs[name] = {
            site.path: finite_factors(stored.plan, tensors, site, "fitting")
            for site in stored.plan.sites
            if stored.plan.terms_of[site.path]
        }
    return GivenPairs(pairs)
