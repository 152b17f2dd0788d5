"""The compiler on one page: five calls lead from the text of a spec to an adapted model.

| call | from | to | package |
|---|---|---|---|
| `read_spec` | a text | `Spec`, and the locations of its parts | `language`, `spec` |
| `build_plan` | `Spec`, `Architecture` | `Plan` | `plan`, `transforms`, `models` |
| `initial_values` | `Plan`, seed | tensors | `initial` |
| `rewrite` | `Plan`, model | `PlanCode` | `rewrite` |
| `attach` | `PlanCode`, tensors, model | ``model.bishare`` | `adapted` |

`make_plan` makes the first two without torch and without weights, and `put_adapter` the other three.
`compile_spec`, and PEFT's `get_peft_model`, call one after the other; `bishare_dsl.peft` then adds the config
that PEFT keeps for the adapter. A saved adapter has its plan and its tensors already.

Warnings are returned to the caller: `api` emits them, and commands and training runs report them.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING

from bishare_dsl.diagnostics import BishareError, Problem, SourceMap
from bishare_dsl.diagnostics.record import Record
from bishare_dsl.models import Architecture, architecture_of
from bishare_dsl.plan import Plan, build_plan
from bishare_dsl.resources import find_spec, shipped_specs
from bishare_dsl.spec import Params, Spec

if TYPE_CHECKING:
    import torch
    from torch import nn

    from bishare_dsl.folder.config import AdapterConfig
    from bishare_dsl.folder.contents import StoredAdapter
    from bishare_dsl.models import Source
    from bishare_dsl.rewrite.parts import PlanCode


class ResolvedSpec(Record):
    """A spec resolved against a model, with its warnings.

    ``where`` has the locations of the spec's parts if it was read from a text. ``changed`` says whether
    params have other values than in the text.
    """

    plan: Plan
    problems: tuple[Problem, ...]
    spec: Spec
    where: SourceMap | None
    changed: bool

    def text(self) -> str:
        """Return a text for the spec that needs no other file, for the adapter's config.

        Raises:
            SpecError: no text can express the spec (BS140).
        """
        from bishare_dsl.language import own_text

        return own_text(self.spec, self.where, changed=self.changed)


def read_spec(spec: Spec | str | os.PathLike[str]) -> tuple[Spec, SourceMap | None]:
    """Return a spec, and the locations of its parts if it was read from a text.

    Args:
        spec: a spec, a text of several lines, the path of a file, or the name of a shipped spec.

    Raises:
        SpecError: the text is not a spec. The error lists every problem with its position.
        FileNotFoundError: the spec does not exist.
    """
    from bishare_dsl.language import read, read_file

    if isinstance(spec, Spec):
        return spec, None
    if isinstance(spec, str) and "\n" in spec:
        return read(spec)
    return read_file(find_spec(os.fspath(spec)))


def make_plan(
    spec: Spec | str | os.PathLike[str],
    model: nn.Module | Architecture | Source | str,
    params: Params | None = None,
    where: SourceMap | None = None,
) -> ResolvedSpec:
    """Resolve a spec against a model.

    Args:
        spec: a spec, the path of a file, the name of a shipped spec, or a text of several lines.
        model: a model, its shapes, or its name.
        params: values for params of the spec.
        where: the locations of a spec that was read already.

    Raises:
        BishareError: the spec is wrong or does not fit, or the model cannot be found. The error lists every
            problem with its position.
        FileNotFoundError: the spec does not exist.
        TypeError: the spec is a model.
    """
    from bishare_dsl.language.read import warn_of_outdented

    if model in [*shipped_specs()] or not isinstance(spec, (Spec, str, os.PathLike)):
        raise TypeError("the spec is the first argument, and the model the second one")
    if not isinstance(params, Mapping | None):
        raise TypeError(f"`params` is a dictionary such as `{{'r': 8}}`, and this is {params!r}")
    architecture = architecture_of(model)
    try:
        spec, read_where = read_spec(spec)
        where = where or read_where
        spec = spec.with_params(params or {})
        plan, problems = build_plan(spec, architecture)
    except BishareError as error:
        known = spec if isinstance(spec, Spec) else None
        raise advised(error, where, architecture, params, spec=known) from None
    warnings = [*warn_of_outdented(spec, where), *problems]
    if warnings:
        from bishare_dsl.advice import advise

        warnings = advise(warnings, where, architecture, params, spec=spec)
    return ResolvedSpec(plan, tuple(warnings), spec, where, bool(params))


def put_adapter(
    model: nn.Module,
    source: ResolvedSpec | StoredAdapter,
    seed: int,
    name: str,
    unfilled: Collection[str] = (),
) -> tuple[str, ...]:
    """Put an adapter into a model, replacing any adapter of the same name.

    Args:
        model: must fit the plan.
        source: a resolved spec, whose tensors get initial values, or a saved adapter, which has them.
        seed: for the initial values.
        name: of the adapter.
        unfilled: names of tensors of a resolved spec to leave on the meta device, which the caller fills.

    Returns:
        Notes on anything done differently from the request.

    Raises:
        BishareError: the model cannot take the adapter; nothing was changed.
    """
    import torch

    from bishare_dsl.adapted.handle import attach, check_model

    check_model(model, name)
    with torch.inference_mode(False):  # Tensors created in inference mode could never train.
        if isinstance(source, ResolvedSpec):
            text = source.text()
            tensors = initial_values(source.plan, model, seed, unfilled)
        else:
            text = source.spec_text
            tensors = on_devices(source.plan, model, stored_values(source, model))
        code = rewrite(source.plan, model)
        return attach(model, name, source.plan, code, tensors, text, seed)


def initial_values(
    plan: Plan, model: nn.Module, seed: int, unfilled: Collection[str] = ()
) -> dict[str, torch.Tensor]:
    """Return the initial values of a plan's tensors by name, each on the device of the module that owns it.

    Args:
        plan: specifies the tensors.
        model: the base, from which some initial values are computed.
        seed: for the random ones. The same seed gives the same tensor on any device and in any spec.
        unfilled: names of tensors to leave on the meta device.
    """
    from bishare_dsl.folder.devices import devices
    from bishare_dsl.initial.values import first_values

    on_meta = all(device.type == "meta" for device in devices(plan, model).values())
    tensors = first_values(plan, model, seed, "meta" if on_meta else "cpu", unfilled)
    return on_devices(plan, model, tensors, unfilled)


def stored_values(stored: StoredAdapter, model: nn.Module) -> dict[str, torch.Tensor]:
    """Return the tensors of a saved adapter by name, those that its folder leaves to the base recomputed.

    Raises:
        AdapterError: this base gives other values (BS699).
    """
    return stored.tensors(with_base=True) | values_of_base(stored.config, stored.plan, model)


def values_of_base(config: AdapterConfig, plan: Plan, model: nn.Module) -> dict[str, torch.Tensor]:
    """Return the tensors that a folder leaves to its base, by name.

    Raises:
        AdapterError: this base gives other values (BS699).
    """
    from bishare_dsl.folder.fingerprint import check_reproduced
    from bishare_dsl.initial.values import start_of_base

    names = config.ways("base").keys()
    if not names:
        return {}
    starts = start_of_base(plan, model, names)
    return starts | check_reproduced(config.marks, starts)


def on_devices(
    plan: Plan,
    model: nn.Module,
    tensors: Mapping[str, torch.Tensor],
    unfilled: Collection[str] = (),
) -> dict[str, torch.Tensor]:
    """Move an adapter's tensors to the devices of the modules that own them, but for unfilled ones."""
    from bishare_dsl.folder.devices import devices

    device_of = devices(plan, model)
    moved = {}
    for name, tensor in tensors.items():
        moved[name] = tensor if name in unfilled else tensor.to(device_of[name])
    return moved


