"""What a layer adds, straight from compact tensors: what each token's own effective factors give."""

import pytest
import torch

from bishare_dsl.api import plan_spec
from bishare_dsl.batched.bank import Slots
from bishare_dsl.batched.grouping import Step, group_tokens
from bishare_dsl.batched.layer import LayerMagnitudes, LayerTerms, Outputs
from bishare_dsl.convert.effective import effective_factors
from bishare_dsl.testing.models import tiny_model
from bishare_dsl.transforms import register
from bishare_dsl.transforms.factor import DECODE_TOKENS, Kron
from tests.methods.test_every_method import ONE_OF_EACH, SCALED, TINY
from tests.support.parts import quick
from tests.support.toeplitz import Toeplitz

pytestmark = pytest.mark.filterwarnings("ignore::bishare_dsl.diagnostics.BishareWarning")

LINEAR = sorted(set(TINY) - {"hydralora"} - SCALED)
TOEPLITZ = "spec t\ntarget attention_inputs, mlp_downs\nshare s per layer rank 3 via Toeplitz\n"
SLOTS = [2, 2, 2, 0, -1, 4, 2, 5, 0, -1]
ATTENTION = [f"model.layers.1.self_attn.{kind}_proj" for kind in "qkv"]


class Server:
    """Six adapters of one spec in a bank, some slots of which are used."""

    def __init__(self, spec, slots=6, library=False, dtype=torch.float32):
        torch.manual_seed(0)
        register(Toeplitz)  # As a package's; the fixture `registered` takes it back.
        self.plan = plan_spec(spec, tiny_model("llama"), TINY.get(spec))
        once = {t.name for t in self.plan.tensors if not t.trainable}
        once |= self.plan.common if library else set()
        common = {t.name: torch.randn(t.shape) for t in self.plan.tensors if t.name in once}
        self.adapters = [
            {t.name: torch.randn(t.shape) for t in self.plan.tensors} | common for _ in range(6)
        ]
        self.site = {site.path: site for site in self.plan.sites}
        self.bank = Slots(self.plan, slots, common, dtype, library=library)
        for tensors in self.adapters:  # What a server computes from its weights.
            for path, name in self.bank.layout.changes.items():
                tensors.setdefault(name, torch.randn(1, self.site[path].d_out))
        for slot, tensors in enumerate(self.adapters[:slots]):
            self.bank.write_slot(slot, self.bank.pack(tensors))

    def expected(self, path, x, slots=SLOTS):
        """What the adapters' effective factors make of each token."""
        output = torch.zeros(len(slots), self.site[path].d_out)
        for token, slot in enumerate(slots):
            if slot >= 0:
                down, up = effective_factors(self.plan, self.adapters[slot], self.site[path])
                output[token] = x[token] @ down.T @ up
        return output

    def added(self, outputs, x, width, inputs=None, slots=SLOTS):
        output = torch.zeros(len(slots), width)
        batch = group_tokens(self.bank, slots)
        LayerTerms(self.bank, outputs, inputs).add(output, x, batch)
        return output


def close(found, expected):
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4 * float(expected.abs().max()))


LIBRARIES = ["library_core", "library_joint", "bishare_ke", "shared_core"]
ALONE = [(spec, False) for spec in (*LINEAR, TOEPLITZ)]
IN_LIBRARIES = [(spec, True) for spec in LIBRARIES]
QUICK = [row for row in ALONE if row[0] in (*ONE_OF_EACH, TOEPLITZ)]


@pytest.mark.parametrize(
    ("spec", "library"), quick([*ALONE, *IN_LIBRARIES], [*QUICK, *IN_LIBRARIES])
)
def test_every_spec(spec, library):
    """A few tokens of each adapter, and so many that effective factors are made; a library shares some once."""
    server = Server(spec, library=library)
    assert not library or server.bank.layout.common.keys() == server.plan.common
    for path, site in server.site.items():
        for slots in (SLOTS, [3] * (DECODE_TOKENS + 1) + [0] * (DECODE_TOKENS + 4)):
            x = torch.randn(len(slots), site.d_in)
            found = server.added([Outputs(path, slice(0, site.d_out))], x, site.d_out, slots=slots)
            close(found, server.expected(path, x, slots))


