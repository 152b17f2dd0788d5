"""Methods that PEFT has, too: the same logits, gradients and initial values."""

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
BLOCKS = 2


def test_bd_lora_has_the_logits_and_gradients_of_peft(adapted):
    ours = adapted("bd_lora", r=6, blocks=BLOCKS, lora_alpha=12)
    cut = BdLoraConfig(
        target_modules_bd_a=["down_proj"], target_modules_bd_b=TARGETS[:4], nblocks=BLOCKS
    )
    config = LoraConfig(r=6, lora_alpha=12, target_modules=TARGETS, use_bdlora=cut)
    theirs = get_peft_model(copy.deepcopy(ours.base), config).double()

    def of_peft(term, role, tensor):
        """A block-diagonal A is its blocks one below the other there; of B both have these in rows."""
        if term.share == "rows" and role == "A":
            return torch.cat(tensor.chunk(BLOCKS, 1))
        return tensor if role == "A" else tensor.T

    def pairs():
        tensors = ours.model.bishare.tensors()
        for term in ours.plan.terms:
            module = theirs.base_model.model.get_submodule(term.site)
            for role, linear in (("A", module.lora_A["default"]), ("B", module.lora_B["default"])):
                yield term, role, tensors[term.tensors[role]], linear.weight

    with torch.no_grad():
        for term, role, tensor, weight in pairs():
            weight.copy_(of_peft(term, role, tensor))
    close(run(ours.model), run(theirs))
    for term, role, tensor, weight in pairs():
        close(of_peft(term, role, tensor.grad), weight.grad)


IDS = torch.arange(12).view(2, 6) * 5 % 64


def trainable(model):
    return sum(p.numel() for p in model.parameters() if p.requires_grad)


def test_dora_has_the_parameters_and_the_outputs_of_peft(llama):
    config = LoraConfig(r=3, lora_alpha=16, use_dora=True, target_modules=TARGETS)
    theirs = get_peft_model(copy.deepcopy(llama), config)
    ours = compile_spec(spec("dora", r=3), copy.deepcopy(llama)).double()
    plan, tensors = ours.bishare.plan, ours.bishare.tensors()
    assert plan.trainable == trainable(ours) == trainable(theirs)
    random = torch.Generator().manual_seed(0)
    pairs = []
    with torch.no_grad():
        for site in plan.sites:
            layer = theirs.base_model.model.get_submodule(site.path)
            term, magnitude = plan.terms_of[site.path]
            vector = layer.lora_magnitude_vector["default"].weight
            norms = vector.clone()
            for role, weight in (
                ("A", layer.lora_A["default"].weight),
                ("B", layer.lora_B["default"].weight),
            ):
                weight.copy_(torch.randn(weight.shape, generator=random).double() * 0.3)
                tensor = tensors[term.tensors[role]]
                tensor.copy_(weight if role == "A" else weight.T)
            mu = torch.randn(vector.shape, generator=random).double() * 0.2
            vector.mul_(1 + mu)
            tensors[magnitude.tensors["mu"]].copy_(mu)
            pairs.append((vector, norms, tensors[magnitude.tensors["mu"]], term, layer))
    logits = [model(IDS).logits for model in (ours, theirs)]
    close(*logits)
    for found in logits:
        (found * torch.arange(found.numel()).view_as(found).sin()).sum().backward()
    for vector, norms, mu, term, layer in pairs:
        close(mu.grad[0], vector.grad * norms)
        close(tensors[term.tensors["A"]].grad, layer.lora_A["default"].weight.grad)
        close(tensors[term.tensors["B"]].grad, layer.lora_B["default"].weight.grad.T)


def test_ia3_has_the_parameters_and_the_outputs_of_peft(llama):
    """PEFT scales what `down_proj` reads, which is to scale what `up_proj` gives."""
    config = IA3Config(
        target_modules=["k_proj", "v_proj", "down_proj"], feedforward_modules=["down_proj"]
    )
    theirs = get_peft_model(copy.deepcopy(llama), config)
    ours = compile_spec(spec("ia3"), copy.deepcopy(llama)).double()
    plan, tensors = ours.bishare.plan, ours.bishare.tensors()
    assert plan.trainable == trainable(ours) == trainable(theirs)
    random = torch.Generator().manual_seed(0)
    pairs = []
    with torch.no_grad():
        for site in plan.sites:
            path = site.path.replace("up_proj", "down_proj")
            vector = theirs.base_model.model.get_submodule(path).ia3_l["default"]
            vector.copy_(1 + 0.3 * torch.randn(vector.shape, generator=random).double())
            mu = tensors[plan.magnitude(site.path).tensors["mu"]]
            mu.copy_(vector.view(1, -1) - 1)
            pairs.append((mu, vector))
    logits = [model(IDS).logits for model in (ours, theirs)]
    close(*logits)
    for found in logits:
        (found * torch.arange(found.numel()).view_as(found).sin()).sum().backward()
    for mu, vector in pairs:
        close(mu.grad.flatten(), vector.grad.flatten())


