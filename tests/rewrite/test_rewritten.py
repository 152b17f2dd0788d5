"""A model of identity graphs is the model it was: the same numbers, bit for bit, wherever it goes."""

import copy
import inspect

import pytest
import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from bishare_dsl.rewrite import leaves
from bishare_dsl.rewrite.capture import capture_region
from bishare_dsl.rewrite.fallback import linear_region
from bishare_dsl.rewrite.rewritten import GraphCode, is_rewritten, restore_forward, set_code
from bishare_dsl.rewrite.trace import UntraceableRegion
from tests.rewrite.adapted import identity
from tests.support.families import TINY_FAMILIES, tiny_model

IDS = torch.tensor([[5, 9, 13, 21, 34, 3, 8], [7, 7, 40, 41, 42, 43, 60]])
# The second prompt is padded on the left.
MASK = torch.tensor([[1, 1, 1, 1, 1, 1, 1], [0, 0, 1, 1, 1, 1, 1]])


def pair(family="llama", **overrides):
    """A model and its rewritten copy."""
    model = tiny_model(family, **overrides)
    rewritten = copy.deepcopy(model)
    identity(rewritten)
    assert any(map(is_rewritten, rewritten.modules()))
    return model, rewritten


def same(model, rewritten, ids=IDS, **kwargs):
    return torch.equal(model(ids, **kwargs).logits, rewritten(ids, **kwargs).logits)


@pytest.mark.each_once
@pytest.mark.parametrize(
    ("family", "attention"),
    # transformers gives Gemma 2 no sdpa, for its soft cap.
    [(f, a) for f in TINY_FAMILIES for a in ("sdpa", "eager") if (f, a) != ("gemma2", "sdpa")],
)
def test_logits_are_the_same(family, attention):
    model, rewritten = pair(family, attn_implementation=attention)
    assert same(model, rewritten)
    assert same(model, rewritten, attention_mask=MASK)
    if family == "gemma2":
        return
    other = "eager" if attention == "sdpa" else "sdpa"
    for each in (model, rewritten):
        each.set_attn_implementation(other)
    assert same(model, rewritten, attention_mask=MASK)


@pytest.mark.each_once
@pytest.mark.parametrize("family", ["llama", "gemma2", "gpt2"])
@pytest.mark.parametrize("checkpointing", [None, True, False])
def test_gradients_are_the_same(family, checkpointing):
    dropout = {"attn_pdrop": 0.5} if family == "gpt2" else {"attention_dropout": 0.5}
    gradients = []
    for model in pair(family, attn_implementation="eager", **dropout):
        if checkpointing is not None:
            model.gradient_checkpointing_enable({"use_reentrant": checkpointing})
        model.train()
        torch.manual_seed(0)
        model(IDS, labels=IDS).loss.backward()
        gradients.append([p.grad for p in model.parameters()])
    assert len(gradients[0]) > 10
    assert all(map(torch.equal, *gradients))


def test_layers_share_a_class_and_a_copy_of_the_graph_does_too():
    _, rewritten = pair(num_hidden_layers=3)
    first, *others = (type(layer.self_attn) for layer in rewritten.model.layers)
    assert all(other is first for other in others)
    module = tiny_model("llama").model.layers[0].mlp
    targets = ("gate_proj", "up_proj", "down_proj")
    classes = []
    for _ in range(2):
        set_code(module, GraphCode.of(capture_region(module, targets)))
        classes.append(type(module))
    assert classes[0] is classes[1]


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_uninstall_leaves_the_very_class(family):
    model, rewritten = pair(family)
    for module in rewritten.modules():
        restore_forward(module)
    assert [type(m) for m in rewritten.modules()] == [type(m) for m in model.modules()]
    assert same(model, rewritten)


