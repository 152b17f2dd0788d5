"""Trains in children that are killed while they save, until a run is through: `test_kill` starts this.

Each child goes on from the last checkpoint, and is killed by SIGKILL at a random one of the calls that make
something durable: before it, or right behind it. The imports are made once, before the first fork.
"""

import gc
import os
import random
import shutil
import signal
import sys
import traceback
import warnings
from pathlib import Path

import torch

from bishare_dsl.testing.models import tiny_model
from bishare_dsl.testing.tokenizer import tiny_tokenizer
from bishare_dsl.train import run as runs
from bishare_dsl.train.checkpoint import checkpoints, read_checkpoint, tidy
from tests.train.conftest import SMALL

STEPS = 4
CALLS = [(os, "fsync"), (Path, "replace"), (Path, "rename"), (shutil, "rmtree")]


def run(files: Path, folder: Path, **more: object) -> None:
    runs.train(
        str(files / "small.share"),
        tiny_model("llama"),
        files / "rows.jsonl",
        folder,
        tokenizer=tiny_tokenizer(),
        quiet=True,
        **{**SMALL, "save_strategy": "steps", "save_steps": 1, "packing": True, "max_steps": STEPS},
        **more,
    )


def die_at(number: int) -> None:
    """Let this process be killed at the call of this number."""
    left = [number]

    def counted(call):
        def counting(*arguments, **keywords):
            for what in (lambda: None, lambda: call(*arguments, **keywords)):
                result = what()
                left[0] -= 1
                if left[0] == 0:
                    os.kill(os.getpid(), signal.SIGKILL)
            return result

        return counting

    for owner, name in CALLS:
        setattr(owner, name, counted(getattr(owner, name)))


def child(action) -> int:
    """Run something in a child: the signal that killed it, or 0."""
    if (pid := os.fork()) == 0:
        try:
            action()
        except BaseException:  # noqa: BLE001 - it is a child, and the parent asserts
            traceback.print_exc()
            os._exit(1)
        os._exit(0)
    status = os.waitpid(pid, 0)[1]
    if os.WIFSIGNALED(status):
        return os.WTERMSIG(status)
    assert os.WEXITSTATUS(status) == 0
    return 0


def main(files: Path, seed: int) -> None:
    warnings.simplefilter("ignore")
    draw = random.Random(seed)
    whole, parts = files / "whole", files / "parts"
    assert child(lambda: run(files, whole)) == 0
    kills = reached = 0
    while True:
        tidy(parts)
        found = checkpoints(parts)
        if found:  # None is ever lost, and the last can always be read.
            assert read_checkpoint(found[-1]).step >= reached
            reached = read_checkpoint(found[-1]).step
        more = {"resume_from_checkpoint": "last"} if found else {"force": True}

        # About as many calls as one or two checkpoints take.
        number = draw.randint(1, 90)

        def killed(number=number, more=more) -> None:
            die_at(number)
            run(files, parts, **more)

        if child(killed) == 0:
            break
        kills += 1
    name = "adapter_model.safetensors"
    assert (whole / name).read_bytes() == (parts / name).read_bytes()
    assert not list(parts.glob(".checkpoint-*"))
    sys.stdout.write(f"kills {kills}\n")


if __name__ == "__main__":
    torch.set_num_threads(1)
    # As in the `start` of the tests: no picture, and no search for garbage among what was imported.
    runs.draw_curve = lambda *_: None
    gc.freeze()
    main(Path(sys.argv[1]), int(sys.argv[2]))
