"""The update of a module as singular vectors, and independent updates for comparison."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from bishare_dsl.models.site import Site

_ROUNDING = 1e-6
"""Singular values below this fraction of the largest are rounding errors of float32."""


@dataclass(frozen=True)
class Factored:
    """A factored update ``dW = left^T diag(values) right``.

    ``left`` (rank, d_out) and ``right`` (rank, d_in) have orthonormal rows; ``values`` (rank,) are
    positive and fall. The rank may be 0.
    """

    values: torch.Tensor
    left: torch.Tensor
    right: torch.Tensor

    @classmethod
    def of(cls, down: torch.Tensor, up: torch.Tensor) -> Factored:
        """Factor ``up^T down`` with a QR decomposition of both factors and the SVD of a small matrix.

        Args:
            down: A, (rows, d_in).
            up: B, (rows, d_out), including the scale.
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
        """The energy over the square of the largest singular value, or 0 at rank 0."""
        return self.energy / float(self.values[0].double() ** 2) if self.rank else 0.0

    def independent(self, random: torch.Generator) -> Factored:
        """Return an update with the same singular values and random vectors."""
        return Factored(
            self.values, _directions(self.left, random), _directions(self.right, random)
        )


@dataclass(frozen=True)
class Update:
    """The update of a module, and the part of it that training caused.

    Attributes:
        site: the module.
        whole: dW, minus its initial value.
        trained: the same with the change of A instead of A, if the initial values of A are known; else
            ``whole``.
    """

    site: Site
    whole: Factored
    trained: Factored

    def independent(self, random: torch.Generator) -> Update:
        """Return an update with the same singular values and random vectors."""
        whole = self.whole.independent(random)
        if self.trained is self.whole:
            return Update(self.site, whole, whole)
        return Update(self.site, whole, self.trained.independent(random))


def _directions(like: torch.Tensor, random: torch.Generator) -> torch.Tensor:
    drawn = torch.randn(like.shape[1], like.shape[0], generator=random)
    basis: torch.Tensor = torch.linalg.qr(drawn).Q
    return basis.t()
