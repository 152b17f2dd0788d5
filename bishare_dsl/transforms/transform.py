"""The protocol of a transform: how pooled tensors become a site's factors."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple, TypeAlias

from pydantic import BaseModel, ConfigDict

from bishare_dsl.diagnostics import Problem
from bishare_dsl.spec.spec import Initial

if TYPE_CHECKING:
    from torch import Tensor

    from bishare_dsl.transforms.factor import Factor

Tensors: TypeAlias = "Mapping[str, Tensor]"
"""The tensors of a term, by role."""


class Start(NamedTuple):
    """How a tensor starts. ``amount`` is the deviation of ``normal``, the bound of ``uniform`` and
    ``positive``, the value of ``constant``; the others take none."""

    init: Initial
    amount: float = 1.0


class Own(NamedTuple):
    """A tensor that each site has for itself: a kernel or a gate, rank-major, ``(rows, columns)``.

    ``fan_in`` is the fan-in of the paper's orientation, which scales the kaiming starts.
    """

    rows: int
    columns: int
    fan_in: int = 1


class Width(NamedTuple):
    """The widths of a site's weight: it maps ``d_in`` features to ``d_out``."""

    d_in: int
    d_out: int

    def sides(self, role: str) -> tuple[int, ...]:
        """Return the widths that a pooled tensor depends on: A the input's, B the output's, others both."""
        return {"A": (self.d_in,), "B": (self.d_out,)}.get(role, tuple(self))


def one_width(widths: Sequence[int], parts: int = 1, name: str = "parts") -> int:
    """Return the width of sites that must all be as wide, and that divides into parts of this name.

    Raises:
        ValueError: they are not, or it does not.
    """
    if len(set(widths)) > 1:
        found = ", ".join(str(width) for width in sorted(set(widths)))
        raise ValueError(f"its sites have different widths ({found})")
    if (width := widths[0]) % parts:
        fitting = ", ".join(str(n) for n in (2, 3, 4, 5, 6, 8, 16, 32) if width % n == 0)
        raise ValueError(
            f"a width of {width} does not divide into {parts} {name}, as it does into {fitting}"
        )
    return width


def divisors(sides: Iterable[int]) -> list[int]:
    """Return the numbers that divide every one of some widths, rising."""
    common = math.gcd(*sides)
    return [d for d in range(1, common + 1) if common % d == 0]


