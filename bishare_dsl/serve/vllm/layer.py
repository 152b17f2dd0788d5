"""What one layer of the model adds to a batch, straight from the compact tensors."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from bishare_dsl.plan import Plan, Term
from bishare_dsl.transforms import Transform, Width, load_transform, raise_rows

if TYPE_CHECKING:
    from bishare_dsl.serve.vllm.bank import Bank
    from bishare_dsl.serve.vllm.batch import Group


@dataclass(frozen=True)
class Outputs:
    """A site's part of a layer's output: a layer may hold several sites, or this process a share of one.

    Attributes:
        path: the site's.
        place: where its part is.
        of_site: which of the site's outputs these are; None for all.
    """

    path: str
    place: slice
    of_site: Tensor | None = None


class LayerTerms:
    """The terms of a layer's sites.

    Args:
        plan: of the adapters in the bank.
        outputs: the layer's sites.
        inputs: which of the sites' inputs this process has; None for all.
        bank: the adapters' tensors.
    """

    def __init__(
        self, plan: Plan, outputs: Sequence[Outputs], bank: Bank, inputs: Tensor | None = None
    ):
        widths = {site.path: Width(site.d_in, site.d_out) for site in plan.sites}
        shapes = {tensor.name: tensor.shape for tensor in plan.tensors}
        products: dict[object, int] = {}
        self._bank, self._inputs = bank, inputs
        self._outputs = [
            (
                part,
                [
                    _Ready(term, widths[part.path], shapes, products)
                    for term in plan.terms_of[part.path]
                ],
            )
            for part in outputs
        ]

    def add(self, output: Tensor, x: Tensor, batch: Sequence[Group]) -> None:
        """Add to ``output (tokens, d_out)`` what the adapters make of ``x (tokens, d_in)``, in place."""
        for group in batch:
            rows = group.rows(x)
            if self._inputs is not None:
                part = rows
                rows = part.new_zeros(*part.shape[:2], self._outputs[0][1][0].width.d_in)
                rows[..., self._inputs] = part
            downs: dict[int, Tensor] = {}
            for where, terms in self._outputs:
                totals: dict[float, Tensor] = {}
                for term in terms:
                    tensors = self._bank.tensors(group, term.names)
                    # The sites of a layer read one input: equal products of it are made once.
                    if (z := downs.get(term.product)) is None:
                        z = term.transform.down_rows(rows, tensors, term.rank, term.width)
                        downs[term.product] = z
                    delta = raise_rows(term.transform, z, tensors, term.rank, term.width)
                    total = totals.get(term.scale)
                    totals[term.scale] = delta if total is None else total + delta
                for scale, total in totals.items():
                    if where.of_site is not None:
                        total = total[..., where.of_site]
                    group.add(output[:, where.place], total, scale)


class _Ready:
    """A term whose transform is loaded, with the number of the product that it begins with."""

    def __init__(
        self,
        term: Term,
        width: Width,
        shapes: Mapping[str, tuple[int, int]],
        products: dict[object, int],
    ):
        self.transform: Transform = load_transform(term.transform, term.options)
        self.names, self.rank, self.width, self.scale = term.tensors, term.rank, width, term.scale
        read = _Reads(
            {
                role: torch.empty(1, *shapes[name], device="meta")
                for role, name in self.names.items()
            }
        )
        self.transform.down_rows(
            torch.empty(1, 1, width.d_in, device="meta"), read, self.rank, width
        )
        names = tuple(self.names[role] for role in sorted(read.roles))
        product = (self.transform, self.rank, width.d_in, names)
        self.product = products.setdefault(product, len(products))


class _Reads(Mapping[str, Tensor]):
    """Tensors by role that remember which of them were read."""

    def __init__(self, tensors: Mapping[str, Tensor]):
        self._tensors = tensors
        self.roles: set[str] = set()

    def __getitem__(self, role: str) -> Tensor:
        self.roles.add(role)
        return self._tensors[role]

    def __iter__(self) -> Iterator[str]:
        return iter(self._tensors)

    def __len__(self) -> int:
        return len(self._tensors)
