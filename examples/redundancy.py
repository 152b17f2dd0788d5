"""How redundant are the modules of an adapter, by the measure of the Bi-Share paper, and by chance?

    python examples/redundancy.py ADAPTER MODEL             # dW of each module: Figure 1
    python examples/redundancy.py ADAPTER MODEL TEXT.txt    # dW x for the lines of a text: Figure 5

The first table compares modules of one layer, the second one layer with another. RMI is relative mutual
information (Equations 7 to 10). It depends on means and standard deviations alone, so compare it with the
column `by chance`: the same for random factors of the same size, which share nothing.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from statistics import fmean

import torch
from torch import Tensor, nn

from bishare_dsl import load_adapter
from bishare_dsl.convert.effective import effective_factors
from bishare_dsl.loading import read_fitting
from bishare_dsl.models import architecture_of
from bishare_dsl.models.site import Site
from bishare_dsl.show.table import Table


@dataclass(frozen=True)
class Factors:
    """A module's update ``dW = B^T A``: A ``(R, d_in)``, B ``(R, d_out)``, float64."""

    a: Tensor
    b: Tensor


@dataclass(frozen=True)
class Moments:
    """What the entropy of a Gaussian needs of some values: how many, their sum, and that of their squares."""

    count: int
    total: float
    squares: float

    def __add__(self, other: Moments) -> Moments:
        """Return the moments of both, one after the other."""
        count = self.count + other.count
        return Moments(count, self.total + other.total, self.squares + other.squares)

    @property
    def entropy(self) -> float:
        """``H = log(sigma) + log(2 pi) / 2 + 1 / 2`` (Equation 8)."""
        mean = self.total / self.count
        variance = self.squares / self.count - mean**2
        return 0.5 * math.log(variance) + 0.5 * math.log(2 * math.pi) + 0.5


@dataclass(frozen=True)
class Pair:
    """A pair of modules that is compared: of two kinds in one layer, or of one kind in two layers."""

    first: str
    second: str
    rmi: float
    chance: float


def relative_mutual_information(x: Moments, y: Moments) -> float:
    """Return ``(H(X) + H(Y) - H(X, Y)) / min(H(X), H(Y))`` (Equations 9 and 10).

    ``H(X, Y)`` is the entropy of the values of X followed by the values of Y (Section A.2.2).
    """
    mutual = x.entropy + y.entropy - (x + y).entropy
    return mutual / min(x.entropy, y.entropy)


def moments_of_update(update: Factors) -> Moments:
    """Return the moments of dW's entries, from its factors."""
    count = update.a.shape[1] * update.b.shape[1]
    total = update.b.sum(1) @ update.a.sum(1)
    squares = ((update.a @ update.a.T) * (update.b @ update.b.T)).sum()
    return Moments(count, float(total), float(squares))


def moments_of_output(update: Factors, inputs: Tensor) -> Moments:
    """Return the moments of ``dW x``, for inputs ``(tokens, d_in)``."""
    outputs = inputs.to(update.a) @ update.a.T @ update.b
    return Moments(outputs.numel(), float(outputs.sum()), float(outputs.square().sum()))


def random_like(update: Factors, random: torch.Generator) -> Factors:
    """Return independent random factors with the norms of a module's."""

    def draw(factor: Tensor) -> Tensor:
        values = torch.randn(factor.shape, dtype=factor.dtype, generator=random)
        return values * (factor.norm() / values.norm())

    return Factors(draw(update.a), draw(update.b))


def updates_of(folder: str, model: str | nn.Module) -> dict[Site, Factors]:
    """Return the updates of an adapter's modules, without those that are zero."""
    stored, _ = read_fitting(folder, architecture_of(model))
    tensors = stored.tensors()
    updates = {}
    for site in stored.plan.sites:
        a, b = effective_factors(stored.plan, tensors, site)
        update = Factors(a.double(), b.double())
        if moments_of_update(update).squares > 0:
            updates[site] = update
    return updates


