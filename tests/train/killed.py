"""Trains in children that are killed while they save, until runs are through: `test_kill` starts this.

Each child goes on from the last checkpoint, and is killed by SIGKILL at a random one of the calls that open a file
to write it, or remove one: before it, or right behind it. The imports are made once, before the first fork.
"""

import gc
import os
import random
import signal
import sys
import traceback
import warnings
from pathlib import Path

import torch

from bishare_dsl.testing.models import tiny_model
from bishare_dsl.testing.tokenizer import tiny_tokenizer
from bishare_dsl.train import run as runs
from bishare_dsl.train.errors import TrainError
from bishare_dsl.train.folder import find_checkpoint, step_of
from tests.train.conftest import SMALL

STEPS = 3


def run(files, folder, **more):
    given = {**SMALL, "save_strategy": "steps", "save_steps": 1, "max_steps": STEPS}
    if "resume" not in more:
        spec, rows = str(files / "small.share"), files / "rows.jsonl"
        more = {**given, "spec": spec, "data": rows, "output_dir": folder, **more}
    runs.train(model=tiny_model("llama"), tokenizer=tiny_tokenizer(), quiet=True, **more)


def die_at(number, folder):
    """Let this process be killed when it opens a file of the folder for the ``number``-th time, or removes one."""
    left = [number]

    def hook(event, arguments):
        if event in ("open", "os.remove", "os.rmdir") and str(folder) in str(arguments[0]):
            left[0] -= 1
            if left[0] == 0:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(hook)


def child(action):
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


def killed_again_and_again(files, parts, draw):
    """Train until a child ends by itself: how many were killed before it."""
    kills = reached = 0
    while True:
        try:
            found = find_checkpoint(parts)
            assert step_of(found) >= reached  # None is ever lost, and the last can always be read.
            reached, more = step_of(found), {"resume": parts}
        except TrainError:
            assert reached == 0
            more = {}
        # About as many files as Python opens to check one checkpoint, and to write and seal one or two.
        number = draw.randint(4, 75)

        def killed(number=number, more=more):
            die_at(number, parts)
            run(files, parts, **more)

        if child(killed) == 0:
            return kills
        kills += 1


def main(files, seed, enough):
    warnings.simplefilter("ignore")
    draw = random.Random(seed)
    whole = files / "whole"
    assert child(lambda: run(files, whole)) == 0
    name = "adapter_model.safetensors"
    kills = runs_through = 0
    while kills < enough:
        parts = files / f"parts{runs_through}"
        kills += killed_again_and_again(files, parts, draw)
        runs_through += 1
        assert (whole / name).read_bytes() == (parts / name).read_bytes()
    sys.stdout.write(f"kills {kills}\n")


if __name__ == "__main__":
    torch.set_num_threads(1)
    # No search for garbage among what was imported.
    gc.freeze()
    main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
