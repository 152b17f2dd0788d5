"""Hold a spec and a model to bishare's invariants.

    def test_my_spec():
        check_spec("my.share", tiny_model("llama"))

A failed check raises an AssertionError with the difference and its location.
"""

from __future__ import annotations

import copy
import os
import tempfile
import warnings
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from bishare_dsl.api import compile_spec, load_adapter
from bishare_dsl.compiler import read_spec
from bishare_dsl.diagnostics import BishareWarning
from bishare_dsl.language import parse_spec
from bishare_dsl.plan import Plan, Term
from bishare_dsl.spec import Spec
from bishare_dsl.transforms import Width, effective_pair, load_transform

_NEAR = {torch.float64: 1e-9, torch.float32: 2e-4}
"""The tolerance, relative to the largest expected value."""


def check_spec(
    spec: Spec | str | os.PathLike[str],
    model: nn.Module,
    inputs: Mapping[str, Tensor] | None = None,
    seed: int = 0,
) -> None:
    """Check that a spec keeps bishare's promises on a model.

    - A fresh adapter leaves the logits of the base bit for bit, or up to rounding if the spec subtracts
      what a term starts with. A term with `start nonzero` may change them.
    - The plan counts the distinct trainable numbers of the model.
    - In float64 the logits and the gradient of each tensor equal those of ``W + sum of scale * B^T A``,
      written as dense matrices.
    - A saved adapter loads with the same logits, and each tensor is in the file once.
    - Merging changes the logits by rounding only, and unmerging restores them.
    - PEFT loads the export and computes the same logits.
    - The seed determines each tensor, in any order of the shares.

    Dense matrices, merging and the export are checked where they exist: not for nonlinear terms, and dense
    matrices not for experts, embeddings, magnitudes and parameters that are trained in full.

    Args:
        spec: the text of a spec, a path, or a `Spec`. A text has more than one line or word.
        model: a small model in float32 with dense weights, which is not changed.
        inputs: of the model; by default ten tokens, in two rows.
        seed: of the adapter.

    Raises:
        AssertionError: a check failed.
        BishareError: the spec does not fit the model.
    """
    parsed = _parsed(spec)
    if inputs is None:
        inputs = {"input_ids": torch.arange(3, 13).reshape(2, 5)}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", BishareWarning)
        adapt = partial(_adapted, parsed, model, seed)
        _check_fresh(parsed, model, adapt(), inputs)
        _check_count(adapt())
        _check_seed(parsed, model, seed, adapt())
        _check_dense(model, adapt(), inputs)
        trained: Any = _moved(adapt(), seed)
        expected = _logits(trained, inputs)
        _check_saving(model, trained, inputs, expected)
        plan = trained.bishare.plan
        if not all(term.linear for term in plan.update_terms):
            return
        if not plan.has_magnitudes and not plan.trained:
            _check_export(model, trained, inputs, expected)
        _check_merging(trained, inputs, expected)


def _parsed(spec: Spec | str | os.PathLike[str]) -> Spec:
    if isinstance(spec, str) and len(spec.split()) > 1:
        return parse_spec(spec)
    return read_spec(spec)[0]


def _adapted(spec: Spec, model: nn.Module, seed: int) -> Any:
    return compile_spec(spec, copy.deepcopy(model), seed=seed).eval()


def _moved(adapted: Any, seed: int) -> Any:
    """Move every trained tensor of an adapter away from its start."""
    random = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for _, tensor in sorted(adapted.bishare.tensors().items()):
            if tensor.requires_grad:
                change = torch.randn(tensor.shape, generator=random, dtype=torch.float64)
                tensor.add_(0.1 * change.to(tensor))
    return adapted


def _check_fresh(spec: Spec, model: nn.Module, adapted: Any, inputs: Mapping[str, Tensor]) -> None:
    expected = _logits(copy.deepcopy(model).requires_grad_(False), inputs)
    if any(tensor.like for tensor in adapted.bishare.plan.tensors):
        _near(_logits(adapted, inputs), expected, "logits of a fresh adapter")
    elif not any(share.nonzero_start for share in spec.shares):
        _identical(_logits(adapted, inputs), expected, "logits of a fresh adapter")
    _moved(adapted, 0)
    with adapted.bishare.disable_adapter():
        _identical(_logits(adapted, inputs), expected, "logits with the adapter disabled")


def _check_count(adapted: Any) -> None:
    named = adapted.named_parameters(remove_duplicate=False)
    trained = [parameter for _, parameter in named if parameter.requires_grad]
    _same(len(trained), len({id(p) for p in trained}), "registrations of trainable tensors")
    count = sum(parameter.numel() for parameter in trained)
    _same(count, adapted.bishare.plan.trainable, "the model's trainable parameters")


def _check_seed(spec: Spec, model: nn.Module, seed: int, adapted: Any) -> None:
    backwards = spec.model_copy(update={"shares": spec.shares[::-1]})
    others = _adapted(backwards, model, seed).bishare.tensors()
    tensors = adapted.bishare.tensors()
    _same(set(others), set(tensors), "tensors of the same shares in another order")
    for name, tensor in tensors.items():
        _identical(others[name], tensor, f"the tensor {name} of the same shares in another order")


