"""Terms inside the products of experts: each implementation, each layout, against weights with the terms in."""

import copy
import warnings

import pytest
import torch
from transformers import CONFIG_MAPPING, AutoModelForCausalLM

from bishare_dsl import compile_spec
from bishare_dsl.diagnostics import BishareWarning, ModelError, PlanError
from bishare_dsl.models.inspect import linear_maps
from bishare_dsl.plan import build
from bishare_dsl.transforms import Width, effective_pair, load_transform
from tests.support.checks import regions

COMMON = {
    "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2,
    "num_key_value_heads": 1, "vocab_size": 48, "num_experts_per_tok": 2,
}  # fmt: skip
FAMILIES = {
    "qwen3_moe": {"moe_intermediate_size": 8, "num_experts": 5, "head_dim": 8},
    "mixtral": {"num_local_experts": 4},
    "gpt_oss": {"num_local_experts": 4, "head_dim": 8},
    "olmoe": {"num_experts": 4},
    "granitemoe": {"num_local_experts": 4},
}
IMPLEMENTATIONS = ["eager", "batched_mm", "grouped_mm"]
SPECS = {
    "own": "share x per module rank 2",
    "shared outer": "share x A per layer, kind B per layer, kind, expert rank 2",
    "pooled": "share x per expert // 2, kind rank 2\nshare y per model rank 2 via SS",
    "kernels": "share x per layer rank 4 via KE(size = 8)",
    "some": "share x where expert in 1..2 per module rank 2\nshare y where expert != 1 per module rank 3",
    "ranks": "share x per module rank 1 + expert",
}
IDS = torch.tensor([[5, 9, 13, 21, 34, 3, 8]])


def mixture(family="qwen3_moe", implementation="eager", dtype=torch.float32, layers=2):
    torch.manual_seed(0)
    made = CONFIG_MAPPING[family](
        **COMMON
        | FAMILIES[family]
        | {"num_hidden_layers": layers, "layer_types": ["full_attention"] * layers}
    )
    model = AutoModelForCausalLM.from_config(made, experts_implementation=implementation)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    return model.to(dtype).eval()


def adapt(model, terms="share x per module rank 2", target="gate_proj, up_proj, down_proj"):
    spec = f"spec s\ntarget {target}\nscale 2\n{terms}" if isinstance(terms, str) else terms
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        compile_spec(spec, model)
    return model


def tensors_of(model):
    return model.bishare.parts.tensors()


def trained(model):
    random = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for tensor in tensors_of(model).values():
            tensor.copy_(torch.randn(tensor.shape, generator=random) * 0.3)
    return model


def dense(base, model, ids=IDS):
    """The logits of the base with the updates in its weights, as a function of the adapter's tensors."""
    plan, tensors = model.bishare.plan, tensors_of(model)
    grown = {}
    for site in plan.sites:
        weight = linear_maps(base)[site.path]
        name = f"{weight.owner}.{weight.parameter}"
        kept = weight.module.get_parameter(weight.parameter).detach()
        update = torch.zeros_like(kept)
        for term in plan.terms_of[site.path]:
            transform = load_transform(term.transform, term.options)
            values = {role: tensors[tensor] for role, tensor in term.tensors.items()}
            width = Width(site.d_in, site.d_out)
            a, b = effective_pair(transform, values, term.rank, width, term.scale)
            weight.part(update).add_(b.T @ a)
        grown[name] = grown.get(name, kept) + update
    return torch.func.functional_call(base, grown, (ids,)).logits


def precise(family="qwen3_moe", implementation="eager"):
    """In float64, but for grouped products, which there are none of in it."""
    dtype = torch.float32 if implementation == "grouped_mm" else torch.float64
    return mixture(family, implementation, dtype)


def assert_close(one, other):
    rough = {"rtol": 1e-3, "atol": 1e-3} if one.dtype is torch.float32 else {}
    torch.testing.assert_close(one, other, **rough)


def gradients(logits, model):
    logits.square().sum().backward()
    found = [tensor.grad for tensor in tensors_of(model).values()]
    model.zero_grad()
    return found


@pytest.mark.each_once
@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_fresh_adapter_is_its_base(family, implementation, dtype):
    model = mixture(family, implementation, dtype)
    with torch.no_grad():
        before = model(IDS).logits
        adapt(model)
        assert any("experts" in path for path, _ in regions(model))
        assert torch.equal(model(IDS).logits, before)
        assert not torch.equal(trained(model)(IDS).logits, before)
        model.bishare.unload()
        assert torch.equal(model(IDS).logits, before)


CASES = [(family, "own") for family in FAMILIES] + [("qwen3_moe", terms) for terms in SPECS]


@pytest.mark.each_once
@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize(("family", "terms"), dict.fromkeys(CASES))
def test_it_is_what_weights_with_the_updates_give(family, terms, implementation):
    model = precise(family, implementation)
    base = copy.deepcopy(model)
    trained(adapt(model, SPECS[terms]))
    logits, expected = model(IDS).logits, dense(base, model)
    assert_close(logits, expected)
    for one, other in zip(gradients(logits, model), gradients(expected, model), strict=True):
        assert_close(one, other)
    with torch.no_grad():
        for _ in range(2):
            assert_close(model(IDS).logits, expected)


def test_only_experts_with_tokens_are_multiplied(monkeypatch):
    """Nor is an update ever as large as a weight."""
    from bishare_dsl.rewrite import ops

    model = trained(adapt(mixture("mixtral", "eager")))
    seen, down = [], ops.down
    monkeypatch.setattr(ops, "down", lambda x, a: seen.append(len(x)) or down(x, a))
    model(IDS[:, :1])
    # One token, two experts of four, and two parameters, in two blocks.
    assert seen == [1] * 8


def test_an_implementation_of_a_users_own_runs_one_by_one():
    from transformers.integrations.moe import ALL_EXPERTS_FUNCTIONS

    def own(self, hidden_states, top_k_index, top_k_weights):
        return torch.einsum(
            "td,ehd->th", hidden_states, self.down_proj.mT[:, : hidden_states.shape[1]]
        )

    ALL_EXPERTS_FUNCTIONS.register("own", own)
    model = trained(adapt(precise("mixtral")))
    expected = model(IDS).logits
    model.set_experts_implementation("own")
    with pytest.warns(BishareWarning, match="one expert at a time"):
        assert torch.equal(model(IDS).logits, expected)


def test_what_is_no_matrix_is_refused(monkeypatch):
    share = "share x per module rank 2 via Experts"
    with pytest.raises(PlanError, match=r"BS327.*experts\.0\."):
        adapt(mixture(), share)
    # As if no name in their paths said that they are experts.
    monkeypatch.setattr(build, "_no_matrices", lambda *given: ())
    with pytest.raises(ModelError, match="an expert must be a matrix"):
        adapt(mixture(), share)
