"""Looking inside: a model without a share, and what each share adds to a weight."""

import copy
import pickle
from contextlib import ExitStack

import pytest
import torch
from peft import PeftModel, get_peft_model

from bishare_dsl import compile_spec, load_adapter
from bishare_dsl.adapted.tuner_layer import TunerLayer
from bishare_dsl.diagnostics import AdapterError
from bishare_dsl.peft import BishareConfig
from bishare_dsl.plan.together import share_names
from bishare_dsl.testing.models import tiny_model
from tests.methods.conftest import spec
from tests.methods.test_every_method import TINY
from tests.support.adapted import SPEC, logits, moved

SPECS = (
    *("bishare_gt", "bishare_ke", "bishare_ss", "dora", "hydralora", "ia3", "library_joint"),
    *("lily", "loha", "lora", "miss", "mos", "multilora", "nola", "pissa", "randlora", "rasa"),
    *("shared_core", "vb_lora", "vera"),
)
TWO = (
    "spec two\ntarget q_proj, o_proj\nshare local per module rank 2\nshare other per kind rank 3\n"
)
WHOLE = "spec whole\ntarget q_proj\ntrain norms\nshare a per module rank 2\n"


def of_spec(name):
    """A tiny model with a shipped spec, or a text, whose every tensor is away from its start."""
    text = spec(name, **TINY[name]) if name in TINY else name
    return moved(compile_spec(text, tiny_model("llama"), seed=3)).eval()


def base_logits():
    return logits(tiny_model("llama").eval())


def two_adapters(first, second):
    """A tiny model with two adapters, of which the first runs."""
    peft_model = get_peft_model(tiny_model("llama"), BishareConfig(spec=first, seed=3))
    peft_model.add_adapter("two", BishareConfig(spec=second, seed=4))
    random = torch.Generator().manual_seed(6)
    with torch.no_grad():
        for name in ("default", "two"):
            for tensor in peft_model.get_base_model().bishare[name].tensors().values():
                tensor.add_(0.1 * torch.randn(tensor.shape, generator=random))
    return peft_model.get_base_model().eval()


# Disabling shares ---------------------------------------------------------------------------------


@pytest.mark.parametrize("name", SPECS)
def test_all_shares_off_is_the_base_and_leaving_restores_bit_for_bit(name):
    model = of_spec(name)
    handle, want = model.bishare, logits(model)
    names, plan = share_names(handle.plan), handle.plan
    values = {n: t.detach().clone() for n, t in handle.tensors().items()}
    assert not torch.equal(want, base_logits())
    with handle.disable_share(*names):
        assert torch.equal(logits(model), base_logits())
    assert torch.equal(logits(model), want)
    assert handle.plan == plan
    assert all(torch.equal(t, values[n]) for n, t in handle.tensors().items())


@pytest.mark.parametrize("off", ["local", "intra", "inter"])
def test_a_share_off_is_as_if_it_added_zero(off, ids):
    """Also in a mixed batch, and in decoding with a cache."""
    model, other = of_spec(SPEC), of_spec(SPEC)
    with torch.no_grad():
        for name, tensor in other.bishare.tensors().items():
            if name.startswith(f"{off}.") and name.endswith("B"):
                tensor.zero_()
    want, running = logits(other, ids), logits(model, ids)
    tokens = other.generate(ids, max_new_tokens=4, do_sample=False)
    assert not torch.allclose(running, want, atol=1e-4)
    with model.bishare.disable_share(off):
        torch.testing.assert_close(logits(model, ids), want, rtol=1e-5, atol=1e-5)
        with model.bishare.rows(["default", None]):
            rows = logits(model, ids)
        torch.testing.assert_close(rows[0], want[0], rtol=1e-5, atol=1e-5)
        assert torch.equal(model.generate(ids, max_new_tokens=4, do_sample=False), tokens)
    assert torch.equal(logits(model, ids), running)


def test_blocks_nest_and_end_in_any_order(ids):
    model = of_spec(SPEC)
    handle, want = model.bishare, logits(model, ids)
    with handle.disable_share("local"):
        without_local = logits(model, ids)
        with handle.disable_share("intra", "local"):
            without_both = logits(model, ids)
        assert torch.equal(logits(model, ids), without_local)
    first, second = ExitStack(), ExitStack()
    first.enter_context(handle.disable_share("intra"))
    second.enter_context(handle.disable_share("local"))
    assert torch.equal(logits(model, ids), without_both)
    first.close()
    assert torch.equal(logits(model, ids), without_local)
    second.close()
    assert torch.equal(logits(model, ids), want)
    with pytest.raises(KeyError), handle.disable_share("intra"):
        raise KeyError
    assert torch.equal(logits(model, ids), want)
    with handle.disable_adapter(), handle.disable_share("intra"):
        assert torch.equal(logits(model, ids), logits(tiny_model("llama").eval(), ids))
    assert torch.equal(logits(model, ids), want)


