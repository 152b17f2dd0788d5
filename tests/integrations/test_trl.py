"""The adapter goes to the engine: names, folders and refusals, with a server that keeps a diary.

tests/serve_vllm/test_adapter_sync.py trains with a real vLLM.
"""

import hashlib
import inspect
import json
import pickle
import sys
from types import SimpleNamespace

import pytest
import torch
from peft import get_peft_model
from safetensors.torch import load_file

pytest.importorskip("trl")
from trl.experimental.async_grpo import async_grpo_trainer
from trl.generation.vllm_generation import VLLMGeneration
from trl.trainer import grpo_trainer, rloo_trainer

from bishare_dsl.convert.effective import delta
from bishare_dsl.diagnostics import AdapterError
from bishare_dsl.folder.files import read_adapter
from bishare_dsl.integrations import trl
from bishare_dsl.peft import BishareConfig
from bishare_dsl.testing.models import tiny_model
from bishare_dsl.train import TrainError
from bishare_dsl.verify.server import ServerError
from tests.support.adapter_server import AdapterServer

SPEC = "spec s\ntarget q_proj, down_proj\nshare a per module rank 2\nshare b per kind rank 3\n"
INFO = {
    "lora_config": {"max_lora_rank": 8, "max_loras": 2},
    "parallel_config": {"data_parallel_size": 1},
    "additional_config": {},
}


@pytest.fixture
def engine():
    engine = AdapterServer()
    yield engine
    engine.stop()


@pytest.fixture
def published(engine, tmp_path, monkeypatch):
    """Make a `Published` of a spec on a server with this config, by default with a plain vLLM's."""

    def make(spec=SPEC, servers=(), main=True, mode="server", **changes):
        model = get_peft_model(tiny_model("llama"), BishareConfig(spec=spec))
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.requires_grad:
                    parameter.normal_(0, 0.2)
        client = SimpleNamespace(model="base", get_server_info=lambda: INFO | changes)
        monkeypatch.setattr(trl, "VLLMClient", lambda *_, **__: client)
        accelerator = SimpleNamespace(is_main_process=main, wait_for_everyone=lambda: None)
        args = SimpleNamespace(output_dir=tmp_path)
        trainer = SimpleNamespace(args=args, sync_servers=servers, sync_check_every=10)
        where = {"server_base_url": engine.url, "server_host": "", "server_port": 0}
        how = {"accelerator": accelerator, "processing_class": None, "mode": mode}
        how["enable_sleep_mode"] = changes.pop("enable_sleep_mode", False)
        return trl.Published(trainer, model=model, **how, **where)

    monkeypatch.setattr(trl.VLLMGeneration, "__init__", initialised)
    return make


def initialised(self, **settings):
    """What TRL's constructor does before `_init_vllm`."""
    vars(self).update(settings, server_timeout=1)
    self._init_vllm()


def test_each_update_is_a_new_name_and_no_folder_goes_before_its_name(published, engine):
    generation, names = published(), []
    for _ in range(5):
        generation.sync_weights()
        names.append(generation.vllm_client.model)
        assert list(engine.loaded) == names[-1:]
        # The folder of the version before goes at the next synchronisation.
        assert {path.name for path in generation._folder.iterdir()} == {*names[-2:]}
    assert len({*names}) == 5
    assert engine.diary[:3] == [("load", names[0]), ("load", names[1]), ("unload", names[0])]
    again = published()
    again.sync_weights()  # A run that is started again finds no name taken.
    assert again.vllm_client.model not in names


def test_what_is_published_is_the_adapter(published, engine):
    generation = published()
    handle = generation.model.get_base_model().bishare
    generation.sync_weights()
    (folder,) = engine.loaded.values()
    values = load_file(folder / "adapter_model.safetensors")
    for site in handle.plan.sites:
        a, b = (values[f"base_model.model.{site.path}.lora_{x}.weight"] for x in "AB")
        wanted = delta(handle.plan, handle.tensors(), site)
        torch.testing.assert_close(b @ a, wanted, rtol=1e-5, atol=1e-6)
    with torch.no_grad():
        for tensor in handle.tensors().values():
            tensor.add_(1)
    generation.sync_weights()
    (folder,) = engine.loaded.values()
    again = load_file(folder / "adapter_model.safetensors")
    assert not any(torch.equal(values[name], again[name]) for name in values)


