"""The energies of an adapter's update, by share and module."""

import pytest

from bishare_dsl import compile_spec
from bishare_dsl.diagnostics import AdapterError
from bishare_dsl.plan.together import share_names
from bishare_dsl.testing.models import tiny_model
from bishare_dsl.updates import NO_ENERGY, energies
from tests.methods.conftest import spec
from tests.methods.test_every_method import TINY
from tests.support.adapted import SPEC, moved

SPECS = (
    *("bishare_gt", "bishare_ke", "lily", "loha", "miss", "nola", "pissa", "randlora"),
    *("shared_core", "vb_lora", "vera"),
)


@pytest.mark.parametrize("name", [SPEC, *SPECS])
def test_an_energy_is_that_of_the_dense_update(name):
    text = spec(name, **TINY[name]) if name in TINY else name
    handle = moved(compile_spec(text, tiny_model("llama"), seed=3)).bishare
    of_module = energies(handle.plan, handle.tensors())
    assert list(of_module) == [s.path for s in handle.plan.sites if handle.plan.terms_of[s.path]]
    for path, energy in of_module.items():
        whole = handle.get_delta_weight(path).double().square().sum()
        assert energy.together == pytest.approx(float(whole), rel=1e-4)
        for share, part in energy.shares.items():
            alone = handle.get_delta_weight(path, share=share).double().square().sum()
            assert part == pytest.approx(float(alone), rel=1e-4)
        covering = {term.share.split(".")[0] for term in handle.plan.terms_of[path]}
        assert energy.shares.keys() == covering
    total = sum(of_module.values(), NO_ENERGY)
    assert total.shares.keys() == set(share_names(handle.plan))
    assert total.together == pytest.approx(sum(e.together for e in of_module.values()))


def test_magnitudes_and_whole_parameters_are_left_out_and_the_rest_is_linear():
    text = "spec s\ntarget q_proj\nmagnitude per module\ntrain norms\nshare a per module rank 2\n"
    handle = moved(compile_spec(text, tiny_model("llama"))).bishare
    for path, energy in energies(handle.plan, handle.tensors()).items():
        alone = handle.get_delta_weight(path, share="a").double().square().sum()
        assert energy.shares == {"a": pytest.approx(float(alone), rel=1e-4)}
        assert energy.together == energy.shares["a"]
    router = moved(
        compile_spec(spec("hydralora", **TINY["hydralora"]), tiny_model("llama"))
    ).bishare
    with pytest.raises(AdapterError, match=r"BS633.*`hydra`"):
        energies(router.plan, router.tensors())
