"""An adapted model: the base until it trains, W + sum of dW after, and a transformers model throughout."""

import copy
import re

import pytest
import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from bishare_dsl import compile_spec, parse_spec
from bishare_dsl.diagnostics import BishareWarning, ModelError
from bishare_dsl.models.inspect import inspect_model, model_on_meta
from bishare_dsl.rewrite import OwnedTensors, unadapt
from bishare_dsl.rewrite.passes import OPTIMISATIONS
from tests.rewrite.adapted import adapted, fresh_tensors, planned
from tests.support import checks
from tests.support.checks import regions
from tests.support.families import TINY_FAMILIES, tiny_model
from tests.support.parts import quick
from tests.support.quantised import quantise
from tests.support.regions import adapt

IDS = torch.tensor([[5, 9, 13, 21, 34, 3, 8], [7, 7, 40, 41, 42, 43, 60]])
# The second prompt is padded on the left.
MASK = torch.tensor([[1, 1, 1, 1, 1, 1, 1], [0, 0, 1, 1, 1, 1, 1]])
HOW = {"dynamic": {}, "static": {"cache_implementation": "static"}, "beams": {"num_beams": 3}}


def logits(model, **kwargs):
    return model(IDS, attention_mask=MASK, **kwargs).logits


def close(actual, expected, tolerance=2e-5):
    torch.testing.assert_close(actual, expected, rtol=tolerance, atol=tolerance)


def gradients(model, tensors, ids=IDS):
    for tensor in tensors.values():
        tensor.grad = None
    model(ids, labels=ids).loss.backward()
    return {name: tensor.grad.clone() for name, tensor in tensors.items()}


# A fresh adapter -------------------------------------------------------------------------------------


@pytest.mark.each_once
@pytest.mark.parametrize(
    ("family", "how"),
    # Falcon's own attention takes no static cache.
    [(f, h) for f in TINY_FAMILIES for h in HOW if (f, h) != ("falcon", "static")],
)
def test_generation(family, how):
    case = adapted(family)

    def generate(model):
        return model.generate(
            IDS, attention_mask=MASK, max_new_tokens=5, do_sample=False, **HOW[how]
        )

    before = generate(case.base)
    assert torch.equal(generate(case.model), before)
    case.train()
    trained = generate(case.model)
    assert torch.equal(trained, generate(case.merged()))
    if family != "gemma2":  # whose embeddings, scaled up, drown all else in so small a model
        assert not torch.equal(trained, before)


# Training --------------------------------------------------------------------------------------------


class Graphs:
    def __init__(self):
        self.count = 0

    def __call__(self, graph, inputs):
        self.count += 1
        return graph.forward


def decode(model):
    cache = model(IDS[:1, :3], use_cache=True).past_key_values
    return model(IDS[:1, 3:4], cache=cache).logits


@pytest.mark.long
def test_decoding_compiles_without_a_break():
    case = adapted("llama", num_hidden_layers=1).train()
    breaks = {}
    for model in (case.base, case.model):
        torch._dynamo.reset()
        torch._dynamo.utils.counters.clear()
        with torch.no_grad():
            close(decode(torch.compile(model, backend="eager")), decode(model))
        breaks[model] = sum(torch._dynamo.utils.counters["graph_break"].values())
    assert breaks[case.model] <= breaks[case.base]


def test_compiles_to_one_graph():
    case = adapted("llama", num_hidden_layers=1).train()
    model, backend = case.model, Graphs()
    with torch.no_grad():
        expected = logits(model)
    torch._dynamo.reset()
    compiled = torch.compile(model, fullgraph=True, backend=backend)
    with torch.no_grad():
        close(logits(compiled), expected)
        assert backend.count == 1
        for tensor in case.tensors.values():
            tensor.mul_(0.5)
        close(logits(compiled), logits(model))
        logits(model)
        assert backend.count == 1
    model.train()
    for _ in range(2):
        want, got = (gradients(m, case.tensors) for m in (model, compiled))
        assert all(torch.allclose(got[n], want[n], atol=1e-6) for n in want)
        assert backend.count == 2
    model.bishare.parts.enable(False)
    close(logits(compiled), logits(case.base))
    assert backend.count == 3