def test_a_server_in_compact_mode_gets_our_folder(published, engine):
    """DoRA too, whatever its rank as plain LoRA."""
    spec = "spec s\ntarget q_proj\nshare a per module rank 12\nmagnitude per module\n"
    generation = published(spec, additional_config={"bishare_slots_gib": 1})
    generation.sync_weights()
    (folder,) = engine.loaded.values()
    stored, handle = read_adapter(folder), generation.model.get_base_model().bishare
    assert all(torch.equal(stored.tensors()[n], t) for n, t in handle.tensors().items())


def test_of_several_processes_the_first_writes_and_loads_under_a_name_of_all(
    published, engine, monkeypatch
):
    one = ["bishare-first"]
    monkeypatch.setattr(trl, "broadcast_object_list", lambda names: one * len(names))
    other, first = published(main=False), published()
    other.sync_weights()
    assert not other._folder.exists()
    assert not engine.diary
    first.sync_weights()
    assert [*engine.loaded] == ["bishare-first-v1"]


def test_an_engine_that_answers_as_the_base_stops_training(published, monkeypatch):
    """Every ``check_every`` versions, but not at the first, which may be the base."""
    asked, generation = [], published()
    generation._check_every = 3

    def ask(self, name, texts, *, scored):
        assert scored  # Equal continuations prove little.
        asked.append(name)
        return [{1: -0.5}] * len(texts)

    monkeypatch.setattr(trl.Server, "ask", ask)
    generation.sync_weights()
    generation.sync_weights()
    assert asked == []
    with pytest.raises(TrainError, match="BS874"):
        generation.sync_weights()
    assert asked == [generation.vllm_client.model, "base"]


def test_every_replica_gets_every_version(published, engine):
    other = AdapterServer()
    generation = published(servers=[engine.url, other.url])
    for _ in range(3):
        generation.sync_weights()
        assert list(engine.loaded) == list(other.loaded) == [generation.vllm_client.model]
    other.stop()
    with pytest.raises(ServerError, match=r"BS872.*does not answer"):
        generation.sync_weights()


def test_a_server_that_is_gone_or_refuses_is_an_error_and_what_is_loaded_stays(published, engine):
    generation = published()
    generation.sync_weights()
    name = generation.vllm_client.model
    engine.refuses = 404
    with pytest.raises(ServerError, match=r"(?s)BS872.*404.*VLLM_ALLOW_RUNTIME_LORA_UPDATING=1"):
        generation.sync_weights()
    assert generation.vllm_client.model == name
    assert engine.loaded[name].is_dir()
    engine.refuses = 200
    generation.sync_weights()  # It is there again.
    engine.loaded.clear()  # It was started anew, and knows no name.
    generation.sync_weights()
    assert list(engine.loaded) == [generation.vllm_client.model]
    engine.stop()
    with pytest.raises(ServerError, match="BS872"):
        generation.sync_weights()


DORA = "spec s\ntarget q_proj\nshare a per module rank 2\nmagnitude per module\n"


@pytest.mark.parametrize(
    ("spec", "changes", "said"),
    [
        (SPEC, {"lora_config": None}, r"(?s)BS872.*--enable-lora"),
        (SPEC, {"parallel_config": {"data_parallel_size": 2}}, r"(?s)BS872.*`servers=\[...\]`"),
        (SPEC, {"lora_config": {"max_lora_rank": 4}}, r"BS651.*rank 5 at.*4"),
        (DORA, {}, "BS675"),
        ("spec s\ntarget q_proj\nshare a per module rank 2 via Experts\n", {}, "BS633"),
        ("spec s\ntarget q_proj, lm_head\nshare a per module rank 2\n", {}, "BS680"),
        ("spec s\ntarget q_proj\nshare a per module rank 2\ntrain norms\n", {}, "BS680"),
    ],
)
def test_what_cannot_be_sent_is_refused_before_the_first_step(published, spec, changes, said):
    with pytest.raises((AdapterError, ServerError), match=said):
        published(spec, **changes)


def test_a_colocated_engine_refuses_settings_of_a_server(published):
    with pytest.raises(AdapterError) as refused:
        published(mode="colocate", servers=["http://other"], enable_sleep_mode=True)
    text = str(refused.value)
    assert text.count("BS879") == 3
    assert "`vllm_server_base_url` reaches no server" in text
    assert "`servers` of `adapter_sync` reaches no server" in text
    assert "`vllm_enable_sleep_mode` discards the base's weights" in text
    assert 'use a server: `vllm_mode="server"`' in text


