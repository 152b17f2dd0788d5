"""Frozen tensors that start from the base's weights, saved as what makes them again."""

import dataclasses
import json
import warnings

import pytest
import torch
from peft import PeftModel

import bishare_dsl.peft  # noqa: F401
from bishare_dsl import compile_spec, load_adapter, parse_spec, plan_spec
from bishare_dsl.diagnostics import AdapterError, BishareWarning
from bishare_dsl.folder import fingerprint
from bishare_dsl.folder.files import read_adapter, save_adapter
from bishare_dsl.folder.fingerprint import check_reproduced, marks_of
from bishare_dsl.initial import singular
from bishare_dsl.initial.values import draw
from bishare_dsl.models import preset
from bishare_dsl.models.load import load_model
from bishare_dsl.resources import find_spec
from bishare_dsl.testing.models import tiny_model
from bishare_dsl.testing.tokenizer import tiny_tokenizer
from tests.support.adapted import logits, trained
from tests.support.checks import randomize
from tests.support.stored import load_stored

TINY = """
spec tiny
target q_proj, down_proj
share tiny  c per model  rank 2  via Core(count = 13)  init A svd, B svd  freeze A, B, core  per module
"""
PISSA = """
spec pissa
target q_proj, down_proj
share local  per module  rank 2  init A svd, B svd
"""

FITTED = "share s  A per layer, in  B per module  rank 2  init A svd, B svd  freeze A, B  gain out init 0"


@pytest.mark.parametrize("text", [TINY, PISSA])
def test_what_the_base_gives_is_left_out_and_made_again(text, tmp_path):
    model = trained(text)
    model.bishare.save_pretrained(tmp_path, frozen="base")
    plan = model.bishare.plan
    assert set(load_stored(tmp_path)) == {t.name for t in plan.tensors if t.trainable}
    loaded = load_adapter(tmp_path, tiny_model("llama"))
    for name, tensor in model.bishare.tensors().items():
        assert torch.equal(loaded.bishare.tensors()[name], tensor)
    assert torch.equal(logits(loaded), logits(model))
    plain = loaded.bishare.merge_and_unload()
    torch.testing.assert_close(logits(plain), logits(model), rtol=1e-3, atol=1e-3)


TWICE = """
spec twice
target q_proj
share s  per module  rank 3  init A svd, B svd  gain rank init 1  freeze A, B
"""
"""Its start is taken away by a second term, with the same tensors at the same module."""


def test_thirteen_numbers_on_llama_7b_are_26_bytes_and_a_config_of_less_than_135_kb(tmp_path):
    shipped = find_spec("tiny_lora").read_text("utf-8")
    text = shipped.replace("count      = 64", "count      = 13").replace(
        "tiny  per", "tiny  c per model  per"
    )
    plan = plan_spec(parse_spec(text), preset("llama-7b"))
    tensors, random = draw(plan, 0), torch.Generator().manual_seed(0)
    of_base = {
        t.name: torch.randn(t.shape, generator=random) for t in plan.tensors if t.init == "svd"
    }
    assert (plan.trainable, len(of_base)) == (13, 2 * 5 * 32)
    saving = {"frozen": "base", "dtype": "bfloat16", "reproduced": of_base}
    assert not save_adapter(tmp_path, plan, tensors | of_base, text, seed=0, **saving)
    assert sum(tensor.nbytes for tensor in load_stored(tmp_path).values()) == 26
    assert sum(path.stat().st_size for path in tmp_path.iterdir()) <= 135_000


def test_peft_makes_them_too_and_another_base_is_refused(tmp_path):
    model = trained(TINY)
    model.bishare.save_pretrained(tmp_path, frozen="base")
    loaded = PeftModel.from_pretrained(tiny_model("llama"), str(tmp_path))
    torch.testing.assert_close(logits(loaded), logits(model))
    with pytest.raises(AdapterError, match="BS699"):
        PeftModel.from_pretrained(tiny_model("llama", seed=1), str(tmp_path))
    model = tiny_model("llama", seed=1)
    with pytest.raises(AdapterError, match=r"BS699.*tiny.layers.0"):
        load_adapter(tmp_path, model)
    assert not hasattr(model, "bishare")


