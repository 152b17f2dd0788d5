"""What a layer adds, straight from compact tensors: what each token's own effective factors give."""

import pytest
import torch

from bishare_dsl.api import plan_spec
from bishare_dsl.export.effective import effective_factors
from bishare_dsl.serve.vllm.bank import Bank
from bishare_dsl.serve.vllm.batch import group_tokens
from bishare_dsl.serve.vllm.layer import LayerTerms, Outputs
from bishare_dsl.testing.models import tiny_model
from tests.methods.test_every_method import TINY

pytestmark = pytest.mark.filterwarnings("ignore::bishare_dsl.diagnostics.BishareWarning")

LINEAR = sorted(set(TINY) - {"hydralora"})
SLOTS = [2, 2, 2, 0, -1, 4, 2, 5, 0, -1]
ATTENTION = [f"model.layers.1.self_attn.{kind}_proj" for kind in "qkv"]


class Server:
    """Six adapters of one spec in a bank, some slots of which are used."""

    def __init__(self, spec, params=None):
        torch.manual_seed(0)
        self.plan = plan_spec(spec, tiny_model("llama"), params or TINY.get(spec))
        frozen = {t.name: torch.randn(t.shape) for t in self.plan.tensors if not t.trainable}
        self.adapters = [
            {t.name: torch.randn(t.shape) for t in self.plan.tensors} | frozen for _ in range(6)
        ]
        self.bank = Bank(self.plan, 6, frozen, torch.float32)
        for slot, tensors in enumerate(self.adapters):
            self.bank.put(slot, self.bank.pack(tensors))
        self.site = {site.path: site for site in self.plan.sites}

    def expected(self, path, x):
        """What the adapters' effective factors make of each token."""
        output = torch.zeros(len(SLOTS), self.site[path].d_out)
        for token, slot in enumerate(SLOTS):
            if slot >= 0:
                down, up = effective_factors(self.plan, self.adapters[slot], self.site[path])
                output[token] = x[token] @ down.T @ up
        return output

    def added(self, outputs, x, width, inputs=None):
        output = torch.zeros(len(SLOTS), width)
        LayerTerms(self.plan, outputs, self.bank, inputs).add(output, x, group_tokens(SLOTS))
        return output


def close(found, expected):
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4 * float(expected.abs().max()))


@pytest.mark.parametrize("spec", LINEAR)
def test_every_spec(spec):
    server = Server(spec)
    for path, site in server.site.items():
        x = torch.randn(len(SLOTS), site.d_in)
        found = server.added([Outputs(path, slice(0, site.d_out))], x, site.d_out)
        close(found, server.expected(path, x))


def test_sites_of_a_fused_layer_stand_side_by_side():
    server = Server("bishare_ke")
    x = torch.randn(len(SLOTS), 32)
    outputs, start = [], 0
    for path in ATTENTION:
        width = server.site[path].d_out
        outputs.append(Outputs(path, slice(start, start + width)))
        start += width
    found = server.added(outputs, x, start)
    close(found, torch.cat([server.expected(path, x) for path in ATTENTION], 1))


def test_a_product_that_sites_of_a_layer_share_is_made_once(monkeypatch):
    from bishare_dsl.transforms.identity import Identity

    server, calls, down = Server("shared_input"), [], Identity.down_rows
    monkeypatch.setattr(Identity, "down_rows", lambda *a: calls.append(1) or down(*a))
    outputs = [Outputs(path, slice(0, server.site[path].d_out)) for path in ATTENTION]
    terms = LayerTerms(server.plan, outputs, server.bank)
    groups = group_tokens(SLOTS)
    calls.clear()  # What a term reads was looked up by calling it.
    terms.add(torch.zeros(len(SLOTS), 64), torch.randn(len(SLOTS), 32), groups)
    assert len(calls) == len(groups)


@pytest.mark.parametrize("spec", ["bishare_ke", "bishare_gt", "bishare_ss", "vb_lora"])
def test_outputs_or_inputs_may_be_spread_over_processes(spec):
    """Each of two gives half of the outputs; or each adds what half of the inputs make."""
    server = Server(spec)
    path = "model.layers.0.mlp.down_proj" if spec != "vb_lora" else ATTENTION[0]
    site = server.site[path]
    x = torch.randn(len(SLOTS), site.d_in)
    expected = server.expected(path, x)
    half = site.d_out // 2
    for part in (torch.arange(half), torch.arange(half, site.d_out)):
        found = server.added([Outputs(path, slice(0, len(part)), part)], x, len(part))
        close(found, expected[:, part])
    whole, half = [Outputs(path, slice(0, site.d_out))], site.d_in // 2
    parts = [torch.arange(half), torch.arange(half, site.d_in)]
    close(sum(server.added(whole, x[:, part], site.d_out, part) for part in parts), expected)
