"""The kernels for a GPU, by Triton's interpreter: they give what the torch form gives, for every batch.

That they are compiled for a GPU is seen as well, by Triton's compiler, which needs none.
"""

import json
import os
import subprocess
import sys
import tomllib
from pathlib import Path

import numpy as np
import pytest
import torch
import triton
from triton.runtime import interpreter
from triton.runtime.errors import InterpreterError

from bishare_dsl.batched import kernels
from bishare_dsl.batched.bank import columns
from bishare_dsl.batched.grouping import Step, group_tokens
from bishare_dsl.batched.layer import LayerTerms, Outputs
from tests.batched.test_layer import ATTENTION, SLOTS, TOEPLITZ, Server, qkv

pytestmark = pytest.mark.filterwarnings("ignore::bishare_dsl.diagnostics.BishareWarning")
MLP = "model.layers.1.mlp.down_proj"


class Layer:
    """A layer by kernels and by torch, with its buffers."""

    def __init__(self, server, outputs, tokens, inputs=None):
        self.bank, self.terms = server.bank, LayerTerms(server.bank, outputs, inputs)
        self.kernels = kernels.KernelTerms(server.bank, self.terms)
        width = self.terms.width if inputs is None else len(inputs)
        self.x = torch.randn(tokens, width)
        self.before = torch.randn(tokens, max(part.place.stop for part in outputs))
        self.output = torch.empty_like(self.before)
        self.step = Step(server.bank, tokens)

    def run(self):
        self.kernels.add(self.output, self.x, self.step)

    def check(self, slots, run=None):
        self.output.copy_(self.before)
        self.step.write(slots)
        (run or self.run)()
        expected = self.before.clone()
        self.terms.add(expected, self.x, group_tokens(self.bank, slots))
        scale = float((expected - self.before).abs().max())
        torch.testing.assert_close(self.output, expected, rtol=1e-5, atol=1e-5 * max(scale, 1.0))


# A rank of more than two tiles of rows, of which the third is a part.
WIDE = "spec s\ntarget q_proj, k_proj, v_proj\nshare a per module rank 37\n"
SPECS = ["lora", "bishare_ss", "bishare_ke", "bishare_ke_ab", "vera", WIDE, "bishare_ke_rowwise"]


@pytest.mark.parametrize("spec", SPECS)
def test_kernels(spec):
    """More than a tile of one adapter, and tokens that have none; at widths that tiles do not divide."""
    assert 2 * kernels.sizes(torch.float32)["R"] < 37
    server = Server(spec)
    layer = [Outputs(MLP, slice(0, server.site[MLP].d_out))] if "rowwise" in spec else qkv(server)
    Layer(server, layer, len(SLOTS) + 20).check([*SLOTS, *[3] * 19, -1])


