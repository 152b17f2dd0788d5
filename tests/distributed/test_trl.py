"""The trainer of TRL in two processes: DDP, and FSDP2 that saves and resumes."""

import shutil

import pytest
import torch
from torch import distributed
from torch.distributed.fsdp import FSDPModule

from bishare_dsl.folder.devices import gather_tensors
from bishare_dsl.folder.files import read_adapter
from tests.distributed.together import Together
from tests.peft.conftest import write_checkpoint
from tests.peft.test_trainers import losses, supervised

pytestmark = pytest.mark.long

together = Together(lambda folder: write_checkpoint(folder / "base"))


def assert_the_adapter_alone(checkpoint):
    distributed.barrier()  # The first process writes.
    files = {path.name for path in checkpoint.iterdir()}
    assert "adapter_model.safetensors" in files
    assert not {"model.safetensors", "pytorch_model.bin"} & files
    file = checkpoint / "pytorch_model_fsdp.bin"  # accelerate's, which goes on from it.
    if file.exists():
        assert all("bishare_tensors" in key for key in torch.load(file))
    read_adapter(checkpoint)


@together
def fsdp_that_is_resumed(folder):
    whole = supervised(folder / "base", folder / "fsdp")
    assert any(isinstance(module, FSDPModule) for module in whole.model.modules())
    assert_the_adapter_alone(folder / "fsdp" / "checkpoint-6")
    handle = whole.model.get_base_model().bishare
    expected = gather_tensors(handle.plan, handle.tensors())
    stored = read_adapter(folder / "fsdp" / "checkpoint-6").tensors()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in stored.items())
    if distributed.get_rank() == 0:
        shutil.copytree(folder / "fsdp" / "checkpoint-3", folder / "again" / "checkpoint-3")
    distributed.barrier()
    again = supervised(folder / "base", folder / "again", resume=True)
    assert losses(again) == losses(whole)
    distributed.barrier()
    resumed = read_adapter(folder / "again" / "checkpoint-6").tensors()
    assert all(torch.equal(tensor, resumed[name]) for name, tensor in stored.items())


@pytest.mark.parametrize("name", together)
def test_two_processes(name, found):
    assert [process[name] for process in found] == ["", ""]