def test_an_interruption_leaves_nothing_disabled(ids, monkeypatch):
    model = of_spec(SPEC)
    handle, want = model.bishare, logits(model, ids)
    change, calls = TunerLayer._change, []

    def interrupted(self, adapters):
        calls.append(adapters)
        if len(calls) == 2:  # At the end of the block.
            raise KeyboardInterrupt
        change(self, adapters)

    monkeypatch.setattr(TunerLayer, "_change", interrupted)
    with pytest.raises(KeyboardInterrupt), handle.disable_share("intra"):
        pass
    assert torch.equal(logits(model, ids), want)


def test_saving_inside_saves_the_whole_adapter(tmp_path):
    peft_model = get_peft_model(tiny_model("llama"), BishareConfig(spec=SPEC))
    moved(peft_model.get_base_model())
    handle = peft_model.get_base_model().bishare
    for name, save in (("handle", handle.save_pretrained), ("peft", peft_model.save_pretrained)):
        save(tmp_path / name / "before")
        with handle.disable_share("intra", "local"):
            save(tmp_path / name / "inside")
        files = sorted(file.name for file in (tmp_path / name / "before").iterdir())
        assert files == sorted(file.name for file in (tmp_path / name / "inside").iterdir())
        for file in files:
            before = (tmp_path / name / "before" / file).read_bytes()
            assert before == (tmp_path / name / "inside" / file).read_bytes(), file


def test_a_step_inside_trains_the_other_shares(ids):
    model = of_spec(SPEC).train()
    with model.bishare.disable_share("intra"):
        model(input_ids=ids, labels=ids).loss.backward()
    for name, tensor in model.bishare.tensors().items():
        assert (tensor.grad is None) == name.startswith("intra."), name


def test_what_would_outlive_the_block_is_refused_in_it(tmp_path, ids):
    model = of_spec(SPEC)
    handle, want = model.bishare, logits(model, ids)
    with handle.disable_share("intra"):
        for action in ("merge", "unmerge", "merge_and_unload", "unload"):
            with pytest.raises(AdapterError, match=r"BS626.*shares of adapter `default` are"):
                getattr(handle, action)()
        for copied in (copy.deepcopy, pickle.dumps):
            with pytest.raises(AdapterError, match="BS626"):
                copied(model)
    assert torch.equal(logits(model, ids), want)
    handle.merge()
    merged = logits(model, ids)
    with pytest.raises(AdapterError, match="BS643"), handle.disable_share("intra"):
        pass
    assert torch.equal(logits(model, ids), merged)
    handle.unmerge()
    with handle.disable_share("intra"):
        inside = logits(model, ids)
        handle.export(tmp_path / "lora")
    exported = PeftModel.from_pretrained(tiny_model("llama").eval(), tmp_path / "lora")
    torch.testing.assert_close(logits(exported, ids), inside, rtol=1e-4, atol=1e-4)


def test_unknown_names_are_refused_with_near_ones(ids):
    model = of_spec(SPEC)
    handle, want = model.bishare, logits(model, ids)
    with pytest.raises(AdapterError, match=r"BS600.*no share `intro`(?s:.*)`intra`"):
        handle.disable_share("local", "intro").__enter__()
    with pytest.raises(AdapterError, match="BS640"):
        handle.disable_share("local", adapter="other").__enter__()
    path = "model.layers.0.self_attn.q_proj"
    with pytest.raises(AdapterError, match=r"BS600.*no share `locale`(?s:.*)`local`"):
        handle.get_delta_weight(path, share="locale")
    with pytest.raises(AdapterError, match=rf"BS600.*no module(?s:.*)`{path}`"):
        handle.get_delta_weight(path.replace("q_proj", "q_prj"))
    with pytest.raises(AdapterError, match="BS640"):
        handle.get_delta_weight(path, "other")
    assert torch.equal(logits(model, ids), want)


def test_adapters_that_run_together_switch_or_leave_inside_a_block(ids):
    model = two_adapters(SPEC, TWO)
    handle = model.bishare
    alone = {}
    for name in ("default", "two"):
        handle.set_adapter(name)
        alone[name] = logits(model, ids)
    handle.set_adapter(["default", "two"])
    together = logits(model, ids)
    q = "model.layers.0.self_attn.q_proj"
    with handle.disable_share("local", "intra", "inter", "other"):
        assert torch.equal(logits(model, ids), logits(tiny_model("llama").eval(), ids))
        assert not handle.get_delta_weight(q).any()
    assert torch.equal(logits(model, ids), together)
    with handle.disable_share("local", "other", adapter="two"):
        torch.testing.assert_close(logits(model, ids), alone["default"], rtol=1e-5, atol=1e-5)
        handle.set_adapter("default")
        assert torch.equal(logits(model, ids), alone["default"])
    handle.set_adapter("two")
    assert torch.equal(logits(model, ids), alone["two"])
    parts = [handle.get_delta_weight(q, name, share="local") for name in ("default", "two")]
    handle.set_adapter(["default", "two"])
    assert torch.equal(handle.get_delta_weight(q, share="local"), parts[0] + parts[1])
    with handle.disable_share("local"):
        handle.delete_adapter("two")
    assert torch.equal(logits(model, ids), alone["default"])


