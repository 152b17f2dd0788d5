"""Gates in a model: every invariant, the equations of CoMoL and Lily, and refusals by name."""

import copy

import pytest
import torch
from torch import nn

from bishare_dsl import compile_spec, parse_spec, plan_spec
from bishare_dsl.diagnostics import AdapterError, PlanError
from bishare_dsl.testing.models import tiny_model
from tests.support.checks import check_against_reference, check_spec, randomize

HEAD = "spec gated\ntarget q_proj, down_proj\n"
COMOL = "share s per module rank 3 via Core(count = 4) gate softmax of A x"
LILY = (
    "share s A per kind B per kind router per kind rank 3 "
    "via B Mix(count_B = 4) gate softmax of A x as router"
)
TEXTS = {
    "comol": COMOL,
    "lily": LILY,
    "hydra": "share s per module rank 3 via B Mix(count_B = 3) gate softmax",
    "top": "share s per module rank 3 via B Mix(count_B = 3) gate top 2 gain out init 1",
    "at A": "share s per kind rank 3 via A Mix(count_A = 3) gate softmax",
    "both": "share s per module rank 3 via Mix(count_A = 2, count_B = 3) gate softmax as router",
    "two": "share s per module G per kind rank 3 "
    "via A KE(size = 4) then Basis(count = 3), B SS then Mix(count_B = 3) gate top 2 as last, "
    "between Core(count = 3) gate softmax then Core as second",
    "shared": "share up per module rank 3 via Core(count = 2) gate softmax "
    "share s per module G is up.G rank 3 via Core(count = 2) gate softmax",
}


def spec_of(name):
    return parse_spec(HEAD + TEXTS[name])


@pytest.mark.parametrize("name", TEXTS)
def test_every_invariant_holds(name):
    """Fresh, count, save and load, the refusal to merge and export, seed, and gradients in float64."""
    check_spec(spec_of(name), tiny_model())


@pytest.mark.parametrize("name", ["comol", "top", "two"])
def test_bfloat16(name):
    check_against_reference(spec_of(name), tiny_model(), dtype=torch.bfloat16)


@pytest.mark.parametrize("name", ["comol", "top"])
def test_a_row_does_not_depend_on_its_neighbours(name):
    model = compile_spec(spec_of(name), tiny_model().double())
    model.double()
    randomize(model)
    ids = torch.randint(64, (3, 7), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        together = model(input_ids=ids).logits
        alone = torch.cat([model(input_ids=row.unsqueeze(0)).logits for row in ids])
    torch.testing.assert_close(together, alone, rtol=0, atol=1e-12)


class Net(nn.Module):
    """A model of one layer."""

    def __init__(self):
        super().__init__()
        self.q_proj = nn.Linear(6, 5, dtype=torch.float64)

    def forward(self, x):
        return self.q_proj(x)


def added_by(text):
    """Return an input, what an adapter of one layer adds to its output, and its tensors by role."""
    base = Net()
    model = compile_spec(parse_spec(f"spec gated target q_proj {text}"), copy.deepcopy(base))
    model.double()
    tensors = randomize(model)
    x = torch.randn(2, 4, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    [term] = model.bishare.plan.terms
    of_role = {role: tensors[name].detach() for role, name in term.tensors.items()}
    with torch.no_grad():
        return x, model(x) - base(x), of_role


def test_comol_is_its_equation():
    """``B (sum_e p_e(A x) C_e) A x`` with ``p = softmax(G A x)`` (arXiv 2603.00573), token by token."""
    x, added, t = added_by(COMOL)
    a, b = t["A"], t["B"].T  # (r, d_in), (d_out, r)
    cores = [t["core"][3 * e : 3 * e + 3].T for e in range(4)]
    for token, found in zip(x.flatten(0, 1), added.flatten(0, 1), strict=True):
        z = a @ token
        p = torch.softmax(t["G"] @ z, 0)
        core = sum(p[e] * cores[e] for e in range(4))
        torch.testing.assert_close(found, b @ core @ z, rtol=0, atol=1e-10)


def test_lily_is_its_equation():
    """``sum_e p_e(A x) B_e A x`` with ``p = softmax(R A x)`` (Zhong et al. 2025), for each token."""
    x, added, t = added_by(LILY)
    b = [t["B"][3 * e : 3 * e + 3].T for e in range(4)]
    for token, found in zip(x.flatten(0, 1), added.flatten(0, 1), strict=True):
        z = t["A"] @ token
        p = torch.softmax(t["router"] @ z, 0)
        expected = sum(p[e] * (b[e] @ z) for e in range(4))
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-10)


def test_check_lists_the_router_with_its_owner_and_its_key():
    plan = plan_spec(HEAD + LILY, "llama-7b")
    routers = [pool for pool in plan.pools if pool.role == "router"]
    assert [len(pool.members) for pool in routers] == [32, 32]
    assert {plan.tensor[pool.tensor].shape for pool in routers} == {(4, 3)}
    of_x = plan_spec(HEAD + TEXTS["hydra"], "llama-7b")
    shapes = {t.shape for t in of_x.tensors if t.name.endswith(".G_B")}
    assert shapes == {(3, 4096), (3, 11008)}


def test_merging_exporting_and_mixed_batches_are_refused_by_the_name_of_the_gate(tmp_path):
    model = compile_spec(spec_of("comol"), tiny_model())
    handle = model.bishare
    text = r"`s` .*gate softmax of A x"
    with pytest.raises(AdapterError, match=rf"BS633.*{text}"):
        handle.merge()
    with pytest.raises(AdapterError, match=rf"BS633.*{text}"):
        handle.export(tmp_path / "peft")
    assert not list(tmp_path.iterdir())
    ids = torch.arange(8).view(2, 4)
    with pytest.raises(AdapterError, match=rf"BS673.*{text}"), handle.rows(["default", None]):
        model(input_ids=ids)


def test_an_embedding_takes_no_gate():
    share = "share s per module rank 2 via B Mix(count_B = 2) gate softmax"
    text = f"spec s target embed_tokens {share}"
    with pytest.raises(PlanError, match=r"BS327.*`model.embed_tokens`: an embedding looks up rows"):
        compile_spec(parse_spec(text), tiny_model())


@pytest.mark.parametrize("name", ["comol", "top"])
def test_it_trains_with_gradient_checkpointing(name):
    ids = torch.arange(12).view(2, 6)
    gradients = []
    for checkpointing in (False, True):
        model = compile_spec(spec_of(name), tiny_model()).train()
        randomize(model)
        if checkpointing:
            model.gradient_checkpointing_enable()
        model(input_ids=ids, labels=ids).loss.backward()
        gradients.append({n: t.grad for n, t in model.bishare.tensors().items()})
    plain, checkpointed = gradients
    for tensor, gradient in plain.items():
        assert gradient.any(), tensor
        torch.testing.assert_close(checkpointed[tensor], gradient)


def test_a_router_learns_from_a_fresh_adapter():
    model = compile_spec(spec_of("comol"), tiny_model()).train()
    before = {name: t.detach().clone() for name, t in model.bishare.tensors().items()}
    optimizer = torch.optim.AdamW(model.bishare.tensors().values(), lr=1e-2)
    ids = torch.arange(12).view(2, 6)
    for _ in range(3):
        model(input_ids=ids, labels=ids).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    for name, tensor in model.bishare.tensors().items():
        assert not torch.equal(tensor, before[name]), name
