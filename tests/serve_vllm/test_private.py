"""What the plug-in relies on in vLLM and is not promised by it: a change of one of these must be looked at."""

import hashlib
import inspect
from types import SimpleNamespace

import pytest
from vllm.entrypoints.openai.models.serving import OpenAIServingModels
from vllm.lora import lora_model, model_manager, utils, worker_manager
from vllm.lora.layers import base_linear, column_parallel_linear, row_parallel_linear
from vllm.v1.engine.core import EngineCore
from vllm.v1.engine.input_processor import InputProcessor
from vllm.v1.worker import lora_model_runner_mixin

from bishare_dsl.serve.vllm.folder import stamp_of
from bishare_dsl.serve.vllm.private import install_prefix_key
from bishare_dsl.serve.vllm.settings import SUPPORTED, experimental, unsupported

MANAGER = model_manager.LoRAModelManager
LRU = model_manager.LRUCacheLoRAModelManager
WORKER = worker_manager.LRUCacheWorkerLoRAManager
LINEAR = base_linear.BaseLinearLayerWithLoRA
MERGED = column_parallel_linear.MergedColumnParallelLinearWithLoRA

# The beginning of the SHA-256 of the source in vLLM 0.32, and in 0.31, 0.33 and 0.34 where it is another one.
# The last two were read, and not run.
SOURCES = {
    EngineCore.add_lora: "8337cb3be82e",
    InputProcessor._validate_lora: "14d8474923a7",
    LINEAR._apply_lora_to_output: "57c8604ccec2",
    LINEAR.apply: "f46a4c52e135",
    LINEAR.create_lora_weights: "94edaf24d2fc",
    LRU.activate_adapter: "d1b81b771adb",
    LRU.add_adapter: "767b3cb23642",
    MANAGER.__init__: "5dcae742ef6f 30542a856c64 9f4198aecfbb",
    MANAGER._create_lora_modules: "d713c4fa88bc b300f06d5777 2f499ded5c6c",
    MANAGER._create_merged_loras_inplace: "1b64ebe57c3d 78c8b7e7ed59",
    MANAGER._deactivate_adapter: "c03307590919",
    MANAGER._set_adapter_mapping: "6ae4384167f2",
    MANAGER.activate_adapter: "0661f9e08a07 b044458b878e",
    MANAGER.add_adapter: "8d3d33085e4e",
    MANAGER.create_dummy_lora: "5ea382e7a915 82955a3e6102",
    MANAGER.deactivate_adapter: "002a74a3ec06",
    MANAGER.list_adapters: "7c04b4fac679",
    MANAGER.remove_adapter: "bd550e65eefc",
    MANAGER.remove_all_adapters: "d1dcd6788c96",
    MANAGER.set_adapter_mapping: "fc14134c10e9",
    MERGED.create_lora_weights: "5495fcfe4c51",
    MERGED.set_lora: "111b25b22b35",
    MERGED.slice_lora_b: "3826056c7b01",
    OpenAIServingModels._check_load_lora_adapter_request: "e610e5af04aa",
    WORKER._apply_adapters: "f06c2357bb31",
    WORKER.add_adapter: "ced930bd3f9d",
    WORKER.create_lora_manager: "0701d0adf352",
    column_parallel_linear.ColumnParallelLinearWithLoRA.slice_lora_b: "919e14cb4628",
    lora_model.LoRAModel.__init__: "ce46a2f2c885",
    model_manager.AdapterLRUCache: "7e9dc1c59dcc",
    row_parallel_linear.RowParallelLinearWithLoRA.slice_lora_a: "3e74c71c977a",
    utils.from_layer: "6f7988ad5bef",
    utils.is_in_target_modules: "8f7b7243cdcd",
    utils.parse_fine_tuned_lora_name: "eaae3c4cb5ae 0fdbcfbc61e3",
    utils.process_packed_modules_mapping: "4475d6a8e841 f01f0612ca34",
    worker_manager.WorkerLoRAManager._load_adapter: "e05648e184dd df36054604e0 57d439d629f9 84ed792e767a",
    worker_manager.WorkerLoRAManager.add_dummy_lora: "ce17d2f32530",
    worker_manager.WorkerLoRAManager.list_adapters: "a605e1d9f7a6",
}


@pytest.mark.parametrize("found", SOURCES, ids=lambda found: found.__qualname__)
def test_source_is_as_it_was(found):
    digest = hashlib.sha256(inspect.getsource(found).encode()).hexdigest()
    assert digest[:12] in SOURCES[found].split(), (
        f"{found.__qualname__} of vLLM is another one now: read it"
    )


