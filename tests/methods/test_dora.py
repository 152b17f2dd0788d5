"""DoRA and IA3 as PEFT has them: counts, outputs and gradients."""

import copy

import torch
from peft import IA3Config, LoraConfig, get_peft_model

from bishare_dsl import compile_spec
from bishare_dsl.testing.models import tiny_model
from tests.methods.conftest import close, planned, spec

IDS = torch.arange(12).view(2, 6) * 5 % 64


def trainable(model):
    return sum(p.numel() for p in model.parameters() if p.requires_grad)


def test_dora_has_the_parameters_and_the_outputs_of_peft(llama):
    config = LoraConfig(
        r=3,
        lora_alpha=16,
        use_dora=True,
        target_modules=["q_proj", "k_proj", "v_proj", "up_proj", "down_proj"],
    )
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


def test_counts_on_llama_7b():
    lora, vectors = planned("lora").trainable, 32 * (4 * 4096 + 11008)
    assert planned("dora").trainable == lora + vectors
    assert planned("ia3").trainable == 32 * (2 * 4096 + 11008)
    shared = planned("bishare_ke_lengths").trainable
    assert shared == planned("bishare_ke_ab").trainable + 4 * 4096 + 11008


def test_layers_share_lengths_of_a_kind_and_all_of_them_train():
    model = compile_spec(
        spec("bishare_ke_lengths", size=4, shared_rank=2),
        tiny_model("llama", num_hidden_layers=3),
    )
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], 1e-2)
    for _ in range(3):
        model(IDS, labels=IDS).loss.backward()
        optimizer.step()
    shared = {n: t for n, t in model.bishare.tensors().items() if n.startswith("magnitude")}
    assert sorted(shared) == [f"magnitude.{kind}_proj.mu" for kind in ("down", "k", "q", "up", "v")]
    assert all(tensor.detach().abs().min() > 0 for tensor in shared.values())
