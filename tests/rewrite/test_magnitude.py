"""`magnitude`: what it computes, beside the properties that hold of any spec."""

import copy
import math

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file
from torch.nn.utils import parametrize
from torch.utils._python_dispatch import TorchDispatchMode

from bishare_dsl import compile_spec, load_adapter
from bishare_dsl.convert import from_peft
from bishare_dsl.convert.effective import delta
from bishare_dsl.convert.export import export_adapter
from bishare_dsl.convert.peft_config import TENSORS
from bishare_dsl.diagnostics import AdapterError
from bishare_dsl.language import parse_spec
from bishare_dsl.models.inspect import inspect_model, linear_maps
from bishare_dsl.models.weights import products, row_norms
from bishare_dsl.serve.vllm.folder import read_any, read_for
from tests.batched.test_batches import alone, filled
from tests.methods.test_every_method import SCALED, TINY
from tests.support import checks
from tests.support.families import tiny_model
from tests.support.quantised import quantise
from tests.support.references import reference_model
from tests.support.stored import import_peft

IDS = torch.arange(1, 41).view(2, 20)
DORA = "spec d\ntarget q_proj, v_proj, up_proj\nshare l per module rank 2 alpha 4\nmagnitude per module"
FORMS = {
    "dora": DORA,
    "ia3": "spec i\ntarget k_proj, v_proj, up_proj\nmagnitude per module plain",
    "shared": "spec s\ntarget q_proj, k_proj, down_proj\nshare s per layer rank 2 via KE(size = 4)\n"
    "magnitude per kind",
    "some": "spec p\ntarget q_proj, v_proj, gate_proj, up_proj\nshare l per module rank 2 via SS\n"
    "share m per layer rank 2 via SS gain out init 1\nmagnitude per layer, out where layer == 0 and not v_proj",
    "routed": "spec r\ntarget q_proj, o_proj\nshare e per module rank 2 via Experts\n"
    "magnitude per module plain",
}


def model_of(form, base, **settings):
    return compile_spec(parse_spec(FORMS.get(form, form)), copy.deepcopy(base), **settings)


class _Relative(torch.nn.Module):
    """PEFT's magnitude as it is here, ``m = (1 + mu) |W_i|``, so that an optimizer takes the same steps."""

    def __init__(self, norms):
        super().__init__()
        self.norms = norms

    def forward(self, mu):
        return (1 + mu) * self.norms

    def right_inverse(self, m):
        return m / self.norms - 1


def test_training_is_that_of_peft_step_by_step():
    base = tiny_model("qwen2").double()
    config = LoraConfig(
        r=2, lora_alpha=4, target_modules=["q_proj", "v_proj", "up_proj"], use_dora=True
    )
    other = get_peft_model(copy.deepcopy(base), config)
    model = model_of("dora", base).double()
    tensors, plan, theirs = model.bishare.tensors(), model.bishare.plan, {}
    for site in plan.sites:
        layer = other.base_model.model.get_submodule(site.path)
        m = layer.lora_magnitude_vector["default"]
        parametrize.register_parametrization(m, "weight", _Relative(m.weight.detach().clone()))
        term, magnitude = plan.terms_of[site.path]
        with torch.no_grad():
            tensors[term.tensors["A"]].copy_(layer.lora_A["default"].weight)
        theirs[term.tensors["A"]] = layer.lora_A["default"].weight
        theirs[term.tensors["B"]] = layer.lora_B["default"].weight
        theirs[magnitude.tensors["mu"]] = m.parametrizations.weight.original
    losses = []
    for one in (model, other):
        optimizer = torch.optim.AdamW([p for p in one.parameters() if p.requires_grad], 1e-2)
        losses.append([])
        for _ in range(20):
            loss = one(IDS, labels=IDS).loss
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            losses[-1].append(loss.item())
    assert losses[0][-1] < 0.9 * losses[0][0]
    assert losses[0] == pytest.approx(losses[1], rel=1e-9)
    for name, tensor in tensors.items():
        value = theirs[name].T if name.endswith(".B") else theirs[name].view_as(tensor)
        torch.testing.assert_close(tensor, value, rtol=1e-6, atol=1e-8)
        assert tensor.detach().any()


