import hashlib
import math
from pathlib import Path

import numpy as np
import pytest
import torch

from bishare_dsl import parse_spec
from bishare_dsl.initial.counter import fill
from bishare_dsl.initial.values import draw
from bishare_dsl.models import Architecture, preset
from bishare_dsl.plan import Plan, Tensor, build_plan


def plan_of(tensors):
    base = Architecture(name="b", family="f", layers=1, parameters=1, sites=())
    return Plan(
        spec="s", params={}, base=base, sites=(), tensors=tuple(tensors), pools=(), terms=()
    )


def tensor(init, name="t", fan_in=16, amount=1.0):
    return Tensor(
        name=name, share="s", shape=(100, 400), init=init, amount=amount, fan_in=fan_in, owner=""
    )


def drawn(init, amount=1.0, device="cpu"):
    values = draw(plan_of([tensor(init, amount=amount)]), 0, device)["t"]
    assert values.dtype == torch.float32
    assert values.shape == (100, 400)
    return values


@pytest.mark.parametrize(("init", "std"), [("normal", 0.02), ("kaiming_normal", math.sqrt(2 / 16))])
def test_normal(init, std):
    values = drawn(init, 0.02)
    assert values.std().item() == pytest.approx(std, rel=0.02)
    assert abs(values.mean().item()) < std / 50
    assert values.abs().max() > 3 * std  # not a uniform one of the same spread


@pytest.mark.parametrize(("init", "bound"), [("uniform", 0.3), ("kaiming_uniform", 1 / 4)])
def test_uniform(init, bound):
    values = drawn(init, 0.3)
    assert values.abs().max().item() == pytest.approx(bound, rel=0.001)
    assert values.abs().max() <= bound
    assert values.std().item() == pytest.approx(bound / math.sqrt(3), rel=0.02)


def test_kaiming_uniform_is_what_lora_uses():
    reference = torch.empty(100, 16)
    torch.nn.init.kaiming_uniform_(reference, a=math.sqrt(5))
    assert reference.abs().max().item() == pytest.approx(1 / 4, rel=0.01)


def test_shares_in_another_order_give_the_same_tensors():
    head = "spec s target q_proj, down_proj "
    one, two = "share x per layer rank 2 via SS", "share y per module rank 3"
    first, second = (
        draw(build_plan(parse_spec(head + shares), preset("smollm2-135m"))[0], 4)
        for shares in (f"{one} {two}", f"{two} {one}")
    )
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_what_is_drawn_never_changes():
    """The numbers of `docs/format.md`, which other readers draw: others would be other adapters."""
    page = (Path(__file__).parents[2] / "docs" / "format.md").read_text("utf-8")
    values = np.empty((1000, 1000), np.float32)
    for kind, amount, shown in (("uniform", [-1, 1], "[-1, 1]"), ("normal", 1, "1")):
        fill(values, {kind: amount}, 0, "inter.A")
        first = ", ".join(str(float(value)) for value in values[0, :4])
        digest = hashlib.sha256(values.tobytes()).hexdigest()[:8]
        cells = f'`{{"{kind}": {shown}}}`', f"`{first}`", f"`{values[-1, -1]}`", f"`{digest}`"
        row = f"| {' | '.join(cells)} |"
        assert row in page
    assert float(values.flat[833_953]) == -4.822303295135498  # In the tail.
    chosen = np.empty((3, 2), np.float32)
    fill(chosen, {"choice": 1000}, 0, "inter.A")
    assert chosen.tolist() == [[0, 11], [3, 182], [3, 220]]


def test_normal_numbers_are_quantiles():
    values = np.empty(20_000, np.float32)
    fill(values, {"normal": 1.0}, 0, "x")
    even = np.empty_like(values)
    fill(even, {"uniform": [0.0, 1.0]}, 0, "x")
    expected = torch.special.ndtri(torch.from_numpy(even).double())
    torch.testing.assert_close(torch.from_numpy(values).double(), expected, rtol=1e-4, atol=1e-6)


def test_meta_tensors_have_shapes_only():
    assert drawn("normal", device="meta").is_meta
