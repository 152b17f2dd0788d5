"""The update of a module by its singular vectors, and what chance makes of it."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from bishare_dsl.models.site import Site

_ROUNDING = 1e-6
"""Singular values below this part of the largest are what float32 adds."""


@dataclass(frozen=True)
class Factored:
    """``dW = left^T diag(values) right``: ``left`` (rank, d_out) and ``right`` (rank, d_in) have orthonormal
    rows, ``values`` (rank,) fall and are positive. The rank may be 0.
    """

    values: torch.Tensor
    left: torch.Tensor
    right: torch.Tensor

    @classmethod
    def of(cls, down: torch.Tensor, up: torch.Tensor) -> Factored:
        """Return the singular vectors of ``up^T down``, by QR of both factors and the SVD of a small matrix.

        Args:
            down: A, (rows, d_in).
            up: B, (rows, d_out), scale folded in.
        """
        in_basis, in_rest = torch.linalg.qr(down.float().t())
        out_basis, out_rest = torch.linalg.qr(up.float().t())
        small = out_rest.double() @ in_rest.double().t()
        left, values, right = torch.linalg.svd(small, full_matrices=False)
        rank = int((values > _ROUNDING * values[:1].sum()).sum())
        return cls(
            values[:rank].float(),
            left[:, :rank].float().t() @ out_basis.t(),
            right[:rank].float() @ in_basis.t(),
        )

    @property
    def rank(self) -> int:
        """The numerical rank."""
        return len(self.values)

    @property
    def energy(self) -> float:
        """The square of the Frobenius norm."""
        return float(self.values.double().square().sum())

    @property
    def stable_rank(self) -> float:
        """The energy over the square of the largest singular value; 0 where there is none."""
        return self.energy / float(self.values[0].double() ** 2) if self.rank else 0.0

    @property
    def mean(self) -> float:
        """The mean of dW's entries."""
        return float((self.left.mean(dim=1) * self.values * self.right.mean(dim=1)).sum())

    def independent(self, random: torch.Generator) -> Factored:
        """Return an update of the same singular values whose vectors are random: an independent start."""
        return Factored(
            self.values, _directions(self.left, random), _directions(self.right, random)
        )


@dataclass(frozen=True)
class Update:
    """What an adapter adds to a module, and what of it came by training.

    Attributes:
        site: the module.
        whole: dW, without what it was at the start.
        trained: where the start of A is known, the same with the change of A in the place of A; otherwise
            ``whole``.
    """

    site: Site
    whole: Factored
    trained: Factored

    def independent(self, random: torch.Generator) -> Update:
        """Return an update of the same singular values and random vectors."""
        whole = self.whole.independent(random)
        if self.trained is self.whole:
            return Update(self.site, whole, whole)
        return Update(self.site, whole, self.trained.independent(random))


def _directions(like: torch.Tensor, random: torch.Generator) -> torch.Tensor:
    drawn = torch.randn(like.shape[1], like.shape[0], generator=random)
    basis: torch.Tensor = torch.linalg.qr(drawn).Q
    return basis.t()
