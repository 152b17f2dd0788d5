"""Whether two processes train one adapter: ReplicaCheck, also on a model that transformers shards while loading."""

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import distributed
from transformers import AutoModelForCausalLM, TrainerState

from bishare_dsl.diagnostics import BishareError
from bishare_dsl.models.hooks import is_sharded_tensor
from tests.distributed.together import Together
from tests.support.families import tiny_model

pytestmark = pytest.mark.long


def prepare(folder):
    tiny_model("llama").save_pretrained(folder / "base")


together = Together(prepare)


def adapted(model, seed=0):
    torch.manual_seed(seed)
    return get_peft_model(model, LoraConfig(r=2, target_modules=["q_proj", "up_proj"]))


def step(model, synchronised, same_batch=False):
    """One step of a loop of one's own, each process on a batch of its own."""
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    rank = 0 if same_batch else distributed.get_rank()
    ids = torch.randint(3, 60, (2, 8), generator=torch.Generator().manual_seed(rank))
    model(input_ids=ids, labels=ids).loss.backward()
    for parameter in model.parameters() if synchronised else ():
        if parameter.grad is not None and not is_sharded_tensor(parameter):
            distributed.all_reduce(parameter.grad)
    optimizer.step()


def check(model):
    from replica_check import ReplicaCheck

    ReplicaCheck().on_step_end(None, TrainerState(global_step=1), None, model=model)


@together
def equal_copies_pass(folder):
    model = adapted(tiny_model("llama"))
    check(model)
    step(model, synchronised=True)
    check(model)


@together
def other_initial_values_are_found(folder):
    with pytest.raises(BishareError, match=r"BS877.*lora_A"):
        check(adapted(tiny_model("llama"), seed=distributed.get_rank()))


@together
def a_missing_synchronisation_is_found(folder):
    model = adapted(tiny_model("llama"))
    step(model, synchronised=False)
    with pytest.raises(BishareError, match=r"BS877.*lora_B"):
        check(model)


def loaded_in_shards(folder):
    from transformers.distributed import DistributedConfig

    config = DistributedConfig(fsdp_size=2)
    model = AutoModelForCausalLM.from_pretrained(folder / "base", distributed_config=config)
    assert any(is_sharded_tensor(p) for p in model.parameters())
    return adapted(model)


@together
def a_model_sharded_while_loading_is_not_synchronised_by_itself(folder):
    """The adapter stays whole beside the shards: without the Trainer of transformers 5.24, copies diverge."""
    model = loaded_in_shards(folder)
    trainable = [p for p in model.parameters() if p.requires_grad]
    assert trainable
    assert not any(is_sharded_tensor(p) for p in trainable)
    check(model)
    step(model, synchronised=False)
    with pytest.raises(BishareError, match="BS877"):
        check(model)


@together
def averaged_gradients_keep_it_equal(folder):
    model = loaded_in_shards(folder)
    step(model, synchronised=True)
    check(model)


@pytest.mark.parametrize("name", together)
def test_two_processes(name, found):
    assert [process[name] for process in found] == ["", ""]
