"""Every spec in compact mode, on one server: slots hold the plans' tensors, and are fewer than there are adapters."""

import pytest
import torch

from tests.methods.test_every_method import SCALED
from tests.serve_vllm.conftest import engine
from tests.serve_vllm.served import CHUNKS, LINEAR, ROOM, Served, manager_in, prompts_of, save_base

SPECS = [*LINEAR, *sorted(SCALED)]


@pytest.fixture(scope="module", params=["llama", "qwen3"])
def server(request, tmp_path_factory):
    """A base in a folder of its own, and the engine that makes slots for each plan that comes."""
    root = tmp_path_factory.mktemp(request.param)
    biases = {"attention_bias": True} if request.param == "llama" else {}
    model = save_base(root / "base", request.param, **biases)
    room = {"bishare_slots_gib": 1}
    with engine(root / "base", **CHUNKS, **ROOM, additional_config=room) as llm:
        yield root, model, llm


@pytest.mark.parametrize("spec", SPECS)
def test_every_spec(server, spec):
    """Five adapters for four slots, so that some go and come back, and the base; each is held once."""
    root, model, llm = server
    served = Served(root, model, spec, 5, first=1 + 10 * SPECS.index(spec))
    try:
        served.check(llm, prompts_of(12))
        # An adapter overwrites all of its slot.
        if spec in ("bishare_ke", "dora", "ia3", "lora_xs"):
            manager = manager_in(llm)
            manager.remove_all_adapters()
            for bank in manager.banks.values():
                bank.bank.own.data[: bank.slots] = torch.nan
            llm.reset_prefix_cache()
            served.check(llm, prompts_of(12))
    finally:
        model.bishare.unload()
    manager = manager_in(llm)
    # Computed factors are kept for plans in the batch alone.
    assert not any(bank.copies for n, bank in manager.banks.items() if n not in manager.batches)
    held = manager.list_adapters()
    assert [held[i].packed is None for i in held].count(True) == ROOM["max_loras"]
    assert {request.lora_int_id for request in served.requests[:-1]} <= held.keys()
