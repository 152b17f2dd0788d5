"""The protocol of transforms, which turn pooled tensors into a site's factors."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple, Self, TypeAlias

from pydantic import BaseModel, ConfigDict

from bishare_dsl.diagnostics import Problem
from bishare_dsl.spec.spec import Initial

if TYPE_CHECKING:
    from torch import Tensor

    from bishare_dsl.transforms.factor import Factor

Tensors: TypeAlias = "Mapping[str, Tensor]"
"""The tensors of a term, by role."""


class Start(NamedTuple):
    """A tensor's initialisation.

    ``amount`` is the standard deviation of ``normal``, the bound of ``uniform`` and ``positive``, or the
    value of ``constant``; others ignore it.
    """

    init: Initial
    amount: float = 1.0


class Own(NamedTuple):
    """A private tensor of each site, such as a kernel or a gate, stored rank-major: ``(rows, columns)``.

    ``fan_in`` is the fan-in in the paper's orientation, which scales kaiming initialisation.
    """

    rows: int
    columns: int
    fan_in: int = 1


@dataclass(frozen=True)
class Counted:
    """Matrices that a transform sums: how many, and the role of a site's coefficients ``(1, count)``."""

    count: int
    coefficients: str


class Width(NamedTuple):
    """The widths of a site's weight, which maps ``d_in`` features to ``d_out``."""

    d_in: int
    d_out: int

    def sides(self, role: str) -> tuple[int, ...]:
        """Return the widths that a pooled tensor depends on: input for A, output for B, both for others."""
        return {"A": (self.d_in,), "B": (self.d_out,)}.get(role, tuple(self))


def one_width(widths: Sequence[int], parts: int = 1, name: str = "parts") -> int:
    """Return the common width of sites, which must be divisible into ``parts``.

    Raises:
        ValueError: the widths differ, or are not divisible.
    """
    if len(set(widths)) > 1:
        listed = ", ".join(str(width) for width in sorted(set(widths)))
        raise ValueError(f"their widths differ ({listed})")
    if (width := widths[0]) % parts:
        fitting = ", ".join(str(n) for n in (2, 3, 4, 5, 6, 8, 16, 32) if width % n == 0)
        raise ValueError(
            f"a width of {width} does not divide into {parts} {name}, as it does into {fitting}"
        )
    return width


def divisors(sides: Iterable[int]) -> list[int]:
    """Return the common divisors of some widths, in ascending order."""
    common = math.gcd(*sides)
    return [d for d in range(1, common + 1) if common % d == 0]


def weighted_sum(weights: Tensor, matrices: Tensor, count: int) -> Tensor:
    """Compute ``sum_i weights[i] M_i``: ``(..., rows, columns)``.

    Args:
        weights: ``(..., 1, count)``.
        matrices: the ``count`` matrices M, stacked in ``(..., count * rows, columns)``.
        count: of the matrices.
    """
    apart = matrices.unflatten(-2, (count, -1))  # (..., count, rows, columns)
    total: Tensor = (weights.mT.unsqueeze(-1) * apart).sum(-3)
    return total


def combine_blocks(weights: Tensor, rows: int) -> Tensor:
    """Return the matrix ``(..., rows, count * rows)`` that sums blocks of rows: ``weights (x) identity``.

    Args:
        weights: ``(..., 1, count)``.
        rows: of a block.
    """
    identity = weights.new_ones(rows).diag()
    blocks = weights.unsqueeze(-1) * identity.unsqueeze(-2)  # (..., rows, count, rows)
    return blocks.flatten(-2)


class Sort(Enum):
    """Where a transform may stand in a composition.

    ``FACTOR`` fits one factor to a site, A and B independently of each other. ``BETWEEN`` makes a square
    matrix that stands between A and B. ``PAIR`` makes both factors together, or no factors, and stands
    alone.
    """

    FACTOR = "factor"
    BETWEEN = "between"
    PAIR = "pair"