def test_callers_of_what_is_taken_over_are_as_they_were():
    assert "self._validate_lora(lora_request)" in inspect.getsource(InputProcessor.process_inputs)
    # An engine has its config at hand, for the checks of its requests.
    parameters = inspect.signature(InputProcessor.__init__).parameters
    assert [*parameters][:2] == ["self", "vllm_config"]
    source = inspect.getsource(lora_model_runner_mixin.LoRAModelRunnerMixin.load_lora_model)
    assert "self.lora_manager = LRUCacheWorkerLoRAManager(" in source
    source = inspect.getsource(OpenAIServingModels.load_lora_adapter)
    assert "await self._check_load_lora_adapter_request(request)" in source
    assert "await self.engine_client.add_lora(lora_request)" in source


def test_keys_of_the_prefix_cache_have_the_version_of_an_adapter(tmp_path, monkeypatch):
    """Through vLLM's own function, which the plug-in replaces in each process.

    A request that does not ask to load the folder again gets what the last one that did has loaded.
    """
    from vllm.lora.request import LoRARequest
    from vllm.v1.core import kv_cache_utils

    def key(load_inplace=True, number=1, folder=str(tmp_path / "a")):
        request = SimpleNamespace(
            lora_request=LoRARequest("a", number, folder, load_inplace=load_inplace),
            mm_features=[],
            cache_salt=None,
            prompt_embeds=None,
        )
        first = kv_cache_utils.generate_block_hash_extra_keys(request, 0, 16, 0)[0]
        assert kv_cache_utils.generate_block_hash_extra_keys(request, 16, 32, 0)[0] == first
        return first

    monkeypatch.setattr(
        kv_cache_utils, "_gen_lora_extra_hash_keys", kv_cache_utils._gen_lora_extra_hash_keys
    )
    install_prefix_key(stamp_of)
    config = tmp_path / "a" / "adapter_config.json"
    config.parent.mkdir()
    config.write_text("{}")
    plain = key(load_inplace=False)
    first = key()
    assert first == key() == key(load_inplace=False) != plain
    assert config.parent.name in repr(first)
    config.write_text("{ }")
    assert key(load_inplace=False) == first  # It is not loaded yet.
    second = key()
    assert second == key(load_inplace=False)
    assert second not in (first, plain)
    assert key(load_inplace=False, number=2) == plain
    monkeypatch.setenv("HOME", str(tmp_path))
    third = key(folder="~/a")
    config.write_text("{  }")
    assert key(folder="~/a") != third


def test_the_request_that_loads_an_adapter_again_gives_its_version(tmp_path, monkeypatch):
    """From vLLM 0.33 on, the requests for completions after it do not have the flag."""
    from vllm.lora.request import LoRARequest
    from vllm.v1.core import kv_cache_utils

    def key():
        lora = LoRARequest("a", 1, str(tmp_path))
        request = SimpleNamespace(
            lora_request=lora, mm_features=[], cache_salt=None, prompt_embeds=None
        )
        return kv_cache_utils.generate_block_hash_extra_keys(request, 0, 16, 0)[0]

    monkeypatch.setattr(
        kv_cache_utils, "_gen_lora_extra_hash_keys", kv_cache_utils._gen_lora_extra_hash_keys
    )
    monkeypatch.setattr(EngineCore, "add_lora", EngineCore.add_lora)
    signature = inspect.signature(EngineCore.add_lora)
    install_prefix_key(stamp_of)
    assert inspect.signature(EngineCore.add_lora) == signature  # vLLM converts by its types.
    engine = SimpleNamespace(model_executor=SimpleNamespace(add_lora=lambda request: True))
    first = key()
    assert EngineCore.add_lora(engine, LoRARequest("a", 1, str(tmp_path)))
    assert key() == first
    assert EngineCore.add_lora(engine, LoRARequest("a", 1, str(tmp_path), load_inplace=True))
    assert key() != first


def test_adapters_are_read_in_one_order():
    """Whatever the order of a set of names in a process: workers that share layers add up their parts."""
    from vllm.lora.request import LoRARequest

    from bishare_dsl.serve.vllm.manager import WorkerManager

    manager, found = WorkerManager.__new__(WorkerManager), []
    manager._read_once, manager._empty = set(), set()
    manager._adapter_manager = SimpleNamespace(lora_slots=9)
    manager.add_adapter = lambda request: found.append(request.lora_int_id)
    manager._apply_adapters({LoRARequest(f"a{i}", i, "a") for i in range(1, 10)})
    assert found == [*range(1, 10)]


def test_this_version_is_served(monkeypatch):
    assert unsupported() is None
    assert experimental() is None
    monkeypatch.setattr("vllm.__version__", "0.34.0")
    assert unsupported() is None
    assert "experimental in vLLM 0.34.0" in experimental()
    monkeypatch.setattr("vllm.__version__", "0.99.1")
    assert "0.99.1" in unsupported()
    assert SUPPORTED[0] in unsupported()
