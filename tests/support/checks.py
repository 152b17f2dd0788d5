"""Invariants of any spec on any model.

Each check takes an unadapted model and does not change it. Checks with a `compiled` argument copy that
result of `compile_spec` instead of compiling again. A failed check raises an AssertionError with the
difference and its location.
"""

import copy
import tempfile
import warnings
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import torch
from torch import nn

from bishare_dsl.api import compile_spec, load_adapter, plan_spec
from bishare_dsl.diagnostics import AdapterError, BishareWarning
from bishare_dsl.initial.values import draw_tensor
from bishare_dsl.models.inspect import linear_maps
from bishare_dsl.testing.checks import _gradients, _random, _same
from tests.support.families import tiny_inputs
from tests.support.references import reference_model
from tests.support.stored import load_stored

TOLERANCE = {torch.float64: 1e-9, torch.float32: 2e-4, torch.bfloat16: 2e-2}
"""The tolerance, relative to the largest expected value.

For types shorter than float32, four times the reference's own rounding error is added.
"""


def regions(model):
    """Return the regions of an adapted model with their paths, disabled regions included."""
    return [
        (p, module) for p, module in model.named_modules() if "bishare_factors" in module._modules
    ]


def randomize(adapted, seed=0, *, frozen=True):
    """Set every tensor of an adapter to random values, so that no term is zero; return the tensors by name."""
    tensors = adapted.bishare.tensors()
    plan = adapted.bishare.plan
    random = _random(seed)
    with torch.no_grad():
        for name in sorted(tensors):
            if not (frozen or tensors[name].requires_grad):
                continue
            if (tensor := plan.tensor[name]).init == "choice":
                tensors[name].copy_(draw_tensor(tensor, seed + 1))
                continue
            drawn = torch.randn(tensors[name].shape, generator=random, dtype=torch.float64)
            # Scale updates to the size of the weights, independent of the rank.
            tensors[name].copy_(drawn * tensors[name].shape[0] ** -0.5 * 0.3)
    return tensors


def check_spec(spec, model, seed=0):
    """Check every invariant of bishare for a spec without dropout and a model, dense or quantised, that it fits."""
    compiled = _adapted(spec, model, seed)
    for check in (check_fresh, check_count, check_saving, check_merging, check_export, check_seed):
        check(spec, model, seed, compiled)
    check_against_reference(spec, model, seed)


def check_fresh(spec, model, seed=0, compiled=None):
    """Check that a fresh adapter leaves logits bit-identical to the frozen base, in eval and training mode,
    or equal up to rounding if a share subtracts its initial value.

    The model keeps its class. Disabling or removing the adapter restores the base.
    """
    inputs = tiny_inputs(model, seed)
    # torch has other kernels for trainable weights, so freeze the base, as an adapter does.
    expected = _logits(copy.deepcopy(model).requires_grad_(False), inputs)
    adapted = _adapted(spec, model, seed, compiled)
    _same(isinstance(adapted, type(model)), True, "that the adapted model is of its class")
    if not any(share.nonzero_start for share in spec.shares):
        subtracts = any(tensor.like for tensor in adapted.bishare.plan.tensors)
        same = partial(_close, dtype=model.dtype) if subtracts else _identical
        same(_logits(adapted, inputs), expected, what="logits of a fresh adapter")
        # With gradients, the forward does not cache factors.
        same(_run(adapted, inputs), expected, what="logits of a fresh adapter, with gradients")
    randomize(adapted, seed)
    with adapted.bishare.disable_adapter():
        _identical(_logits(adapted, inputs), expected, "logits with the adapter disabled")
    base = adapted.bishare.unload()
    _identical(_logits(base, inputs), _logits(model, inputs), "logits after unloading")
    left = [name for name, _ in base.named_modules() if "bishare" in name]
    _same(left, [], "modules left behind by unloading")


def check_count(spec, model, seed=0, compiled=None):
    """Check that the plan counts the distinct trainable scalars of the model, and all its scalars."""
    adapted = _adapted(spec, model, seed, compiled)
    plan = adapted.bishare.plan
    # `parameters()` yields tied parameters once, which would hide a tensor registered twice.
    registered = [p for _, p in adapted.named_parameters(remove_duplicate=False) if p.requires_grad]
    _same(len(registered), len({id(p) for p in registered}), "registrations of trainable tensors")
    _same(sum(p.numel() for p in registered), plan.trainable, "the model's trainable parameters")
    _same(sum(p.numel() for p in adapted.parameters()), plan.all, "all of the model's parameters")
    _same(sum(plan.shares.values()), plan.trainable, "the sum of the shares' parameters")
    _same(
        {name: tuple(tensor.shape) for name, tensor in adapted.bishare.tensors().items()},
        {tensor.name: tensor.shape for tensor in plan.tensors},
        "the tensors' shapes",
    )


