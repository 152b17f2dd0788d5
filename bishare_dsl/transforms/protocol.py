"""Check that a transform follows the protocol; errors name the transform and its package.

Any package can provide a transform, so its faults must be attributed to it wherever they appear.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import lru_cache
from typing import TYPE_CHECKING, get_args

from bishare_dsl.diagnostics import BishareError
from bishare_dsl.spec.spec import Initial
from bishare_dsl.transforms.registry import describe_exception, transform_error
from bishare_dsl.transforms.transform import Start, Transform, Width

if TYPE_CHECKING:
    from torch import Tensor

Shapes = Mapping[str, tuple[int, int]]
"""The shapes of a term's tensors, by role."""


@contextmanager
def guard(
    transform: Transform | type[Transform], method: str, *refusals: type[Exception]
) -> Iterator[None]:
    """Convert errors raised by a method of a transform inside the block.

    Args:
        transform: the method's owner.
        method: the name of the method.
        refusals: exceptions that the method may raise; they are passed on.

    Raises:
        SpecError: the method raised another exception (BS214).
    """
    try:
        yield
    except BishareError:
        raise
    except Exception as error:
        if isinstance(error, refusals):
            raise
        raise transform_error(
            transform, f"`{method}` raises {describe_exception(error)}"
        ) from error


def shape_of(transform: Transform, method: str, result: object) -> tuple[int, int]:
    """Check that ``result`` is the shape of a tensor, rows and columns, and return it.

    Raises:
        SpecError: it is not a shape (BS214).
    """
    match result:
        case (int(rows), int(columns)) if rows > 0 and columns > 0:
            return rows, columns
    raise transform_error(
        transform, f"`{method}` gives {result!r}, which is not a shape (rows, columns)"
    )


def check_own(transform: Transform, own: Mapping[str, object]) -> None:
    """Check the roles and the shapes that `own` returned.

    Raises:
        SpecError: they are not those of the protocol (BS214).
    """
    expected = sorted({*transform.roles} - {*transform.pooled})
    actual = sorted(own)
    if actual != expected:
        why = f"`own` gives the roles {actual}, and `owned` says {expected}"
        raise transform_error(transform, why)
    for shape in own.values():
        shape_of(transform, "own", tuple(shape)[:2] if isinstance(shape, tuple) else shape)


def own_starts(transform: Transform, specified: Mapping[str, Start]) -> dict[str, Start]:
    """Return the transform's initial values for roles that the share does not mention."""
    with guard(transform, "start"):
        starts = {
            role: Start(*transform.start(role))
            for role in transform.roles
            if role not in specified or role in transform.fixed
        }
    for start in starts.values():
        if start.init not in get_args(Initial):
            why = f"`start` gives {start.init!r}, which is none of {[*get_args(Initial)]}"
            raise transform_error(transform, why)
    return starts


def check_term(transform: Transform, rank: int, width: Width, shapes: Shapes) -> None:
    """Check a transform's results for tensors of these shapes against the protocol; cached.

    Raises:
        SpecError: it raises an error, or returns another shape (BS214).
    """
    import torch

    # A tensor that is made in inference mode, such as a worker of vLLM is in, does not count its changes.
    with torch.inference_mode(False):
        _check_term(transform, rank, width, tuple(sorted(shapes.items())))


@lru_cache(4096)
def _check_term(
    transform: Transform, rank: int, width: Width, shapes: tuple[tuple[str, tuple[int, int]], ...]
) -> None:
    import torch

    tensors = {role: torch.empty(shape, device="meta") for role, shape in shapes}
    where = f"at a {width.d_in} -> {width.d_out} module"
    if not transform.linear:
        x = torch.empty(2, 3, width.d_in, device="meta")
        with guard(transform, "update"), unchanged(transform, "update", tensors | {"x": x}):
            delta = transform.update(x, tensors, rank, width)
        _expect(transform, "`update` gives an update", delta, (2, 3, width.d_out), where)
        return
    with guard(transform, "rows"):
        rows = transform.rows(rank, width)
    with guard(transform, "factors"), unchanged(transform, "factors", tensors):
        pair: object = transform.factors(tensors, rank, width)
    if not isinstance(pair, tuple) or len(pair) != 2:
        raise transform_error(transform, "`factors` gives no pair of factors")
    for factor, result, side in zip("AB", pair, width, strict=True):
        if isinstance(result, tuple):
            with guard(transform, "dense"):
                result = result.dense()  # type: ignore[attr-defined]
        _expect(transform, f"`factors` gives an effective {factor}", result, (rows, side), where)


@contextmanager
def unchanged(transform: Transform, method: str, tensors: Mapping[str, Tensor]) -> Iterator[None]:
    """Check that a method does not write to tensors inside the block.

    Each forward would change the trained values, and a graph would write to a copy.

    Raises:
        SpecError: it does (BS214).
    """
    # A view has the counter of its tensor.
    versions = {role: tensor._version for role, tensor in tensors.items()}
    yield
    changed = [role for role, tensor in tensors.items() if tensor._version != versions[role]]
    if changed:
        why = (
            f"`{method}` changes `{changed[0]}` in place: write `a * 2` for `a *= 2` or `a.mul_(2)`"
        )
        raise transform_error(transform, why)


def _expect(
    transform: Transform, what: str, result: object, shape: tuple[int, ...], where: str
) -> None:
    import torch

    if not isinstance(result, torch.Tensor):
        raise transform_error(transform, f"{what} that is not a tensor {where}")
    if result.is_complex():  # A cast to the dtype of the activations would drop the imaginary part.
        raise transform_error(transform, f"{what} of complex numbers {where}")
    if tuple(result.shape) != shape:
        raise transform_error(
            transform, f"{what} of shape {tuple(result.shape)} {where}, not {shape}"
        )