def inputs_of(folder: str, model: str, lines: list[str]) -> dict[str, Tensor]:
    """Return the inputs of each module of the adapted model ``(tokens, d_in)``, by path, on some lines."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(model)
    adapted = load_adapter(folder, AutoModelForCausalLM.from_pretrained(model))
    paths = [site.path for site in adapted.bishare.plan.sites]
    merged = adapted.bishare.merge_and_unload()  # Its modules are called one by one.
    seen: dict[str, list[Tensor]] = {path: [] for path in paths}

    def record(path: str) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
        def hook(module: nn.Module, arguments: tuple[Tensor, ...]) -> None:
            seen[path].append(arguments[0].flatten(0, -2))

        return hook

    for path in paths:
        merged.get_submodule(path).register_forward_pre_hook(record(path))
    with torch.no_grad():
        for line in lines:
            merged(**tokenizer(line, return_tensors="pt"))
    return {path: torch.cat(inputs) for path, inputs in seen.items()}


def within_layers(moments: Mapping[Site, Moments], chance: Mapping[Site, Moments]) -> list[Pair]:
    """Compare the kinds of modules in each layer, and average over the layers."""
    kinds = sorted({site.kind for site in moments})
    layers = sorted({site.layer for site in moments if site.layer is not None})
    sites = {(site.layer, site.kind): site for site in moments}
    pairs = []
    for first, second in combinations(kinds, 2):
        keys = [((layer, first), (layer, second)) for layer in layers]
        both = [(sites[x], sites[y]) for x, y in keys if x in sites and y in sites]
        pairs += _averaged(first, second, both, moments, chance)
    return pairs


def across_layers(moments: Mapping[Site, Moments], chance: Mapping[Site, Moments]) -> list[Pair]:
    """Compare each two layers, and average over the kinds of modules."""
    kinds = sorted({site.kind for site in moments})
    layers = sorted({site.layer for site in moments if site.layer is not None})
    sites = {(site.layer, site.kind): site for site in moments}
    pairs = []
    for first, second in combinations(layers, 2):
        keys = [((first, kind), (second, kind)) for kind in kinds]
        both = [(sites[x], sites[y]) for x, y in keys if x in sites and y in sites]
        pairs += _averaged(str(first), str(second), both, moments, chance)
    return pairs


def _averaged(
    first: str,
    second: str,
    both: list[tuple[Site, Site]],
    moments: Mapping[Site, Moments],
    chance: Mapping[Site, Moments],
) -> list[Pair]:
    if not both:
        return []
    rmi = fmean(relative_mutual_information(moments[x], moments[y]) for x, y in both)
    by_chance = fmean(relative_mutual_information(chance[x], chance[y]) for x, y in both)
    return [Pair(first, second, rmi, by_chance)]


def table(what: str, pairs: list[Pair]) -> Table:
    """Return the table of some pairs."""
    rows = [[p.first, p.second, f"{p.rmi:.3f}", f"{p.chance:.3f}"] for p in pairs]
    return Table([what, "and", "RMI", "by chance"], rows, frozenset({0, 1}))


def main(folder: str, model: str, text: str | None = None) -> None:
    """Print both tables of an adapter."""
    updates = updates_of(folder, model)
    random = torch.Generator().manual_seed(0)
    by_chance = {site: random_like(update, random) for site, update in updates.items()}
    if text is None:
        moments = {site: moments_of_update(update) for site, update in updates.items()}
        chance = {site: moments_of_update(update) for site, update in by_chance.items()}
    else:
        inputs = inputs_of(folder, model, Path(text).read_text(encoding="utf-8").splitlines())
        moments = {s: moments_of_output(update, inputs[s.path]) for s, update in updates.items()}
        chance = {s: moments_of_output(update, inputs[s.path]) for s, update in by_chance.items()}
    print(table("module", within_layers(moments, chance)))
    print()
    print(table("layer", across_layers(moments, chance)))


if __name__ == "__main__":
    main(*sys.argv[1:])
