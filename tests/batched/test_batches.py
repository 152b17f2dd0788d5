"""Mixed batches: each row is as if its adapter were active and the row alone."""

import copy
import threading

import pytest
import torch
from peft import get_peft_model
from torch import nn

from bishare_dsl.batched.rows import open_batches
from bishare_dsl.diagnostics import AdapterError
from bishare_dsl.peft import BishareConfig
from tests.methods.test_every_method import ONE_OF_EACH, TINY
from tests.support.checks import randomize
from tests.support.families import tiny_inputs, tiny_model
from tests.support.parts import quick

SPECS = {
    "a": """
        spec a
        target q_proj, k_proj, v_proj, up_proj, down_proj
        share local per module rank 2 scale 2
        share intra per layer rank 3 scale 0.5 via KE(size = 4)
        share inter per model rank 4 via SS(slice = trailing)
        """,
    "b": """
        spec b
        target q_proj, o_proj
        share alike per kind rank 3 via GT(size = 8, gate_rank = 2) freeze A
        share local per module rank 1 dropout 0.5 where layer == 0
        """,
}
ADAPTERS = {"a": "a", "a2": "a", "a3": "a", "b": "b", "b2": "b"}
IDS = torch.randint(3, 64, (4, 7), generator=torch.Generator().manual_seed(7))
NAMES = {
    "each its own": ["a", "a2", "a3", None],
    "some alike": ["a2", "a", None, "a2"],
    "all alike": ["a3"] * 4,
    "no one": [None] * 4,
    "as PEFT says it": ["a", "__base__", "a2", "__base__"],
    "another plan": ["b", None, "b2", "b"],
    "two plans": ["b", "a", None, "a2"],
}


def config(spec, params=None, seed=0):
    spec = SPECS.get(spec, spec)
    return BishareConfig(spec=f"{spec}\n" if " " in spec else spec, params=params or {}, seed=seed)


def filled(model, adapters, params=None):
    """A model with adapters that do something; the first one is active."""
    made = None
    for seed, (name, spec) in enumerate(adapters.items()):
        if made is None:
            made = get_peft_model(model, config(spec, params, seed), adapter_name=name)
        else:
            made.add_adapter(name, config(spec, params, seed))
        made.set_adapter(name)
        randomize(made, seed, frozen=False)
    made.set_adapter(next(iter(adapters)))
    return made.eval()


@pytest.fixture
def model(shared):
    return copy.deepcopy(shared)


def alone(model, name, run):
    """What a call gives with one adapter active, or none."""
    if name in (None, "__base__"):
        with model.bishare.disable_adapter():
            return run()
    before = model.active_adapter
    model.set_adapter(name)
    try:
        return run()
    finally:
        model.set_adapter(before)


def logits_alone(model, names, ids=IDS, **inputs):
    rows = []
    for i, name in enumerate(names):
        row = {key: value[i : i + 1] for key, value in inputs.items()}
        rows.append(alone(model, name, lambda i=i, row=row: model(ids[i : i + 1], **row).logits))
    return torch.cat(rows)


def close(got, want):
    torch.testing.assert_close(got, want, rtol=1e-4, atol=5e-5)


# Logits ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("names", NAMES.values(), ids=NAMES)
@torch.no_grad()
def test_rows_are_as_if_alone(model, names):
    with_one = {name: alone(model, name, lambda: model(IDS).logits) for name in ("a", "b", None)}
    found = model(IDS, adapter_names=names).logits
    close(found, logits_alone(model, names))
    for row, name in enumerate(names):
        if name in (None, "__base__"):
            assert torch.equal(found[row], with_one[None][row])
    # And nothing is left of it.
    for name, want in with_one.items():
        assert torch.equal(alone(model, name, lambda: model(IDS).logits), want)


# With biases as well: what a transform computes does not depend on them.
FAMILIES = {"llama": sorted(TINY), "qwen2": ["bishare_ke", "hydralora"]}
PAIRS = [(family, spec) for family, specs in FAMILIES.items() for spec in specs]


