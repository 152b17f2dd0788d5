import copy
import pickle
import sys
import threading

import pytest
import torch

from bishare_dsl import compile_spec, load_adapter, parse_spec
from bishare_dsl.adapted.handle import Handle
from bishare_dsl.compiler import make_plan
from bishare_dsl.diagnostics import AdapterError
from bishare_dsl.folder.files import read_adapter
from bishare_dsl.peft.method import install
from tests.support.adapted import GPT2, SPEC, logits
from tests.support.families import tiny_model


@pytest.fixture
def base_logits(ids):
    return logits(tiny_model("llama"), ids)


def test_a_state_dict_without_what_trains_is_refused(adapted, tmp_path):
    """As of DDP, whose keys have a prefix. Frozen tensors may be missing: ZeRO-3 has no others."""
    model = adapted()
    state = model.state_dict()
    wrapped = {f"module.{key}": value for key, value in state.items()}
    with pytest.raises(AdapterError, match=r"BS617.*`state_dict` has no key"):
        model.save_pretrained(tmp_path / "wrong", state_dict=wrapped)
    assert not (tmp_path / "wrong" / "adapter_model.safetensors").exists()
    trains = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    state = {key: value + 1 for key, value in state.items() if key in trains}
    model.save_pretrained(tmp_path / "right", state_dict=state)
    stored, own = read_adapter(tmp_path / "right").tensors(), model.bishare.tensors()
    for name, tensor in own.items():
        assert torch.equal(stored[name], tensor + 1 if tensor.requires_grad else tensor), name


# Counting -----------------------------------------------------------------------------------------


def test_an_optimizer_takes_the_adapter_by_itself(adapted, ids):
    """Whoever owns its tensors in the model."""
    model = adapted().train()
    optimizer = torch.optim.SGD(model.bishare.parameters(), lr=0.1)
    (group,) = optimizer.param_groups
    trained = [p for p in model.parameters() if p.requires_grad]
    assert [*map(id, group["params"])] == [*{id(p): p for p in group["params"]}]
    assert {*map(id, group["params"])} == {*map(id, trained)}
    assert {t.owner for t in model.bishare.plan.tensors} > {""}
    assert not [*model.bishare.parameters(recurse=False)]  # The handle itself owns none.
    model(input_ids=ids, labels=ids).loss.backward()
    before = {name: t.clone() for name, t in model.bishare.tensors().items()}
    optimizer.step()
    assert any(not torch.equal(t, before[name]) for name, t in model.bishare.tensors().items())


# Saving and loading -------------------------------------------------------------------------------


@pytest.mark.parametrize(("family", "text"), [("llama", SPEC), ("gpt2", GPT2), ("qwen3", SPEC)])
def test_loading_gives_the_same_logits_and_the_same_ties(adapted, ids, tmp_path, family, text):
    model = adapted(family, text)
    model.bishare.save_pretrained(tmp_path)
    loaded = load_adapter(tmp_path, tiny_model(family))
    assert torch.equal(logits(loaded, ids), logits(model, ids))
    tensors = loaded.bishare.tensors()
    # One object for each: what was shared is shared.
    trained = [p for p in loaded.parameters() if p.requires_grad]
    assert {id(t) for t in tensors.values()} == {id(p) for p in trained}
    before = logits(loaded, ids)
    with torch.no_grad():
        tensors["inter.A"].add_(1.0)
    assert not torch.equal(logits(loaded, ids), before)
    assert loaded.bishare.plan == model.bishare.plan
    assert loaded.bishare.seed == model.bishare.seed == 3
    assert loaded.bishare.spec_text == model.bishare.spec_text


@pytest.fixture(params=[False, True], ids=["running", "merged"])
def model(adapted, request):
    model = adapted()
    if request.param:
        model.bishare.merge()
    return model


def test_a_merged_adapter_is_saved_as_an_adapter(adapted, model, ids, tmp_path):
    model.bishare.save_pretrained(tmp_path)
    loaded = load_adapter(tmp_path, tiny_model("llama"))
    assert torch.equal(logits(loaded, ids), logits(adapted(), ids))


# Disabling and leaving ----------------------------------------------------------------------------


