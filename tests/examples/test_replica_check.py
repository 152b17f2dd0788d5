"""ReplicaCheck in one process, which stands for two. tests/distributed has two."""

import pytest
from torch import distributed
from transformers import TrainerState

from bishare_dsl.diagnostics import BishareError
from tests.examples.test_sync_check import lora


@pytest.mark.parametrize("differs", [False, True])
def test_processes_that_train_other_copies_stop_the_run(tmp_path, monkeypatch, differs):
    def gather(everywhere, mine):
        theirs = dict(mine)
        if differs:
            theirs[[*mine][-1]] = "other"
        everywhere[:] = [mine, theirs]

    monkeypatch.setattr(distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(distributed, "get_world_size", lambda *_: 2)
    monkeypatch.setattr(distributed, "all_gather_object", gather)
    state = TrainerState(global_step=1)
    from replica_check import ReplicaCheck

    check = ReplicaCheck()
    if differs:
        with pytest.raises(BishareError, match=r"BS877.*processes train 1 of 28 tensors apart"):
            check.on_step_end(None, state, None, model=lora())
        state.global_step = 3  # Two steps are enough.
    check.on_step_end(None, state, None, model=lora())