def test_a_scale_set_inside_a_block_stays(ids):
    model, other = of_spec(SPEC), of_spec(SPEC)
    other.bishare.set_scale("default", 0.5)
    with model.bishare.disable_share("intra"):
        model.bishare.set_scale("default", 0.5)
        with other.bishare.disable_share("intra"):
            assert torch.equal(logits(model, ids), logits(other, ids))
    assert torch.equal(logits(model, ids), logits(other, ids))


@pytest.mark.parametrize(
    ("share", "first", "second", "codes"),
    [("magnitude", "dora", TWO, ("BS675", "BS675")), ("train", WHOLE, WHOLE, ("BS667", "BS665"))],
)
def test_a_block_lets_nothing_in_that_could_not_stay(share, first, second, codes, ids):
    first = spec(first, **TINY[first]) if first in TINY else first
    model = two_adapters(first, second)
    handle, want = model.bishare, logits(model, ids)
    with handle.disable_share(share):
        assert not torch.equal(logits(model, ids), want)
        with pytest.raises(AdapterError, match=codes[0]):
            handle.set_scale("default", 0.5)
        with pytest.raises(AdapterError, match=codes[1]):
            handle.set_adapter(["default", "two"])
    assert torch.equal(logits(model, ids), want)


# What a share adds ----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [name for name in SPECS if name != "hydralora"])
def test_a_delta_is_what_merging_adds(name):
    """And that of a share is what the model has with all other shares off."""
    model = of_spec(name)
    handle, plain = model.bishare, tiny_model("llama")
    deltas = {path: handle.get_delta_weight(path) for path in paths(handle)}
    with handle.disable_adapter():
        assert all(torch.equal(handle.get_delta_weight(p), dw) for p, dw in deltas.items())
    names, path = share_names(handle.plan), paths(handle)[0]
    parts = {share: handle.get_delta_weight(path, share=share) for share in names}
    for share in names:
        with handle.disable_share(*(other for other in names if other != share)):
            assert torch.equal(handle.get_delta_weight(path), parts[share])
        with handle.disable_share(share):
            assert torch.equal(handle.get_delta_weight(path, share=share), parts[share])
    if not handle.plan.has_magnitudes:
        torch.testing.assert_close(sum(parts.values()), deltas[path], rtol=1e-4, atol=1e-5)
    handle.merge()
    for path, dw in deltas.items():
        added = model.get_submodule(path).weight - plain.get_submodule(path).weight
        assert dw.dtype is torch.float32
        assert dw.any()
        torch.testing.assert_close(dw, added, rtol=1e-4, atol=1e-6)


def paths(handle):
    return [site.path for site in handle.plan.sites if handle.plan.terms_of[site.path]]


def test_a_share_that_is_not_linear_has_no_delta_and_can_be_disabled(ids):
    model = of_spec("hydralora")
    path = paths(model.bishare)[0]
    for share in (None, "hydra"):
        with pytest.raises(AdapterError, match=r"BS633.*`hydra` .* is not linear"):
            model.bishare.get_delta_weight(path, share=share)
    with model.bishare.disable_share("hydra"):
        assert not model.bishare.get_delta_weight(path).any()


def test_a_merged_magnitude_has_no_delta():
    model = of_spec("dora")
    path = paths(model.bishare)[0]
    update = model.bishare.get_delta_weight(path, share="local")
    model.bishare.merge()
    with pytest.raises(AdapterError, match="BS643"):
        model.bishare.get_delta_weight(path)
    assert torch.equal(model.bishare.get_delta_weight(path, share="local"), update)


def test_a_loaded_adapter_is_looked_into_as_the_trained_one(tmp_path, ids):
    model = of_spec(SPEC)
    model.bishare.save_pretrained(tmp_path)
    loaded = load_adapter(tmp_path, tiny_model("llama")).eval()
    path = "model.layers.1.mlp.up_proj"
    for share in (None, "local", "intra", "inter"):
        want = model.bishare.get_delta_weight(path, share=share)
        assert torch.equal(loaded.bishare.get_delta_weight(path, share=share), want)
    with loaded.bishare.disable_share("inter"), model.bishare.disable_share("inter"):
        assert torch.equal(logits(loaded, ids), logits(model, ids))
