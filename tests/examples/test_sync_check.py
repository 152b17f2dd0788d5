"""An engine that answers as the base, or with older tensors, stops the run."""

import pytest
import torch
from transformers import Trainer, TrainerCallback, TrainingArguments

from bishare_dsl.diagnostics import BishareWarning
from bishare_dsl.testing.models import tiny_model
from bishare_dsl.testing.tokenizer import tiny_tokenizer
from bishare_dsl.train import TrainError
from tests.support.served import KINDS, Engine, save_base, save_lora, serving


def sync_check(*engine, **how):
    from sync_check import SyncCheck

    return SyncCheck(*engine, **how)


def lora(base_size=2, **settings):
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(0)
    model = tiny_model("llama", num_hidden_layers=base_size)
    return get_peft_model(model, LoraConfig(r=2, target_modules=KINDS, **settings))


def run(model, tmp_path, *callbacks, steps=4, processing_class=None, **settings):
    rows = [{"input_ids": ids, "labels": ids} for ids in torch.arange(3, 35).view(4, 8)]
    settings = {
        "learning_rate": 1e-2,
        "per_device_train_batch_size": 2,
        "max_steps": steps,
    } | settings
    quiet = {"use_cpu": True, "report_to": [], "save_strategy": "no", "disable_tqdm": True}
    arguments = TrainingArguments(str(tmp_path / "run"), **settings, **quiet)
    how = {"callbacks": [*callbacks], "processing_class": processing_class}
    Trainer(model, arguments, train_dataset=rows, **how).train()


class Reload(TrainerCallback):
    """Gives the engine the trainer's adapter after each step, or another size of the same one."""

    def __init__(self, engine, scale):
        self.engine, self.scale = engine, scale

    def on_step_end(self, args, state, control, **more):
        self.engine.adapters["policy"] = {
            path: (a, b, self.scale(state.global_step))
            for path, (a, b, _) in self.engine.adapters["policy"].items()
        }


@pytest.fixture
def engine(tmp_path):
    base = save_base(tmp_path / "base")
    found = Engine(base)
    found.load("policy", save_lora(tmp_path / "lora", base))
    with serving(found) as found.url:
        yield found


def test_an_engine_with_older_tensors_stops_the_run(engine, tmp_path):
    """At the third check: the engine has had a whole interval in which to get what had changed."""
    check = sync_check(engine.url, every=2, name="policy")
    with pytest.raises(
        TrainError, match=r"BS875.*after step 6 the engine still has an older 'policy'"
    ):
        run(lora(), tmp_path, check, steps=8, processing_class=tiny_tokenizer())


@pytest.mark.parametrize(
    ("scale", "rate"),
    [
        (lambda step: 1.0 + step, 1e-2),  # The engine follows.
        (lambda step: 1.0 + step // 4, 1e-2),  # Each second check sees what it saw before.
        (lambda step: 1.0, 0.0),  # Nothing is learnt, so nothing is older.
        (lambda step: 1.0, 1e-8),  # What is learnt may change no bit.
    ],
)
def test_no_other_engine_is_called_stale(engine, tmp_path, recwarn, scale, rate):
    callbacks = Reload(engine, scale), sync_check(engine.url, every=2, name="policy")
    how = {"processing_class": tiny_tokenizer(), "learning_rate": rate}
    run(lora(), tmp_path, *callbacks, steps=10, **how)
    assert not [w for w in recwarn if "BS878" in str(w.message)]


@pytest.mark.parametrize("how", [{}, {"bf16": True}])
def test_what_is_not_seen_is_told_once(engine, tmp_path, how):
    tokenizer = {"processing_class": tiny_tokenizer()} if how else {}
    with pytest.warns(BishareWarning, match="BS878") as caught:
        run(lora(), tmp_path, sync_check(engine.url, every=1, name="policy"), **how, **tokenizer)
    assert len([w for w in caught if "BS878" in str(w.message)]) == 1


def test_an_engine_that_answers_as_the_base_stops_the_run(engine, tmp_path):
    check = sync_check(engine.url, every=2, name="policy")
    run(lora(), tmp_path, check, processing_class=tiny_tokenizer())
    engine.adapters["policy"] = {}  # Names that the engine does not know.
    with pytest.raises(TrainError, match=r"BS874.*after step 2 .*'policy'"):
        run(lora(), tmp_path, sync_check(engine.url, every=2, name="policy"))