class Transform(BaseModel):
    """A transform is a frozen Pydantic model of its options, registered under ``name``.

    Every factor is stored rank-major: A is ``(rank, d_in)`` and B ``(rank, d_out)``, the paper's B
    transposed. So the two factors of a pool are alike, and one rule gives the shape of both.

    Subclasses say which tensors a pool shares and how large they are, what each site has of its own,
    and the effective factors. They know widths and ranks; not who shares, nor why.

    Attributes:
        pooled: the roles of the tensors that are shared; each is pooled by itself.
        owned: the roles of the tensors that each site has for itself; where options leave some out,
            `roles` says which there are.
        fixed: the roles of tensors that are never trained, such as random indices: the transform says alone
            how they start.
        plain: the roles of pooled tensors that meet a site's features as they are, where it is as wide: A
            those of the input, B those of the output. These may start as directions of the site's weight.
        linear: whether the update is a matrix. One that is not gives `update` instead of `factors`,
            and can be trained, saved and run, but neither merged nor exported.
        later: the names of options that came later. A plan does not say them where they have their defaults,
            so that it stays the plan of adapters that were saved before.
        auto: the names of options that a spec may leave to the model by the word `auto`: each is then the
            largest number, up to its default, that leaves the rank in reach and, if possible, divides every
            width of the share's modules.
        exact: the roles of tensors whose order says which numbers are used: a file of half the size keeps
            them in float32, since rounding would change the choice.
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

    @property
    def roles(self) -> tuple[str, ...]:
        """The roles of the tensors that it has with these options: first those of pools."""
        return (*self.pooled, *self.owned)

    def check_rank(self, rank: int) -> None:
        """Refuse a rank that the options cannot give.

        Raises:
            ValueError: the reason, shown to the user at the share.
        """

    def shared_shape(self, role: str, rank: int, widths: Sequence[int]) -> tuple[int, int]:
        """Return ``(rows, columns)`` of a pooled tensor whose sites are ``widths`` wide, on its side.

        By default these are the rank and the widest.

        Raises:
            ValueError: the widths cannot share such a tensor; the reason is shown at the share.
        """
        return rank, max(widths)

    def fan_in(self, role: str, rank: int, widths: Sequence[int]) -> int:
        """Return the fan-in of a pooled tensor, in the paper's orientation; it scales the kaiming starts."""
        return rank if role == "B" else self.shared_shape(role, rank, widths)[1]

    def start(self, role: str) -> Start:
        """Return how a tensor starts, one of the pool's or a site's own, where the spec does not say."""
        return Start("zeros" if role == "B" else "kaiming_uniform")

    def own(self, rank: int, width: Width) -> Mapping[str, Own]:
        """Return the shapes of the tensors that one site has for itself, by role.

        Raises:
            ValueError: the transform cannot fit this site; the reason is shown at the share.
        """
        return {}

    def zeros(self, zero: frozenset[str]) -> frozenset[str]:
        """Return which parts of the product that is the update are zero, where the tensors ``zero`` are.

        A part is called by the role of its tensor; an effective factor that no tensor stands for is called A
        or B. One zero part makes the update start at zero; of two, neither ever gets a gradient.
        """
        return zero.difference(self.fixed)

    def rows(self, rank: int, width: Width) -> int:
        """Count the rows of the effective factors."""
        return rank

    def reach(self, rank: int, width: Width) -> int:
        """Return the highest rank that the update of a site can have, at most `rows`."""
        return min(self.rows(rank, width), *width)

    def factor(self, role: str, tensors: Tensors, rank: int, side: int) -> Tensor | Factor:
        """Return the effective factor ``A (rows, d_in)`` or ``B (rows, d_out)``: ``dW = B^T A``.

        It is a tensor, or a `Factor` that multiplies without being made, such as `Kron`. ``tensors`` holds
        the pooled tensors and the site's own; ``side`` is ``d_in`` or ``d_out``. Called with tensors, with
        those of many adapters under `torch.vmap`, and with `torch.fx` proxies; so it is written in plain
        tensor methods, and branches on shapes only.
        """
        raise NotImplementedError

    def factors(
        self, tensors: Tensors, rank: int, width: Width
    ) -> tuple[Tensor | Factor, Tensor | Factor]:
        """Return both effective factors; for a transform that makes them together, instead of `factor`."""
        d_in, d_out = width
        return self.factor("A", tensors, rank, d_in), self.factor("B", tensors, rank, d_out)

    def update(self, x: Tensor, tensors: Tensors, rank: int, width: Width) -> Tensor:
        """Return the update ``(..., d_out)`` of an input ``(..., d_in)``, for updates that are not linear.

        Written as `factors` is; ``tensors`` come in the dtype of ``x``.
        """
        raise NotImplementedError

    def compact(self, role: str, tensor: Tensor) -> Mapping[str, Tensor] | None:
        """Return all of a trained tensor that running needs, in parts, where that is much less; or None.

        What the parts leave out is lost, so an adapter that was saved in parts cannot train further.
        """
        return None

    def restore(self, role: str, parts: Mapping[str, Tensor], shape: tuple[int, int]) -> Tensor:
        """Make a tensor that gives the same update as the one that `compact` made the parts of.

        Raises:
            ValueError: the parts are not those of such a tensor; the reason is shown to the user.
        """
        raise NotImplementedError

    def review(self, rank: int, widths: Sequence[Width]) -> Iterable[Problem]:
        """Return warnings about a share of this transform over sites of these widths."""
        return ()

    def options(self) -> dict[str, Any]:
        """Return the options as plain values, defaults included but for those of `later`."""
        defaults = type(self).model_fields
        same = {name for name in self.later if getattr(self, name) == defaults[name].default}
        return self.model_dump(by_alias=True, exclude=same)
