"""Check a transform.

    @pytest.mark.parametrize("rank", [1, 4, 7])
    def test_my_transform(rank):
        check_transform(MyTransform(size=4), rank, [Width(12, 20), Width(7, 5)])

A failed check raises an AssertionError with the difference and its location.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import chain, combinations
from typing import Any

import torch
from torch import Tensor, fx, nn

from bishare_dsl.testing.reference import REFERENCES, TermValues
from bishare_dsl.transforms import Transform, Width, effective_pair, term_factors, vmap_factors
from bishare_dsl.transforms.factor import DECODE_TOKENS
from bishare_dsl.transforms.registry import BUILT_IN, transform_kind


def check_transform(transform: Transform, rank: int, widths: Sequence[Width]) -> bool:
    """Check what bishare relies on in a transform, at one rank and for the sites of one pool.

    - Its name is not that of a built-in transform.
    - Shapes are as declared.
    - The update is zero exactly if `zeros` says so. It can leave zero if one part is zero, and not if
      several are.
    - The rank of the update is at most `reach`.
    - A traced graph of `factors` gives the same result, and factors multiply like their matrices.
    - Every tensor gets a gradient.
    - The options survive a round trip through JSON.
    - The update equals the registered reference, if there is one.

    Args:
        transform: a transform with its options.
        rank: the rank of the share, at least 1.
        widths: the widths of the pool's sites.

    Returns:
        False if the transform refuses this rank or these widths, and nothing was checked.

    Raises:
        AssertionError: a check failed.
    """
    if (name := transform.name) in BUILT_IN:
        _same(type(transform), transform_kind(name), f"the class of the built-in name {name}")
    try:
        transform.check_rank(rank)
        shared = {
            role: transform.shared_shape(
                role, rank, [side for width in widths for side in width.sides(role)]
            )
            for role in transform.pooled
        }
        own = {width: transform.own(rank, width) for width in widths}
    except ValueError:
        return False
    _same(type(transform).model_validate(transform.options()), transform, "the options, read again")
    for width in widths:
        roles = sorted([*shared, *own[width]])
        _same(roles, sorted(transform.roles), "roles of the tensors of pools and of a site's own")
        shapes = shared | {role: (t.rows, t.columns) for role, t in own[width].items()}
        if transform.linear:
            _check_factors(transform, rank, width, shapes)
        else:
            _check_update(transform, rank, width, shapes)
    return True


def _check_factors(
    transform: Transform, rank: int, width: Width, shapes: Mapping[str, tuple[int, int]]
) -> None:
    values = _random_tensors(shapes, _random(rank))
    down, up = effective_pair(transform, values, rank, width, 1.0)
    rows, where = transform.rows(rank, width), f"at {width.d_in} -> {width.d_out}"
    _same(tuple(down.shape), (rows, width.d_in), f"the shape of the effective A {where}")
    _same(tuple(up.shape), (rows, width.d_out), f"the shape of the effective B {where}")
    update = up.T @ down

    reach = transform.reach(rank, width)
    if not 0 < reach <= rows:
        raise AssertionError(f"reach is {reach} {where}, and the factors have {rows} rows")
    measured = int(torch.linalg.matrix_rank(update.detach()))
    if measured > reach:
        raise AssertionError(f"the update's rank is {measured} {where}, and reach says {reach}")

    def product(tensors: Mapping[str, Tensor]) -> Tensor:
        a, b = effective_pair(transform, tensors, rank, width, 1.0)
        return b.T @ a

    _check_learning(transform, values, product, where)
    _check_plain(transform, values, (down, up), where)

    traced = _Factors(transform, rank, width, tuple(shapes))
    graph = fx.symbolic_trace(traced)
    for actual, expected, factor in zip(graph(*values.values()), (down, up), "AB", strict=True):
        _near(actual.dense(), expected, f"the effective {factor} of a traced graph {where}")

    _check_products(transform, values, rank, width, where)

    if (reference := REFERENCES.get(transform.name)) is not None:
        term = TermValues(values, transform.options(), rank, width.d_in, width.d_out)
        b, a = reference(term)
        _near(update, b @ a, f"the update {where}", 1e-9)


def _check_plain(
    transform: Transform, values: Mapping[str, Tensor], pair: tuple[Tensor, Tensor], where: str
) -> None:
    """Check that the rows of `plain` tensors are rows of the effective factors."""
    for role in transform.plain:
        factor, tensor = pair["AB".index(role)].detach(), values[role].detach()
        if factor.shape[1] == tensor.shape[1]:
            both = int(torch.linalg.matrix_rank(torch.cat([factor, tensor])))
            alone = int(torch.linalg.matrix_rank(tensor))
            _same(both, alone, f"rows of {role} {where}, a factor's too")


def _check_products(
    transform: Transform, values: Mapping[str, Tensor], rank: int, width: Width, where: str
) -> None:
    """Check that factors multiply like their matrices, also for several adapters."""
    several = {role: torch.stack([value, 2 * value]) for role, value in values.items()}
    apart = [{role: value[i] for role, value in several.items()} for i in range(2)]
    dense_of = [[f.dense() for f in term_factors(transform, one, rank, width)] for one in apart]
    together = vmap_factors(lambda given: term_factors(transform, given, rank, width), several, 2)
    random = _random(rank)
    for number, (role, side) in enumerate(zip("AB", width, strict=True)):
        one, want = term_factors(transform, values, rank, width)[number], dense_of[0][number]
        both = torch.stack([pair[number] for pair in dense_of])
        _near(together[number].dense(), both, f"the effective {role} of several {where}", 1e-9)
        for tokens in (1, 3, DECODE_TOKENS + 1):
            for factor, dense, axes in ((one, want, ()), (together[number], both, (2,))):
                x = torch.randn(*axes, tokens, side, generator=random, dtype=want.dtype)
                z = torch.randn(*axes, tokens, len(want), generator=random, dtype=want.dtype)
                what = f"of the effective {role} {where}, {tokens} tokens"
                _near(factor.down(x), x @ dense.mT, f"`down` {what}", 1e-9)
                _near(
                    factor.add_up(x.clone(), z, 0.5), x + 0.5 * z @ dense, f"`add_up` {what}", 1e-9
                )


def _check_update(
    transform: Transform, rank: int, width: Width, shapes: Mapping[str, tuple[int, int]]
) -> None:
    random = _random(rank)
    values = _random_tensors(shapes, random)
    x = torch.randn(2, 3, width.d_in, generator=random, dtype=torch.float64)
    where = f"at {width.d_in} -> {width.d_out}"
    update = transform.update(x, values, rank, width)
    _same(tuple(update.shape), (2, 3, width.d_out), f"the shape of the update {where}")
    _check_learning(transform, values, lambda t: transform.update(x, t, rank, width), where)
    if (reference := REFERENCES.get(transform.name)) is not None:
        term = TermValues(values, transform.options(), rank, width.d_in, width.d_out)
        _near(update, reference(term, x), f"the update {where}", 1e-9)


def _random_tensors(
    shapes: Mapping[str, tuple[int, int]], random: torch.Generator
) -> dict[str, Tensor]:
    return {
        role: torch.randn(shape, generator=random, dtype=torch.float64).requires_grad_()
        for role, shape in shapes.items()
    }


def _check_learning(
    transform: Transform,
    values: Mapping[str, Tensor],
    update: Callable[[Mapping[str, Tensor]], Tensor],
    where: str,
) -> None:
    """Check that every tensor gets a gradient, and that `zeros` is correct for any set of zero tensors."""
    gradients = _gradients(update(values).square().sum(), list(values.values()))
    pairs = zip(values, gradients, strict=True)
    missed = [role for role, g in pairs if not (g.any() or role in transform.fixed)]
    _same(missed, [], f"tensors that no gradient reaches {where}")
    for zero in chain.from_iterable(combinations(values, n) for n in range(len(values) + 1)):
        parts = sorted(transform.zeros(frozenset(zero)))
        if unknown := [part for part in parts if part not in (*zero, *{"A", "B"} - set(values))]:
            raise AssertionError(f"`zeros` gives {unknown}, and at zero are {list(zero)}")
        some = {r: (t.detach() * (r not in zero)).requires_grad_() for r, t in values.items()}
        delta = update(some)
        at_zero = (
            f"{where} with {' and '.join(zero) or 'nothing'} at zero, and `zeros` gives {parts}"
        )
        if delta.any() == bool(parts):
            raise AssertionError(f"the update is {'not ' * bool(parts)}zero {at_zero}")
        if parts:
            weights = torch.rand(delta.shape, generator=_random(0), dtype=delta.dtype) + 1
            learns = any(g.any() for g in _gradients((delta * weights).sum(), [*some.values()]))
            if learns != (len(parts) == 1):
                raise AssertionError(f"{'a' if learns else 'no'} gradient comes {at_zero}")


class _Factors(nn.Module):
    """`Transform.factors` as a module, whose inputs are the tensors."""

    def __init__(self, transform: Transform, rank: int, width: Width, roles: tuple[str, ...]):
        super().__init__()
        self.transform, self.rank, self.width, self.roles = transform, rank, width, roles

    def forward(self, *tensors: Tensor) -> tuple[Any, Any]:
        # When traced, `tensors` is one proxy for all of them.
        values = {role: tensors[i] for i, role in enumerate(self.roles)}
        a, b = term_factors(self.transform, values, self.rank, self.width)
        return _node(a), _node(b)


def _node(factor: Any) -> Any:
    """Return a traced factor as one value of the graph."""
    parts = [_node(part) if isinstance(part, tuple) else part for part in factor]
    proxy = next(part for part in parts if isinstance(part, fx.Proxy))
    return proxy.tracer.create_proxy("call_function", type(factor), tuple(parts), {})


def _gradients(loss: Tensor, tensors: list[Tensor]) -> list[Tensor]:
    # The loss may not depend on a tensor, such as the keys of padded tokens in the last layer.
    gradients: Sequence[Tensor | None] = torch.autograd.grad(loss, tensors, allow_unused=True)
    return [
        torch.zeros_like(tensor) if gradient is None else gradient
        for tensor, gradient in zip(tensors, gradients, strict=True)
    ]


def _random(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def _same(actual: object, expected: object, what: str) -> None:
    if actual != expected:
        raise AssertionError(f"{what}: found {actual}, expected {expected}")


def _near(actual: Tensor, expected: Tensor, what: str, tolerance: float = 0.0) -> None:
    """Compare two tensors relative to the largest expected value."""
    allowed = tolerance * max(float(expected.detach().abs().max()), 1e-6)
    torch.testing.assert_close(
        actual, expected, rtol=0, atol=allowed, msg=lambda said: f"{what} differs: {said}"
    )
