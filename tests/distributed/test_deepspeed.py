"""DeepSpeed's ZeRO-1, 2 and 3 on two processes: by hand, by Trainer, TRL and `bishare train`.

Run it with `make test-deepspeed`, which installs DeepSpeed next to .venv.
"""

import copy
import os
import shutil
from contextlib import contextmanager

import pytest
import torch
from torch import distributed

os.environ.setdefault("DS_ACCELERATOR", "cpu")

import deepspeed
from accelerate.state import AcceleratorState
from transformers import AutoModelForCausalLM
from transformers.integrations import HfDeepSpeedConfig
from trl import SFTConfig, SFTTrainer

from bishare_dsl import compile_spec, load_adapter, parse_spec
from bishare_dsl.diagnostics import AdapterError
from bishare_dsl.folder.files import read_adapter
from bishare_dsl.models import inspect_model
from tests.distributed import test_training as runs
from tests.distributed.test_two_processes import (
    IDS,
    MIXED,
    STEPS,
    adapted,
    assert_learned,
    mean,
    mine,
    values_of,
)
from tests.distributed.together import Together
from tests.peft.conftest import write_checkpoint
from tests.peft.test_trainers import COMMON, ROWS, config, losses
from tests.support.families import tiny_model

# A kernel for shared memory between processes, which takes a minute to compile.
deepspeed.comm.torch.build_shm_op = lambda: None


def prepare(folder):
    runs.inputs(folder)
    write_checkpoint(folder / "checkpoint")


together = Together(prepare)


def zero(stage, **more):
    """A config of DeepSpeed that partitions small tensors too."""
    return {
        "train_micro_batch_size_per_gpu": "auto",
        "train_batch_size": "auto",
        "gradient_accumulation_steps": "auto",
        "gradient_clipping": "auto",
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
        "zero_optimization": {
            "stage": stage,
            "stage3_param_persistence_threshold": 0,
            "stage3_gather_16bit_weights_on_model_save": True,
        },
        **more,
    }


# What Trainer fills in for "auto".
AUTOMATIC = {"train_batch_size": 4, "gradient_accumulation_steps": 1, "gradient_clipping": 0.0}


def engine_of(model, stage):
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], 0.1, 0.9)
    settings = zero(stage, train_micro_batch_size_per_gpu=2, **AUTOMATIC)
    return deepspeed.initialize(model=model, optimizer=optimizer, config=settings)[0]


def learn(engine, ids):
    """The losses of a few steps, as `train` in test_two_processes has them."""
    engine.train()
    found = []
    for _ in range(STEPS):
        loss = engine(input_ids=ids, labels=ids, use_cache=False).loss
        engine.backward(loss)
        engine.step()
        found.append(loss.detach())
    return torch.stack(found)


def assert_as_one_process(model, stage, family="llama"):
    engine = engine_of(model, stage)
    assert_learned(model, mean(learn(engine, mine(IDS))), family)
    return engine


@contextmanager
def without_fsdp():
    """Forget what another trainer has set in this process."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ACCELERATE_USE_FSDP", "false")
        patch.setenv("ACCELERATE_USE_DEEPSPEED", "false")
        AcceleratorState._reset_state(reset_partial_state=True)
        yield
    AcceleratorState._reset_state(reset_partial_state=True)


@together
def by_hand(folder):
    """Pools over layers, frozen tensors, a layer that is a region; a magnitude reads its weight."""
    for family in ("llama", "opt"):
        for stage in (1, 2, 3):
            assert_as_one_process(adapted(family), stage, family)


@together
def checkpointing(folder):
    for family in ("llama", "opt"):
        for stage in (2, 3):
            model = adapted(family)
            model.gradient_checkpointing_enable({"use_reentrant": False})
            assert_as_one_process(model, stage, family)


@together
def a_base_that_is_partitioned_when_it_is_loaded(folder):
    """Planned by its real shapes, and its weights are read where an initial value is of them."""
    whole = tiny_model("llama")
    whole.save_pretrained(folder / "llama")
    distributed.barrier()
    settings = zero(3, train_micro_batch_size_per_gpu=2, **AUTOMATIC)
    said = HfDeepSpeedConfig(settings)  # `from_pretrained` partitions while it is there.
    base = AutoModelForCausalLM.from_pretrained(folder / "llama")
    assert {parameter.shape for parameter in base.parameters()} == {(0,)}
    assert inspect_model(base) == inspect_model(whole)
    start = "spec s target q_proj, v_proj share a per module rank 2 init A svd_vectors, B svd"
    for spec in (MIXED, start):
        expected = compile_spec(parse_spec(spec), copy.deepcopy(whole), seed=3).bishare
        model = compile_spec(parse_spec(spec), base, seed=3)
        assert model.bishare.plan == expected.plan
        for name, tensor in model.bishare.tensors().items():
            assert torch.equal(tensor, expected.tensors()[name]), name
        if spec == start:
            model.bishare.unload()
        else:
            random = torch.Generator().manual_seed(5)
            with torch.no_grad():
                for tensor in model.bishare.tensors().values():
                    if tensor.requires_grad:
                        tensor.add_(0.1 * torch.randn(tensor.shape, generator=random))
            engine = assert_as_one_process(model, 3)
            with pytest.raises(AdapterError, match=r"BS624.*sharded over several processes"):
                model.bishare.merge()
            with pytest.raises(AdapterError, match="BS645"):  # Before an adapter is added.
                model.bishare.code_for(model.bishare.plan)
            model.bishare.save_pretrained(folder / "saved")
            distributed.barrier()
            stored = load_adapter(folder / "saved", copy.deepcopy(whole))
            values = values_of(model)
            assert all(torch.equal(t, values[n]) for n, t in stored.bishare.tensors().items())
            engine.destroy()
            base = AutoModelForCausalLM.from_pretrained(folder / "llama")
    del said


def supervised(folder, name, resume=None):
    """Train for six steps and save each three, by ZeRO-3."""
    steps = {"max_steps": 6, "save_steps": 3, "gradient_accumulation_steps": 2}
    settings = {**COMMON, **steps, "deepspeed": zero(3), "gradient_checkpointing": False}
    trainer = SFTTrainer(
        str(folder / "checkpoint"),
        args=SFTConfig(str(folder / name), max_length=32, **settings),
        train_dataset=ROWS,
        peft_config=config(task_type="CAUSAL_LM"),
    )
    trainer.train(resume_from_checkpoint=resume)
    distributed.barrier()
    return trainer


@together
def trl_that_is_resumed(folder):
    with without_fsdp():
        whole = supervised(folder, "trl")
        values = values_of(whole.model.get_base_model())
        stored = read_adapter(folder / "trl" / "checkpoint-6").tensors()
        assert all(torch.equal(tensor, values[name]) for name, tensor in stored.items())
    if distributed.get_rank() == 0:
        shutil.copytree(folder / "trl" / "checkpoint-3", folder / "again" / "checkpoint-3")
    distributed.barrier()
    with without_fsdp():
        again = supervised(folder, "again", resume=True)
        assert losses(again) == losses(whole)
        resumed = read_adapter(folder / "again" / "checkpoint-6").tensors()
        assert all(torch.equal(tensor, resumed[name]) for name, tensor in stored.items())


@pytest.mark.parametrize("name", together)
def test_two_processes(name, found):
    assert [process[name] for process in found] == ["", ""]
