"""What can be captured is proved the same on every way; what cannot is refused, with the reason."""

import copy
import functools

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from bishare_dsl.rewrite import leaves
from bishare_dsl.rewrite.capture import capture_region
from bishare_dsl.rewrite.rewritten import GraphCode, set_code
from bishare_dsl.rewrite.signature import graph_signature
from bishare_dsl.rewrite.trace import UntraceableRegion
from tests.support.families import tiny_model

LLAMA_ATTENTION = ("q_proj", "k_proj", "v_proj", "o_proj")


class Region(nn.Module):
    """A parent with one linear, the forward of which each test supplies."""

    scale = 2.0

    def __init__(self):
        super().__init__()
        self.up = nn.Linear(4, 6)
        self.norm = nn.LayerNorm(6)
        self.flag = True
        self.dropout = 0.5
        self.gain = nn.Parameter(torch.tensor(3.0))

    def helper(self, x, **kwargs):
        return double(x, **kwargs)


def double(x, times=2):
    return times * x if times is not None and isinstance(x, torch.Tensor) else None


def region(forward):
    return type("Region", (Region,), {"forward": forward})()


def check_same(forward, *args, training=False, **kwargs):
    """Capture, install in a copy, and compare with the original, bit for bit."""
    module = region(forward).train(training)
    rewritten = copy.deepcopy(module)
    set_code(rewritten, GraphCode.of(capture_region(module, ["up"])))
    results = []
    for each in (module, rewritten):
        torch.manual_seed(0)
        results.append(each(*args, **kwargs))
    assert torch.equal(*results)


X = torch.randn(2, 3, 4)


def test_shapes_unpack_and_kwargs_pass_through():
    def forward(self, x, **kwargs):
        y = self.up(x).view(*x.shape[:-1], 2, 3)
        return self.helper(y.flatten(2), **kwargs)

    check_same(forward, X)
    check_same(forward, X, times=3)


def test_training_is_chosen_at_run_time():
    def forward(self, x):
        y = F.dropout(self.up(x), p=0.0 if not self.training else self.dropout, training=True)
        return F.dropout(y, 0.25, self.training)

    for training in (False, True):
        check_same(forward, X, training=training)


class Cache:
    def update(self, keys, values, *, by):
        return keys + by, values - by


def test_what_a_cache_returns_may_stay_a_pair():
    def forward(self, x, cache=None):
        pair = (self.up(x), x)
        if cache is not None:
            pair = cache.update(*pair, by=1)
        return self.norm(pair[0]) * pair[1].sum()

    check_same(forward, X)
    check_same(forward, X, cache=Cache())


def masked(self, x, mask=None):
    y = self.up(x)
    return y if mask is None else y + mask


def both(self, x, a=None, b=None):
    y = self.up(x)
    if a is None and b is None:
        y = y + 1
    return y


def keeps_what_it_updates(self, x, cache=None):
    y = self.up(x)
    if cache is not None:
        cache.update(y, x)
    return y if cache is None else x


def branches_on_a_float(self, x):
    return self.up(x) if self.dropout > 0 else x


def in_training(self, x):
    y = self.up(x)
    return y + 1 if self.training else y


def absent_in_training(self, x, mask=None):
    y = self.up(x)
    return y if mask is not None or not self.training else y + 1


def inspects(self, x):
    return self.up(x) if isinstance(x, torch.Tensor) else x


def peeks(self, x, **kwargs):
    return self.up(x) * kwargs.get("times", 1)


def contains(self, x, **kwargs):
    return self.up(x) * (2 if "times" in kwargs else 1)


def branches(self, x):
    return self.up(x) if x.sum() > 0 else x


def sets(self, x):
    self.last = self.up(x)
    return self.last


def creates(self, x):
    return self.up(x) + torch.ones(6)


def asks_torch(self, x):
    return self.up(x) if torch.is_grad_enabled() else x


def starred(self, *xs):
    return self.up(xs[0])


def reads_weight(self, x):
    return self.up(x) + self.up.weight.sum()


def never(self, x):
    return F.linear(x, self.up.weight)


def by_keyword(self, x):
    return self.up(input=x)


def fails(self, x):
    raise KeyError("nothing here")


class Heir(Region):
    def forward(self, x):
        return super().forward(x)


class DecoratorClass:
    def __init__(self, function):
        functools.update_wrapper(self, function)

    def __call__(self, *args):
        return self.__wrapped__(*args)


@pytest.mark.parametrize(
    ("forward", "reason"),
    [
        (masked, "another way when mask is None"),
        (both, "another way when a and b are None"),
        (keeps_what_it_updates, "another way when cache is None"),
        (branches_on_a_float, "control flow"),
        (in_training, "another way in training"),
        (absent_in_training, "another way when training without mask"),
        (inspects, r"asks isinstance\(\)"),
        (peeks, "looks inside"),
        (contains, "looks inside"),
        (branches, "control flow"),
        (sets, "sets self.last"),
        (creates, "creates a tensor"),
        (asks_torch, "torch.is_grad_enabled"),
        (starred, r"takes \*xs"),
        (reads_weight, "reads up.weight"),
        (never, "never calls up"),
        (by_keyword, "more than one tensor"),
        (fails, "KeyError: 'nothing here'"),
        (Heir.forward, r"calls super\(\)"),
        (DecoratorClass(masked), "decorator"),
    ],
)
def test_what_cannot_be_proved_is_refused(forward, reason):
    with pytest.raises(UntraceableRegion, match=reason) as caught:
        capture_region(region(forward), ["up"])
    assert "\n" not in caught.value.reason


def test_a_forward_replaced_on_the_instance_is_refused():
    module = region(lambda self, x: self.up(x))
    module.forward = lambda x: x
    with pytest.raises(UntraceableRegion, match="replaced on the instance"):
        capture_region(module, ["up"])


def test_tracing_leaves_the_module_and_torch_as_they_were():
    module = tiny_model("llama").model.layers[0].self_attn
    before, call = dict(vars(module)), nn.Module.__call__
    capture_region(module, LLAMA_ATTENTION)
    assert vars(module) == before
    assert nn.Module.__call__ is call


def test_a_graph_reads_no_weight_and_may_come_from_meta():
    from transformers import AutoModelForCausalLM

    real = tiny_model("llama")
    with torch.device("meta"):
        meta = AutoModelForCausalLM.from_config(real.config)
    graphs = [
        capture_region(model.model.layers[0].self_attn, LLAMA_ATTENTION) for model in (real, meta)
    ]
    assert graph_signature(graphs[0]) == graph_signature(graphs[1])


def test_attention_is_one_late_bound_call():
    graph = capture_region(tiny_model("qwen3").model.layers[0].self_attn, LLAMA_ATTENTION)
    targets = [node.target for node in graph.nodes]
    assert targets.count(leaves.attend) == 1
    assert targets.count(leaves.update_cache) == 1
