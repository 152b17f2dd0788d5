"""The plug-in for Axolotl as it is called there, without Axolotl: `tests/clients` trains in the real one."""

import sys
from types import ModuleType, SimpleNamespace

import pytest

from bishare_dsl.diagnostics import BishareError
from bishare_dsl.testing.models import tiny_model

PLACES = ("axolotl", "axolotl.integrations", "axolotl.integrations.base")


@pytest.fixture
def plugin(monkeypatch):
    modules = {place: ModuleType(place) for place in PLACES}
    names = {"BasePlugin": object, "AdapterCapabilities": SimpleNamespace}
    vars(modules["axolotl.integrations.base"]).update(names)
    for place, module in modules.items():
        monkeypatch.setitem(sys.modules, place, module)
    from bishare_dsl.integrations.axolotl import BisharePlugin

    yield BisharePlugin()
    sys.modules.pop("bishare_dsl.integrations.axolotl")


def cfg(**said):
    """What was not said is None, as in Axolotl's `DictDefault`."""
    return SimpleNamespace(**{"adapter": "bishare", "bishare": None, "lora_model_dir": None} | said)


def test_without_a_block_the_error_says_what_to_write(plugin):
    for call in (
        lambda: plugin.pre_model_load(cfg()),
        lambda: plugin.load_adapter(None, cfg(), inference=False, config_only=False),
        lambda: plugin.load_adapter(None, cfg(lora_model_dir="x"), config_only=True),
    ):
        with pytest.raises(BishareError, match=r"BS736.*`bishare`.*\n.*spec: bishare_ke_ab"):
            call()
    plugin.pre_model_load(cfg(adapter="lora"))
    plugin.pre_model_load(cfg(lora_model_dir="x"))
    assert plugin.load_adapter(None, cfg(adapter="lora")) is None


def test_a_wrong_spec_is_found_before_a_model_is_loaded(plugin):
    with pytest.raises(BishareError, match="BS2"):
        plugin.pre_model_load(cfg(bishare={"spec": "bishare_ke_ab", "params": {"x": 1}}))


def test_an_adapter_is_made_and_gone_on_with(plugin, tmp_path):
    """It trains, unless it is for inference."""
    said = cfg(bishare={"spec": "shared_input", "seed": 1})
    plugin.pre_model_load(said)
    model, config = plugin.load_adapter(tiny_model("llama"), said)
    assert (config.seed, model.get_base_model().bishare.plan.spec) == (1, "shared_input")
    assert plugin.load_adapter(None, said, config_only=True)[0] is None
    model.save_pretrained(tmp_path)
    said = cfg(lora_model_dir=str(tmp_path))
    for inference in (True, False):
        again, _ = plugin.load_adapter(tiny_model("llama"), said, inference=inference)
        assert any(p.requires_grad for p in again.parameters()) is not inference
