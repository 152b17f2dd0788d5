"""Several adapters in memory: the one that is switched to is as if it were alone, and the others wait."""

import copy
import gc
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from bishare_dsl import compile_spec, load_adapter, parse_spec
from bishare_dsl.adapter.devices import move_tensors
from bishare_dsl.diagnostics import AdapterError, ModelError
from bishare_dsl.rewrite import regions
from bishare_dsl.rewrite.owned import OwnedTensors
from bishare_dsl.rewrite.rewritten import base_class, is_rewritten
from bishare_dsl.testing.checks import randomize
from bishare_dsl.testing.models import tiny_model

# Other regions, other owners, another transform; b has what a lacks, and the other way round.
SPECS = {
    "llama": {
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
    },
    # Some of its regions are linears, for its attention is not traced.
    "gpt2": {
        "a": "spec a target c_attn, c_fc share local per module rank 2 share all per model rank 3 via SS",
        "b": "spec b target c_attn share all per model rank 2 via GT(size = 8, gate_rank = 2)",
    },
    # A region within a region.
    "opt": {
        "a": "spec a target q_proj, v_proj, fc1 share intra per layer rank 2 via SS",
        "b": "spec b target fc1, fc2 share local per module rank 3",
    },
}
FAMILIES = tuple(SPECS)
IDS = torch.randint(3, 64, (2, 10), generator=torch.Generator().manual_seed(7))

Folders = Callable[[str], dict[str, Path]]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Folders:
    """Two adapters of a family, that do something, by name."""

    @cache
    def save(family: str = "llama") -> dict[str, Path]:
        found = {name: tmp_path_factory.mktemp(f"{family}-{name}") for name in SPECS[family]}
        for seed, (name, text) in enumerate(SPECS[family].items()):
            model: Any = compile_spec(parse_spec(text), tiny_model(family), seed=seed)
            randomize(model, seed, frozen=False)
            model.bishare.save_pretrained(found[name])
        return found

    return save


@pytest.fixture
def both(folders: Folders) -> Callable[..., Any]:
    """A model with both of them, the first one active."""

    def load(family: str = "llama", base: Any = None) -> Any:
        model = tiny_model(family) if base is None else base
        for name, folder in folders(family).items():
            assert load_adapter(folder, model, name=name) is model
        return model

    return load


@pytest.fixture(scope="module")
def alone(folders: Folders) -> Callable[..., Any]:
    """A model with one of them."""

    @cache
    def load(name: str, family: str) -> Any:
        return load_adapter(folders(family)[name], tiny_model(family))

    # A copy takes a tenth of the time.
    return lambda name, family="llama": copy.deepcopy(load(name, family))


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        found: torch.Tensor = model(IDS, use_cache=False).logits
    return found


def gradients(model: Any) -> dict[str, torch.Tensor]:
    model.zero_grad()
    model(IDS, labels=IDS).loss.backward()
    return {n: t.grad.clone() for n, t in model.bishare.tensors().items() if t.requires_grad}


def values(model: Any) -> dict[str, torch.Tensor]:
    return {name: t.detach().clone() for name, t in model.bishare.tensors().items()}


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[n], other[n]) for n in one)


def anatomy(model: nn.Module) -> list[Any]:
    """Everything that a switch changes in the model."""
    return [
        (
            name,
            base_class(type(module)),
            is_rewritten(module) and module.bishare_code.source,
            module.training,
            [(n, p.requires_grad) for n, p in module.named_parameters(recurse=False)],
        )
        for name, module in model.named_modules()
    ]


# The model is as if there were no other -------------------------------------------------------------


@pytest.mark.parametrize("family", FAMILIES)
def test_there_and_back(both: Any, alone: Any, family: str) -> None:
    model = both(family)
    want = {name: alone(name, family) for name in "ab"}
    assert not torch.equal(logits(want["a"]), logits(want["b"]))
    assert model.bishare.adapters == ("a", "b")
    for name in "abaab":
        model.bishare.set_adapter(name)
        assert model.bishare.active_adapter == name
        assert model.bishare.plan.spec == name
        for _ in range(2):  # The second time with factors that were kept.
            assert torch.equal(logits(model), logits(want[name]))
        assert same(gradients(model), gradients(want[name]))
        assert anatomy(model) == anatomy(want[name])
        assert list(model.state_dict()) == list(want[name].state_dict())
        assert [n for n, _ in regions(model)] == [n for n, _ in regions(want[name])]