def test_the_lengths_have_no_gradient_and_no_matrix_of_a_weights_shape_is_made():
    base = tiny_model("llama", hidden_size=24, intermediate_size=44)
    model = model_of(
        "spec s\ntarget up_proj\nshare l per module rank 2\nmagnitude per module", base
    )
    checks.randomize(model)
    shapes = set()

    class Shapes(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            found = function(*args, **(kwargs or {}))
            made = found if isinstance(found, tuple | list) else [found]
            given = {a.data_ptr() for a in args if isinstance(a, torch.Tensor)}
            shapes.update(
                tuple(t.shape)
                for t in made
                if isinstance(t, torch.Tensor) and t.data_ptr() not in given  # A view is none.
            )
            return found

    with Shapes():
        model(IDS, labels=IDS).loss.backward()
    assert (2, 44) in shapes
    assert not {(44, 24), (24, 44)} & shapes


@pytest.mark.parametrize("kind", ["linear", "conv", "quantised", "computed"])
def test_products_and_norms_are_those_of_the_weight_however_it_is_kept(kind):
    model = tiny_model("gpt2" if kind == "conv" else "qwen2")
    path = "transformer.h.0.mlp.c_fc" if kind == "conv" else "model.layers.0.self_attn.q_proj"
    if kind == "quantised":
        quantise(model, lambda path: path.endswith("q_proj"))
    layer = model.get_submodule(path)
    if kind == "computed":
        torch.nn.utils.parametrizations.weight_norm(layer)
        weight = layer.weight.detach()
    else:
        found = linear_maps(model)[path]
        weight = found.matrix() if found.replacement() is None else found.dense()
    x = torch.randn(2, 3, weight.shape[1])
    with torch.no_grad():
        torch.testing.assert_close(products(layer, x), x @ weight.T, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(row_norms(layer), weight.norm(dim=1), rtol=1e-5, atol=1e-6)


# Elsewhere -----------------------------------------------------------------------------------------------


@pytest.mark.each_once
@pytest.mark.parametrize("form", ["dora", "ia3", "shared", "some"])
@pytest.mark.parametrize("family", ["llama", "qwen2"])
@torch.no_grad()
def test_a_row_of_a_mixed_batch_is_its_adapter_alone(form, family):
    plain = "spec l\ntarget q_proj, up_proj\nshare l per module rank 2"
    adapters = {"a": FORMS[form], "plain": plain, "other": FORMS["dora"], "same": FORMS[form]}
    model = filled(tiny_model(family), adapters)
    names = ["a", "plain", None, "other", "same", "a"]
    ids = torch.arange(1, 61).view(6, 10)
    mixed = model(ids, adapter_names=names).logits
    rows = [
        alone(model, name, lambda row=row: model(ids[row : row + 1]).logits)
        for row, name in enumerate(names)
    ]
    torch.testing.assert_close(mixed, torch.cat(rows), rtol=1e-4, atol=1e-5)
    assert torch.equal(mixed[2:3], rows[2])
    assert (mixed[0] - mixed[5]).abs().max() > 1e-3


class Queries(torch.nn.Module):
    """A model whose layer reads one row that stands for all, such as learned queries."""

    def __init__(self):
        super().__init__()
        self.layers = torch.nn.ModuleList([torch.nn.ModuleDict({"fc": torch.nn.Linear(4, 4)})])
        self.queries = torch.nn.Parameter(torch.randn(1, 5, 4))

    def forward(self, inputs):
        return inputs + self.layers[0]["fc"](self.queries)


@torch.no_grad()
def test_a_row_that_stands_for_all_is_scaled_for_each():
    text = "spec s\ntarget fc\nmagnitude per module"
    model = filled(Queries(), {"a": text, "b": text})
    x, names = torch.randn(4, 5, 4), ["b", None, "a", "b"]
    rows = [alone(model, n, lambda: model(x))[i] for i, n in enumerate(names)]
    torch.testing.assert_close(model(x, adapter_names=names), torch.stack(rows))
    assert (rows[0] - rows[2]).abs().max() > 0.1


@pytest.mark.parametrize("names", [["a", "b"], ["b", "a", "b", None]])
def test_rows_that_train_have_the_gradients_of_their_adapters_alone(names):
    plain = "spec l\ntarget q_proj, k_proj\nshare l per module rank 2"
    model = filled(tiny_model("qwen2"), {"a": DORA, "b": plain, "c": FORMS["shared"]})
    names = [*names, "c"]
    ids = torch.arange(1, 21 * len(names)).resize_(len(names), 20) % 60
    found = {}
    for row, name in enumerate(names):
        if name is not None:
            model.set_adapter(name)
            model(ids[row : row + 1]).logits.square().sum().backward()
            tensors = model.bishare[name].tensors()
            found[name] = {n: t.grad for n, t in tensors.items()}
    for name in found:
        model.bishare[name].set_trainable(True)
        for n, t in model.bishare[name].tensors().items():
            found[name][n], t.grad = found[name][n].clone(), None
    with model.train().bishare.rows(names):
        model(ids).logits.square().sum().backward()
    for name, gradients in found.items():
        for tensor, gradient in gradients.items():
            now = model.bishare[name].tensors()[tensor].grad
            scale = max(float(g.abs().max()) for g in gradients.values())
            torch.testing.assert_close(now / scale, gradient / scale, rtol=1e-3, atol=1e-5)


@pytest.mark.each_once
@pytest.mark.parametrize("form", ["dora", "ia3", "shared", "some"])
@pytest.mark.parametrize("family", ["qwen2", "gpt2"])
def test_a_dora_of_peft_goes_out_and_comes_back(form, family, tmp_path):
    text = FORMS[form]
    if family == "gpt2":
        text = "spec g\ntarget c_attn, c_fc\n" + text.partition("\n")[2].partition("\n")[2]
        text = text.replace(" and not v_proj", "")
    base = tiny_model(family)
    model = model_of(text, base)
    checks.randomize(model)
    report = model.bishare.export(tmp_path / "peft")
    assert report.max_lora_rank is None  # vLLM has no DoRA.
    other = PeftModel.from_pretrained(copy.deepcopy(base), tmp_path / "peft")
    with torch.no_grad():
        logits = model(IDS).logits
        torch.testing.assert_close(other(IDS).logits, logits, rtol=1e-4, atol=1e-4)
        import_peft(tmp_path / "peft", base, tmp_path / "back")
        again = load_adapter(tmp_path / "back", copy.deepcopy(base))
        torch.testing.assert_close(again(IDS).logits, logits, rtol=1e-4, atol=1e-4)
    terms = again.bishare.plan.terms
    assert any(term.is_magnitude for term in terms)
    assert report.worst.error < 1e-5


@pytest.mark.parametrize("target", ["q_proj, lm_head", "lm_head"])
def test_a_magnitude_outside_of_the_blocks_is_exported(target, tmp_path):
    """PEFT's DoRA of a head; the vector was left out, and PEFT computed something else."""
    base = tiny_model("llama")
    text = (
        f"spec x\ntarget {target}\nalpha 8\nshare local per module rank 4\nmagnitude per module\n"
    )
    model = compile_spec(parse_spec(text), copy.deepcopy(base))
    checks.randomize(model)
    report = model.bishare.export(tmp_path / "peft")
    assert report.worst.error < 1e-5
    assert any("lm_head.lora_magnitude" in n for n in load_file(tmp_path / "peft" / TENSORS))
    other = PeftModel.from_pretrained(copy.deepcopy(base), tmp_path / "peft")
    with torch.no_grad():
        logits = model(IDS).logits
        assert (logits - base(IDS).logits).abs().max() > 0.1
        torch.testing.assert_close(other(IDS).logits, logits, rtol=1e-4, atol=1e-4)


def small_dora(base, size):
    """Return a plan and tensors of which dW and the change of lengths are small relative to W."""
    model = model_of("dora", base)
    checks.randomize(model)
    plan, tensors = model.bishare.plan, dict(model.bishare.tensors())
    for term in plan.terms:
        for role, name in term.tensors.items():
            if role != "A":
                tensors[name] = tensors[name].detach() * size
    return plan, tensors


def test_an_error_of_a_small_dora_is_found(tmp_path, monkeypatch):
    """It is small relative to W, and not to W' - W."""
    base = tiny_model("qwen2")
    plan, tensors = small_dora(base, 1e-3)
    sizes = [
        float(delta(plan, tensors, s, w := linear_maps(base)[s.path].values()).norm() / w.norm())
        for s in plan.sites
    ]
    assert 2e-4 < min(sizes) < max(sizes) < 0.02
    assert export_adapter(tmp_path / "peft", plan, tensors, base).worst.error < 1e-3
    import_peft(tmp_path / "peft", base, tmp_path / "ours")
    factors, spec_of = from_peft._pairs, from_peft._spec

    def wrong(name, groups, *given):
        return spec_of(name, {(r, s * 1.01): sites for (r, s), sites in groups.items()}, *given)

    with monkeypatch.context() as patch:
        patch.setattr(from_peft, "_spec", wrong)
        with pytest.raises(AdapterError, match="BS607"):
            import_peft(tmp_path / "peft", base, tmp_path / "none")
    assert not (tmp_path / "none").exists()

    def spoilt(source):
        return {site: (a, b * 1.01, scale) for site, (a, b, scale) in factors(source).items()}

    monkeypatch.setattr(from_peft, "_pairs", spoilt)
    with pytest.raises(AdapterError, match="BS607"):
        export_adapter(tmp_path / "spoilt", plan, tensors, base)
    assert not (tmp_path / "spoilt").exists()


@pytest.mark.each_once
@pytest.mark.parametrize("how", [{"rank": 1}, {"dtype": "bfloat16"}])
@pytest.mark.parametrize("form", ["dora", "some", "shared"])
def test_a_loss_is_relative_to_the_change_of_the_weight(form, how, tmp_path):
    base = tiny_model("qwen2")
    model = model_of(form, base)
    checks.randomize(model)
    plan, tensors = model.bishare.plan, model.bishare.tensors()
    report = export_adapter(tmp_path / "peft", plan, tensors, base, **how)
    other = PeftModel.from_pretrained(copy.deepcopy(base), tmp_path / "peft").merge_and_unload()
    norms, lost = [], []
    for one in report.sites:
        weight = linear_maps(base)[one.path].values()
        site = next(site for site in plan.sites if site.path == one.path)
        wanted = delta(plan, tensors, site, weight)
        written = other.get_submodule(one.path).weight - weight
        norms.append(float(wanted.norm()))
        lost.append(float((written - wanted).norm()))
        assert one.error == pytest.approx(lost[-1] / norms[-1], rel=1e-2, abs=1e-5)
    total = math.hypot(*lost) / math.hypot(*norms)
    assert report.total_error == pytest.approx(total, rel=1e-2)


@pytest.mark.long
def test_it_compiles_to_one_graph():
    model = model_of("shared", tiny_model("qwen2", num_hidden_layers=1))
    checks.randomize(model)
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    expected = model(IDS).logits
    torch.testing.assert_close(compiled(IDS).logits, expected, rtol=1e-4, atol=1e-5)
    tensors = [*model.bishare.tensors().values()]
    gradients = [
        torch.autograd.grad(logits.square().sum(), tensors)
        for logits in (compiled(IDS).logits, expected)
    ]
    for found, wanted in zip(*gradients, strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-3, atol=1e-3)


# What cannot be ---------------------------------------------------------------------------------------


def test_what_adds_low_rank_terms_alone_refuses_it():
    model = model_of("dora", tiny_model("llama"))
    both = filled(tiny_model("llama"), {"a": DORA, "b": DORA})
    for action in (
        lambda: both.bishare.set_adapter(["a", "b"]),
        lambda: model.bishare.set_scale("default", 2.0),
        lambda: model.bishare.export("nowhere", format="gguf"),
        lambda: model.bishare.export("nowhere", format="vllm"),
    ):
        with pytest.raises(AdapterError, match="`magnitude` scales the base's weights") as caught:
            action()
        assert caught.value.problems[0].code == "BS675"
        assert caught.value.problems[0].help


def _cancelled(text):
    """A base and its adapted copy, whose terms cancel row 3 of a weight, and all but cancel row 5."""
    base = tiny_model("qwen2").double()
    for bias in (p for n, p in base.named_parameters() if n.endswith("bias")):
        torch.nn.init.normal_(bias)
    model = model_of(text, base).double()
    with torch.no_grad():
        for number, tensor in enumerate(model.bishare.tensors().values()):
            tensor.normal_(0, 0.1, generator=torch.Generator().manual_seed(number))
        site = model.bishare.plan.sites[0]
        term = model.bishare.plan.terms_of[site.path][0]
        a, b = (model.bishare.tensors()[term.tensors[role]] for role in "AB")
        weight = base.get_submodule(site.path).weight
        a.copy_(weight[[3, 5]])
        b[:, [3, 5, 7]] = 0
        b[0, 3], b[1, 5] = -1 / term.scale, -(1 - 2e-4) / term.scale
    return base, model, site.path


def test_rows_that_the_terms_cancel_are_finite_everywhere():
    """Their quotient of lengths is at most 1000: forward, dense, merged and mixed; `tests/examples` has readers."""
    base, model, path = _cancelled(DORA)
    plan, tensors = model.bishare.plan, model.bishare.tensors()
    weight = base.get_submodule(path).weight.detach()
    changed = weight.float() + delta(plan, tensors, plan.sites[0], weight)
    assert changed[3].abs().max() < 1e-3
    mu = tensors[plan.magnitude(path).tensors["mu"]][0, 5]
    near = (1 + mu).detach() * 1000 * 2e-4 * weight[5]
    torch.testing.assert_close(changed[5].double(), near, rtol=1e-2, atol=1e-4)
    with pytest.raises(AdapterError, match=rf"BS628.*PEFT's DoRA.*{path}"):
        export_adapter("nowhere", plan, tensors, base)
    logits = model(IDS).logits
    dense = reference_model(base, plan, tensors)(IDS).logits
    torch.testing.assert_close(logits, dense, rtol=1e-9, atol=1e-9)
    logits.square().mean().backward()
    assert all(tensor.grad.isfinite().all() for tensor in tensors.values())
    with torch.no_grad():
        with model.bishare.rows(["default", None]):
            mixed = model(IDS).logits
        torch.testing.assert_close(mixed[0], logits[0], rtol=1e-9, atol=1e-9)
        torch.testing.assert_close(mixed[1], base(IDS).logits[1], rtol=1e-9, atol=1e-9)
        model.bishare.merge()
        torch.testing.assert_close(model(IDS).logits, logits, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("form", sorted(SCALED))
def test_a_folder_of_it_is_refused_by_a_server_without_compact_mode(form, tmp_path):
    base = tiny_model("llama")
    model = compile_spec(form, copy.deepcopy(base), params=TINY[form])
    model.bishare.save_pretrained(tmp_path)
    with pytest.raises(AdapterError, match=r"BS675.*serve the adapter with vLLM") as caught:
        read_for(tmp_path, inspect_model(base))
    (problem,) = caught.value.problems
    assert "bishare_plans" in problem.help
    assert "bishare_slots_gib" in problem.help
    assert read_any(tmp_path, inspect_model(base)).plan == model.bishare.plan
