"""Lengths and products of a layer's weight, as an engine keeps it; no engine is started."""

from types import SimpleNamespace

import pytest
import torch
from vllm.model_executor.layers.linear import UnquantizedLinearMethod

from bishare_dsl.diagnostics import AdapterError
from bishare_dsl.serve.vllm import private

PATH = "model.layers.0.self_attn.q_proj"


class Method:
    """A quantised layer's method: its weight in integers, its input as it is or in steps of a fixed size."""

    def __init__(self, weight, step=None, error=None):
        self.weight, self.step, self.error = weight, step, error

    def apply(self, base, x, bias=None):
        if self.error:
            raise self.error
        if self.step:
            x = (x / self.step).round() * self.step
        return x @ self.weight.T


def layer_of(weight, method, stored):
    base = SimpleNamespace(params_dtype=torch.float32, quant_method=method)
    if stored is not None:
        base.weight = stored
    return SimpleNamespace(
        base_layer=base,
        _get_quant_method=lambda: method,
        input_size=weight.shape[1],
        output_slices=(len(weight) // 2, len(weight) // 2),
        device=torch.device("cpu"),
    )


@pytest.mark.parametrize("form", ["plain", "repacked", "quantised"])
def test_products_are_those_of_the_weight(form, monkeypatch):
    """In blocks that its width is no multiple of."""
    monkeypatch.setattr(private, "BLOCK", 16)
    weight, a = torch.randn(6, 40), torch.randn(3, 40)
    method = Method(weight)
    if form != "quantised":
        method = UnquantizedLinearMethod.__new__(UnquantizedLinearMethod)
        # A plain weight is read as it is stored: the layer is not called.
        error = AssertionError("it is called") if form == "plain" else None
        method.apply = Method(weight, error=error).apply
    layer = layer_of(weight, method, weight if form == "plain" else torch.empty(0))
    squares, along = private.weight_products(layer, a, None, PATH)
    torch.testing.assert_close(squares, weight.square().sum(1))
    torch.testing.assert_close(along, a @ weight.T)


@pytest.mark.parametrize(
    ("method", "says"),
    [
        ({"step": 0.6}, "Method"),
        ({"error": RuntimeError("no kernel for this card")}, "no kernel for this card"),
    ],
)
def test_a_weight_that_is_not_read_is_an_error_of_its_module(method, says):
    weight = torch.randn(6, 40)
    layer = layer_of(weight, Method(weight, **method), torch.empty(0, dtype=torch.int8))
    with pytest.raises(AdapterError, match=rf"BS623.*{PATH}.*{says}"):
        private.weight_products(layer, torch.randn(3, 40), None, PATH)
