"""Functions that several processes call together, in the order in which they stand, and what came of it."""

import gc
import importlib
import json
import os
import sys
import traceback
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import torch
from accelerate.commands import launch
from accelerate.state import PartialState
from accelerate.utils import DistributedType
from torch import distributed

# As `accelerate config` writes it.
FSDP2 = """
compute_environment: LOCAL_MACHINE
distributed_type: FSDP
fsdp_config:
  fsdp_auto_wrap_policy: TRANSFORMER_BASED_WRAP
  fsdp_reshard_after_forward: true
  fsdp_state_dict_type: FULL_STATE_DICT
  fsdp_version: 2
mixed_precision: 'no'
num_machines: 1
num_processes: 2
"""


class Together(dict[str, Callable[[Path], None]]):
    """The functions of a file by name; it decorates them. Each is given a folder that all processes see.

    ``prepare`` writes into that folder, in one process and before, what they need.
    """

    def __init__(self, prepare=lambda _: None):
        super().__init__()
        self.prepare = prepare

    def __call__(self, function):
        self[function.__name__] = function
        return function

    def call_all(self, folder):
        """Call all of them in this process, and write down what each raised, or ""."""
        raised = dict.fromkeys(self, "")
        for name, function in self.items():
            try:
                function(folder)
            except BaseException:  # noqa: BLE001 - `pytest.raises` raises such a one
                raised[name] = traceback.format_exc()
        (folder / f"{os.environ['RANK']}.json").write_text(json.dumps(raised))


def raised(folder):
    """What the two processes wrote down."""
    return [json.loads((folder / f"{process}.json").read_text()) for process in range(2)]


def main():
    """Be two processes: the folder, and the names of the files, are the arguments of the command.

    They are forked from one that has imported everything, which takes longer than what they do.
    """
    folder, names = Path(sys.argv[1]), sys.argv[2:]
    os.environ |= environment(folder)
    modules = [importlib.import_module(f"tests.distributed.{name}") for name in names]
    gc.freeze()  # No search for garbage among what was imported.
    children = [os.fork() or be(rank, folder, modules) for rank in range(2)]
    ended = [os.waitpid(child, 0)[1] for child in children]
    sys.exit(any(ended))


def environment(folder):
    """What `accelerate launch` and torchrun set for two processes, but for their ranks."""
    (folder / "fsdp2.yaml").write_text(FSDP2)
    words = ["--config_file", str(folder / "fsdp2.yaml"), "--main_process_port", "0", __file__]
    args, *_ = launch._validate_launch_command(launch.launch_command_parser().parse_args(words))
    made = launch.prepare_multi_gpu_env(args)
    address = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(args.main_process_port)}
    return {**made, **address, "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}


def be(rank, folder, modules):
    """Be one of the processes: call what stands in the files, and end."""
    status = 1
    try:
        os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank)}
        PartialState.__init__ = with_cpus_to_shard_on(PartialState.__init__)
        # Where one process fails, the other is not to wait for it long.
        distributed.init_process_group("gloo", timeout=timedelta(seconds=60))
        # What a trainer leaves when it ends, the next one could not enter again.
        leave, distributed.destroy_process_group = distributed.destroy_process_group, lambda: None
        for module in modules:
            module.together.call_all(folder / module.__name__.rpartition(".")[2])
        leave()
        status = 0
    except BaseException:  # noqa: BLE001 - it is a child, and the parent tells
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        os._exit(status)


def with_cpus_to_shard_on(initialise):
    """accelerate shards on accelerators alone (`AcceleratorState`). With this, where FSDP is asked for, the
    CPU is one; all else is as it is with GPUs."""

    def initialised(self, *arguments, **keywords):
        initialise(self, *arguments, **keywords)
        state = PartialState._shared_state
        on_cpus = state["distributed_type"] == DistributedType.MULTI_CPU  # And not FSDP's already.
        if os.environ.get("ACCELERATE_USE_FSDP") == "true" and on_cpus:
            state["distributed_type"] = DistributedType.MULTI_XPU

    return initialised


def assert_same_everywhere(values):
    """See that two processes have the same tensors."""
    for name, value in values.items():
        copies = [torch.empty_like(value) for _ in range(2)]
        distributed.all_gather(copies, value.detach().contiguous())
        assert torch.equal(*copies), name


if __name__ == "__main__":
    main()
