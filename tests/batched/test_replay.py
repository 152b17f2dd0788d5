"""A step that was recorded is right for every batch that is written later, as it must be in a CUDA graph."""

import pytest
import torch
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils._python_dispatch import TorchDispatchMode

from bishare_dsl.batched.grouping import Step, group_tokens
from bishare_dsl.batched.layer import LayerTerms, Outputs
from tests.batched.test_layer import ATTENTION, LINEAR, TOEPLITZ, Server, qkv
from tests.methods.test_every_method import ONE_OF_EACH
from tests.support.parts import quick

pytestmark = pytest.mark.filterwarnings("ignore::bishare_dsl.diagnostics.BishareWarning")

TOKENS, BATCHES, SLOTS = 12, 20, 4


class Served(Server):
    """A bank with fewer slots than there are adapters, and the layers of a block with their terms."""

    def __init__(self, spec):
        super().__init__(spec, slots=SLOTS)
        self.held = [None] * SLOTS
        layers = [qkv(self)] if ATTENTION[0] in self.site else []
        layers += [
            [Outputs(path, slice(0, site.d_out))]
            for path, site in self.site.items()
            if "layers.1.mlp" in path or not layers
        ]
        self.layers = [LayerTerms(self.bank, outputs) for outputs in layers]
        self.inputs = [torch.randn(TOKENS, terms.width) for terms in self.layers]
        self.step = Step(self.bank, TOKENS)

    def run(self, inputs, groups):
        """What all layers add to zeros."""
        outputs = []
        for x, terms in zip(inputs, self.layers, strict=True):
            output = torch.zeros(TOKENS, max(part.place.stop for part, _ in terms.sites))
            terms.add(output, x, groups)
            outputs.append(output)
        return outputs

    def record(self, groups):
        return make_fx(lambda inputs: self.run(inputs, groups))(self.inputs)

    def swap(self, random):
        """Put another adapter into a slot, or none."""
        slot = int(torch.randint(SLOTS, (), generator=random))
        number = int(torch.randint(-1, len(self.adapters), (), generator=random))
        self.held[slot] = None if number < 0 else number
        none = torch.zeros(self.bank.layout.numbers)
        packed = none if number < 0 else self.bank.pack(self.adapters[number])
        self.bank.write_slot(slot, packed)


def groups_of(bank, slots):
    return group_tokens(bank, slots + [-1] * (TOKENS - len(slots)))


def drawn(number, random):
    """The slots of a batch: of none, one token, all of one adapter, or any."""
    if number % 10 == 0:
        return [-1] * TOKENS
    count = 1 if number % 10 == 1 else int(torch.randint(1, TOKENS + 1, (), generator=random))
    if number % 10 == 2:
        return [number % SLOTS] * TOKENS
    return torch.randint(-1, SLOTS, (count,), generator=random).tolist()


@pytest.mark.parametrize("spec", ["bishare_ke", "bishare_gt", "bishare_ss", "vera", TOEPLITZ])
def test_a_recorded_step_is_right_for_every_batch(spec):
    """Twenty batches by writing the buffers alone, while adapters come and go."""
    server, random = Served(spec), torch.Generator().manual_seed(0)
    server.swap(random)
    server.step.write([0])
    recorded = server.record(server.step.batch(TOKENS))
    for number in range(BATCHES):
        server.swap(random)
        slots = drawn(number, random)
        server.step.write(slots)
        found = recorded(server.inputs)
        expected = server.run(server.inputs, groups_of(server.bank, slots))
        for one, other in zip(found, expected, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4 * float(other.abs().max()))


def test_groups_of_one_batch_are_not_those_of_the_next():
    """What a CPU runs is no step to record: so the test above can fail."""
    server = Served("bishare_ke")
    server.bank.write_slot(0, server.bank.pack(server.adapters[0]))
    recorded = server.record(groups_of(server.bank, [0, 0]))
    expected = server.run(server.inputs, groups_of(server.bank, [-1, 0, 0]))
    assert not torch.allclose(recorded(server.inputs)[0], expected[0])


class NoWaiting(TorchDispatchMode):
    """Raises on what reads data of the device on the host."""

    WAITS = ("_local_scalar_dense", "equal", "nonzero", "is_nonzero", "unique_dim", "_unique2")

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.overloadpacket.__name__
        assert name not in self.WAITS, f"`{name}` waits for the device"
        return func(*args, **kwargs or {})


@pytest.mark.parametrize("spec", quick(LINEAR, {*LINEAR} & {*ONE_OF_EACH}))
def test_nothing_waits_for_the_device(spec):
    server = Served(spec)
    with NoWaiting():
        server.step.write([2, 0, -1])
        server.run(server.inputs, server.step.batch(TOKENS))


def test_waiting_is_noticed():
    with pytest.raises(AssertionError, match="`_local_scalar_dense` waits"), NoWaiting():
        torch.ones(1).item()
