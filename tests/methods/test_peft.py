"""Methods that PEFT has, too: the same logits, gradients and initial values. DoRA is in `tests/rewrite`."""

import copy

import pytest
import torch
from peft import (
    BdLoraConfig,
    GraloraConfig,
    IA3Config,
    LilyConfig,
    LoHaConfig,
    LoraConfig,
    MissConfig,
    TinyLoraConfig,
    VBLoRAConfig,
    VeraConfig,
    get_peft_model,
)

from bishare_dsl import compile_spec
from tests.methods.conftest import close, near, run, spec

TARGETS = ["q_proj", "k_proj", "v_proj", "up_proj", "down_proj"]
R = 3


def as_it_is(tensor):
    return tensor


def turned(tensor):
    return tensor.T


def first_row(tensor):
    return tensor[0]


def of_lora(module, tensors, site):
    yield "A", module.lora_A["default"].weight, as_it_is
    yield "B", module.lora_B["default"].weight, turned


def of_bd_lora(module, tensors, site):
    """A block-diagonal A is its blocks one below the other there; of B both have these in rows."""
    in_rows = "down_proj" in site
    yield (
        "A",
        module.lora_A["default"].weight,
        (lambda tensor: torch.cat(tensor.chunk(2, 1))) if in_rows else as_it_is,
    )
    yield "B", module.lora_B["default"].weight, turned


def of_gralora(module, tensors, site):
    def in_parts(*order):
        return lambda tensor: torch.stack(tensor.chunk(2, 1)).permute(order)

    yield "A", module.gralora_A["default"], in_parts(0, 2, 1)  # (part, width, r)
    yield "B", module.gralora_B["default"], in_parts(0, 1, 2)  # (part, r, width)


def of_lily(module, tensors, site):
    """A router of zeros weighs all B alike, whatever it reads."""
    module.lily_router["default"].weight.data.zero_()
    tensors["m_B"].data.fill_(1 / 2)
    yield "A", module.lily_A["default"].weight, as_it_is
    yield "B", module.lily_B["default"].weight, as_it_is


def of_loha(module, tensors, site):
    """PEFT's a is our B, transposed, and its b our A."""
    yield "A", module.hada_w1_b["default"], as_it_is
    yield "B", module.hada_w1_a["default"], turned
    yield "A_2", module.hada_w2_b["default"], as_it_is
    yield "B_2", module.hada_w2_a["default"], turned


def of_miss(module, tensors, site):
    yield "B", module.miss_block["default"], as_it_is


def of_tiny_lora(module, tensors, site):
    yield "A", module.tinylora_A["default"], as_it_is
    yield "B", module.tinylora_B["default"], turned
    yield "core", module.tinylora_P["default"], lambda tensor: tensor.view(5, R, R).mT
    yield "c", module.tinylora_v["default"][module._tinylora_v_key["default"]], first_row


def of_vb_lora(module, tensors, site):
    """PEFT has A's logits as (r, tiles, vectors), and B's as (tiles, r, vectors)."""
    yield "bank", module.vblora_vector_bank["default"], as_it_is
    yield "L_A", module.vblora_logits_A["default"], lambda tensor: tensor.unflatten(0, (R, -1))
    turn = lambda tensor: tensor.unflatten(0, (R, -1)).transpose(0, 1)  # noqa: E731
    yield "L_B", module.vblora_logits_B["default"], turn


def of_vera(module, tensors, site):
    yield "A", module.vera_A["default"], as_it_is
    yield "B", module.vera_B["default"], turned
    yield "gain_rank", module.vera_lambda_d["default"], first_row
    yield "gain_out", module.vera_lambda_b["default"], first_row


BLOCKS = {"target_modules_bd_a": ["down_proj"], "target_modules_bd_b": TARGETS[:4], "nblocks": 2}
LORA = {"r": R, "lora_alpha": 10}
BANK = {"num_vectors": 11, "vector_length": 4, "topk": 2}
# What their parameters are of our tensors, our spec with its params, and their config.
METHODS = {
    "bd_lora": (
        of_bd_lora,
        {"r": 6, "blocks": 2, "lora_alpha": 12},
        LoraConfig(r=6, lora_alpha=12, use_bdlora=BdLoraConfig(**BLOCKS)),
    ),
    "gralora": (
        of_gralora,
        {"r": 6, "blocks": 2, "lora_alpha": 12},
        GraloraConfig(r=6, gralora_k=2, alpha=12, hybrid_r=0),
    ),
    "lily": (of_lily, {"r": R, "count": 2}, LilyConfig(r=R, stride_A=2, num_B=2)),
    "loha": (of_loha, {"r": R, "lora_alpha": 6}, LoHaConfig(r=R, alpha=6)),
    "lora": (of_lora, LORA, LoraConfig(**LORA)),
    "rslora": (of_lora, LORA, LoraConfig(**LORA, use_rslora=True)),
    "miss": (of_miss, {"r": 4}, MissConfig(r=4)),
    "miss cut": (of_miss, {"r": 5}, MissConfig(r=5)),
    "tiny_lora": (of_tiny_lora, {"r": R, "count": 5}, TinyLoraConfig(r=R, u=5)),
    "vb_lora": (
        of_vb_lora,
        {"r": R, "vectors": 11, "length": 4, "top_k": 2},
        VBLoRAConfig(r=R, **BANK),
    ),
    "vera": (of_vera, {"r": 6}, VeraConfig(r=6)),
}