def test_a_machine_that_turns_signs_gives_the_same_tensors(tmp_path, monkeypatch):
    model = trained(TINY)
    model.bishare.save_pretrained(tmp_path, frozen="base")
    right = singular.directions

    def turned(*given, **more):
        left, values, vectors = right(*given, **more)
        signs = torch.tensor([(-1.0) ** i for i in range(len(values))]).unsqueeze(1)
        return singular.Directions(left * -signs, values, vectors * -signs)

    monkeypatch.setattr(singular, "directions", turned)
    loaded = load_adapter(tmp_path, tiny_model("llama"))
    for name, tensor in model.bishare.tensors().items():
        torch.testing.assert_close(loaded.bishare.tensors()[name], tensor)


@pytest.mark.parametrize("kind", ["identity", "permutation", "two equal blocks", "negated"])
def test_weights_whose_directions_rounding_decides_are_stored(kind, tmp_path):
    base = tiny_model("llama")
    random = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for layer in base.model.layers:
            weight = layer.self_attn.q_proj.weight
            rows, columns = weight.shape
            block = torch.randn(rows // 2, columns // 2, generator=random)
            made = {
                "identity": torch.eye(rows, columns),
                "permutation": torch.eye(rows, columns)[torch.randperm(rows, generator=random)],
                "two equal blocks": torch.block_diag(block, block),
                "negated": -weight,
            }
            weight.copy_(made[kind])
    model = compile_spec(parse_spec(TINY), base)
    model.bishare.save_pretrained(tmp_path, frozen="base")
    stored = "tiny.layers.0.self_attn.q_proj.A" in load_stored(tmp_path)
    assert stored is (kind != "negated")


def test_what_is_fitted_to_a_shared_factor_is_stored(tmp_path):
    model = trained(f"spec x\ntarget q_proj, k_proj\n{FITTED}")
    model.bishare.save_pretrained(tmp_path, frozen="base")
    left_out = model.bishare.plan.tensor.keys() - load_stored(tmp_path).keys()
    assert left_out == {"s.layer_0.in_32.A", "s.layer_1.in_32.A"}
    loaded = load_adapter(tmp_path, tiny_model("llama"))
    torch.testing.assert_close(loaded.bishare.tensors(), model.bishare.tensors())


def test_who_has_no_weights_says_so_and_what_must_not_come_from_the_base_is_refused(tmp_path):
    from tests.folder.test_files import config_of, refused, reseal

    trained(TINY).bishare.save_pretrained(tmp_path, frozen="base")
    stored = read_adapter(tmp_path)
    with pytest.raises(AdapterError, match=r'BS688(?s:.*)frozen="tensors"'):
        stored.tensors()
    entries = config_of(tmp_path)["bishare"]["entries"]
    assert entries["tiny.layers.0.self_attn.q_proj.A"].keys() == {"way", "marks"}
    for wrong in ("tiny.c", "tiny.layers.0.self_attn.q_proj.core0"):
        marked = {**entries, wrong: entries["tiny.layers.0.self_attn.q_proj.A"]}
        reseal(tmp_path, entries=marked)
        refused(tmp_path, "BS604", f"`{wrong}` must be in the file")


def test_an_engine_makes_them_of_the_weights_that_it_serves(tmp_path):
    from bishare_dsl.serve.vllm.frozen import FrozenCache

    model = trained(TINY)
    tiny_model("llama").save_pretrained(tmp_path / "base")
    tiny_model("llama", seed=1).save_pretrained(tmp_path / "other")
    for number, name in enumerate(("one", "two")):
        randomize(model, number, frozen=False)
        model.bishare.save_pretrained(tmp_path / name, frozen="base")
    want, reproduced = model.bishare.tensors(), FrozenCache(str(tmp_path / "base"))
    one, two = (reproduced.tensors(read_adapter(tmp_path / name)) for name in ("one", "two"))
    assert two.keys() == want.keys()
    assert all(torch.equal(two[name], tensor) for name, tensor in want.items())
    shared = "tiny.layers.0.self_attn.q_proj.A"
    assert one[shared] is two[shared]  # Adapters of one base have it once.
    with pytest.raises(AdapterError, match="BS699"):
        FrozenCache(str(tmp_path / "other")).tensors(read_adapter(tmp_path / "one"))


def test_marks_decide_signs_or_say_that_they_do_not():
    tensor = torch.randn(3, 40, generator=torch.Generator().manual_seed(0))
    marks = marks_of(tensor)
    turned = tensor * torch.tensor([[1.0], [-1.0], [1.0]])
    assert torch.equal(check_reproduced({"a": marks}, {"a": turned})["a"], tensor)
    for other in (tensor * 1.05, tensor[[1, 0, 2]], tensor[:2]):
        with pytest.raises(AdapterError, match="BS699"):
            check_reproduced({"a": marks}, {"a": other})
    flat = torch.zeros(1, 40)
    assert fingerprint._restored("a", flat, marks_of(flat)).equal(flat)


@pytest.mark.parametrize(("apart", "left_out"), [(0, True), (0.7, True), (1.4, False), (5, False)])
def test_what_is_left_out_is_a_tenth_as_far_off_as_loading_allows(apart, left_out):
    """So another machine, on which it comes out as far off again, still reads it."""
    plan = plan_spec(TWICE, tiny_model("llama"))
    tensors = draw(plan, 0) | {
        t.name: torch.randn(t.shape, generator=torch.Generator().manual_seed(1))
        for t in plan.tensors
    }
    step = apart * fingerprint._SUM_TOLERANCE / 10
    frozen = [t.name for t in plan.tensors if not t.trainable]
    remade = {name: (1 + step) * tensors[name].double() for name in frozen}
    found = fingerprint.find_reproduced(plan, tensors, remade)
    assert len(frozen) > 2
    assert [*found] == (frozen if left_out else [])


# Fingerprints of bases ----------------------------------------------------------------------------------


def published():
    """A base as it was published, in bfloat16."""
    return tiny_model("llama").bfloat16()


def moved(model, size):
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in model.parameters():
            noise = torch.randn(parameter.shape, generator=generator).sign().to(parameter)
            parameter.add_(size * noise)
    return model


SAME = {
    "as it is": lambda: published(),
    "float32": lambda: published().float(),
    "float16": lambda: published().half(),
    "another vocabulary": lambda: grown(published()),
    "an adapter on it": lambda: compile_spec(PISSA, published().float()),
}
OTHER = {
    "a step of 1e-3": lambda: moved(published().float(), 1e-3),
    "another seed": lambda: tiny_model("llama", seed=1).bfloat16(),
    "merged": lambda: trained(PISSA).bishare.merge_and_unload(),
}


def grown(model):
    model.resize_token_embeddings(len(model.get_input_embeddings().weight) + 128)
    return model


@pytest.mark.parametrize("base", SAME)
def test_a_base_is_recognised_whatever_its_type(base):
    saved = fingerprint.fingerprint(published())
    found = fingerprint.fingerprint(SAME[base]())
    if base == "another vocabulary":  # The tiny table has fewer rows than are read.
        assert fingerprint._TOKENS > 64
        found = dataclasses.replace(found, embedding=saved.embedding)
    assert fingerprint.difference(saved, found) == 0
    assert len(json.dumps(dataclasses.asdict(saved), separators=(",", ":"))) < 600


@pytest.mark.parametrize("base", OTHER)
def test_another_base_is_told(base):
    saved = fingerprint.fingerprint(published())
    assert fingerprint.difference(saved, fingerprint.fingerprint(OTHER[base]())) > 1e-7


def test_rounding_is_no_difference():
    """Weights of float32 in float16, and linear maps in few bits, which change no norms."""
    found = fingerprint.fingerprint(tiny_model("llama").half())
    assert fingerprint.difference(fingerprint.fingerprint(tiny_model("llama")), found) == 0
    saved = fingerprint.fingerprint(published())
    for bits, far in ((8, 0.01), (4, 0.1)):
        linear = tuple(number * (1 + far) for number in saved.linear)
        near = dataclasses.replace(saved, linear=linear, bits=bits)
        assert fingerprint.difference(saved, near) == 0
        assert fingerprint.difference(saved, dataclasses.replace(near, bits=None)) > far / 2
        norms = tuple(number * 1.001 for number in saved.norms)
        assert fingerprint.difference(saved, dataclasses.replace(near, norms=norms)) > 5e-4


def test_loading_onto_another_base_is_a_warning_at_each_door(tmp_path):
    trained(PISSA).bishare.save_pretrained(tmp_path)
    assert read_adapter(tmp_path).config.fingerprint is not None
    doors = {
        "bishare": lambda model: load_adapter(tmp_path, model),
        "PEFT": lambda model: PeftModel.from_pretrained(model, str(tmp_path)),
        "transformers": lambda model: model.load_adapter(str(tmp_path)),
    }
    for door in doors.values():
        with pytest.warns(BishareWarning, match="BS620"):
            door(moved(tiny_model("llama"), 1e-3))
        with warnings.catch_warnings():
            warnings.simplefilter("error", BishareWarning)
            door(tiny_model("llama"))


def test_a_base_without_weights_stores_none_and_says_so(tmp_path):
    model = trained(PISSA)
    for name, parameter in [*model.named_parameters()]:
        if "bishare" not in name:
            owner, _, last = name.rpartition(".")
            empty = torch.nn.Parameter(parameter.detach().to("meta"), requires_grad=False)
            setattr(model.get_submodule(owner), last, empty)
    with pytest.warns(BishareWarning, match="BS621"):
        model.bishare.save_pretrained(tmp_path)
    assert read_adapter(tmp_path).config.fingerprint is None


@pytest.mark.parametrize("number", [float("nan"), float("inf")])
def test_a_base_with_a_number_that_is_none_is_saved_and_read(number, tmp_path):
    model = trained(TINY)
    with torch.no_grad():
        model.model.layers[0].input_layernorm.weight[0] = number
    model.bishare.save_pretrained(tmp_path)
    found = read_adapter(tmp_path).config.fingerprint
    assert (found.norms, bool(found.embedding)) == ((), True)


MAGNITUDE = f"{PISSA}magnitude per module\n"


@pytest.mark.parametrize("text", [PISSA, MAGNITUDE], ids=["plain", "magnitude"])
@pytest.mark.parametrize("command", ["merge", "convert"])
def test_another_base_is_a_warning_or_with_strict_an_error_that_writes_nothing(
    bishare, text, command, tmp_path
):
    for seed, name in enumerate(("same", "other")):
        tiny_model("llama", seed=seed).save_pretrained(tmp_path / name)
    trained(text).bishare.save_pretrained(tmp_path / "adapter")

    def run(base, out, *how):
        places = ("--model", tmp_path / base, "--out", tmp_path / out)
        found = bishare(command, tmp_path / "adapter", *places, *how)
        return found.code, found.err

    code, said = run("other", "refused", "--strict")
    assert (code, "error[BS620]: the adapter was saved on another base" in said) == (1, True)
    assert not (tmp_path / "refused").exists()
    # A conversion of a plain adapter reads shapes alone.
    warned = command == "merge" or text == MAGNITUDE
    code, said = run("other", "warned")
    assert (code, "warning[BS620]" in said) == (0, warned), said
    code, said = run("same", "right", "--strict")
    assert (code, "BS620" in said) == (0, False), said


def test_the_tokenizer_is_compared_by_its_vocabulary(tmp_path):
    models = []
    for name, more in (("same", []), ("again", []), ("other", ["one more"])):
        tokenizer = tiny_tokenizer()
        tokenizer.add_tokens(more)
        tokenizer.save_pretrained(tmp_path / name)
        tiny_model("llama").save_pretrained(tmp_path / name)
        models.append(load_model(str(tmp_path / name))[0])
    same, again, other, bare = map(fingerprint.fingerprint, (*models, tiny_model("llama")))
    assert same.tokenizer == fingerprint.vocabulary_digest(tiny_tokenizer().get_vocab())
    assert bare.tokenizer is None
    for found in (again, bare, None):
        assert fingerprint.base_changes(same, found) == []
    [problem] = fingerprint.base_changes(same, other)
    assert problem.message.endswith("saved on another base: its tokenizer has other tokens")
    compile_spec(PISSA, models[0]).bishare.save_pretrained(tmp_path / "adapter")
    assert read_adapter(tmp_path / "adapter").config.fingerprint == same
    with pytest.warns(BishareWarning, match=r"BS620.*other tokens"):
        load_adapter(tmp_path / "adapter", models[2])