# The object ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_deepcopy_shares_nothing(family):
    case = adapted(family).train()
    with torch.no_grad():
        before = logits(case.model)
        again = copy.deepcopy(case.model)
        assert torch.equal(logits(again), before)
        for parameter in again.parameters():
            parameter.zero_()
        assert torch.equal(logits(case.model), before)
        assert not torch.equal(logits(again), before)
    ours = {id(p) for p in case.model.parameters()}
    assert not ours & {id(p) for p in again.parameters()}
    stores = {m for m in again.modules() if isinstance(m, OwnedTensors)}
    assert all(s in stores for _, r in regions(again) for s in r.bishare_factors._owned)


@pytest.mark.parametrize("family", quick(TINY_FAMILIES, ["llama", "gpt2", "mixtral"]))
def test_each_tensor_stands_once_in_the_state_dict(family):
    case = adapted(family).train()
    state = case.model.state_dict()
    ours = {key: value for key, value in state.items() if key not in case.base.state_dict()}
    assert len(ours) == len(case.plan.tensors)
    assert sum(value.numel() for value in ours.values()) == case.plan.trainable
    trainable = [p for p in case.model.parameters() if p.requires_grad]
    assert sum(p.numel() for p in trainable) == case.plan.trainable
    again = adapted(family)
    with torch.no_grad():
        assert not torch.equal(logits(again.model), logits(case.model))
        again.model.load_state_dict(state)
        assert torch.equal(logits(again.model), logits(case.model))
    assert inspect_model(case.model) == inspect_model(case.base)


def test_hooks_and_recorded_outputs():
    case = adapted("llama", attn_implementation="eager")
    seen = []
    for model in (case.base, case.model):
        layer = model.model.layers[0]
        for module in (layer.self_attn, layer.self_attn.q_proj, layer.mlp, layer.mlp.down_proj):
            module.register_forward_hook(
                lambda _, args, out: seen.append(out[0] if isinstance(out, tuple) else out)
            )
    outputs = [
        model(IDS, output_attentions=True, output_hidden_states=True)
        for model in (case.base, case.model)
    ]
    assert len(seen) == 8
    assert all(map(torch.equal, seen[:4], seen[4:]))
    for recorded in ("attentions", "hidden_states"):
        expected, actual = (getattr(output, recorded) for output in outputs)
        assert len(expected) >= 2
        assert all(map(torch.equal, expected, actual))


# Refusals --------------------------------------------------------------------------------------------


def unchanged(model, change):
    """`change` raises a ModelError, which is returned, and leaves the model as it was."""
    before = [(n, type(m), dict(m.__dict__)) for n, m in model.named_modules()]
    trains = [p.requires_grad for p in model.parameters()]
    with pytest.raises(ModelError) as caught:
        change()
    assert [(n, type(m), m.__dict__) for n, m in model.named_modules()] == before
    assert [p.requires_grad for p in model.parameters()] == trains
    return str(caught.value)


def test_a_model_of_which_a_part_is_adapted_is_refused():
    model = tiny_model("llama")
    plan = planned(model)
    adapted(model.model)
    assert "already" in unchanged(model, lambda: adapt(model, plan, fresh_tensors(plan)))


def test_a_linear_with_a_forward_of_its_own_is_refused():
    model = tiny_model("gpt2")  # falls back: the linear itself would be the region
    linear = model.transformer.h[1].attn.c_attn
    linear.forward = lambda x: Conv1D.forward(linear, x)
    plan = planned(model)
    error = unchanged(model, lambda: adapt(model, plan, fresh_tensors(plan)))
    assert "transformer.h.1.attn.c_attn" in error
    assert "replaced on the instance" in error


