"""Few tokens of each row's adapter go through its tensors as they are stored: no factor is made."""

import pytest
import torch
from peft import get_peft_model

from bishare_dsl.transforms import Own, Start, Transform, register
from bishare_dsl.transforms.factor import DECODE_TOKENS, Kron
from tests.batched.test_batches import close, config, filled, logits_alone
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
def model():
    return filled(tiny_model("llama"), {"a": SPEC, "b": SPEC})


@pytest.fixture
def made(monkeypatch):
    """Which Kronecker products were made, but for those of shapes alone, by which a plan is checked once."""
    found = []
    dense = Kron.dense

    def make(self):
        if not self.shared.is_meta:
            found.append(self)
        return dense(self)

    monkeypatch.setattr(Kron, "dense", make)
    return found


@pytest.mark.parametrize("tokens", [1, 3, DECODE_TOKENS + 1])
@pytest.mark.parametrize("names", NAMES.values(), ids=NAMES)
@torch.no_grad()
def test_rows_are_as_if_alone(model, made, names, tokens):
    ids = torch.randint(3, 64, (len(names), tokens), generator=torch.Generator().manual_seed(1))
    found = model(ids, adapter_names=names).logits
    most = tokens * max(names.count(name) for name in names)
    # Those of one adapter are made for a second token, as without a mixed batch.
    assert bool(made) == (most > (DECODE_TOKENS if len({*names}) > 1 else 1))
    close(found, logits_alone(model, names, ids))


@torch.no_grad()
def test_fresh_adapters_change_nothing(made):
    base, ids = tiny_model("llama").eval(), torch.arange(3, 11).view(4, 2)
    want = base(ids).logits
    model = get_peft_model(base, config(SPEC), adapter_name="a")
    model.add_adapter("b", config(SPEC, seed=1))
    model.eval()
    for names in (["a", "b", "a", None], ["a", "a", "b", "b"]):
        assert torch.equal(model(ids, adapter_names=names).logits, want)
    assert not made


@torch.no_grad()
def test_a_half_base_meets_tensors_as_they_are(made):
    model = filled(tiny_model("llama").bfloat16(), {"a": SPEC, "b": SPEC})
    names, ids = ["a", None, "b"], torch.arange(3, 9).view(3, 2)
    found = model(ids, adapter_names=names).logits
    assert not made
    assert found.dtype is torch.bfloat16
    want = logits_alone(model, names, ids)
    torch.testing.assert_close(found, want, rtol=2e-2, atol=2e-2)


class Apart(Transform):
    """``A = K_A (x) A_s`` in tiles of 4 features and ``B = K_B (x) B_s`` in tiles of 2, of other ranks."""

    name = "Apart"
    title = "Two kinds of tiles"
    owned = ("K_A", "K_B")

    def shared_shape(self, role, rank, widths):
        return (rank, 4) if role == "A" else (1, 2)

    def start(self, role):
        return Start("kaiming_normal") if role in self.owned else super().start(role)

    def own(self, rank, width):
        return {"K_A": Own(1, -(-width.d_in // 4), 4), "K_B": Own(rank, -(-width.d_out // 2), 2)}

    def factor(self, role, tensors, rank, side):
        return Kron(tensors[f"K_{role}"], tensors[role], side)


@torch.no_grad()
def test_tiles_and_ranks_of_a_and_b_may_differ():
    register(Apart)
    spec = "spec s\ntarget q_proj, k_proj\nshare s per layer, kind rank 2 via Apart"
    model = filled(tiny_model("llama"), {"a": spec, "b": spec})
    ids = torch.randint(3, 64, (3, 20), generator=torch.Generator().manual_seed(1))
    want = model(ids).logits
    for tokens in (1, 3):
        close(model(ids[:1, :tokens]).logits, want[:1, :tokens])
        names = ["b", "a", None]
        found = model(ids[:, :tokens], adapter_names=names).logits
        close(found, logits_alone(model, names, ids)[:, :tokens])
