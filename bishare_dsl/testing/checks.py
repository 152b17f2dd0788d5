"""Check a transform.

    @pytest.mark.parametrize("rank", [1, 4, 7])
    def test_my_transform(rank):
        check_transform(MyTransform(size=4), rank, [Width(12, 20), Width(7, 5)])

A failed check raises an AssertionError with the difference and its location.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from itertools import chain, combinations

import torch
from torch import Tensor, nn

from bishare_dsl.diagnostics import SpecError
from bishare_dsl.rewrite.compile_regions import region_code
from bishare_dsl.rewrite.effective_factors import EffectiveFactors
from bishare_dsl.rewrite.fallback import linear_region
from bishare_dsl.rewrite.owned import OwnedTensors
from bishare_dsl.rewrite.passes import ExpandTerms, run_passes
from bishare_dsl.rewrite.region import FACTORS, RegionGraphs, Target, TermUse
from bishare_dsl.rewrite.rewritten import set_code
from bishare_dsl.testing.reference import REFERENCES, TermValues
from bishare_dsl.transforms import (
    Transform,
    Width,
    check_term,
    effective_pair,
    term_factors,
    vmap_factors,
)
from bishare_dsl.transforms.factor import DECODE_TOKENS
from bishare_dsl.transforms.registry import BUILT_IN, transform_kind

_SCALE = 0.5
"""The scale of the term that is compiled."""

_BATCHES = ((1,), (3,), (1, 1), (2, 3), (DECODE_TOKENS + 1,))
"""Shapes of inputs without their features: one token or several, in one row or several."""

_REACH_TRIALS = 64
"""How many random updates may have a lower rank than `reach`, as random indices may select rows twice."""


def check_transform(transform: Transform, rank: int, widths: Sequence[Width]) -> bool:
    """Check what bishare relies on in a transform, at one rank and for the sites of one pool.

    - Its name is not that of a built-in transform.
    - Shapes are as declared.
    - The update is zero exactly if `zeros` says so. It can leave zero if one part is zero, and not if
      several are.
    - The rank of the update is at most `reach`, and random tensors reach it.
    - The compiler's tracer accepts it, and the generated code computes the same: of one token and of
      several, in one row and in several, with gradients and without, twice.
    - It changes no tensor in place, and has no state and no random numbers.
    - The update of a token does not depend on other tokens or rows.
    - Factors multiply like their matrices, also for several adapters.
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
    pool = pool_shapes(transform, rank, widths)
    if pool is None:
        return False
    _same(type(transform).model_validate(transform.options()), transform, "the options, read again")
    for width, shapes in pool.items():
        _same(
            sorted(shapes),
            sorted(transform.roles),
            "roles of the tensors of pools and of a site's own",
        )
        if transform.linear:
            _check_factors(transform, rank, width, shapes)
        else:
            _check_update(transform, rank, width, shapes)
    return True


def pool_shapes(
    transform: Transform, rank: int, widths: Sequence[Width]
) -> dict[Width, dict[str, tuple[int, int]]] | None:
    """Return the shapes of the tensors, by role, at each width of a pool.

    None if the transform refuses this rank or these widths.
    """
    pool = {}
    try:
        transform.check_rank(rank)
        shared = {}
        for role in transform.pooled:
            sides = [side for width in widths for side in width.sides(role)]
            shared[role] = transform.shared_shape(role, rank, sides)
        for width in widths:
            own = transform.own(rank, width)
            private = {role: (tensor.rows, tensor.columns) for role, tensor in own.items()}
            pool[width] = shared | private
    except ValueError:
        return None
    return pool


def _check_factors(
    transform: Transform, rank: int, width: Width, shapes: Mapping[str, tuple[int, int]]
) -> None:
    where = f"at {width.d_in} -> {width.d_out}"
    values = _random_tensors(transform, shapes, _random(rank))
    down, up = _twice(transform, values, rank, width, where)
    rows = transform.rows(rank, width)
    _same(tuple(down.shape), (rows, width.d_in), f"the shape of the effective A {where}")
    _same(tuple(up.shape), (rows, width.d_out), f"the shape of the effective B {where}")
    _check_protocol(transform, rank, width, shapes)
    update = up.T @ down

    def product(tensors: Mapping[str, Tensor]) -> Tensor:
        a, b = effective_pair(transform, tensors, rank, width, 1.0)
        return b.T @ a

    _check_learning(transform, values, product, where)
    _check_reach(transform, rank, width, shapes, where)
    _check_plain(transform, values, (down, up), where)
    _check_products(transform, values, rank, width, where)

    if (reference := REFERENCES.get(transform.name)) is not None:
        term = TermValues(values, transform.options(), rank, width.d_in, width.d_out)
        b, a = reference(term)
        _near(update, b @ a, f"the update {where}", 1e-9)

    def expected(x: Tensor) -> Tensor:
        return x @ update.T

    _check_compiled(transform, values, rank, width, expected, where)


