"""All that can be known of a run without the weights of its base: what is to be trained, and every row.

Nothing is written, and nothing is said: what stops the run is raised, and what to know is given back.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from bishare_dsl.adapter import old_formats
from bishare_dsl.adapter.contents import StoredAdapter
from bishare_dsl.adapter.files import CONFIG, place_of, read_adapter
from bishare_dsl.adapter.handle import Handle
from bishare_dsl.compiler import ResolvedSpec, make_plan, read_fitting
from bishare_dsl.diagnostics import AdapterError, Problem, SourceMap
from bishare_dsl.diagnostics.codes import train as codes
from bishare_dsl.diagnostics.codes.adapter import COMPACT_FOR_GOOD
from bishare_dsl.models import Source
from bishare_dsl.models.inspect import other_task
from bishare_dsl.train.data.formats import split_off
from bishare_dsl.train.data.load import load_rows
from bishare_dsl.train.data.rows import Rows
from bishare_dsl.train.errors import TrainError
from bishare_dsl.train.folder import has_bank
from bishare_dsl.train.groups import check_names

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from bishare_dsl.train.request import Request, Settings

Made = ResolvedSpec | StoredAdapter | Handle
"""What is to be trained: planned, read from a folder, or in the model already."""


def check_adapter(
    request: Request, base: PreTrainedModel | Source
) -> tuple[Made, list[tuple[Problem, SourceMap | None]]]:
    """Plan the spec, read the adapter, or find it in the model; of a run that goes on, its checkpoint's.

    Raises:
        BishareError: it cannot be trained.
        FileNotFoundError: there is no such spec.
    """
    if not isinstance(base, Source) and (other := other_task(base)) is not None:
        raise TrainError(codes.NOT_A_CAUSAL_CLASS(name=other))
    made, problems = _made(request, getattr(base, "bishare", None), base)
    check_names(made.plan, request.settings.lr_of)
    return made, problems


def _made(
    request: Request, adapter: Handle | None, base: PreTrainedModel | Source
) -> tuple[Made, list[tuple[Problem, SourceMap | None]]]:
    spec = request.spec
    if request.resume is not None and not has_bank(request.resume):
        return read_adapter(request.resume), []
    stored = isinstance(spec, str) and "\n" not in spec and _is_adapter(spec)
    if request.params and (adapter is not None or stored):
        reason = "`params` are a spec's, and an adapter has none to be set"
        raise TrainError(codes.BAD_COMBINATION(reason=reason))
    if adapter is not None:
        if spec is not None:
            raise TrainError(codes.SPEC_AND_ADAPTED(spec=adapter.plan.spec))
        return adapter, []
    if spec is None:
        raise TrainError(codes.MISSING_ARGUMENT(name="spec"))
    if stored:
        found, findings = read_fitting(str(spec), base)
        if found.compact:
            raise AdapterError(COMPACT_FOR_GOOD())
        return found, [(problem, None) for problem in findings]
    made = make_plan(spec, base, request.params)
    return made, [(problem, made.where) for problem in made.problems]


def _is_adapter(spec: str) -> bool:
    folder = place_of(spec)[0]
    return any((folder / name).is_file() for name in (CONFIG, old_formats.CONFIG))


def read_rows(settings: Settings, seed: int) -> dict[str, Rows]:
    """Read the rows to train on, ``"train"``, and those held out, ``"eval"``."""
    assert isinstance(settings.data, str)  # Of several tasks, each is read by itself.
    rows = load_rows(settings.data, split=settings.data_split, subset=settings.data_subset)
    if settings.eval_data is not None:
        subset = settings.data_subset if settings.eval_data == settings.data else None
        held_out = load_rows(settings.eval_data, split=settings.eval_data_split, subset=subset)
        return {"train": rows, "eval": held_out}
    if settings.eval_split is not None:
        parts = split_off(rows, settings.eval_split, seed, format=settings.format)
        return dict(zip(("train", "eval"), parts, strict=True))
    return {"train": rows}