@pytest.mark.parametrize(
    ("family", "spec"), quick(PAIRS, [pair for pair in PAIRS if pair[1] in ONE_OF_EACH])
)
@torch.no_grad()
def test_shipped_specs(family, spec):
    model = tiny_model(family, hidden_size=32, head_dim=8, num_key_value_heads=4)
    names = ["one", "two"]
    model = filled(model, dict.fromkeys(names, spec), TINY[spec])
    if not all(term.linear for term in model.bishare.plan.update_terms):
        with pytest.raises(AdapterError, match=r"BS673.*`two`.*Experts"):
            model(IDS[:2], adapter_names=[None, "two"])
        return
    rows = ["two", None, "one", "two"]
    close(model(IDS, adapter_names=rows).logits, logits_alone(model, rows))


KINDS = {"gpt2": "c_attn, c_fc", "opt": "q_proj, fc1, fc2", "phi3": "qkv_proj", "gemma2": "q_proj"}


@pytest.mark.parametrize(("family", "kinds"), KINDS.items(), ids=KINDS)
@torch.no_grad()
def test_regions_of_other_models(family, kinds):
    """Some are linears; OPT hands on tokens without a batch; one region is within another."""
    spec = f"spec s target {kinds} share local per module rank 2 share all per kind rank 3"
    other = f"spec t target {kinds.split(', ')[-1]} share local per module rank 2"
    model = filled(tiny_model(family), {"a": spec, "a2": spec, "b": other})
    for names in (["a", "a2", None, "a"], ["a2", "b", None, "a"]):
        close(model(IDS, adapter_names=names).logits, logits_alone(model, names))


@pytest.mark.parametrize("side", ["left", "right"])
@torch.no_grad()
def test_padding(model, side):
    mask = torch.ones_like(IDS)
    mask[1, slice(0, 3) if side == "left" else slice(-3, None)] = 0
    positions = (mask.cumsum(1) - 1).clamp(min=0)
    inputs = {"attention_mask": mask, "position_ids": positions}
    names = ["a", "a2", None, "a"]
    found = model(IDS, adapter_names=names, **inputs).logits
    want = logits_alone(model, names, **inputs)
    close(found[mask.bool()], want[mask.bool()])


@torch.no_grad()
def test_a_cache(model):
    names = ["a", "a2", None, "b"]
    whole = model(IDS, adapter_names=names).logits
    first = model(IDS[:, :4], adapter_names=names, use_cache=True)
    with model.bishare.rows(names):
        rest = model(IDS[:, 4:], past_key_values=first.past_key_values)
    close(torch.cat([first.logits, rest.logits], 1), whole)


def test_what_inference_mode_leaves_trains():
    model = filled(tiny_model("llama"), {"a": "a"})
    model.add_adapter("a2", config("a"))
    with torch.inference_mode():
        model(IDS, adapter_names=["a", "a2", None, "a"])
        model.set_adapter("a2")
    for name in ("a", "a2"):
        model.set_adapter(name)
        model.zero_grad()
        model(IDS, labels=IDS).loss.backward()
        assert all(p.grad is not None for p in model.parameters() if p.requires_grad)


# Generating -----------------------------------------------------------------------------------------


def tokens_alone(model, names, inputs, **how):
    found = []
    for i, name in enumerate(names):
        row = {key: value[i : i + 1] for key, value in inputs.items()}
        found.append(alone(model, name, lambda row=row: model.generate(**row, **how)))
    return found


@pytest.mark.parametrize(
    "how",
    [
        {},
        {"num_beams": 3},
        {"num_beams": 4, "num_return_sequences": 2},
        {"use_cache": False},
        {"cache_implementation": "static", "disable_compile": True},
    ],
    ids=str,
)
@pytest.mark.parametrize("names", [["a", "a2", None, "a"], ["b", "a", None, "a2"]], ids=str)
def test_generating(model, names, how):
    mask = torch.ones_like(IDS)
    mask[2, :3] = 0  # Padded on the left.
    inputs = {"input_ids": IDS, "attention_mask": mask}
    how = {"max_new_tokens": 6, "do_sample": False, **how}
    found = model.generate(**inputs, **how, adapter_names=names)
    assert torch.equal(found, torch.cat(tokens_alone(model, names, inputs, **how)))
    assert not open_batches()


# Compiled, and in threads ---------------------------------------------------------------------------


@pytest.mark.long
@torch.no_grad()
def test_compiled_whole_and_once():
    graphs, model = [], filled(tiny_model("llama", num_hidden_layers=1), ADAPTERS)

    def backend(graph, _):
        graphs.append(graph)
        return graph.forward

    compiled = torch.compile(model, backend=backend, fullgraph=True)
    plain = model(IDS, use_cache=False).logits
    close(compiled(IDS, use_cache=False).logits, plain)
    counts = []
    for names in (["a", "a2", "a3", None], ["a3", None, "a", "a2"], ["a2", None, "a", "a3"]):
        with model.bishare.rows(names):
            close(compiled(IDS, use_cache=False).logits, logits_of(model, names))
        counts.append(len(graphs))
    assert counts == counts[:1] * 3
    close(compiled(IDS, use_cache=False).logits, plain)