@pytest.mark.parametrize("name", METHODS)
def test_it_has_the_logits_and_gradients_of_peft(name, adapted):
    of_peft, params, config = METHODS[name]
    ours = adapted(name.partition(" ")[0], **params)
    config.target_modules = {*TARGETS}
    theirs = get_peft_model(copy.deepcopy(ours.base), config).double()
    pairs = []
    for site in ours.plan.sites:
        module, tensors = theirs.base_model.model.get_submodule(site.path), ours.tensors(site.path)
        for role, parameter, turn in of_peft(module, tensors, site.path):
            parameter.data.copy_(turn(tensors[role].detach()))
            pairs.append((tensors[role], parameter, turn))
    close(run(ours.model), run(theirs))
    assert {id(tensor) for tensor, *_ in pairs if tensor.requires_grad}
    for tensor, parameter, turn in pairs:
        if tensor.requires_grad:
            close(turn(tensor.grad), parameter.grad)
        else:
            assert tensor.grad is None


def test_ia3_has_the_parameters_and_the_outputs_of_peft(llama):
    """PEFT scales what `down_proj` reads, which is to scale what `up_proj` gives."""
    config = IA3Config(
        target_modules=["k_proj", "v_proj", "down_proj"], feedforward_modules=["down_proj"]
    )
    theirs = get_peft_model(copy.deepcopy(llama), config).double()
    ours = compile_spec(spec("ia3"), copy.deepcopy(llama)).double()
    plan, tensors = ours.bishare.plan, ours.bishare.tensors()
    random, found = torch.Generator().manual_seed(0), []
    for site in plan.sites:
        path = site.path.replace("up_proj", "down_proj")
        vector = theirs.base_model.model.get_submodule(path).ia3_l["default"]
        mu = tensors[plan.magnitude(site.path).tensors["mu"]]
        mu.data.copy_(0.3 * torch.randn(mu.shape, generator=random))
        vector.data.copy_(1 + mu.detach().view_as(vector))
        found.append((mu, vector))
    trained = [
        sum(p.numel() for p in model.parameters() if p.requires_grad) for model in (ours, theirs)
    ]
    assert trained == 2 * [plan.trainable]
    close(run(ours), run(theirs))
    for mu, vector in found:
        close(mu.grad.flatten(), vector.grad.flatten())


def same(found, expected):
    """Equal up to the rounding of float32, in which either decomposes the weights."""
    reach = 2e-5 * float(expected.detach().abs().max())
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=reach)


@pytest.mark.parametrize("alpha", [3, 12])
def test_pissa_starts_and_learns_as_in_peft(alpha, llama):
    base = copy.deepcopy(llama).float()
    ours = compile_spec(spec("pissa", r=3, lora_alpha=alpha), copy.deepcopy(base))
    config = LoraConfig(r=3, lora_alpha=alpha, target_modules=TARGETS, init_lora_weights="pissa")
    theirs = get_peft_model(copy.deepcopy(base), config)
    tensors, scale, trained = ours.bishare.tensors(), alpha / 3, []
    for site in ours.bishare.plan.sites:
        module = theirs.base_model.model.get_submodule(site.path)
        learned, subtracted = ours.bishare.plan.terms_of[site.path]
        a, b = (tensors[learned.tensors[role]] for role in "AB")
        start_a, start_b = (tensors[subtracted.tensors[role]] for role in "AB")
        their_a, their_b = (getattr(module, n)["default"].weight for n in ("lora_A", "lora_B"))
        # Of either the directions may point the other way.
        same(scale * b.T @ a, scale * their_b @ their_a)
        weight = base.get_submodule(site.path).weight
        same(weight + subtracted.scale * start_b.T @ start_a, module.base_layer.weight)
        trained += [(a, b, their_a, their_b)]
    same(run(ours), run(theirs))
    with torch.no_grad():
        for a, b, their_a, their_b in trained:
            sign = (a * their_a).sum(1).sign()
            same(a.grad * sign[:, None], their_a.grad)
            same(b.grad.T * sign, their_b.grad)
            for mine, other in ((a, their_a), (b, their_b.T)):
                mine -= 0.1 * mine.grad
                other -= 0.1 * mine.grad * sign[:, None]
    same(run(ours), run(theirs))


def test_its_factors_start_as_in_peft(llama):
    """Up to signs of the singular vectors, which `B A` does not know."""
    ours = compile_spec(spec("tiny_lora", r=3, count=5), copy.deepcopy(llama)).bishare
    config = TinyLoraConfig(r=3, u=5, target_modules=TARGETS)
    theirs = get_peft_model(copy.deepcopy(llama), config)
    for term in ours.plan.terms:
        module = theirs.base_model.model.get_submodule(term.site)
        mine = {role: ours.tensors()[name] for role, name in term.tensors.items()}
        a, b = module.tinylora_A["default"], module.tinylora_B["default"]
        near(mine["B"].T @ mine["A"], b @ a)
        near(mine["A"] @ mine["A"].T, a @ a.T)
        assert not mine["c"].any()


def test_hydralora_is_the_papers_equation(adapted):
    """``y = W x + s sum_i w_i B_i A x`` at one module, on the input that it gets."""
    ours = adapted("hydralora", r=2, experts=3, lora_alpha=6)
    layer = ours.model.model.layers[0].mlp
    x = torch.randn(2, 4, 32, generator=torch.Generator().manual_seed(0)).double()
    tensors = {
        kind: ours.tensors(f"model.layers.0.mlp.{kind}") for kind in ("up_proj", "down_proj")
    }

    def hydra(kind, x):
        t = tensors[kind]
        weights = torch.softmax(x @ t["G"].T, -1)
        experts = [x @ t["A"].T @ b for b in t["B"].chunk(3)]
        return 3 * sum(weights[..., i, None] * experts[i] for i in range(3))

    mlp = copy.deepcopy(ours.base.model.layers[0].mlp)
    inner = mlp.act_fn(mlp.gate_proj(x)) * (mlp.up_proj(x) + hydra("up_proj", x))
    close(layer(x), mlp.down_proj(inner) + hydra("down_proj", inner))