def test_gralora_has_the_logits_and_gradients_of_peft(adapted):
    ours = adapted("gralora", r=6, blocks=2, lora_alpha=12)
    config = GraloraConfig(r=6, gralora_k=2, alpha=12, hybrid_r=0, target_modules=TARGETS)
    theirs = get_peft_model(copy.deepcopy(ours.base), config).double()

    def pairs():
        for site in ours.plan.sites:
            module = theirs.base_model.model.get_submodule(site.path)
            mine = ours.tensors(site.path)
            yield mine["A"], module.gralora_A["default"], (0, 2, 1)  # (part, width, r)
            yield mine["B"], module.gralora_B["default"], (0, 1, 2)  # (part, r, width)

    def in_parts(tensor, order):
        return torch.stack(tensor.chunk(2, 1)).permute(order)

    with torch.no_grad():
        for tensor, parameter, order in pairs():
            parameter.copy_(in_parts(tensor, order))
    close(run(ours.model), run(theirs))
    for tensor, parameter, order in pairs():
        close(in_parts(tensor.grad, order), parameter.grad)


def test_lily_has_the_logits_and_gradients_of_peft_where_its_router_is_even(adapted):
    """A router of zeros weighs all B alike, whatever it reads."""
    ours = adapted("lily", r=3, count=2)
    config = LilyConfig(r=3, stride_A=2, num_B=2, target_modules=TARGETS)
    theirs = get_peft_model(copy.deepcopy(ours.base), config).double()

    def modules():
        for site in ours.plan.sites:
            module = theirs.base_model.model.get_submodule(site.path)
            pairs = (("A", module.lily_A["default"]), ("B", module.lily_B["default"]))
            yield module, ours.tensors(site.path), pairs

    with torch.no_grad():
        for module, tensors, pairs in modules():
            module.lily_router["default"].weight.zero_()
            tensors["m_B"].fill_(1 / 2)
            for role, linear in pairs:
                linear.weight.copy_(tensors[role])
    close(run(ours.model), run(theirs))
    for _, tensors, pairs in modules():
        for role, linear in pairs:
            close(tensors[role].grad, linear.weight.grad)


def test_loha_has_the_logits_and_gradients_of_peft(adapted):
    ours = adapted("loha", r=3, lora_alpha=6)
    config = LoHaConfig(r=3, alpha=6, target_modules=TARGETS)
    theirs = get_peft_model(copy.deepcopy(ours.base), config).double()

    def pairs():
        for site in ours.plan.sites:
            module, mine = (
                theirs.base_model.model.get_submodule(site.path),
                ours.tensors(site.path),
            )
            # PEFT's a is our B, transposed, and its b our A.
            yield mine["A"], module.hada_w1_b["default"], False
            yield mine["B"], module.hada_w1_a["default"], True
            yield mine["A_2"], module.hada_w2_b["default"], False
            yield mine["B_2"], module.hada_w2_a["default"], True

    with torch.no_grad():
        for tensor, parameter, turned in pairs():
            parameter.copy_(tensor.T if turned else tensor)
    close(run(ours.model), run(theirs))
    for tensor, parameter, turned in pairs():
        close(tensor.grad, parameter.grad.T if turned else parameter.grad)


@pytest.mark.parametrize(
    ("name", "rslora", "scale"), [("lora", False, 10 / 3), ("rslora", True, 10 / 3**0.5)]
)
def test_lora_has_the_logits_and_gradients_of_peft(name, rslora, scale, adapted):
    ours = adapted(name, r=3, lora_alpha=10)
    assert all(term.scale == pytest.approx(scale) for term in ours.plan.terms)
    config = LoraConfig(r=3, lora_alpha=10, use_rslora=rslora, target_modules=TARGETS)
    theirs = get_peft_model(copy.deepcopy(ours.base), config).double()
    for site in ours.plan.sites:
        module, tensors = theirs.base_model.model.get_submodule(site.path), ours.tensors(site.path)
        module.lora_A["default"].weight.data = tensors["A"].detach().clone()
        module.lora_B["default"].weight.data = tensors["B"].detach().t().clone()

    close(run(ours.model), run(theirs))
    for site in ours.plan.sites:
        module, tensors = theirs.base_model.model.get_submodule(site.path), ours.tensors(site.path)
        close(tensors["A"].grad, module.lora_A["default"].weight.grad)
        close(tensors["B"].grad, module.lora_B["default"].weight.grad.t())


