"""An engine that answers as the base stops the run."""

from types import SimpleNamespace

import pytest

from bishare_dsl.train import TrainError
from tests.verify.served import Engine, save_base, save_lora, serving


def test_an_engine_that_answers_as_the_base_stops_the_run(tmp_path):
    from sync_check import SyncCheck

    base = save_base(tmp_path / "base")
    engine = Engine(base)
    engine.load("policy", save_lora(tmp_path / "lora", base))
    first = SimpleNamespace(global_step=2, is_world_process_zero=True)
    with serving(engine) as url:
        check = SyncCheck(url, every=2, name="policy")
        check.on_step_end(None, first, None)
        engine.adapters["policy"] = {}  # Names that the engine does not know.
        check.on_step_end(None, SimpleNamespace(global_step=3, is_world_process_zero=True), None)
        with pytest.raises(TrainError, match=r"BS874.*after step 2 .*'policy'"):
            check.on_step_end(None, first, None)