class Transform(BaseModel):
    """A transform: a frozen Pydantic model of its options, registered under ``name``.

    Every factor is stored rank-major: A is ``(rank, d_in)`` and B ``(rank, d_out)``, the transpose of the
    paper's B. So both factors of a pool follow one rule for their shapes.

    Subclasses define the shared tensors of a pool with their shapes, the private tensors of each site,
    and the effective factors. They depend on widths and ranks, not on which sites share.

    Attributes:
        pooled: the roles of shared tensors; each role has its own pools.
        owned: the roles of each site's private tensors; if options remove some, `roles` lists the rest.
        fixed: the roles of tensors that are never trained, such as random indices; only the transform
            determines their initial values.
        plain: the roles of pooled tensors that multiply a site's features directly if the widths are
            equal: A the input's, B the output's. They may be initialised with directions of the site's
            weight.
        linear: whether the update is a matrix. Other transforms implement `update` instead of `factors`.
            They can be trained, saved and run, but neither merged nor exported.
        later: the names of options added after the first release. A plan omits them at their defaults, so
            that it equals the plans of older adapters.
        auto: the names of options that a spec may set to `auto`. Each becomes the largest number, up to
            its default, that permits the rank and, if possible, `fits` the widths of the share's modules.
        sort: where it may stand in a composition; a transform that does not say stands alone.
        place: for a sort other than ``PAIR``, the factor that reads each private tensor, A or B.
        mixes: whether it multiplies the rows of a factor from the left, so that it may follow another
            transform of the sort ``FACTOR`` in a chain.
        exact: the roles of tensors whose order selects other values. They are not rounded
            in files, because that could change the selection.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", defer_build=True)

    name: ClassVar[str]
    title: ClassVar[str]
    pooled: ClassVar[tuple[str, ...]] = ("A", "B")
    owned: ClassVar[tuple[str, ...]] = ()
    fixed: ClassVar[tuple[str, ...]] = ()
    plain: ClassVar[tuple[str, ...]] = ()
    linear: ClassVar[bool] = True
    later: ClassVar[tuple[str, ...]] = ()
    auto: ClassVar[tuple[str, ...]] = ()
    exact: ClassVar[tuple[str, ...]] = ()
    sort: ClassVar[Sort] = Sort.PAIR
    place: ClassVar[Mapping[str, str]] = MappingProxyType({})
    mixes: ClassVar[bool] = False

    @property
    def roles(self) -> tuple[str, ...]:
        """The roles of the tensors under these options, pooled roles first."""
        return (*self.pooled, *self.owned)

    def check_rank(self, rank: int) -> None:
        """Reject a rank that is impossible with the options.

        Raises:
            ValueError: the reason, shown to the user at the share.
        """

    def shared_shape(self, role: str, rank: int, widths: Sequence[int]) -> tuple[int, int]:
        """Return ``(rows, columns)`` of a pooled tensor for sites with these ``widths`` on its side.

        The default is the rank and the maximum width.

        Raises:
            ValueError: the widths cannot share such a tensor; the reason is shown at the share.
        """
        return rank, max(widths)

    def fan_in(self, role: str, rank: int, widths: Sequence[int]) -> int:
        """Return a pooled tensor's fan-in in the paper's orientation, to scale kaiming initialisation."""
        return rank if role == "B" else self.shared_shape(role, rank, widths)[1]

    def start(self, role: str) -> Start:
        """Return the default initialisation of a pooled or private tensor."""
        return Start("zeros" if role == "B" else "kaiming_uniform")

    def own(self, rank: int, width: Width) -> Mapping[str, Own]:
        """Return the shapes of a site's private tensors, by role.

        Raises:
            ValueError: the transform is not applicable to this site; the reason is shown at the share.
        """
        return {}

    def zeros(self, zero: frozenset[str]) -> frozenset[str]:
        """Return which factors of the product that forms the update are zero if the tensors ``zero`` are.

        They are named by the tensor's role, or A or B for an effective factor without a tensor. If one is
        zero, the update starts at zero; if two are, neither ever receives a gradient.
        """
        return zero.difference(self.fixed)

    def rows(self, rank: int, width: Width) -> int:
        """Count the rows of the effective factors."""
        return rank

    def reach(self, rank: int, width: Width) -> int:
        """Return the maximum rank of a site's update, at most `rows`."""
        return min(self.rows(rank, width), *width)

    def factor(self, role: str, tensors: Tensors, rank: int, side: int) -> Tensor | Factor:
        """Return the effective factor ``A (rows, d_in)`` or ``B (rows, d_out)``: ``dW = B^T A``.

        Return a tensor, or a `Factor` that multiplies without a dense matrix, such as `Kron`. ``tensors``
        are the pooled and the site's private tensors; ``side`` is ``d_in`` or ``d_out``. This is
        called with tensors, with those of many adapters under `torch.vmap`, and with `torch.fx` proxies.
        So use plain tensor methods, and branch on shapes only.
        """
        raise NotImplementedError

    def mixed_rows(self, role: str, rank: int) -> int:
        """Count the rows of the factor that `mix` multiplies, for a result of ``rank`` rows."""
        raise NotImplementedError

    def mix(self, role: str, tensors: Tensors, rank: int) -> Tensor:
        """Return the matrix ``(rank, mixed rows)`` that multiplies a factor from the left, if it `mixes`."""
        raise NotImplementedError

    def matrix(self, tensors: Tensors, rank: int) -> Tensor:
        """Return the matrix ``M (rank, rank)`` between the factors, ``dW = B^T M^T A``.

        Of the sort ``BETWEEN``.
        """
        raise NotImplementedError

    def counted(self, place: str) -> Counted | None:
        """Return the matrices that it sums at a place, A, B or between; None if there are none.

        A gate replaces their coefficients. Then implement `stacked`, unless it only `mixes`.
        """
        return None

    def stacked(self, place: str, tensors: Tensors, rank: int, side: int) -> Tensor:
        """Return the matrices before their sum, stacked in rows: ``(count * rank, side)``.

        Between A and B, ``side`` is the rank. ``tensors`` lack the coefficients.
        """
        raise NotImplementedError

    def with_option(self, option: str, value: Any) -> Self:
        """Return the transform with another value of an option of `auto`."""
        return self.model_copy(update={option: value})

    def fits(self, option: str, sides: Collection[int]) -> bool:
        """Return whether an option of `auto` suits the widths of the share's modules.

        By default, whether it divides each.
        """
        size: int = getattr(self, option)
        return not any(side % size for side in sides)

    def largest(self, option: str) -> int:
        """Return the largest value of an option of `auto`: its default."""
        largest: int = type(self).model_fields[option].default
        return largest

    def factors(
        self, tensors: Tensors, rank: int, width: Width
    ) -> tuple[Tensor | Factor, Tensor | Factor]:
        """Return both effective factors; override it instead of `factor` to compute them together."""
        d_in, d_out = width
        return self.factor("A", tensors, rank, d_in), self.factor("B", tensors, rank, d_out)

    def update(self, x: Tensor, tensors: Tensors, rank: int, width: Width) -> Tensor:
        """Return the update ``(..., d_out)`` for an input ``(..., d_in)``, if it is not linear.

        The rules of `factor` apply; ``tensors`` have the dtype of ``x``.
        """
        raise NotImplementedError

    def review(self, rank: int, widths: Sequence[Width]) -> Iterable[Problem]:
        """Return warnings about a share of this transform at sites of these widths."""
        return ()

    def options(self) -> dict[str, Any]:
        """Return the options as plain values with defaults, except those of `later`."""
        defaults = type(self).model_fields
        same = {name for name in self.later if getattr(self, name) == defaults[name].default}
        return self.model_dump(by_alias=True, exclude=same)