def rewrite(plan: Plan, model: nn.Module) -> PlanCode:
    """Compile the rewritten forwards of a plan for a model, which is not changed yet.

    A plan that runs as an adapter of the model does uses the code of that adapter.

    Raises:
        ModelError: the model does not match the plan (BS402), or is a bare list of layers (BS406).
        SpecError: a package's transform differs from the one in the plan (BS214).
        AdapterError: the model is merged (BS643, BS629) or sharded (BS645).
    """
    from bishare_dsl.adapted.handle import in_model
    from bishare_dsl.rewrite.adapt import check_free, compile_plan

    handle = in_model(model)
    if handle is not None:
        return handle.code_for(plan)
    check_free(model)
    return compile_plan(model, plan)


def advised(
    error: BishareError,
    where: SourceMap | None,
    architecture: Architecture | None = None,
    params: Params | None = None,
    *,
    spec: Spec | None = None,
    allow_use: bool = False,
) -> BishareError:
    """Return an error of a spec with advice that was tried: see `bishare_dsl.advice`."""
    from bishare_dsl.advice import advise

    where = error.where or where
    problems = advise(error.problems, where, architecture, params, spec=spec, allow_use=allow_use)
    return type(error)(problems, where)


def parse_spec(text: str | bytes, name: str = "<text>", *, allow_use: bool = False) -> Spec:
    """Parse a text to a spec.

    Args:
        text: the text.
        name: its path, for messages; used files are searched in its folder.
        allow_use: whether it may use files outside of that folder.

    Raises:
        SpecError: every problem of the text and of used files (BS1xx), with its position.
    """
    from bishare_dsl.language import read

    if isinstance(text, os.PathLike) or f"{text!r}".endswith((".share'", '.share"')):
        raise TypeError(f"give a text, such as `parse_spec(Path({os.fspath(text)!r}).read_text())`")
    try:
        return read(text, name, allow_use=allow_use)[0]
    except BishareError as error:
        raise advised(error, None, allow_use=allow_use) from None


def _drawing(plan: Plan) -> str:
    """Draw which modules share, for a notebook."""
    from bishare_dsl.show.svg import draw

    return draw(plan)


# Plans must not import pictures, which import plans.
Plan._repr_svg_ = _drawing  # type: ignore[attr-defined]