def test_disabled_is_the_base(model, ids, base_logits):
    handle, want, merged = model.bishare, logits(model, ids), model.bishare.merged
    assert not torch.equal(want, base_logits)
    with handle.disable_adapter():
        assert torch.equal(logits(model, ids), base_logits)
        with handle.disable_adapter():
            assert torch.equal(logits(model, ids), base_logits)
        assert torch.equal(logits(model, ids), base_logits)
        for action in ("merge", "unmerge", "merge_and_unload", "unload"):
            with pytest.raises(AdapterError, match="BS626"):
                getattr(handle, action)()
    with pytest.raises(KeyError), handle.disable_adapter():
        raise KeyError
    assert torch.equal(logits(model, ids), want)
    assert handle.merged is merged


def snapshot(model):
    return [
        (name, type(module), all(p.requires_grad for p in module.parameters(recurse=False)))
        for name, module in model.named_modules()
    ]


@pytest.mark.parametrize("action", ["unload", "merge_and_unload"])
def test_what_leaves_gives_a_plain_model(action, model, ids, base_logits, tmp_path):
    want = base_logits if action == "unload" else logits(model, ids)
    plain = getattr(model.bishare, action)()
    assert plain is model
    assert snapshot(plain) == snapshot(tiny_model("llama"))
    rounding = 0.0 if action == "unload" else 1e-4
    torch.testing.assert_close(logits(plain, ids), want, rtol=rounding, atol=rounding)
    plain.save_pretrained(tmp_path)
    again = type(plain).from_pretrained(tmp_path)
    assert torch.equal(logits(again, ids), logits(plain, ids))


# Copies -------------------------------------------------------------------------------------------


def test_a_copy_has_a_handle_of_its_own(model, ids, base_logits, copied):
    want, merged = logits(model, ids), model.bishare.merged
    other = copied(model)
    assert isinstance(other.bishare, Handle)
    assert other.bishare is not model.bishare
    assert other.bishare.model is other
    assert other.bishare.merged is merged
    assert torch.equal(logits(other, ids), want)
    own, others = model.bishare.tensors(), other.bishare.tensors()
    assert not {t.data_ptr() for t in own.values()} & {t.data_ptr() for t in others.values()}
    if merged:
        other.bishare.unmerge()
    with torch.no_grad():
        for tensor in others.values():
            tensor.zero_()
    assert torch.equal(logits(other, ids), base_logits)
    assert torch.equal(logits(model, ids), want)
    other.bishare.unload()
    assert torch.equal(logits(model, ids), want)
    assert model.bishare.model is model


def test_threads_that_disable_leave_it_enabled(adapted, ids):
    """Each stops, as well as it can, between reading the counter and writing it."""
    model = adapted()
    before = logits(model, ids)
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)

    def often():
        for _ in range(200):
            with model.bishare.disable_adapter():
                pass

    threads = [threading.Thread(target=often) for _ in range(4)]
    try:
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        sys.setswitchinterval(interval)
    assert "active" in repr(model.bishare)
    assert torch.equal(logits(model, ids), before)


@pytest.mark.parametrize("whole", ["base", "adapter"])
def test_zero_3_is_refused_where_fsdp_is(adapted, whole, ids):
    """Once it has partitioned the adapter: it may partition the base while this is loaded."""
    model = adapted()
    handle, plan = model.bishare, model.bishare.plan
    values = {name: tensor.detach().clone() for name, tensor in handle.tensors().items()}
    code = handle.code_for(plan)
    handle.add("other", plan, code, values, "", 4)
    for name, parameter in model.named_parameters():
        if ("bishare" in name) is (whole == "base"):
            parameter.ds_id, parameter.ds_shape = 0, parameter.shape
    doors = {
        "load another adapter": lambda: handle.add("another", plan, code, values, "", 5),
        "switch adapters": lambda: handle.set_adapter("other"),
        "scale an adapter": lambda: handle.set_scale("other", 2),
        "run a mixed batch": lambda: handle.rows([None] * len(ids)).__enter__(),
    }
    for action, door in doors.items():
        if whole == "adapter":
            door()
            continue
        with pytest.raises(AdapterError, match=f"BS645.*{action}"):
            door()
        assert handle.active == ("default",)
        assert set(handle.adapters) == {"default", "other"}


# Saving the model itself ---------------------------------------------------------------------------