@pytest.mark.parametrize("spec", LIBRARIES)
def test_a_step_adds_nothing_to_tokens_without_an_adapter(spec):
    """Also where a term has no tensor of an adapter's own: the slot of zeros does not make it zero."""
    server = Server(spec, library=True)
    assert server.bank.layout.fixed is (spec in ("library_joint", "bishare_ke"))
    step = Step(server.bank, len(SLOTS))
    step.write(SLOTS)
    for path, site in server.site.items():
        x, output = torch.randn(len(SLOTS), site.d_in), torch.zeros(len(SLOTS), site.d_out)
        terms = LayerTerms(server.bank, [Outputs(path, slice(0, site.d_out))])
        terms.add(output, step.masked(x), step.batch(len(SLOTS)))
        close(output, server.expected(path, x))


def run(server, outputs, slots):
    """Add what a layer makes of a batch."""
    terms = LayerTerms(server.bank, outputs)
    width = max(part.place.stop for part in outputs)
    d_in = server.site[outputs[0].path].d_in
    x, output = torch.randn(len(slots), d_in), torch.zeros(len(slots), width)
    terms.add(output, x, group_tokens(server.bank, slots))


def qkv(server):
    outputs, start = [], 0
    for path in ATTENTION:
        width = server.site[path].d_out
        outputs.append(Outputs(path, slice(start, start + width)))
        start += width
    return outputs


def test_nothing_as_wide_as_a_site_is_made_of_kernels():
    """For few tokens of each adapter."""
    server = Server("bishare_ke")
    with MadeKrons() as made:
        run(server, qkv(server), [0, 1, 2, 2])
    assert not made.krons
    with MadeKrons() as made:
        run(server, qkv(server), [0] * (DECODE_TOKENS + 1))
    assert made.krons


class MadeKrons(pytest.MonkeyPatch):
    """Notes which Kronecker products are made, in a block."""

    def __enter__(self):
        self.krons, dense = [], Kron.dense
        self.setattr(Kron, "dense", lambda kron: self.krons.append(kron) or dense(kron))
        return self

    def __exit__(self, *_):
        self.undo()


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


HEAD = "spec s\ntarget q_proj, k_proj, v_proj\n"
SCALING = {
    "alone": "magnitude per module plain\n",
    "with terms": "share a per layer rank 2 via SS\n"
    "magnitude per layer, out where not k_proj plain\n",
    "of a library": "share a per adapter, module rank 2\nmagnitude per layer, out plain\n",
    "of lengths": "share a per module rank 2\nmagnitude per layer, out\n",
}


@pytest.mark.parametrize("text", SCALING.values(), ids=SCALING)
@pytest.mark.parametrize("recorded", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_magnitude_scales_what_its_adapter_gives_but_the_bias(text, recorded, dtype):
    """Each token by its own adapter; those without one are the base's, bit for bit, in any bank."""
    server = Server(HEAD + text, library="adapter" in text, dtype=dtype)
    bank, stop = server.bank, qkv(server)[-1].place.stop
    outputs = [part for part in qkv(server) if part.path in bank.layout.changes]
    bias, before = torch.randn(stop).to(dtype), torch.randn(len(SLOTS), stop).to(dtype)
    if recorded:
        step = Step(bank, len(SLOTS))
        step.write(SLOTS)
        batch = step.batch(len(SLOTS))
    else:
        batch = group_tokens(bank, SLOTS)
    output, expected = before.clone(), before.float()
    LayerMagnitudes(bank, outputs, bias).apply(output, batch.rows)
    for token, slot in enumerate(SLOTS):
        for part in outputs if slot >= 0 else ():
            change = server.adapters[slot][bank.layout.changes[part.path]][0]
            own = expected[token, part.place]
            own += change * (own - bias[part.place].float())
        if slot < 0:
            assert torch.equal(output[token], before[token])
    near = 4e-2 if dtype == torch.bfloat16 else 1e-5
    torch.testing.assert_close(output.float(), expected, rtol=near, atol=near)
    assert not torch.equal(output, before)