def check_against_reference(spec, model, seed=0, dtype=torch.float64):
    """Check that logits and the gradient of every tensor equal those of the dense `reference_model`.

    ``dtype`` is that of base and adapter. The reference's adapter is at least float32.
    """
    model = _in_type(model, dtype)
    inputs = tiny_inputs(model, seed)
    adapted = _adapted(spec, model, seed)
    if dtype == torch.float64:
        adapted.to(dtype)  # Adapters default to float32.
    tensors = randomize(adapted, seed)
    wide = torch.promote_types(dtype, torch.float32)
    leaves = {
        name: tensor.detach().to(wide).requires_grad_(tensor.requires_grad)
        for name, tensor in tensors.items()
    }
    plan = adapted.bishare.plan
    trained = {name: tensor for name, tensor in tensors.items() if tensor.requires_grad}

    def run(some, values):
        logits = _run(some, inputs)
        weights = torch.randn(logits.shape, generator=_random(seed), dtype=wide)
        return logits, _gradients((logits * weights).sum(), [values[name] for name in trained])

    expected, references = run(reference_model(_in_type(model, wide), plan, leaves), leaves)
    found, gradients = run(adapted, tensors)
    # Use a common scale, since small gradients have the same absolute error as others.
    scale = max(float(reference.abs().max()) for reference in references)
    slack, gradient_slack = 0.0, 0.0
    if wide != dtype:
        # The dtype's effect on the reference measures the conditioning of the model.
        rough, rough_gradients = run(reference_model(model, plan, leaves), leaves)
        slack = 4 * _worst(rough, expected)
        pairs = zip(rough_gradients, references, strict=True)
        gradient_slack = 4 * max(_worst(gradient, reference) for gradient, reference in pairs)
    _close(found, expected, dtype, "logits", slack=slack)
    _close(_logits(adapted, inputs), expected, dtype, "logits without gradients", slack=slack)
    for name, gradient, reference in zip(trained, gradients, references, strict=True):
        what = f"the gradient of {name}"
        _close(gradient, reference, dtype, what, scale=scale, slack=gradient_slack)


def check_saving(spec, model, seed=0, compiled=None):
    """Check that a saved and loaded adapter has the same logits and ties, and the file each tensor once.

    Frozen tensors are saved only if they differ from what their seed generates, or if the base determines
    their initial values.
    """
    adapted = _adapted(spec, model, seed, compiled)
    plan = adapted.bishare.plan
    stored = {tensor.name for tensor in plan.tensors if tensor.trainable or not tensor.drawn}
    if plan.frozen:
        randomize(adapted, seed, frozen=False)
        _check_saved(adapted, model, stored, seed)
    tensors = randomize(adapted, seed)
    # With few choices, different indices may be equal, to what the seed gives.
    same = {
        t.name
        for t in plan.tensors
        if t.init == "choice" and torch.equal(tensors[t.name], draw_tensor(t, seed))
    }
    _check_saved(adapted, model, set(plan.tensor) - same, seed)


def _check_saved(adapted, model, expected, seed):
    plan, tensors, inputs = (
        adapted.bishare.plan,
        adapted.bishare.tensors(),
        tiny_inputs(model, seed),
    )
    with tempfile.TemporaryDirectory() as folder, _quietly():
        adapted.bishare.save_pretrained(folder)
        stored = load_stored(Path(folder))
        loaded = load_adapter(folder, copy.deepcopy(model))
    _same(set(stored), expected, "stored tensors")
    _same(
        sum(tensor.numel() for tensor in stored.values()),
        sum(plan.tensor[name].size for name in expected),
        "stored scalars",
    )
    _same(loaded.bishare.plan, plan, "the loaded plan")
    again = loaded.bishare.tensors()
    for name, tensor in tensors.items():
        _identical(again[name], tensor, f"the loaded tensor {name}")
    _identical(_logits(loaded, inputs), _logits(adapted, inputs), "logits after loading")
    _same(_names(loaded), _names(adapted), "names of trainable parameters after loading")


