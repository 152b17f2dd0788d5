"""What a proposal is made from: for each adapter, or for the gradients of some data, an update a module."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch

from bishare_dsl.analyse.read import AdapterUpdates
from bishare_dsl.analyse.update import Factored
from bishare_dsl.models.site import Architecture, Site

RANK = 16
"""The most of an update that is looked at."""

Updates = Mapping[str, Factored]
"""By the path of the module."""


@dataclass(frozen=True)
class Evidence:
    """Updates to be kept, each set of energy 1.

    Attributes:
        architecture: of the model.
        sites: the modules.
        sets: the updates of each adapter; each would have factors of its own.
        source: what they are, in words.
    """

    architecture: Architecture
    sites: tuple[Site, ...]
    sets: tuple[Updates, ...]
    source: str

    def independent(self, seed: int) -> Evidence:
        """Return what chance makes of it: the same singular values, and vectors that are drawn."""
        random = torch.Generator().manual_seed(seed)
        sets = tuple(
            {path: update.independent(random) for path, update in updates.items()}
            for updates in self.sets
        )
        return Evidence(self.architecture, self.sites, sets, self.source)


def of_adapters(adapters: Sequence[AdapterUpdates]) -> Evidence:
    """Take the updates of adapters of one model; a start of A that is known is not part of an update."""
    architecture = adapters[0].plan.base
    found = {u.site.path for adapter in adapters for u in adapter.updates}
    sites = tuple(site for site in architecture.sites if site.path in found)
    sets = [{u.site.path: cut(u.trained) for u in adapter.updates} for adapter in adapters]
    source = "the updates of " + ", ".join(
        f"{adapter.name} ({'starts taken away' if adapter.starts_known else 'starts left in'})"
        for adapter in adapters
    )
    return Evidence(architecture, sites, tuple(map(_of_energy_1, sets)), source)


def of_gradients(
    architecture: Architecture, gradients: Mapping[Site, Factored], source: str
) -> Evidence:
    """Take the gradients of modules, each of the same energy: Adam's steps know no scale of gradients."""
    alike = {
        site.path: cut(gradient.scaled(gradient.energy**-0.5))
        for site, gradient in gradients.items()
        if gradient.rank
    }
    return Evidence(architecture, tuple(gradients), (_of_energy_1(alike),), source)


def cut(update: Factored) -> Factored:
    """Leave the strongest directions of an update."""
    return Factored(update.values[:RANK], update.left[:RANK], update.right[:RANK])


def _of_energy_1(updates: Updates) -> Updates:
    total = sum(update.energy for update in updates.values())
    return {path: update.scaled(total**-0.5) for path, update in updates.items()}