def test_generation(both: Any, alone: Any) -> None:
    model = both()
    for name in "ba":
        model.bishare.set_adapter(name)
        options = {"max_new_tokens": 5, "do_sample": False}
        assert torch.equal(model.generate(IDS, **options), alone(name).generate(IDS, **options))


def test_what_is_loaded_beside_changes_nothing(folders: Folders, alone: Any) -> None:
    model = alone("a")
    model.lm_head.weight.requires_grad_(True)
    before, parts, handle = logits(model), anatomy(model), model.bishare
    load_adapter(folders()["b"], model, name="b")
    assert model.bishare is handle
    assert model.bishare.adapters == ("default", "b")
    assert anatomy(model) == parts
    assert torch.equal(logits(model), before)


def test_a_spec_compiled_beside(alone: Any) -> None:
    model = alone("a")
    text = SPECS["llama"]["b"]
    assert compile_spec(parse_spec(text), model, seed=5, name="new") is model
    model.bishare.set_adapter("new")
    expected: Any = compile_spec(parse_spec(text), tiny_model("llama"), seed=5)
    assert same(values(model), values(expected))
    assert torch.equal(logits(model), logits(tiny_model("llama")))
    assert same(gradients(model), gradients(expected))


def test_training_one_leaves_the_other(both: Any) -> None:
    model = both()
    first = values(model)
    tensors = model.bishare.tensors()
    model.bishare.set_adapter("b")
    second = values(model)
    trained = [p for p in model.parameters() if p.requires_grad]
    assert {id(p) for p in trained} == {
        id(t) for t in model.bishare.tensors().values() if t.requires_grad
    }
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
    for _ in range(2):
        model(IDS, labels=IDS).loss.backward()
        optimizer.step()
    assert all(p.grad is not None for p in trained)
    assert not same(values(model), second)
    changed = values(model)
    model.bishare.set_adapter("a")
    assert same(values(model), first)
    # The very same parameters, each once: an optimizer that was made for them goes on.
    assert {n: id(t) for n, t in model.bishare.tensors().items()} == {
        n: id(t) for n, t in tensors.items()
    }
    assert all(t.grad is None for t in tensors.values())
    model.bishare.set_adapter("b")
    assert same(values(model), changed)


def test_what_is_shared_stays_shared(both: Any) -> None:
    model = both()
    model.bishare.set_adapter("b")
    model.bishare.set_adapter("a")
    before = logits(model)
    trainable = [p for p in model.parameters() if p.requires_grad]
    assert len(trainable) == len(model.bishare.plan.tensors)
    with torch.no_grad():
        model.bishare.inter__A.add_(1.0)
    assert not torch.equal(logits(model), before)


def test_each_is_saved(both: Any, folders: Folders, tmp_path: Path) -> None:
    model = both()
    inactive = model.bishare
    for name in ("b", "a"):
        model.bishare.set_adapter(name)
        model.bishare.save_pretrained(tmp_path / name)
    model.bishare.set_adapter("b")
    inactive.save_pretrained(tmp_path / "inactive")
    inactive.export(tmp_path / "exported")
    for saved, name in (("a", "a"), ("b", "b"), ("inactive", "a")):
        for path in folders()[name].iterdir():
            assert (tmp_path / saved / path.name).read_bytes() == path.read_bytes()


def test_a_forward_after_a_switch_sees_what_was_written_before_it(both: Any) -> None:
    model = both()
    logits(model)  # Keeps factors.
    handle = model.bishare
    model.bishare.set_adapter("b")
    for tensor in handle.tensors().values():
        tensor.data.mul_(2)  # Which torch does not count.
    model.bishare.set_adapter("a")
    after = logits(model)
    model.eval()
    assert torch.equal(logits(model), after)


def test_training_mode(both: Any, alone: Any) -> None:
    model = both()
    model.train()
    model.bishare.set_adapter("b")
    assert all(module.training for module in model.modules())
    torch.manual_seed(0)
    dropped = logits(model)
    want = alone("b").train()
    torch.manual_seed(0)
    assert torch.equal(logits(want), dropped)
    model.eval()
    model.bishare.set_adapter("a")
    assert not any(module.training for module in model.modules())
    model.bishare.set_adapter("b")
    assert torch.equal(logits(model), logits(alone("b")))


# torch.compile --------------------------------------------------------------------------------------


class Graphs:
    def __init__(self) -> None:
        self.count = 0

    def __call__(self, graph: Any, _: Any) -> Any:
        self.count += 1
        return graph.forward