def _twice(
    transform: Transform, values: Mapping[str, Tensor], rank: int, width: Width, where: str
) -> tuple[Tensor, Tensor]:
    """Return the effective factors, after checking that a second call gives the same ones."""
    before = {role: value.detach().clone() for role, value in values.items()}
    try:
        first = effective_pair(transform, values, rank, width, 1.0)
        second = effective_pair(transform, values, rank, width, 1.0)
    except RuntimeError as error:  # Such as a change in place of a tensor that needs a gradient.
        raise AssertionError(f"`factors` raises {error} {where}") from error
    _check_kept(values, before, f"`factors` {where}")
    for one, other, role in zip(first, second, "AB", strict=True):
        if not torch.equal(one, other):
            raise AssertionError(
                f"`factors` gives another effective {role} at the second call {where}: "
                "it reads random numbers or a state"
            )
    return first


def _check_kept(values: Mapping[str, Tensor], before: Mapping[str, Tensor], what: str) -> None:
    changed = [role for role, value in values.items() if not torch.equal(value, before[role])]
    _same(changed, [], f"tensors that {what} changes in place")


def _check_protocol(
    transform: Transform, rank: int, width: Width, shapes: Mapping[str, tuple[int, int]]
) -> None:
    """Run the check that the compiler runs."""
    try:
        check_term(transform, rank, width, shapes)
    except SpecError as error:
        raise AssertionError(str(error)) from error


def _check_reach(
    transform: Transform,
    rank: int,
    width: Width,
    shapes: Mapping[str, tuple[int, int]],
    where: str,
) -> None:
    """Check that random tensors reach the rank of `reach`, and none exceeds it."""
    reach = transform.reach(rank, width)
    rows = transform.rows(rank, width)
    if not 0 < reach <= rows:
        raise AssertionError(f"reach is {reach} {where}, and the factors have {rows} rows")
    highest = 0
    for seed in range(_REACH_TRIALS):
        values = _random_tensors(transform, shapes, _random(rank + 1000 * seed))
        a, b = effective_pair(transform, values, rank, width, 1.0)
        measured = int(torch.linalg.matrix_rank((b.T @ a).detach()))
        if measured > reach:
            raise AssertionError(f"the update's rank is {measured} {where}, and reach says {reach}")
        highest = max(highest, measured)
        if highest == reach:
            return
    raise AssertionError(
        f"the rank of updates of random tensors is at most {highest} {where}, and reach says {reach}"
    )


def _check_compiled(
    transform: Transform,
    values: Mapping[str, Tensor],
    rank: int,
    width: Width,
    expected: Callable[[Tensor], Tensor],
    where: str,
) -> None:
    """Check the generated code of a layer with the transform, for several shapes of input, twice each."""
    before = {role: value.detach().clone() for role, value in values.items()}
    layer = nn.Linear(width.d_in, width.d_out, dtype=torch.float64).requires_grad_(False)
    plain = copy.deepcopy(layer)
    try:
        owned = _adapt_layer(transform, values, rank, width, layer)
    except SpecError as error:
        raise AssertionError(str(error)) from error
    tensors = dict(zip(values, owned.parameters(), strict=True))
    for shape in _BATCHES:
        x = torch.randn(*shape, width.d_in, generator=_random(rank), dtype=torch.float64)
        total = (plain(x) + _SCALE * expected(x)).detach()
        for call in ("first", "second"):
            what = f"the {call} output of the generated code {where}, of an input {(*shape, width.d_in)}"
            _near(layer(x).detach(), total, what, 1e-9)
            with torch.no_grad():
                _near(layer(x), total, f"{what} without gradients", 1e-9)
        _check_kept(tensors, before, f"the generated code {where}")