@torch.no_grad()
def test_packed_examples_have_the_adapter_of_their_row(shared):
    """A name for each of the packed examples is refused, for their row has one adapter."""
    packed = {"input_ids": IDS[:, :6], "position_ids": torch.arange(3).repeat(4, 2)}
    names = ["a", "b", None, "a2"]
    found = shared(**packed, use_cache=False, adapter_names=names).logits
    for start in (0, 3):
        examples = IDS[:, start : start + 3]
        one = shared(examples, use_cache=False, adapter_names=names).logits
        torch.testing.assert_close(found[:, start : start + 3], one, rtol=1e-4, atol=1e-5)
    with pytest.raises(AdapterError, match="BS671"):
        shared(**packed, use_cache=False, adapter_names=[*names, *names])
    flat = {"input_ids": packed["input_ids"].reshape(1, -1), "use_cache": False}
    with pytest.raises(AdapterError, match="BS671"):
        shared(**flat, position_ids=torch.arange(3).repeat(1, 8), adapter_names=names)


def logits_of(model, names=None):
    with torch.no_grad():
        return model(IDS, **{"adapter_names": names} if names else {}).logits


def test_threads(model):
    todo = [*NAMES.values(), None]
    plain = alone(model, "a", lambda: logits_of(model))
    want = [plain if names is None else logits_of(model, names) for names in todo]
    wrong = []

    def work(number):
        for i in range(20):
            names = todo[(number + i) % len(todo)]
            found = logits_of(model, names)
            if not torch.equal(found, want[(number + i) % len(todo)]):
                wrong.append(names)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


# What is in the banks is what trains, is saved, moves and goes ---------------------------------------


@torch.no_grad()
def test_what_an_adapter_becomes_is_seen(model):
    names = ["a", "a2", None, "b"]
    before = logits_of(model, names)
    for parameter in model.bishare.parameters():
        parameter.data.numpy()[:] *= 2  # Which torch does not count.
    found = logits_of(model, names)
    assert not torch.equal(found[0], before[0])
    assert torch.equal(found[1:], before[1:])
    before = found
    for name in ("a2", "b"):
        model.set_adapter(name)
        randomize(model, 11, frozen=False)
        found = logits_of(model, names)
        assert not torch.equal(found, before)
        close(found, logits_alone(model, names))
        before = found


# Refused --------------------------------------------------------------------------------------------


def test_names_that_are_not(model):
    want = logits_of(model)
    says = r"(?s)row 1.*`a4`.*did you mean `a`.*row 3.*`zz`"
    with pytest.raises(AdapterError, match=says) as error:
        model(IDS, adapter_names=["a", "a4", None, "zz"])
    assert [problem.code for problem in error.value.problems] == ["BS670"] * 2
    for names in ([], ["a"] * 3, ["a"] * 8, "aaaa"):
        with pytest.raises(AdapterError, match="BS671"):
            model(IDS, adapter_names=names)
        with pytest.raises(AdapterError, match="BS671"):
            model.generate(IDS, adapter_names=names, num_beams=2)
    assert torch.equal(logits_of(model), want)


CHANGES = {
    "set_adapter": lambda handle: handle.set_adapter(["b"]),
    "delete_adapter": lambda handle: handle.delete_adapter("a2"),
    "merge": lambda handle: handle.merge(),
    "unload": lambda handle: handle.unload(),
    "disable_adapter": lambda handle: handle.disable_adapter().__enter__(),
    "train": lambda handle: handle.model.train(),
}


def test_changes_while_one_is_open(model):
    handle = model.bishare
    with handle.rows(["a", None, "a2", "b"]):
        for change in (*CHANGES.values(),):
            with pytest.raises(AdapterError, match="BS674"):
                change(handle)
        assert not any(module.training for module in model.get_base_model().modules())
    handle.set_adapter(["b"])


