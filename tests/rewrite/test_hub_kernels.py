"""Forwards that `kernelize` of the Hub's kernels sets on instances: transformers 5.25 does it in `from_pretrained`.

`kernelize` binds the forward of a stateless layer to each module of a kind, and that of its own class to the
others. The same is done here, so that it is tested on a CPU with any transformers. Where the package `kernels` is
installed, which transformers 5.25 asks for, its own `kernelize` replaces functions, too.
"""

import copy
import functools
from types import MethodType

import pytest
import torch
import transformers
from packaging.version import Version
from torch import nn

from bishare_dsl import compile_spec, parse_spec
from bishare_dsl.diagnostics import AdapterError, ModelError
from bishare_dsl.testing.models import tiny_model
from tests.support.checks import check_spec, randomize

TEXT = """spec s
target q_proj, v_proj, gate_proj, up_proj, down_proj
share a  A per layer, in  B per module  rank 2
"""
IDS = torch.arange(3, 19).view(2, 8)


class FusedNorm(nn.Module):
    """As Liger's RMSNorm: the same equation, in another order of operations."""

    def forward(self, hidden_states):
        length = hidden_states.norm(dim=-1, keepdim=True) / hidden_states.shape[-1] ** 0.5
        return self.weight * (hidden_states / (length**2 + self.variance_epsilon).sqrt())


class FusedSilu(nn.Module):
    def forward(self, x):
        return x * torch.sigmoid(x)


class FusedMLP(nn.Module):
    """As a fused MLP: it computes with the weights of its children."""

    def forward(self, x):
        gate = nn.functional.linear(x, self.gate_proj.weight)
        up = nn.functional.linear(x, self.up_proj.weight)
        return nn.functional.linear(nn.functional.silu(gate) * up, self.down_proj.weight)


class FusedMLPOfOtherNames(nn.Module):
    def forward(module, x):  # A name of another hand.
        up = nn.functional.linear(x, module.up_proj.weight)
        return module.down_proj(nn.functional.silu(module.gate_proj(x)) * up)


class CallingMLP(nn.Module):
    """A forward of another hand that calls its children."""

    def forward(self, x):
        return self.down_proj(nn.functional.silu(self.gate_proj(x)) * self.up_proj(x))


def kernelize(model, **layers):
    """Bind forwards by the ends of modules' names, and that of its own class to every other module."""
    for name, module in model.named_modules():
        if name:
            layer = layers.get(name.rpartition(".")[2], type(module))
            module.forward = MethodType(layer.forward, module)
    return model


NORMS = {"input_layernorm": FusedNorm, "post_attention_layernorm": FusedNorm, "norm": FusedNorm}
KERNELS = {
    "none": {},
    "norms": NORMS,
    "activations": {"act_fn": FusedSilu},
    "a module around targets": {"mlp": CallingMLP},
    "all": {**NORMS, "act_fn": FusedSilu, "mlp": CallingMLP},
}


def logits(model):
    with torch.no_grad():
        return model(IDS, use_cache=False).logits


@pytest.mark.parametrize("kernels", KERNELS)
def test_before_compile_every_invariant_holds(kernels):
    """Fresh equals base bit for bit; forward, gradients, merge, unmerge, save and export are right."""
    model = kernelize(tiny_model(), **KERNELS[kernels])
    check_spec(parse_spec(TEXT), model)


@pytest.mark.parametrize("kernels", ["none", "norms", "activations"])
def test_after_compile_the_adapter_stays(kernels):
    model = compile_spec(TEXT, tiny_model())
    randomize(model)
    expected = logits(model)
    with model.bishare.disable_adapter():
        of_base = logits(model)
    kernelize(model, **KERNELS[kernels])
    torch.testing.assert_close(logits(model), expected, rtol=1e-4, atol=1e-4)
    with model.bishare.disable_adapter():
        torch.testing.assert_close(logits(model), of_base, rtol=1e-4, atol=1e-4)
    model.bishare.merge()
    torch.testing.assert_close(logits(model), expected, rtol=1e-4, atol=1e-4)
    model.bishare.unmerge()
    torch.testing.assert_close(logits(model), expected, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(logits(model.bishare.unload()), of_base, rtol=1e-4, atol=1e-4)


def test_after_compile_a_forward_around_targets_is_refused():
    model = compile_spec(TEXT, tiny_model())
    kernelize(model, mlp=CallingMLP)
    with pytest.raises(AdapterError, match=r"BS407.*LlamaMLP"):
        logits(model)


@pytest.mark.parametrize(
    ("layer", "child"), [(FusedMLP, "gate_proj"), (FusedMLPOfOtherNames, "up_proj")]
)
@pytest.mark.parametrize("wrapped", [False, True])
def test_a_forward_that_reads_a_weight_past_the_adapter_is_refused(layer, child, wrapped):
    """It would answer as the base."""
    model = kernelize(tiny_model(), mlp=layer)
    if wrapped:
        for block in model.model.layers:
            forward = block.mlp.forward
            block.mlp.forward = functools.wraps(forward)(functools.partial(forward))
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(ModelError, match=rf"BS403.*mlp\.{child}.*computes with the weight"):
        compile_spec(TEXT, model)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    compile_spec(TEXT.replace("gate_proj, up_proj, down_proj", "o_proj"), model)


CALLS = []


class FusedRotary(nn.Module):
    """A kernel for `apply_rotary_pos_emb`: the same equation, in double precision, which shows that it runs."""

    def forward(self, q, k, cos, sin, unsqueeze_dim=1):
        CALLS.append(None)
        cos, sin = (x.double().unsqueeze(unsqueeze_dim) for x in (cos, sin))
        return tuple((x * cos + half_turned(x) * sin).to(x.dtype) for x in (q, k))


def half_turned(x):
    first, second = x.chunk(2, dim=-1)
    return torch.cat((-second, first), dim=-1)


class Repository:
    """What `kernels` loads a kernel from."""

    def load(self):
        return FusedRotary


def with_rotary_kernel(model):
    from kernels import Mode, kernelize, use_kernel_mapping

    with use_kernel_mapping({"rotary_pos_emb": {"cpu": Repository()}}, inherit_mapping=False):
        return kernelize(model, mode=Mode.TRAINING, device="cpu")


NEEDS_KERNELS = pytest.mark.skipif(
    Version(transformers.__version__) < Version("5.25"), reason="no function is replaced before"
)


@NEEDS_KERNELS
def test_a_replaced_function_runs_under_an_adapter():
    model = with_rotary_kernel(tiny_model())
    check_spec(parse_spec(TEXT), model)
    model = with_rotary_kernel(tiny_model())
    before = len(CALLS)
    of_base = logits(model)
    for_base = len(CALLS) - before
    adapted = compile_spec(TEXT, model)
    assert torch.equal(logits(adapted), of_base)
    assert len(CALLS) == before + 2 * for_base > before


@NEEDS_KERNELS
def test_a_function_may_be_replaced_after_compile():
    model = compile_spec(TEXT, tiny_model())
    randomize(model)
    expected = logits(model)
    with_rotary_kernel(model)
    before = len(CALLS)
    torch.testing.assert_close(logits(model), expected, rtol=1e-4, atol=1e-4)
    assert len(CALLS) == before + model.config.num_hidden_layers