def check_merging(spec, model, seed=0, compiled=None):
    """Check that merging changes logits by rounding only, and that unmerging restores the base bit for bit.

    Nonlinear updates are rejected without a change, and so are quantised layers, unless they are to become
    dense.
    """
    inputs = tiny_inputs(model, seed)
    adapted = _adapted(spec, model, seed, compiled)
    if not _linear(adapted):
        expected = _logits(adapted, inputs)
        _refused(adapted.bishare.merge, "merging what is not a matrix", "BS633")
        _refused(adapted.bishare.merge_and_unload, "merging what is not a matrix", "BS633")
        _identical(_logits(adapted, inputs), expected, "logits after a merge that was refused")
        return
    base = {name: tensor.clone() for name, tensor in adapted.state_dict().items()}
    randomize(adapted, seed)
    expected = _logits(adapted, inputs)
    plan, maps = adapted.bishare.plan, linear_maps(adapted)
    coded = [s.path for s in plan.sites if plan.terms_of[s.path] and maps[s.path].replacement()]
    if coded:
        _refused(adapted.bishare.merge, "merging into quantised layers", "BS622")
        _identical(_logits(adapted, inputs), expected, "logits after a merge that was refused")
    report = adapted.bishare.merge(dequantize=bool(coded))
    _same(report.dequantized, len(coded), "layers made dense")
    _close(_logits(adapted, inputs), expected, model.dtype, "logits of the merged model")
    adapted.bishare.unmerge()
    _identical(_logits(adapted, inputs), expected, "logits after unmerging")
    for name, tensor in adapted.state_dict().items():
        if "bishare_tensors" not in name.split("."):
            _identical(tensor, base[name], f"{name} after unmerging")
    # If one layer becomes dense, all do: a checkpoint's config describes them together.
    every = [path for path, weight in maps.items() if coded and weight.replacement()]
    plain = adapted.bishare.merge_and_unload(dequantize=bool(coded))
    _close(_logits(plain, inputs), expected, model.dtype, "logits of the merged, unloaded model")
    dense = set(_dense(model, every).state_dict())
    _same(set(plain.state_dict()), dense, "the merged model's tensors")


def check_export(spec, model, seed=0, compiled=None):
    """Check that PEFT loads the export and computes the same logits, and that unsupported adapters are
    rejected.

    If PEFT does not support the quantised layers of the base, load the export into a dense base with the
    same weights.
    """
    inputs = tiny_inputs(model, seed)
    adapted = _adapted(spec, model, seed, compiled)
    if not _linear(adapted):
        export = partial(adapted.bishare.export, "never-written")
        _refused(export, "exporting what is not a matrix", "BS633")
        return
    randomize(adapted, seed)
    with tempfile.TemporaryDirectory() as folder, _quietly():
        try:
            adapted.bishare.export(folder, format="peft")
        except AdapterError as error:  # PEFT does not save every parameter trained in full.
            codes = {problem.code for problem in error.problems}
            if codes == {"BS675"} and _scales(adapted):
                return  # PEFT's DoRA supports linear layers only.
            if codes == {"BS646"} and any(s.expert is None for s in adapted.bishare.plan.sites):
                return  # PEFT takes dense modules for experts.
            _same((codes, bool(adapted.bishare.plan.trained)), ({"BS692"}, True), "what is refused")
            return
        base = _dense(model, [site.path for site in adapted.bishare.plan.sites])
        exported = loaded_by_peft(base, Path(folder))
        if exported is None:
            return
    _close(
        _logits(exported, inputs), _logits(adapted, inputs), model.dtype, "logits of PEFT's model"
    )


def check_seed(spec, model, seed=0, compiled=None):
    """Check that a seed and a tensor's name determine its values bit for bit, in any order of shares."""
    first = _adapted(spec, model, seed, compiled).bishare.tensors()
    backwards = spec.model_copy(update={"shares": spec.shares[::-1], "params": spec.params[::-1]})
    other = _adapted(backwards, model, seed + 1).bishare.tensors()
    _same(set(other), set(first), "tensors of the same shares in another order")
    with _quietly():
        tensors = plan_spec(spec, model).tensors
    # Constants do not depend on the seed or the tensor, and indices among few choices may be equal.
    random = (t for t in tensors if t.drawn and t.like is None)
    constant = ("zeros", "ones", "constant", "choice", "cosine", "hadamard", "sparse")
    drawn = [t for t in random if t.init not in constant]
    kept = [tensor.name for tensor in drawn if torch.equal(other[tensor.name], first[tensor.name])]
    _same(kept, [], "tensors that another seed leaves as they were")
    for tensor in tensors:
        name = tensor.name
        expected = draw_tensor(tensor, seed + 1) if tensor.drawn else first[name]
        _identical(other[name], expected, f"the tensor {name} of the same shares in another order")
    values = {}
    for tensor in drawn:
        twin = values.setdefault((tensor.init, *first[tensor.name].flatten().tolist()), tensor.name)
        _same(twin, tensor.name, "a tensor with the very values of another")


