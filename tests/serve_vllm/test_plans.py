"""What a server in compact mode was granted, and the plans that it has slots for; no engine is started."""

from types import SimpleNamespace

import pytest
import torch
from vllm.config import CUDAGraphMode

from bishare_dsl import compile_spec
from bishare_dsl.diagnostics import AdapterError
from bishare_dsl.serve.vllm import plans
from bishare_dsl.serve.vllm.folder import Read
from bishare_dsl.serve.vllm.settings import Granted, granted
from bishare_dsl.testing.models import tiny_model
from tests.methods.test_every_method import TINY

PARALLEL = SimpleNamespace(pipeline_parallel_size=1)


def config_of(extra, model=None):
    lora = SimpleNamespace(fully_sharded_loras=False, max_loras=3, lora_dtype=torch.float32)
    return SimpleNamespace(
        additional_config=extra,
        parallel_config=PARALLEL,
        lora_config=lora,
        compilation_config=SimpleNamespace(cudagraph_mode=CUDAGraphMode.FULL),
        model_config=SimpleNamespace(hf_config=model and model.config),
    )


@pytest.mark.parametrize(
    "extra",
    [
        {"bishare_plan": "a"},
        {"bishare_plans": "a"},
        {"bishare_slots_gib": 0},
        {"bishare_slots_gib": "4"},
    ],
)
def test_a_setting_that_is_none(extra):
    (key,) = extra
    with pytest.raises(AdapterError, match=rf"BS658.*`{key}`"):
        granted(config_of(extra))


def test_settings_of_others_are_left_alone(monkeypatch):
    assert granted(config_of({"others": 1})) is None
    assert granted(config_of({"bishare_slots_gib": 2, "others": 1})).bishare_slots_gib == 2
    monkeypatch.setattr(PARALLEL, "pipeline_parallel_size", 2)  # It does not go with the mode.
    with pytest.raises(AdapterError, match="BS654"):
        granted(config_of({"bishare_slots_gib": 2}))


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root, model, found = tmp_path_factory.mktemp("plans"), tiny_model("llama"), {}
    for spec in ("bishare_ke", "lora"):
        compile_spec(spec, model, params=TINY[spec])
        model.bishare.save_pretrained(root / spec)
        found[spec] = str(root / spec), Read(model.bishare.plan, None, dict)
        model = model.bishare.unload()
    return model, found


def test_a_plan_is_added_when_its_adapter_comes(folders):
    model, found = folders
    served = plans.Plans(config_of({}, model), Granted(bishare_slots_gib=1.0))
    assert [served.number_of(*found[spec]) for spec in ("lora", "bishare_ke", "lora")] == [0, 1, 0]
    assert served.held[1].plan is found["bishare_ke"][1].plan


def test_each_library_of_a_plan_has_a_number(folders):
    model, found = folders
    folder, read = found["lora"]
    one, other = (read._replace(library=digest) for digest in "ab")
    served = plans.Plans(config_of({}, model), Granted(bishare_slots_gib=1.0))
    numbers = [served.number_of(folder, each) for each in (read, one, other, one, read)]
    assert numbers == [0, 1, 2, 1, 0]
    served.grows = False
    with pytest.raises(
        AdapterError,
        match=r"BS650.*differs from the first one's in the tensors that its library shares",
    ):
        served.number_of(folder, read._replace(library="c"))


def test_not_where_steps_are_recorded(folders, monkeypatch):
    """A graph has the launches of the plans that there were."""
    monkeypatch.setattr(plans, "records_steps", lambda config: True)
    model, found = folders
    granted = Granted(bishare_plans=[found["lora"][0]], bishare_slots_gib=1.0)
    served = plans.Plans(config_of({}, model), granted)
    assert served.number_of(*found["lora"]) == 0
    with pytest.raises(AdapterError, match=r"BS650.*differs from the first one's in tensor `local"):
        served.number_of(*found["bishare_ke"])


def test_not_beyond_the_bytes(folders):
    model, found = folders
    with pytest.raises(AdapterError, match="BS657"):
        plans.Plans(
            config_of({}, model), Granted(bishare_plans=[found["lora"][0]], bishare_slots_gib=1e-6)
        )
