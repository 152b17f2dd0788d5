"""The protocol of a transform: how a pooled factor becomes a site's factor."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

from pydantic import BaseModel, ConfigDict

from bishare_dsl.diagnostics import Problem
from bishare_dsl.spec.spec import Initial

if TYPE_CHECKING:
    from torch import Tensor


class Own(NamedTuple):
    """A tensor that each site has for itself: a kernel or a gate, rank-major, ``(rows, columns)``.

    ``fan_in`` is the fan-in of the paper's orientation, which scales the kaiming starts.
    """

    rows: int
    columns: int
    init: Initial
    fan_in: int


class Width(NamedTuple):
    """The widths of a site's weight: it maps ``d_in`` features to ``d_out``."""

    d_in: int
    d_out: int


class Transform(BaseModel):
    """A transform is a frozen Pydantic model of its options, registered under ``name``.

    Every factor is stored rank-major: A is ``(rank, d_in)`` and B ``(rank, d_out)``, the paper's B
    transposed. So the two factors of a pool are alike, and one rule gives the shape of both.

    Subclasses say how large a pooled factor is, what each site has of its own, and the effective
    factors. They know widths and ranks; not who shares, nor why.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", defer_build=True)

    name: ClassVar[str]
    title: ClassVar[str]

    def check_rank(self, rank: int) -> None:
        """Refuse a rank that the options cannot give.

        Raises:
            ValueError: the reason, shown to the user at the share.
        """

    def shared_shape(self, rank: int, widths: Sequence[int]) -> tuple[int, int]:
        """``(rows, columns)`` of a pooled factor whose sites are ``widths`` wide.

        Raises:
            ValueError: the widths cannot share one factor; the reason is shown at the share.
        """
        raise NotImplementedError

    def own(self, rank: int, width: Width) -> Mapping[str, Own]:
        """The tensors that one site has for itself, by role; the roles ``A`` and ``B`` are taken."""
        return {}

    def rows(self, rank: int, width: Width) -> int:
        """Rows of the effective factors."""
        return rank

    def reach(self, rank: int, width: Width) -> int:
        """The highest rank that the update of a site can have, at most ``rank``."""
        return min(self.rows(rank, width), *width)

    def factors(
        self, tensors: Mapping[str, Tensor], rank: int, width: Width
    ) -> tuple[Tensor, Tensor]:
        """The effective factors ``A (rows, d_in)`` and ``B (rows, d_out)``: ``dW = B^T A``.

        ``tensors`` holds the pooled factors ``A`` and ``B`` and the site's own tensors by role. Called
        with tensors, to merge and export, and with `torch.fx` proxies, to build the graph that trains;
        so it is written in plain tensor methods, and branches on shapes only.
        """
        raise NotImplementedError

    def review(self, rank: int, widths: Sequence[Width]) -> Iterable[Problem]:
        """Warnings about a share of this transform over sites of these widths."""
        return ()

    def options(self) -> dict[str, Any]:
        """The options as plain values, defaults included."""
        return self.model_dump(by_alias=True)