def test_a_parent_with_a_forward_of_its_own_falls_back():
    """As Liger does, in any of the layers: also where the first layer's graph would seem to fit."""
    model = tiny_model("llama")
    mlp = model.model.layers[1].mlp

    def forward(x):
        return mlp.down_proj(torch.nn.functional.silu(mlp.gate_proj(x)) * mlp.up_proj(x))

    mlp.forward = forward
    case = adapted(model)
    assert "replaced on the instance" in case.notes[0]
    found = [path for path, _ in regions(model)]
    assert "model.layers.0.mlp" in found
    assert "model.layers.1.mlp.down_proj" in found
    case.base = tiny_model("llama")
    assert torch.equal(logits(model), logits(case.base))
    close(logits(case.train().model), logits(case.reference()), 1e-4)


class Stack(nn.Module):
    """Layers, as small as can be; sites are what is below their numbers."""

    def __init__(self, *layers):
        super().__init__()
        self.layers = nn.ModuleList(layers)

    def forward(self, x):
        for layer in self.layers:
            x = layer(x)
        return x


LORA = "spec s\ntarget every\nscale 2\nshare local per module rank 2"


class Untraced(nn.Module):
    """Decides by values, so that it cannot be traced."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, x):
        if x.sum() > 0:
            x = x + 1
        return self.compute(x)


class ReadsInAMethod(Untraced):
    def compute(self, x):
        return self.a(x) + torch.nn.functional.linear(x, self.b.weight)


class CallsAndReads(Untraced):
    def compute(self, x):
        return self.b(self.a(x)) - self.b.bias


class ReadsBySetting(Untraced):
    """As Bloom: a setting decides whether the weight is cut up."""

    parts = 2

    def compute(self, x):
        if self.parts > 1 and self.a is not None:
            return torch.nn.functional.linear(self.a(x), self.b.weight)
        return self.b(self.a(x))


class ReadsInTraining(Untraced):
    """As AltUp of Gemma 3n: heard in evaluation alone, and in training too where nothing is clipped."""

    clip, mode = 1.0, True

    def compute(self, x):
        if self.training is self.mode and self.clip is not None:
            return torch.nn.functional.linear(self.a(x), self.b.weight.clamp(-self.clip, self.clip))
        return self.b(self.a(x))


class ReadsInAModeOfAChild(ReadsInTraining):
    """Asks a child for the mode."""

    def __init__(self):
        super().__init__()
        self.drop = nn.Dropout(0.0)

    def compute(self, x):
        if self.drop.training is self.mode:
            return torch.nn.functional.linear(self.a(x), self.b.weight)
        return self.b(self.a(x))


class CalledByAnother(nn.Module):
    """Around a module of which it calls another method than `forward`, which reads a weight."""

    def __init__(self, kind):
        super().__init__()
        self.inner = kind()

    def forward(self, x):
        return self.inner.correct(x) if x.sum() > 0 else x


def derived(base, **members):
    return type("Derived", (base,), members)


def around(**members):
    methods = {"forward": lambda self, x: x, "correct": ReadsInTraining.compute}
    return lambda: CalledByAnother(derived(ReadsInTraining, **methods, **members))


@pytest.mark.parametrize(
    "region",
    [
        ReadsInAMethod,
        CallsAndReads,
        ReadsBySetting,
        ReadsInTraining,
        derived(ReadsInTraining, mode=False),
        ReadsInAModeOfAChild,
        derived(ReadsInAModeOfAChild, mode=False),
        around(),
    ],
)
def test_a_weight_that_an_untraced_forward_computes_with_is_refused(region):
    model = Stack(region())
    plan = planned(model, LORA)
    error = unchanged(model, lambda: adapt(model, plan, fresh_tensors(plan)))
    assert re.search(r"`layers\.0\.(inner\.)?b` cannot be adapted", error)
    assert "computes with the weight of b itself" in error


# Bases -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", ["llama"])
def test_quantised_linears_are_opaque_calls(family):
    case = adapted(quantise(tiny_model(family), lambda path: path != "lm_head"))
    assert torch.equal(logits(case.model), logits(case.base))
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(logits(case.model), logits(case.base))
    case.train()
    dense = tiny_model(family)
    for site in case.plan.sites:
        one, other = case.base.get_submodule(site.path), dense.get_submodule(site.path)
        other.weight.data = one.weight * one.scale
    packed, case.base = case.base, dense
    close(logits(case.model), logits(case.reference()), 1e-4)
    assert all(g.any() for g in gradients(case.model, case.tensors).values())
    unadapt(case.model)
    assert torch.equal(logits(case.model), logits(packed))


# Mixed -----------------------------------------------------------------------------------------------


def test_shares_of_different_dropout():
    text = """
        spec s
        target q_proj, k_proj, down_proj
        share one per module rank 2 dropout 0.5
        share two per layer rank 3 via SS dropout 0.25
        share three per kind rank 1
        """
    case = adapted("llama", text).train()
    close(logits(case.model), logits(case.reference()))  # in eval mode there is none
    case.model.train()
    torch.manual_seed(0)
    first, second = logits(case.model), logits(case.model)
    assert not torch.equal(first, second)
    torch.manual_seed(0)
    assert torch.equal(logits(case.model), first)
    case.model.gradient_checkpointing_enable({"use_reentrant": False})
    torch.manual_seed(0)
    want = logits(case.model)
    assert torch.equal(want, first)
    want.sum().backward()


@pytest.mark.filterwarnings("ignore::bishare_dsl.diagnostics.BishareWarning")
def test_a_linear_of_two_layers_is_adapted_in_both():
    model = tiny_model("llama", num_hidden_layers=3)
    layers = model.model.layers
    layers[2].self_attn.q_proj = layers[0].self_attn.q_proj
    layers[2].mlp = layers[1].mlp  # whose linears have one parent
    spec = parse_spec("spec s target q_proj, k_proj, up_proj share x per layer rank 2 via SS")
    checks.check_against_reference(spec, model)
    with pytest.warns(BishareWarning) as caught:
        compile_spec(spec, model)
    *left_out, note = (str(warning.message) for warning in caught)
    assert (
        note
        == "`model.layers.0.self_attn.q_proj` is a layer of other modules, too, and adapted alone"
    )
    assert all("BS313" in warning for warning in left_out), "each second name is told"


def test_a_model_on_the_meta_device():
    model = model_on_meta(tiny_model("llama").config)
    plan = planned(model)
    adapt(model, plan, {t.name: torch.empty(t.shape, device="meta") for t in plan.tensors})
    assert model(IDS.to("meta")).logits.shape == (2, 7, 64)


@pytest.mark.parametrize("step", OPTIMISATIONS, ids=lambda step: type(step).__name__)
def test_each_pass_can_be_switched_off(step):
    """Other code, which computes the same; as a benchmark does to tell what each pass buys."""
    case = adapted("llama").train()
    tensors = {name: tensor.detach().clone() for name, tensor in case.tensors.items()}
    others = tuple(other for other in OPTIMISATIONS if other != step)
    model = tiny_model("llama")
    adapt(model, case.plan, tensors, optimisations=others)
    ids = torch.arange(6)[None]
    torch.testing.assert_close(model(ids).logits, case.model(ids).logits)

    def code(model):
        return [region.bishare_changes.code.source for _, region in regions(model)]

    assert code(model) != code(case.model)


@pytest.mark.parametrize("family", ["qwen3", "gpt2"])
def test_autocast(family):
    case = adapted(family)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(logits(case.model), logits(case.base))
    case.train()
    seen = {}
    _, region = regions(case.model)[0]
    region.bishare_factors.register_forward_hook(lambda m, a, out: seen.update(out=out))
    with torch.autocast("cpu", torch.bfloat16):
        got = gradients(case.model, case.tensors)
    assert {factor.dense().dtype for factor in seen["out"]} == {torch.float32}
    want = gradients(case.model, case.tensors)
    for name, gradient in want.items():
        assert gradient.dtype == torch.float32
        error = (got[name] - gradient).norm() / gradient.norm()
        assert error < 0.1, name