def test_a_model_is_saved_as_its_adapter(adapted, tmp_path):
    """As transformers does with PEFT's, so that the checkpoints of anybody's Trainer hold the adapter alone."""
    model = adapted()
    model.bishare.save_pretrained(tmp_path / "adapter")
    for i, other in enumerate((model, copy.deepcopy(model), pickle.loads(pickle.dumps(model)))):
        other.save_pretrained(
            tmp_path / str(i), state_dict=other.state_dict(), max_shard_size="1GB"
        )
        assert {path.name for path in (tmp_path / str(i)).iterdir()} == {
            "README.md", "adapter_config.json", "adapter_model.safetensors"
        }  # fmt: skip
        assert read_adapter(tmp_path / str(i)).entries == read_adapter(tmp_path / "adapter").entries
    model.save_pretrained(tmp_path / "nothing", is_main_process=False)
    assert not (tmp_path / "nothing").exists()
    with torch.no_grad():  # A copy speaks for itself.
        next(other.bishare.parameters()).zero_()
    other.save_pretrained(tmp_path / "2")
    assert read_adapter(tmp_path / "2").entries != read_adapter(tmp_path / "adapter").entries


# Calls with arguments that the model would ignore ----------------------------------------------------


def test_names_of_rows_are_refused_and_the_remedy_works(adapted, ids):
    """transformers would ignore them, and run the active adapter for each row."""
    model = adapted()
    names = [None, *["default"] * (len(ids) - 1)]
    for of_model in (model, copy.deepcopy(model)):
        with pytest.raises(AdapterError, match=r"BS683.*LlamaForCausalLM"):
            of_model(input_ids=ids, adapter_names=names)
        with pytest.raises(AdapterError, match=r"BS683.*LlamaModel"):
            of_model.model(input_ids=ids, adapter_names=names)
        with pytest.raises(AdapterError, match=r"BS682.*`generate_batch`.*\n.*`generate`"):
            of_model.generate_batch(ids.tolist(), adapter_names=names)
        with of_model.bishare.rows(names), pytest.raises(AdapterError, match="BS682"):
            of_model.generate_batch(ids.tolist())
        with torch.no_grad(), of_model.bishare.rows(names):
            rows = of_model(input_ids=ids, adapter_names=None).logits
        torch.testing.assert_close(rows[1:], logits(of_model, ids)[1:], rtol=1e-4, atol=1e-4)
        with of_model.bishare.rows([None] * len(ids)):
            assert torch.equal(logits(of_model, ids)[0], rows[0])


# Dynamo tells that it does not trace the text of the error's page, which it then reads outside of the graph.
@pytest.mark.filterwarnings("ignore:Dynamo does not know how to trace the builtin:UserWarning")
@pytest.mark.long
def test_names_of_rows_are_refused_in_compiled_code(adapted, ids):
    model = adapted().eval()
    torch._dynamo.reset()
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    torch.testing.assert_close(logits(compiled, ids), logits(model, ids), rtol=1e-4, atol=1e-5)
    with pytest.raises(AdapterError, match="BS683"):
        torch.compile(model, backend="eager")(input_ids=ids, adapter_names=["default"] * len(ids))


# Resizing the tables of tokens ---------------------------------------------------------------------

AT_TABLES = {
    "a head": "target heads, q_proj share a per module rank 2",
    "an embedding": "target embeddings, q_proj share a per module rank 2",
    "both, tied": "target heads, embeddings share a per module rank 2",
    "trained in full": "target q_proj train lm_head share a per module rank 2",
}


@pytest.mark.parametrize("what", AT_TABLES)
def test_tables_that_an_adapter_has_something_at_stay_as_they_are(what, ids):
    model = tiny_model("llama", tie_word_embeddings="tied" in what)
    spec = f"spec s {AT_TABLES[what]}"
    compile_spec(parse_spec(SPEC), model)
    install(model, make_plan(parse_spec(spec), model), name="other")  # It waits, and is heard of.
    before = logits(model, ids)
    for of_model in (model, copy.deepcopy(model)):
        with pytest.raises(AdapterError, match=r"to 70 rows: adapter `other` has .* for 64"):
            of_model.resize_token_embeddings(70)
        of_model.resize_token_embeddings(pad_to_multiple_of=8)  # That is the size it has.
        assert torch.equal(logits(of_model, ids), before)
    base = model.bishare.unload()
    base.resize_token_embeddings(70)
    assert len(base.get_input_embeddings().weight) == 70
