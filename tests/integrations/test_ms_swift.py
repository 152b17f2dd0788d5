"""The plug-in for ms-swift as it is called there, without ms-swift: `tests/clients` trains in the real one."""

import sys
from types import ModuleType, SimpleNamespace

import pytest

from bishare_dsl.diagnostics import BishareError
from bishare_dsl.testing.models import tiny_model


def test_a_spec_is_asked_for_and_makes_an_adapter(monkeypatch):
    swift, plugin = ModuleType("swift"), ModuleType("swift.tuner_plugin")
    tuners = {}
    vars(plugin).update(PeftTuner=object, tuners_map=tuners)
    for module in (swift, plugin):
        monkeypatch.setitem(sys.modules, module.__name__, module)
    monkeypatch.delitem(sys.modules, "bishare_dsl.integrations.ms_swift", raising=False)
    monkeypatch.delenv("BISHARE_SPEC", raising=False)
    import bishare_dsl.integrations.ms_swift  # noqa: F401

    tuner, seeded = tuners["bishare"], SimpleNamespace(seed=3)
    with pytest.raises(BishareError, match=r"BS736.*`bishare_spec`(?s:.*)--model_kwargs"):
        tuner.prepare_model(seeded, None)
    monkeypatch.setenv("BISHARE_SPEC", "shared_input")
    model = tuner.prepare_model(seeded, tiny_model("llama"))
    assert model.peft_config["default"].seed == 3
    del sys.modules["bishare_dsl.integrations.ms_swift"]