def test_a_trainer_gets_it_in_one_line(published, tmp_path):
    """In place of TRL's class, for the time of the constructor."""
    module = sys.modules[__name__]

    class Trainer:
        def __init__(self, generation):
            self.args = SimpleNamespace(output_dir=tmp_path)
            if generation:
                self.vllm_generation = module.VLLMGeneration(**generation)

    taken = published()
    names = ("model", "accelerator", "processing_class", "mode")
    where = ("server_base_url", "server_host", "server_port")
    settings = {name: getattr(taken, name) for name in (*names, *where)}
    before = module.VLLMGeneration
    trainer = trl.adapter_sync(Trainer)(settings)
    assert module.VLLMGeneration is before
    assert isinstance(trainer, Trainer)
    assert isinstance(trainer.vllm_generation, trl.Published)
    assert isinstance(trl.adapter_sync(Trainer)(None), Trainer)  # It generates by transformers.


def test_the_asynchronous_trainer_gets_our_folders(published, monkeypatch, tmp_path):
    """Through its own synchronisation, in which two functions are others for the time of a call."""
    module, asked = sys.modules[__name__], []

    class Trainer:
        def __init__(self, info):
            self.args = SimpleNamespace(vllm_server_base_url="http://127.0.0.1:1")
            self.vllm_client = SimpleNamespace(
                get_server_info=lambda: info, wait_for_server_ready=lambda: None
            )
            self._lora_name = "trl-policy"

        def _init_lora_sync(self, model):
            asked.append(module.validate_lora_for_vllm_sync(model).r)
            return True

        def _sync_weight_lora(self, start):
            first = SimpleNamespace(is_main_process=True)
            module.save_lora_adapter(self.model, first, "default", str(tmp_path / "v1"))
            return start

    model = published().model
    trainer = trl.adapter_sync(Trainer)(INFO)
    trainer._lora_sync = pickle.loads(pickle.dumps(trainer._init_lora_sync(model)))
    assert trainer._lora_sync.rank == asked[0] == 5
    assert trainer._lora_name.startswith("bishare-")
    trainer.model = model
    assert trainer._sync_weight_lora(3.0) == 3.0
    assert json.loads((tmp_path / "v1" / "adapter_config.json").read_text())["peft_type"] == "LORA"
    dora = get_peft_model(tiny_model("llama"), BishareConfig(spec=DORA))
    with pytest.raises(AdapterError, match="BS675"):
        trainer._init_lora_sync(dora)
    # TRL would merge.
    for changes in ({"lora_config": None}, {"parallel_config": {"data_parallel_size": 2}}):
        with pytest.raises(ServerError, match="BS872"):
            trl.adapter_sync(Trainer)(INFO | changes)._init_lora_sync(model)


def validate_lora_for_vllm_sync(model):
    """TRL's, as a trainer's module has it."""
    raise ValueError("LoRA adapters only")


def save_lora_adapter(*_):
    raise AssertionError


# The beginning of the SHA-256 of what is replaced or relied on in TRL 1.16: a change must be looked at.
SOURCES = {
    VLLMGeneration._init_vllm: "0e584002e0f6",
    VLLMGeneration.sync_weights: "63d669fb3230",
    VLLMGeneration.generate: "2d2ac2be5b13",
    async_grpo_trainer.save_lora_adapter: "d41565a2df3e",
    async_grpo_trainer.validate_lora_for_vllm_sync: "57e3e6628942",
    async_grpo_trainer.select_adapter_sync: "2bf4c44a26af",
    async_grpo_trainer.AsyncGRPOTrainer._init_lora_sync: "4a96cd4535e9",
    async_grpo_trainer.AsyncGRPOTrainer._sync_weight_lora: "4a4ad08eb92e",
}


@pytest.mark.parametrize("found", SOURCES, ids=lambda found: found.__qualname__)
def test_trl_is_as_it_was(found):
    digest = hashlib.sha256(inspect.getsource(found).encode()).hexdigest()
    assert digest[:12] == SOURCES[found], f"{found.__qualname__} of TRL is another one now: read it"


def test_trainers_have_the_class_by_this_name():
    for module in (grpo_trainer, rloo_trainer):
        assert module.VLLMGeneration is VLLMGeneration


def test_a_trainer_that_generates_in_another_way_is_refused():
    with pytest.raises(TypeError, match="SFTTrainer does not generate by TRL's `VLLMGeneration`"):
        trl.adapter_sync(type("SFTTrainer", (), {"__module__": "json"}))