def _linear(adapted):
    return all(term.linear for term in adapted.bishare.plan.update_terms)


def _scales(adapted):
    return len(adapted.bishare.plan.update_terms) < len(adapted.bishare.plan.terms)


def _dense(model, paths):
    """Return a copy of a model with some quantised linear layers made dense."""
    other = copy.deepcopy(model)
    maps = linear_maps(other)  # The copy's, whose biases an adapter may change.
    for weight in (maps[path] for path in paths if maps[path].replacement()):
        value, bias = weight.dense(), getattr(weight.module, "bias", None)
        dense = nn.Linear(weight.d_in, weight.d_out, bias is not None, dtype=value.dtype)
        dense.weight.data = value
        dense.register_parameter("bias", copy.deepcopy(bias))
        other.set_submodule(weight.path, dense)
    return other


def _refused(action, what, code):
    try:
        action()
    except AdapterError as error:
        _same({problem.code for problem in error.problems}, {code}, f"the error of {what}")
    else:
        raise AssertionError(f"{what} must be refused")


def _adapted(spec, model, seed, compiled=None):
    """Adapt a copy of a model, or copy the earlier result."""
    if compiled is not None:
        return copy.deepcopy(compiled)
    with _quietly():
        return compile_spec(spec, copy.deepcopy(model), seed=seed)


def loaded_by_peft(base, folder):
    """Load a LoRA with PEFT; None if PEFT says that it takes modules for experts, by an error or a warning."""
    from peft import PeftModel

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            loaded = PeftModel.from_pretrained(base, folder).eval()
        except ValueError:  # For example, of gate without up.
            return None
    missing = any("missing adapter keys" in str(warning.message) for warning in caught)
    return None if missing else loaded


@contextmanager
def _quietly():
    """Suppress warnings about unusual but valid specs."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", BishareWarning)
        yield


def _in_type(model, dtype):
    """Return a copy of the model with another dtype."""
    other = copy.deepcopy(model)
    if getattr(other.config, "_experts_implementation", None) is not None:
        other.set_experts_implementation("eager")  # Fused experts do not support float64.
    return other.to(dtype)


def _logits(model, inputs):
    with torch.no_grad():
        return _run(model, inputs)


def _run(model, inputs):
    dtype = next(p.dtype for p in model.parameters() if p.is_floating_point())
    cast = {k: v.to(dtype) if v.is_floating_point() else v for k, v in inputs.items()}
    outputs = model(**cast)
    # CLIP compares images with texts.
    return outputs["logits" if "logits" in outputs else "logits_per_image"]


def _names(model):
    return [name for name, p in model.named_parameters(remove_duplicate=False) if p.requires_grad]


def _identical(found, expected, what):
    if not torch.equal(found, expected):
        raise AssertionError(f"{what} must be identical: {_difference(found, expected)}")


def _close(found, expected, dtype, what, *, scale=None, slack=0.0):
    _same(tuple(found.shape), tuple(expected.shape), f"the shape of {what}")
    scale = float(expected.detach().abs().max()) if scale is None else scale
    allowed = TOLERANCE[dtype] * max(scale, 1e-6) + slack
    if not _worst(found, expected) <= allowed:
        raise AssertionError(
            f"{what} differ by more than {allowed:.3g} in {dtype}: {_difference(found, expected)}"
        )


def _worst(found, expected):
    return float((found.detach().to(expected.dtype) - expected.detach()).abs().max())


def _difference(found, expected):
    if found.shape != expected.shape:
        return f"shapes {tuple(found.shape)} and {tuple(expected.shape)}"
    found, expected = found.detach().double(), expected.detach().double()
    gap = (found - expected).abs()
    worst = int(gap.argmax())
    place = tuple(int(i) for i in torch.unravel_index(torch.tensor(worst), gap.shape))
    return (
        f"{int((gap > 0).sum())} of {gap.numel()} values differ, most by {float(gap.max()):.3g}, at "
        f"{place}, where {float(found.flatten()[worst]):.6g} was found and "
        f"{float(expected.flatten()[worst]):.6g} expected"
    )
