"""One adapted model on two processes, with DDP and with FSDP2, by torch's own means."""

import copy
from functools import cache, partial

import pytest
import torch
from peft import get_peft_model
from torch import distributed
from torch.distributed.fsdp import CPUOffloadPolicy, MixedPrecisionPolicy, fully_shard
from torch.nn.parallel import DistributedDataParallel

from bishare_dsl import compile_spec, load_adapter, parse_spec
from bishare_dsl.diagnostics import AdapterError
from bishare_dsl.folder.devices import gather_tensors
from bishare_dsl.peft import BishareConfig
from tests.distributed.together import Together, assert_same_everywhere
from tests.support.families import tiny_model

pytestmark = pytest.mark.long

# Tensors of a module, of a layer and of the whole model; a transform of each kind; frozen ones.
MIXED = """
spec mixed
target q_proj, k_proj, v_proj, up_proj, down_proj
share local per module rank 2 scale 2
share intra per layer rank 3 scale 0.5 via KE(size = 4)
share inter per model rank 4 via SS(slice = trailing)
share gated per model rank 2 via GT(size = 8, gate_rank = 2)
share bank per model rank 2 via VectorBank(vectors = 8, length = 4, top_k = 2) start nonzero
share drawn per model rank 4 via SS(slice = leading)
    init A kaiming_normal, B kaiming_normal freeze A, B gain rank init 0.1, out init 0
"""
# Here a region is the layer itself, which FSDP wraps, beside regions within it.
OPT = """
spec opt
target q_proj, v_proj, fc1, fc2
share local per module rank 2
share intra per layer rank 3 via KE(size = 4)
share inter per model rank 4 via SS(slice = trailing)
magnitude per layer, out where layer == 0 or fc1
"""
SPECS = {"llama": MIXED, "opt": OPT}
CONFIGS = {"llama": {}, "opt": {"dropout": 0.0}}
LAYERS = ("LlamaDecoderLayer", "OPTDecoderLayer")
STEPS = 3
IDS = torch.randint(3, 64, (4, 12), generator=torch.Generator().manual_seed(7))

together = Together()


def adapted(family="llama", dtype=torch.float32):
    """An adapted model whose adapter does something, the same on all processes."""
    return copy.deepcopy(compiled(family, dtype))


@cache
def compiled(family, dtype):
    base = tiny_model(family, **CONFIGS[family]).to(dtype)
    model = compile_spec(parse_spec(SPECS[family]), base, seed=3)
    random = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for tensor in model.bishare.tensors().values():
            if tensor.requires_grad:
                tensor.add_(0.1 * torch.randn(tensor.shape, generator=random))
    return model


def sharded(model, **policies):
    """The same model under FSDP2 as accelerate sets it up: each layer for itself, then the rest."""
    for module in list(model.modules()):
        if type(module).__name__ in LAYERS:
            fully_shard(module, **policies)
    return fully_shard(model, **policies)


def train(model, ids):
    """The losses of a few steps on the same rows, the mean of all processes'."""
    model.train()
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], 0.1, 0.9)
    losses = []
    for _ in range(STEPS):
        loss = model(input_ids=ids, labels=ids, use_cache=False).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.detach())
    return torch.stack(losses)


def mine(rows):
    """This process's half of a batch."""
    return rows.chunk(2)[distributed.get_rank()]


def mean(values):
    distributed.all_reduce(values)
    return values / 2


def values_of(model):
    return gather_tensors(model.bishare.plan, model.bishare.tensors())


def logits(model):
    with torch.no_grad():
        return model.eval()(IDS, use_cache=False).logits


@cache
def learned_alone(family):
    """What one process learns of the whole batch: the losses, and the values then."""
    model = adapted(family)
    return train(model, IDS), values_of(model)


def assert_as_one_process(wrap, family="llama", reentrant=None):
    """Two processes on the halves of a batch learn what one does on the whole of it."""
    model = adapted(family)
    if reentrant is not None:
        model.enable_input_require_grads()
        model.gradient_checkpointing_enable({"use_reentrant": reentrant})
    assert_learned(model, mean(train(wrap(model), mine(IDS))), family)


def assert_learned(model, losses, family="llama"):
    """A model has learned, with these losses, what one process learns of the whole batch."""
    expected, learned = learned_alone(family)
    # Float32: the gradients' sums are taken in another order, and their error grows with the steps.
    torch.testing.assert_close(losses, expected, atol=1e-5, rtol=0)
    assert expected[0] - expected[-1] > 0.05, "nothing was learned"
    values = values_of(model)
    for name, value in learned.items():
        torch.testing.assert_close(values[name], value, atol=1e-5, rtol=1e-4, msg=name)
    assert_same_everywhere(values)


@together
def ddp(folder):
    # Every tensor has a gradient in every step, so that nothing has to be looked for.
    assert_as_one_process(DistributedDataParallel)


@together
def fsdp(folder):
    assert_as_one_process(sharded)


@together
def fsdp_with_checkpointing_where_a_layer_is_a_region(folder):
    assert_as_one_process(sharded, "opt", reentrant=False)


@together
def fsdp_with_offload(folder):
    # Pinned memory is that of a GPU.
    assert_as_one_process(partial(sharded, offload_policy=CPUOffloadPolicy(pin_memory=False)))


@together
def fsdp_of_a_bfloat16_base(folder):
    """The base's frozen bfloat16 and the adapter's float32 stand in the same units."""

    def build():
        return adapted(dtype=torch.bfloat16)

    expected = train(build(), IDS)
    model = sharded(build())
    losses = mean(train(model, mine(IDS)))
    torch.testing.assert_close(losses, expected, atol=0.02, rtol=0)
    values = values_of(model)
    assert {value.dtype for value in values.values()} == {torch.float32}
    assert_same_everywhere(values)


@together
def saving_in_mixed_precision(folder):
    """What a forward gathered, rounded to bfloat16, is not what is saved."""
    expected = values_of(adapted())
    model = sharded(adapted(), mp_policy=MixedPrecisionPolicy(param_dtype=torch.bfloat16))
    logits(model)
    model.bishare.save_pretrained(folder / "saved")
    stored = load_adapter(folder / "saved", tiny_model("llama"))
    for name, value in values_of(stored).items():
        assert torch.equal(value, expected[name]), name


@together
def merging(folder):
    """Weights that were gathered for a forward, and go with the next, are not merged into."""
    model = sharded(adapted(), reshard_after_forward=False)
    before = logits(model)
    with pytest.raises(AdapterError, match=r"BS624.*sharded over several processes"):
        model.bishare.merge()
    assert torch.equal(logits(model), before)


@together
def switching(folder):
    """Refused, for FSDP does not know what else runs; before it shards, any adapter may be chosen."""
    model = get_peft_model(tiny_model("llama"), BishareConfig(spec=MIXED, seed=3))
    other = OPT.replace("fc1, fc2", "up_proj").replace("fc1", "up_proj")
    model.add_adapter("other", BishareConfig(spec=other, seed=4))
    model.set_adapter("other")
    expected = logits(model)
    sharded(model)
    with pytest.raises(AdapterError, match="BS645"):
        model.set_adapter("default")
    with pytest.raises(AdapterError, match="BS645"):
        model.add_adapter("another", BishareConfig(spec=MIXED))
    assert torch.equal(logits(model), expected)
    assert torch.equal(logits(model.unload()), logits(tiny_model("llama")))


@pytest.mark.parametrize("name", together)
def test_two_processes(name, found):
    assert [process[name] for process in found] == ["", ""]