def _adapt_layer(
    transform: Transform,
    values: Mapping[str, Tensor],
    rank: int,
    width: Width,
    layer: nn.Linear,
) -> OwnedTensors:
    """Rewrite a layer with one term, as `compile_spec` does; return the module of its tensors."""
    rows = transform.rows(rank, width) if transform.linear else 0
    slots = tuple((role, number) for number, role in enumerate(values))
    use = TermUse(transform, rank, rows, _SCALE, 0.0, slots)
    shapes = tuple(tuple(value.shape) for value in values.values())
    region = RegionGraphs.start(linear_region(layer), len(values))
    for _ in run_passes(region, ExpandTerms((Target("", width, (use,)),), shapes)):  # type: ignore[arg-type]
        pass
    code = region_code(region)
    copies = {
        role: nn.Parameter(value.detach().clone(), requires_grad=role not in transform.fixed)
        for role, value in values.items()
    }
    owned = OwnedTensors(copies)
    sources = [(owned, number) for number in range(len(copies))]
    layer.add_module(FACTORS, EffectiveFactors(code, sources))
    set_code(layer, code.forward)
    return owned


def _check_plain(
    transform: Transform, values: Mapping[str, Tensor], pair: tuple[Tensor, Tensor], where: str
) -> None:
    """Check that the rows of `plain` tensors are rows of the effective factors."""
    for role in transform.plain:
        factor = pair["AB".index(role)].detach()
        tensor = values[role].detach()
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
        one = term_factors(transform, values, rank, width)[number]
        want = dense_of[0][number]
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
    values = _random_tensors(transform, shapes, random)
    x = torch.randn(2, 3, width.d_in, generator=random, dtype=torch.float64)
    where = f"at {width.d_in} -> {width.d_out}"
    before = {role: value.detach().clone() for role, value in (*values.items(), ("x", x))}
    try:
        update = transform.update(x, values, rank, width)
        again = transform.update(x, values, rank, width)
    except RuntimeError as error:
        raise AssertionError(f"`update` raises {error} {where}") from error
    _check_kept({**values, "x": x}, before, f"`update` {where}")
    _same(tuple(update.shape), (2, 3, width.d_out), f"the shape of the update {where}")
    if not torch.equal(update, again):
        raise AssertionError(
            f"`update` gives another result at the second call {where}: "
            "it reads random numbers or a state"
        )
    _check_protocol(transform, rank, width, shapes)

    def token_by_token(x: Tensor) -> Tensor:
        tokens = x.reshape(-1, 1, width.d_in)
        updates = [transform.update(token.unsqueeze(0), values, rank, width) for token in tokens]
        return torch.cat(updates).reshape(*x.shape[:-1], width.d_out)

    what = f"the update {where} of a token, which may not depend on other rows or tokens,"
    _near(update, token_by_token(x), what, 1e-9)
    _check_learning(transform, values, lambda t: transform.update(x, t, rank, width), where)
    if (reference := REFERENCES.get(transform.name)) is not None:
        term = TermValues(values, transform.options(), rank, width.d_in, width.d_out)
        _near(update, reference(term, x), f"the update {where}", 1e-9)
    _check_compiled(transform, values, rank, width, token_by_token, where)


def _random_tensors(
    transform: Transform, shapes: Mapping[str, tuple[int, int]], random: torch.Generator
) -> dict[str, Tensor]:
    """Return random tensors that need gradients; those that are never trained have initial values."""
    tensors = {}
    for role, shape in shapes.items():
        values = torch.randn(shape, generator=random, dtype=torch.float64)
        if role in transform.fixed and transform.start(role).init == "choice":
            digits = torch.randint(256, shape, generator=random)
            values = digits.to(torch.float64)
        tensors[role] = values.requires_grad_()
    return tensors


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
            what = "not zero" if parts else "zero"
            raise AssertionError(f"the update is {what} {at_zero}")
        if parts:
            weights = torch.rand(delta.shape, generator=_random(0), dtype=delta.dtype) + 1
            learns = any(g.any() for g in _gradients((delta * weights).sum(), [*some.values()]))
            if learns != (len(parts) == 1):
                raise AssertionError(f"{'a' if learns else 'no'} gradient comes {at_zero}")


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