@pytest.mark.parametrize("r", [4, 5])
def test_miss_has_the_logits_and_gradients_of_peft(adapted, r):
    ours = adapted("miss", r=r)
    theirs = get_peft_model(copy.deepcopy(ours.base), MissConfig(r=r, target_modules=TARGETS))
    theirs = theirs.double()
    pairs = [
        (
            ours.tensors(site.path)["B"],
            theirs.base_model.model.get_submodule(site.path).miss_block["default"],
        )
        for site in ours.plan.sites
    ]
    with torch.no_grad():
        for b, block in pairs:
            block.copy_(b)
    close(run(ours.model), run(theirs))
    for b, block in pairs:
        close(b.grad, block.grad)


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


def test_tiny_lora_has_the_logits_and_gradients_of_peft(adapted):
    ours = adapted("tiny_lora", r=3, count=5)
    config = TinyLoraConfig(r=3, u=5, target_modules=TARGETS)
    theirs = get_peft_model(copy.deepcopy(ours.base), config).double()

    def coefficients():
        for site in ours.plan.sites:
            module = theirs.base_model.model.get_submodule(site.path)
            v = module.tinylora_v["default"][module._tinylora_v_key["default"]]
            yield module, ours.tensors(site.path), v

    with torch.no_grad():
        for module, tensors, v in coefficients():
            module.tinylora_A["default"] = tensors["A"].detach()
            module.tinylora_B["default"] = tensors["B"].detach().T
            module.tinylora_P["default"] = tensors["core"].detach().view(5, 3, 3).mT
            v.copy_(tensors["c"][0])
    close(run(ours.model), run(theirs))
    for _, tensors, v in coefficients():
        close(tensors["c"].grad[0], v.grad)
        assert not any(tensors[role].requires_grad for role in ("A", "B", "core"))


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


R, VECTORS, LENGTH, TOP_K = 3, 11, 4, 2


def test_vb_lora_has_the_logits_and_gradients_of_peft(adapted):
    ours = adapted("vb_lora", r=R, vectors=VECTORS, length=LENGTH, top_k=TOP_K)
    config = VBLoRAConfig(
        r=R, num_vectors=VECTORS, vector_length=LENGTH, topk=TOP_K, target_modules=TARGETS
    )
    theirs = get_peft_model(copy.deepcopy(ours.base), config).double()
    for site in ours.plan.sites:
        module, tensors = theirs.base_model.model.get_submodule(site.path), ours.tensors(site.path)
        module.vblora_vector_bank["default"].data.copy_(tensors["bank"].detach())
        # PEFT has A's logits as (r, tiles, vectors), and B's as (tiles, r, vectors).
        a, b = (tensors[role].detach().unflatten(0, (R, -1)) for role in ("L_A", "L_B"))
        module.vblora_logits_A["default"].data.copy_(a)
        module.vblora_logits_B["default"].data.copy_(b.transpose(0, 1))

    close(run(ours.model), run(theirs))
    for site in ours.plan.sites:
        module, tensors = theirs.base_model.model.get_submodule(site.path), ours.tensors(site.path)
        close(tensors["bank"].grad, module.vblora_vector_bank["default"].grad)
        close(tensors["L_A"].grad, module.vblora_logits_A["default"].grad.flatten(0, 1))
        b = module.vblora_logits_B["default"].grad.transpose(0, 1)
        close(tensors["L_B"].grad, b.flatten(0, 1))


def test_vera_has_the_logits_and_gradients_of_peft(adapted):
    ours = adapted("vera", r=6)
    theirs = get_peft_model(copy.deepcopy(ours.base), VeraConfig(r=6, target_modules=TARGETS))
    theirs.double()
    for site in ours.plan.sites:
        module, tensors = theirs.base_model.model.get_submodule(site.path), ours.tensors(site.path)
        module.vera_A["default"].copy_(tensors["A"].detach())
        module.vera_B["default"].copy_(tensors["B"].detach().t())
        module.vera_lambda_d["default"].data = tensors["gain_rank"].detach()[0].clone()
        module.vera_lambda_b["default"].data = tensors["gain_out"].detach()[0].clone()

    close(run(ours.model), run(theirs))
    for site in ours.plan.sites:
        module, tensors = theirs.base_model.model.get_submodule(site.path), ours.tensors(site.path)
        close(tensors["gain_rank"].grad[0], module.vera_lambda_d["default"].grad)
        close(tensors["gain_out"].grad[0], module.vera_lambda_b["default"].grad)
        assert tensors["A"].grad is None
        assert tensors["B"].grad is None


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