def _check_dense(model: nn.Module, adapted: Any, inputs: Mapping[str, Tensor]) -> None:
    plan = adapted.bishare.plan
    if plan.has_magnitudes or plan.trained or not all(term.linear for term in plan.terms):
        return
    if any(site.expert is not None or site.layer is None for site in plan.sites):
        return
    adapted.to(torch.float64)
    tensors = _moved(adapted, 1).bishare.tensors()
    leaves = {
        name: tensor.detach().clone().requires_grad_(tensor.requires_grad)
        for name, tensor in tensors.items()
    }
    dense = _dense_model(model, plan, leaves)
    expected, expected_gradients = _with_gradients(dense, inputs, leaves)
    logits, gradients = _with_gradients(adapted, inputs, tensors)
    _near(logits, expected, "logits in float64")
    largest = max(float(gradient.abs().max()) for gradient in expected_gradients.values())
    for name, gradient in expected_gradients.items():
        _near(gradients[name], gradient, f"the gradient of {name}", largest)


def _dense_model(model: nn.Module, plan: Plan, tensors: Mapping[str, Tensor]) -> nn.Module:
    """Return a float64 copy of the base whose linear layers add ``x (scale * B^T A)^T``."""
    dense = copy.deepcopy(model).requires_grad_(False).to(torch.float64)
    for site in plan.sites:
        for term in plan.terms_of[site.path]:
            hook = _adds(term, Width(site.d_in, site.d_out), tensors)
            dense.get_submodule(site.path).register_forward_hook(hook)
    return dense


def _adds(term: Term, width: Width, tensors: Mapping[str, Tensor]) -> Callable[..., Tensor]:
    """Return a forward hook that adds the update of a term as a dense matrix."""

    def add(_: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        transform = load_transform(term.transform, term.options)
        values = {role: tensors[name] for role, name in term.tensors.items()}
        down, up = effective_pair(transform, values, term.rank, width, 1.0)
        return output + inputs[0] @ (term.scale * up.T @ down).T

    return add


def _with_gradients(
    model: nn.Module, inputs: Mapping[str, Tensor], tensors: Mapping[str, Tensor]
) -> tuple[Tensor, dict[str, Tensor]]:
    logits = _run(model, inputs)
    random = torch.Generator().manual_seed(0)
    weights = torch.randn(logits.shape, generator=random, dtype=logits.dtype)
    trained = {name: tensor for name, tensor in tensors.items() if tensor.requires_grad}
    loss = (logits * weights).sum()
    gradients = torch.autograd.grad(loss, list(trained.values()), materialize_grads=True)
    return logits.detach(), dict(zip(trained, gradients, strict=True))


def _check_saving(
    model: nn.Module, adapted: Any, inputs: Mapping[str, Tensor], expected: Tensor
) -> None:
    from safetensors.torch import load_file

    with tempfile.TemporaryDirectory() as folder:
        adapted.bishare.save_pretrained(folder)
        numbers = 0
        for file in Path(folder).glob("*.safetensors"):
            numbers += sum(tensor.numel() for tensor in load_file(file).values())
        loaded = load_adapter(folder, copy.deepcopy(model)).eval()
    _same(numbers, adapted.bishare.plan.stored, "numbers in the adapter's file")
    _identical(_logits(loaded, inputs), expected, "logits after loading")


def _check_merging(adapted: Any, inputs: Mapping[str, Tensor], expected: Tensor) -> None:
    adapted.bishare.merge()
    _near(_logits(adapted, inputs), expected, "logits of the merged model")
    adapted.bishare.unmerge()
    _identical(_logits(adapted, inputs), expected, "logits after unmerging")


def _check_export(
    model: nn.Module, adapted: Any, inputs: Mapping[str, Tensor], expected: Tensor
) -> None:
    if any(site.expert is not None for site in adapted.bishare.plan.sites):
        return  # PEFT may take dense modules for experts.
    from peft import PeftModel

    with tempfile.TemporaryDirectory() as folder:
        adapted.bishare.export(folder, format="peft")
        base: Any = copy.deepcopy(model)
        exported = PeftModel.from_pretrained(base, folder).eval()
        _near(_logits(exported, inputs), expected, "logits of PEFT's model")


def _run(model: nn.Module, inputs: Mapping[str, Tensor]) -> Tensor:
    logits: Tensor = model(**inputs).logits
    return logits


def _logits(model: nn.Module, inputs: Mapping[str, Tensor]) -> Tensor:
    with torch.no_grad():
        return _run(model, inputs)


def _same(actual: object, expected: object, what: str) -> None:
    if actual != expected:
        raise AssertionError(f"{what}: found {actual}, expected {expected}")


def _identical(actual: Tensor, expected: Tensor, what: str) -> None:
    if not torch.equal(actual, expected):
        raise AssertionError(
            f"{what} must be identical, and differ by up to {_gap(actual, expected):.3g}"
        )


def _near(actual: Tensor, expected: Tensor, what: str, largest: float | None = None) -> None:
    if largest is None:
        largest = float(expected.abs().max())
    allowed = _NEAR[expected.dtype] * max(largest, 1e-6)
    gap = _gap(actual, expected)
    if not gap <= allowed:
        raise AssertionError(f"{what} differ by up to {gap:.3g}, and may by {allowed:.3g}")


def _gap(actual: Tensor, expected: Tensor) -> float:
    return float((actual.double() - expected.double()).abs().max())
