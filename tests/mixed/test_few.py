"""Few tokens of each row's adapter go through its tensors as they are stored: no factor is made."""

from typing import Any

import pytest
import torch
from peft import get_peft_model

from bishare_dsl.mixed.remade import Remade
from bishare_dsl.rewrite.few import FEW
from tests.mixed.test_batches import close, config, filled, logits_alone
from tests.support.families import tiny_model

SPEC = """
    spec kernels
    target q_proj, k_proj, v_proj, up_proj, down_proj
    share local per module rank 2 scale 2
    share intra per layer rank 4 scale 0.5 via KE(size = 4, shared_rank = 2)
    share inter per model rank 4 via KE(size = 2)
    """
NAMES = {
    "each its own": ["a", "b", None],
    "side by side": ["a", "a", "b", "b"],
    "out of order": ["b", "a", None, "b", "b"],
    "one": ["b", "b"],
}


@pytest.fixture(scope="module")
def model() -> Any:
    return filled(tiny_model("llama"), {"a": SPEC, "b": SPEC})


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> list[Remade]:
    """What has made factors."""
    found: list[Remade] = []
    own = Remade.factors
    monkeypatch.setattr(Remade, "factors", lambda self: found.append(self) or own(self))
    return found


@pytest.mark.parametrize("tokens", [1, 3, FEW + 1])
@pytest.mark.parametrize("names", NAMES.values(), ids=NAMES)
@torch.no_grad()
def test_rows_are_as_if_alone(
    model: Any, made: list[Remade], names: list[str | None], tokens: int
) -> None:
    ids = torch.randint(3, 64, (len(names), tokens), generator=torch.Generator().manual_seed(1))
    found = model(ids, adapter_names=names).logits
    rows = max(names.count(name) for name in names)
    assert bool(made) == (tokens * rows > FEW)
    close(found, logits_alone(model, names, ids))


@torch.no_grad()
def test_fresh_adapters_change_nothing(made: list[Remade]) -> None:
    base, ids = tiny_model("llama").eval(), torch.arange(3, 11).view(4, 2)
    want = base(ids).logits
    model: Any = get_peft_model(base, config(SPEC), adapter_name="a")
    model.add_adapter("b", config(SPEC, seed=1))
    model.eval()
    for names in (["a", "b", "a", None], ["a", "a", "b", "b"]):
        assert torch.equal(model(ids, adapter_names=names).logits, want)
    assert not made


@torch.no_grad()
def test_a_half_base_meets_tensors_as_they_are(made: list[Remade]) -> None:
    model = filled(tiny_model("llama").bfloat16(), {"a": SPEC, "b": SPEC})
    names, ids = ["a", None, "b"], torch.arange(3, 9).view(3, 2)
    found = model(ids, adapter_names=names).logits
    assert not made
    assert found.dtype is torch.bfloat16
    want = logits_alone(model, names, ids)
    torch.testing.assert_close(found, want, rtol=2e-2, atol=2e-2)