@pytest.mark.parametrize("text", SPECS["llama"].values(), ids=["of one plan", "of two plans"])
def test_a_compiled_model_runs_the_active_adapter(text: str) -> None:
    """Not compiled again where it was compiled before."""
    model: Any = tiny_model("llama", num_hidden_layers=1)
    base, want = logits(model), {}
    for name, spec in {"a": SPECS["llama"]["a"], "b": text}.items():
        compile_spec(parse_spec(spec), model, name=name)
        model.bishare.set_adapter(name)
        randomize(model, seed=len(want))
        want[name] = logits(model)
    assert not torch.allclose(want["a"], want["b"], atol=1e-2)
    torch._dynamo.reset()
    backend = Graphs()
    compiled = torch.compile(model, fullgraph=True, backend=backend)
    for name in "abab":
        model.bishare.set_adapter(name)
        gc.collect()  # Of classes too.
        torch.testing.assert_close(logits(compiled), want[name])
    assert backend.count <= 2
    model.bishare.unload()
    torch.testing.assert_close(logits(compiled), base)


# Where the tensors are ------------------------------------------------------------------------------


def test_converting_the_model_converts_all(both: Any, alone: Any) -> None:
    model = both().to(torch.float64)
    for name in "ba":
        model.bishare.set_adapter(name)
        assert {p.dtype for p in model.parameters()} == {torch.float64}
        assert torch.equal(logits(model), logits(alone(name).to(torch.float64)))


def test_moving_the_model_moves_all(both: Any) -> None:
    model = both().to("meta")
    model.bishare.set_adapter("b")
    assert all(p.is_meta for p in model.parameters())
    model.to_empty(device="cpu")
    model.bishare.set_adapter("a")
    assert not any(p.is_meta for p in model.parameters())


def test_a_float32_adapter_of_a_bfloat16_base_stays_so(both: Any) -> None:
    model = both(base=tiny_model("llama").to(torch.bfloat16))
    model.bishare.set_adapter("b")
    assert {t.dtype for t in model.bishare.tensors().values()} == {torch.float32}


class Placed:
    """A tensor that says where it is: there may be no other device here to move a real one to."""

    def __init__(self, device: str | torch.device, grad: "Placed | None" = None):
        self.device, self.grad = torch.device(device), grad
        self.is_meta = self.device.type == "meta"

    @property
    def data(self) -> "Placed":
        return self

    @data.setter
    def data(self, value: "Placed") -> None:
        self.device = value.device

    def to(self, device: torch.device) -> "Placed":
        return Placed(device)


def test_tensors_go_where_their_layers_are() -> None:
    """Which were moved one by one, so that the model's adapters were not asked."""
    moves = {
        "stays": ("cuda:0", "cuda:0", "cuda:0"),
        "goes": ("cpu", "cuda:1", "cuda:1"),
        "comes back": ("cuda:0", "cpu", "cpu"),
        "is on disk": ("meta", "cpu", "meta"),
        "of a layer that is": ("cpu", "meta", "cpu"),
    }
    tensors: Any = {name: Placed(old, Placed(old)) for name, (old, _, _) in moves.items()}
    move_tensors(tensors, {name: torch.device(where) for name, (_, where, _) in moves.items()})
    for name, (_, _, new) in moves.items():
        assert (str(tensors[name].device), str(tensors[name].grad.device)) == (new, new), name