@torch.no_grad()
def test_changes_while_another_thread_has_one_open(model):
    """Its rows are what they would be, and threads with batches of their own run beside it."""
    names, handle = ["a2", None, "a3", "b"], model.bishare
    want = model(IDS, adapter_names=names).logits
    inside, go_on = threading.Event(), threading.Event()
    found = {}

    def wait(*_):
        if threading.current_thread() is thread:
            inside.set()
            assert go_on.wait(60)

    def work():
        found["rows"] = logits_of(model, names)

    hook = model.get_base_model().model.layers[0].register_forward_pre_hook(wait)
    thread = threading.Thread(target=work)
    thread.start()
    assert inside.wait(60)
    try:
        for change in CHANGES.values():
            with pytest.raises(AdapterError, match="BS674"):
                change(handle)
        assert torch.equal(logits_of(model, names), want)
        model.add_adapter("new", config("a"))  # Which changes nothing that runs.
    finally:
        go_on.set()
        thread.join()
    hook.remove()
    assert torch.equal(found["rows"], want)
    handle.set_adapter(["b"])


def test_a_call_that_fails_leaves_no_batch_open(model):
    want = logits_of(model)
    layer = model.get_base_model().model.layers[1]

    def fail(*_):
        raise KeyboardInterrupt  # Which torch's hooks do not see.

    hook = layer.register_forward_pre_hook(fail)
    with pytest.raises(KeyboardInterrupt):
        model(IDS, adapter_names=["a2"] * 4)
    hook.remove()
    assert torch.equal(logits_of(model), want)
    with pytest.raises(TypeError):
        model(IDS, adapter_names=["a2"] * 4, nonsense_that_no_one_takes=object(), labels=3)
    assert not open_batches()


# Whose a row is -------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", ["llava", "qwen2_vl"])
@torch.no_grad()
def test_images_of_which_a_row_may_have_any_number(family):
    """They come one after another, so that terms at them run where all rows have one adapter."""
    text = "spec a target tower == vision share a per module rank 2"
    model = filled(tiny_model(family), {"a": text, "b": text})
    inputs = tiny_inputs(model)
    inputs.pop("labels", None)
    want = alone(model, "b", lambda: model(**inputs).logits)
    close(model(**inputs, adapter_names=["b", "b"]).logits, want)
    for names in (["a", "b"], [None, "b"]):
        with pytest.raises(AdapterError, match=r"BS682.*whose rows `.*vis.*reads images"):
            model(**inputs, adapter_names=names)
        with pytest.raises(AdapterError, match="BS682"):
            model.generate(**inputs, adapter_names=names, max_new_tokens=2)
    # A text alone, or terms in the language model alone.
    ids = inputs["input_ids"].clamp(max=50)
    assert torch.equal(model(ids, adapter_names=["a", None]).logits, model(ids).logits)
    text = "spec b target tower == language share a per module rank 2"
    model = filled(tiny_model(family), {"a": text, "b": text})
    found = model(**inputs, adapter_names=["b", None]).logits
    close(found[0], alone(model, "b", lambda: model(**inputs).logits)[0])
    close(found[1], alone(model, None, lambda: model(**inputs).logits)[1])


class Windows(nn.Module):
    """A model whose layer is not given rows, but what ``cut`` makes of them."""

    def __init__(self, cut):
        super().__init__()
        self.layers = nn.ModuleList([nn.ModuleDict({"fc": nn.Linear(4, 4)})])
        self.cut = cut

    def forward(self, inputs):
        return self.layers[0]["fc"](self.cut(inputs))


@pytest.mark.parametrize(
    "cut",
    [
        lambda x: x.transpose(0, 1),
        lambda x: x.reshape(6, 2, 4),
        lambda x: x[:, :3].transpose(0, 1),
        lambda x: x.flatten(0, 1)[:3],
        lambda x: x.flatten(0, 1),
        lambda x: x[:1],
    ],
    ids=["tokens first", "as many tokens", "windows", "picked", "flat", "one for all"],
)
@torch.no_grad()
def test_what_is_not_rows_is_refused(cut):
    spec = "spec s target fc share local per module rank 2"
    model = filled(Windows(cut), {"a": spec, "b": spec})
    x = torch.randn(3, 4, 4)
    says = r"BS682.*`layers\.0\.fc`.*(its input is .*3 rows|tokens seem)"
    with pytest.raises(AdapterError, match=says):
        model(x, adapter_names=["a", None, "b"])
    close(model(x, adapter_names=["b"] * 3), alone(model, "b", lambda: model(x)))