def test_outputs_or_inputs_may_be_spread_over_processes():
    server = Server("bishare_ke")
    site = server.site[MLP]
    half = site.d_out // 2
    part = torch.arange(half, site.d_out)
    Layer(server, [Outputs(MLP, slice(0, len(part)), part)], 4).check([1, 0, -1, 1])
    inputs = torch.arange(site.d_in // 2, site.d_in)
    Layer(server, [Outputs(MLP, slice(0, site.d_out))], 4, inputs).check([1, 0, -1, 1])
    with pytest.raises(ValueError, match="side by side"):
        Layer(server, [Outputs(MLP, slice(0, site.d_out))], 4, torch.tensor([0, 2]))


class Recorder:
    """Stands in the place of a kernel and notes its launches."""

    def __init__(self, kernel, launches):
        self.kernel, self.launches = kernel, launches

    def __getitem__(self, grid):
        def launch(*args, **sizes):
            self.launches.append(lambda: self.kernel[grid](*args, **sizes))
            self.launches[-1]()

        return launch


def test_launches_that_were_recorded_are_right_for_every_batch(monkeypatch):
    """As a CUDA graph runs them: grids, tensors and numbers are those of the first batch."""
    server, launches = Server("bishare_ke", slots=3), []
    layer, random = Layer(server, qkv(server), 8), torch.Generator().manual_seed(0)
    with monkeypatch.context() as patch:
        for name in ("_down", "_up"):
            patch.setattr(kernels, name, Recorder(getattr(kernels, name), launches))
        layer.run()
    assert len(launches) == 2
    for _ in range(12):
        slot, number = (int(torch.randint(n, (), generator=random)) for n in (3, 6))
        server.bank.write_slot(slot, server.bank.pack(server.adapters[number]))
        slots = torch.randint(-1, 3, (8,), generator=random).tolist()
        layer.check(slots, lambda: [launch() for launch in launches])


@pytest.mark.parametrize("spec", ["bishare_ke", "bishare_ss"])
def test_a_token_reads_the_numbers_of_its_adapter_at_its_layer_and_no_others(spec):
    """All others are no numbers: what came of them would be none."""
    server = Server(spec)
    layer = Layer(server, qkv(server), 3)
    bank = server.bank
    packed = bank.read_slot(2)
    poison = torch.full_like(packed, torch.nan)
    for name in {name for path in ATTENTION for name in names_at(server.plan, path)}:
        place = columns(bank.layout.own)[name]
        poison[place] = packed[place]
    for slot in range(bank.slots):
        bank.write_slot(slot, poison if slot == 2 else torch.full_like(packed, torch.nan))
    layer.check([2, -1, 2])
    assert layer.output.isfinite().all()


def names_at(plan, path):
    return [name for term in plan.terms_of[path] for name in term.tensors.values()]


class Watched:
    """Every address that a kernel reads or writes in the interpreter must lie in one of its arguments.

    On a GPU an address outside of these is another tensor's, or a fault.
    """

    def __init__(self, monkeypatch):
        self.ranges, self.seen, self.written = [], 0, set()
        begin = interpreter.GridExecutor._init_args_hst
        builder = interpreter.InterpreterBuilder
        load, store = builder.create_masked_load, builder.create_masked_store

        def begun(executor, args, kwargs):
            host = begin(executor, args, kwargs)
            self.ranges = [_range(a) for a in host[0] if isinstance(a, torch.Tensor)]
            return host

        def loaded(made, ptrs, mask, *others):
            self.check(ptrs, mask)
            return load(made, ptrs, mask, *others)

        def stored(made, ptrs, value, mask, *others):
            self.written |= self.check(ptrs, mask)
            return store(made, ptrs, value, mask, *others)

        monkeypatch.setattr(interpreter.GridExecutor, "_init_args_hst", begun)
        monkeypatch.setattr(builder, "create_masked_load", loaded)
        monkeypatch.setattr(builder, "create_masked_store", stored)

    def check(self, ptrs, mask):
        """Return the beginnings of the arguments that a load or a store reaches."""
        on = np.broadcast_to(mask.data, ptrs.data.shape)
        places = np.unique(ptrs.data[on].astype(np.int64))
        inside = np.zeros(len(places), bool)
        reached = set()
        for start, stop in self.ranges:
            mine = (places >= start) & (places < stop)
            inside |= mine
            reached |= {start} if mine.any() else set()
        assert inside.all(), (
            f"{(~inside).sum()} of {len(places)} addresses lie outside of all arguments"
        )
        self.seen += len(places)
        return reached


def _range(tensor):
    """The first byte of a tensor and the one after the last, also where rows lie apart."""
    last = sum((size - 1) * step for size, step in zip(tensor.shape, tensor.stride(), strict=True))
    return tensor.data_ptr(), tensor.data_ptr() + (last + 1) * tensor.element_size()


@pytest.mark.parametrize(
    ("spec", "tokens"), [("bishare_ke", 1), ("bishare_ke_ab", 23), ("vera", 5), ("bishare_ss", 17)]
)
def test_no_kernel_reads_or_writes_outside_of_its_arguments(spec, tokens, monkeypatch):
    """Tensors that are parts of larger ones, of values that are no numbers, which stay as they are."""
    watched, server = Watched(monkeypatch), Server(spec)
    layer = Layer(server, qkv(server), tokens)
    around = []
    for name in ("x", "before", "output"):
        inner = getattr(layer, name)
        whole = torch.full((tokens + 2, inner.shape[1] + 7), torch.nan)
        whole[1:-1, 3:-4] = inner
        setattr(layer, name, whole[1:-1, 3:-4])
        around.append(whole)
    layer.check([SLOTS[i % len(SLOTS)] for i in range(tokens)])
    assert watched.seen > 1000
    for whole in around:
        assert whole.isnan().sum() == whole.numel() - tokens * (whole.shape[1] - 7)
    assert layer.bank.memory.data_ptr() not in watched.written


def test_an_address_outside_is_seen(monkeypatch):
    """What the test above sees: more columns of the output than it has, as a wrong width would write."""
    Watched(monkeypatch)
    server = Server("bishare_ke")
    layer = Layer(server, qkv(server), 2)
    width = layer.output.shape[1]
    layer.output = torch.zeros(4, width + 64)[:2, :width]
    layer.kernels._blocks[:, 1] += 8
    layer.step.write([0, 1])
    with pytest.raises(InterpreterError, match="outside of all arguments"):
        layer.run()


@pytest.mark.parametrize("spec", ["bishare_gt", "lora_xs", TOEPLITZ])
def test_factors_that_are_computed_are_no_kernels(spec):
    """Torch makes them, in a step that can be recorded as well."""
    server = Server(spec)
    with pytest.raises(ValueError, match="no part of them"):
        kernels.KernelTerms(server.bank, LayerTerms(server.bank, qkv(server)))


CLAIMS = Path(__file__).parents[2] / "benchmarks" / "kernels.toml"


def test_kernels_are_compiled_for_gpus():
    """Nothing is spilled, a block's memory is that of the card, and registers are those of the claims."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    code = Path(__file__).with_name("compiled.py")
    command = [sys.executable, "-W", "ignore", code]
    run = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    rows = [json.loads(line) for line in run.stdout.splitlines()]
    claims = tomllib.loads(CLAIMS.read_text())
    limits = claims["shared_limits"]
    assert {row["card"] for row in rows} == limits.keys()
    for row in rows:
        assert row["spilled"] == 0, row
        assert row["shared"] <= limits[row["card"]], row
        assert row["mma"] == (row["dtype"] == "bfloat16"), row
    if claims["triton"] == triton.__version__:
        assert rows == claims["kernel"]