def test_a_switch_looks_where_layers_are(both: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[dict[str, torch.Tensor]] = []
    monkeypatch.setattr(
        "bishare_dsl.serve.transformers.handle.move_tensors",
        lambda tensors, where: asked.append(tensors),
    )
    model = both()
    model.bishare.set_adapter("b")
    assert [set(tensors) for tensors in asked] == [set(model.bishare.tensors())]


@pytest.mark.parametrize(("family", "how"), [("llama", "cpu"), ("llama", "disk"), ("gpt2", "map")])
@pytest.mark.parametrize("order", ["first", "between", "last"])
def test_offloading(
    both: Any, alone: Any, folders: Folders, family: str, how: str, order: str, tmp_path: Path
) -> None:
    """By accelerate, before any adapter is loaded, after the first one, and after both."""
    from accelerate import cpu_offload, disk_offload, dispatch_model

    def offload(model: Any) -> None:
        if how == "cpu":
            cpu_offload(model, torch.device("cpu"))
        elif how == "disk":
            disk_offload(model, str(tmp_path), torch.device("cpu"))
        else:
            device_map = {
                name: "disk" if name.startswith("transformer.h.1") else "cpu"
                for name, module in model.named_modules()
                if list(module.parameters(recurse=False))
            }
            dispatch_model(model, device_map, "cpu", offload_dir=str(tmp_path), force_hooks=True)

    model = tiny_model(family)
    steps: list[Any] = [lambda n=n: load_adapter(folders(family)[n], model, name=n) for n in "ab"]
    steps.insert(["first", "between", "last"].index(order), lambda: offload(model))
    for step in steps:
        step()
    for name in "abab":
        model.bishare.set_adapter(name)
        assert torch.equal(logits(model), logits(alone(name, family)))
    base = model.bishare.unload()
    assert torch.equal(logits(base), logits(tiny_model(family)))


# Copies ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", FAMILIES)
def test_a_copy_has_all_adapters(both: Any, alone: Any, family: str, copied: Any) -> None:
    model = both(family)
    model.bishare.set_adapter("b")
    other = copied(model)
    assert other.bishare.adapters == ("a", "b")
    assert other.bishare.active_adapter == "b"
    ours = {t.data_ptr() for name in "ab" for t in tensors_of(model, name).values()}
    for name in "abab":
        other.bishare.set_adapter(name)
        assert other.bishare.model is other
        assert anatomy(other) == anatomy(alone(name, family))
        assert torch.equal(logits(other), logits(alone(name, family)))
        assert not ours & {t.data_ptr() for t in other.bishare.tensors().values()}
    other.bishare.unload()
    assert torch.equal(logits(other), logits(tiny_model(family)))
    for name in "ab":
        model.bishare.set_adapter(name)
        assert torch.equal(logits(model), logits(alone(name, family)))


def tensors_of(model: Any, name: str) -> dict[str, torch.Tensor]:
    found: dict[str, torch.Tensor] = model.bishare._adapters.handle(name, model.bishare).tensors()
    return found


# Leaving --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("last", ["a", "b"])
def test_unload_gives_the_base(both: Any, family: str, last: str) -> None:
    base = tiny_model(family)
    next(base.parameters()).requires_grad_(False)
    parts = anatomy(base)
    model = both(family, base)
    handles = [model.bishare]
    model.bishare.set_adapter("b")
    handles.append(model.bishare)
    model.bishare.set_adapter(last)
    assert model.bishare.unload() is base
    assert anatomy(base) == parts
    assert same(base.state_dict(), tiny_model(family).state_dict())
    assert torch.equal(logits(base), logits(tiny_model(family)))
    for handle in handles:
        for action in (
            handle.tensors,
            handle.unload,
            lambda handle=handle: handle.set_adapter("a"),
            lambda handle=handle: handle.delete_adapter("a"),
            lambda handle=handle: handle.adapters,
            lambda handle=handle: handle.active_adapter,
        ):
            with pytest.raises(AdapterError, match="BS627"):
                action()
    both(family, base)  # Once more.


def test_merge_and_unload_merges_the_active_one(both: Any, alone: Any) -> None:
    model = both()
    dropped = model.bishare
    model.bishare.set_adapter("b")
    plain = model.bishare.merge_and_unload()
    assert not any(isinstance(module, OwnedTensors) for module in plain.modules())
    assert torch.equal(logits(plain), logits(alone("b").bishare.merge_and_unload()))
    with pytest.raises(AdapterError, match="BS627"):
        dropped.tensors()


def test_deleting(both: Any, alone: Any) -> None:
    model = both()
    deleted = model.bishare
    model.bishare.set_adapter("b")
    model.bishare.delete_adapter("a")
    assert model.bishare.adapters == ("b",)
    assert torch.equal(logits(model), logits(alone("b")))
    with pytest.raises(AdapterError, match="BS627"):
        deleted.save_pretrained("nowhere")
    with pytest.raises(AdapterError, match="BS640"):
        model.bishare.set_adapter("a")
    assert torch.equal(logits(model.bishare.unload()), logits(tiny_model("llama")))


# Refusals -------------------------------------------------------------------------------------------


def refused(model: Any, code: str, action: Callable[[], object]) -> str:
    """`action` raises this and changes nothing."""
    before, parts, names = logits(model), anatomy(model), model.bishare.adapters
    with pytest.raises(AdapterError, match=code) as caught:
        action()
    assert anatomy(model) == parts
    assert model.bishare.adapters == names
    assert torch.equal(logits(model), before)
    return str(caught.value)


def test_unknown_names(both: Any, folders: Folders) -> None:
    model = load_adapter(folders()["a"], both(), name="german")
    for action in (model.bishare.set_adapter, model.bishare.delete_adapter):
        assert "did you mean `german`" in refused(model, "BS640", lambda act=action: act("germany"))
        assert "valid here: `a`, `b`, `german`" in refused(
            model, "BS640", lambda act=action: act("x")
        )


def test_names_in_use(both: Any, folders: Folders) -> None:
    model = both()
    for name in "ab":
        refused(model, "BS641", lambda n=name: load_adapter(folders()["b"], model, name=n))
        spec = parse_spec(SPECS["llama"]["b"])
        refused(model, "BS641", lambda n=name, s=spec: compile_spec(s, model, name=n))


def test_a_name_is_not_empty(alone: Any, both: Any, folders: Folders) -> None:
    refused(both(), "BS638", lambda: load_adapter(folders()["b"], both(), name=""))
    with pytest.raises(AdapterError, match="BS638"):
        load_adapter(folders()["a"], tiny_model("llama"), name="")


def test_a_second_adapter_needs_a_name(alone: Any, folders: Folders) -> None:
    with pytest.raises(ModelError, match="BS401"):
        load_adapter(folders()["b"], alone("a"))


@pytest.mark.parametrize("name", ["a", "b"])
def test_the_active_one_is_not_deleted(both: Any, name: str) -> None:
    model = both()
    model.bishare.set_adapter(name)
    refused(model, "BS642", lambda: model.bishare.delete_adapter(name))
    model.bishare.delete_adapter("ab".replace(name, ""))
    refused(model, "BS642", lambda: model.bishare.delete_adapter(name))


def test_merged(both: Any, alone: Any, folders: Folders) -> None:
    model = both()
    for keep, code in ((True, "BS643"), (False, "BS629")):
        model.bishare.merge(keep_base=keep)
        model.bishare.set_adapter("a")  # It is.
        refused(model, code, lambda: model.bishare.set_adapter("b"))
        refused(model, code, lambda: load_adapter(folders()["b"], model, name="c"))
        if keep:
            model.bishare.unmerge()
            model.bishare.set_adapter("b")
            assert torch.equal(logits(model), logits(alone("b")))
            model.bishare.set_adapter("a")


def test_disabled(both: Any, alone: Any, folders: Folders) -> None:
    model = both()
    with model.bishare.disable_adapter():
        refused(model, "BS626", lambda: model.bishare.set_adapter("b"))
        refused(model, "BS626", lambda: load_adapter(folders()["b"], model, name="c"))
        model.bishare.set_adapter("a")
        assert torch.equal(logits(model), logits(tiny_model("llama")))
    model.bishare.set_adapter("b")
    with model.bishare.disable_adapter():
        assert torch.equal(logits(model), logits(tiny_model("llama")))
    assert torch.equal(logits(model), logits(alone("b")))


@pytest.mark.parametrize(
    "action",
    ["merge", "unmerge", "merge_and_unload", "unload", "print_trainable_parameters", "disable"],
)
def test_what_only_the_active_one_does(both: Any, action: str) -> None:
    model = both()
    inactive = model.bishare
    model.bishare.set_adapter("b")
    assert "not active" in repr(inactive)
    assert "`a` is not active, `b` is" in refused(
        model,
        "BS644",
        inactive.disable_adapter().__enter__ if action == "disable" else getattr(inactive, action),
    )
    # What is about all of them, any handle does.
    assert inactive.active_adapter == "b"
    inactive.set_adapter("a")
    assert model.bishare is inactive


def test_a_compact_one_does_not_train(alone: Any, tmp_path: Path) -> None:
    text = (
        "spec bank target q_proj share s per model rank 2 "
        "via VectorBank(vectors = 20, length = 4, top_k = 2) start nonzero"
    )
    bank: Any = compile_spec(parse_spec(text), tiny_model("llama"))
    bank.bishare.save_pretrained(tmp_path, compact=True)
    model = load_adapter(tmp_path, alone("a").train(), name="bank")
    torch.manual_seed(0)
    refused(model, "BS637", lambda: model.bishare.set_adapter("bank"))
    model.eval()
    model.bishare.set_adapter("bank")
    assert torch.equal(logits(model), logits(bank))
    assert not any(p.requires_grad for p in model.parameters())
    with pytest.raises(AdapterError, match="BS637"):
        model.train()
    model.bishare.set_adapter("default")
    assert all(t.requires_grad for t in model.bishare.tensors().values())
    model.train()


def test_a_model_that_holds_an_adapted_one(alone: Any) -> None:
    """The adapters of a model are beside each other, and not one within another's part."""
    spec = parse_spec(SPECS["llama"]["b"])
    with pytest.raises(ModelError, match="BS401"):
        compile_spec(spec, alone("a").model, name="b")
    inner = tiny_model("llama")
    compile_spec(spec, inner.model)
    with pytest.raises(ModelError, match="BS401"):
        compile_spec(spec, inner, name="b")