def test_signature_and_decorators_are_kept():
    model, rewritten = pair()
    for old, new in zip(model.modules(), rewritten.modules(), strict=True):
        assert inspect.signature(old.forward) == inspect.signature(new.forward)
        assert isinstance(new, type(old))
        assert repr(old) == repr(new)
    attention, deprecated = rewritten.model.layers[0].self_attn, []
    if hasattr(type(model.model.layers[0].self_attn).forward, "__wrapped__"):
        deprecated.append("past_key_values")  # transformers >= 5.2x renamed it, with a decorator
    for name in deprecated:
        x = torch.randn(1, 2, 32)
        angles = rewritten.model.rotary_emb(x, torch.arange(2)[None])
        with pytest.warns(FutureWarning, match=name):
            attention(x, position_embeddings=angles, attention_mask=None, **{name: None})


@pytest.mark.each_once
@pytest.mark.parametrize("family", ["llama", "gpt2"])
@pytest.mark.parametrize("order", ["hooks first", "graphs first"])
def test_accelerate_hooks(family, order):
    from accelerate import cpu_offload
    from accelerate.hooks import ModelHook, add_hook_to_module, remove_hook_from_module

    calls = []

    class Count(ModelHook):
        def pre_forward(self, module, *args, **kwargs):
            calls.append(module)
            return args, kwargs

    def add_hooks(model):
        cpu_offload(model, torch.device("cpu"))
        for module in model.modules():
            add_hook_to_module(module, Count(), append=True)

    model, rewritten = tiny_model(family), tiny_model(family)
    steps = [add_hooks, identity] if order == "hooks first" else [identity, add_hooks]
    for step in steps:
        step(rewritten)
    assert same(model, rewritten)
    regions = [module for module in rewritten.modules() if is_rewritten(module)]
    for region in regions:
        assert region in calls
        assert region._old_forward.__func__ is type(region).forward
        bound = type(region).forward.__get__(region)
        assert inspect.signature(region.forward) == inspect.signature(bound)
    # Taken out and put back under the hooks, and again once the hooks are gone.
    classes = [type(region) for region in regions]
    for region in regions:
        restore_forward(region)
        assert region._old_forward.__func__ is type(region).forward
    assert same(model, rewritten)
    identity(rewritten)
    assert [type(region) for region in regions] == classes
    remove_hook_from_module(rewritten, recurse=True)
    assert same(model, rewritten)
    for region in regions:
        assert region.forward.__func__ is type(region).forward
        restore_forward(region)
        assert region.forward.__func__ is type(region).forward
    assert same(model, rewritten)


class Quantised(nn.Module):
    """A linear layer that keeps its weight in a form of its own, like bitsandbytes and GPTQ."""

    def __init__(self):
        super().__init__()
        self.register_buffer("packed", torch.randint(-8, 8, (6, 4), dtype=torch.int8))

    def forward(self, x, bias=None, *more, scale=1 / 8, **options):
        y = x @ self.packed.to(x.dtype).t() * scale + (0 if bias is None else bias)
        return sum(more, start=y) + options.get("shift", 0)


@pytest.mark.parametrize(
    "linear", [nn.Linear(4, 6), Conv1D(6, 4), Quantised()], ids=lambda m: type(m).__name__
)
def test_any_linear_is_a_region_of_its_own(linear):
    x = torch.randn(3, 4)
    signature = inspect.signature(linear.forward)
    name = next(iter(signature.parameters))
    expected = linear(x)
    graph = linear_region(linear)
    assert [node.target for node in graph.nodes if node.op == "call_function"] == [
        leaves.base_forward
    ]
    set_code(linear, GraphCode.of(graph))
    assert torch.equal(linear(x), expected)
    assert torch.equal(linear(**{name: x}), expected)
    assert inspect.signature(linear.forward) == signature
    assert torch.equal(torch.compile(linear, fullgraph=True, backend="eager")(x), expected)


def test_a_forward_on_the_instance_is_not_silently_kept():
    linear = nn.Linear(4, 6)
    linear.forward = lambda x: x
    with pytest.raises(UntraceableRegion, match="on the instance"):
        linear_region(linear)
