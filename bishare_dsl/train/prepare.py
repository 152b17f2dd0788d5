"""From what was asked for to rows, examples, and a model with an adapter to train."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TypeGuard

from bishare_dsl.adapter.files import CONFIG, base_problems, read_adapter
from bishare_dsl.api import compile_spec, load_adapter
from bishare_dsl.diagnostics import AdapterError, BishareError, SourceMap, raise_errors
from bishare_dsl.diagnostics.codes import train as codes
from bishare_dsl.diagnostics.codes.adapter import COMPACT_FOR_GOOD
from bishare_dsl.language.read import read_file
from bishare_dsl.models import architecture_of, inspect_model
from bishare_dsl.models.load import load_model, load_tokenizer
from bishare_dsl.plan import Plan, build_plan
from bishare_dsl.resources import find_spec
from bishare_dsl.spec import Spec
from bishare_dsl.train.data import DataReport, Examples, Rows, encode, load_rows, pack, split_off
from bishare_dsl.train.errors import TrainError
from bishare_dsl.train.trainer import adapter_of

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from bishare_dsl.train.settings import Request, Settings
    from bishare_dsl.train.voice import Voice


def planned(request: Request, voice: Voice) -> Plan:
    """The plan of what is to be trained. No weights are read.

    Raises:
        BishareError: the spec or the adapter is wrong, or does not fit the model.
        FileNotFoundError: there is no such spec.
    """
    model, spec = request.model, request.spec
    adapter = None if isinstance(model, str) else adapter_of(model)
    if request.params and (adapter is not None or is_adapter(spec)):
        reason = "`params` are a spec's, and an adapter has none to be set"
        raise TrainError(codes.BAD_COMBINATION(reason=reason))
    if adapter is not None:
        if spec is not None:
            raise TrainError(codes.SPEC_AND_ADAPTED(spec=adapter.plan.spec))
        return adapter.plan
    if spec is None:
        raise TrainError(codes.MISSING_ARGUMENT(name="spec"))
    architecture = architecture_of(model) if isinstance(model, str) else inspect_model(model)
    if is_adapter(spec):
        stored = read_adapter(spec)
        findings = tuple(base_problems(stored.plan, architecture))
        raise_errors(AdapterError, findings)
        voice.problems(findings)
        if stored.compact:
            raise AdapterError(COMPACT_FOR_GOOD())
        return stored.plan
    where: SourceMap | None = None
    if not isinstance(spec, Spec):
        spec, where = read_file(find_spec(spec))
    try:
        plan, findings = build_plan(spec.with_params(request.params), architecture)
    except BishareError as error:
        raise error.at(where) from None
    voice.problems(findings, where)
    return plan


def adapted(request: Request, seed: int, voice: Voice) -> PreTrainedModel:
    """The model with the adapter that is to be trained: drawn by the seed, loaded, or as it came.

    Raises:
        BishareError: the weights do not load, or parameters of the base would train as well (BS739).
    """
    model, spec, settings = request.model, request.spec, request.settings
    if isinstance(model, str):
        model = load_model(model, dtype=settings.dtype, device=settings.device_map)[0]
    with voice.hearing():
        if spec is None:
            pass
        elif is_adapter(spec):
            model = load_adapter(spec, model)
        else:
            model = compile_spec(spec, model, request.params, seed)
    adapter = adapter_of(model)
    assert adapter is not None
    own = {id(tensor) for tensor in adapter.tensors().values()}
    foreign = [n for n, p in model.named_parameters() if p.requires_grad and id(p) not in own]
    if foreign:
        raise TrainError(codes.FOREIGN_PARAMETERS(count=len(foreign), name=foreign[0]))
    return model


def is_adapter(spec: Spec | str | None) -> TypeGuard[str]:
    """Whether what stands in the place of a spec is the folder of an adapter."""
    return isinstance(spec, str) and (Path(spec) / CONFIG).is_file()


def tokenizer_of(
    request: Request, tokenizer: PreTrainedTokenizerBase | None
) -> PreTrainedTokenizerBase:
    """The one that was given, or the model's own.

    Raises:
        TrainError: it has none (BS738).
        ModelError: the model cannot be found, or has no weights.
    """
    model = request.model
    if tokenizer is None and isinstance(model, str):
        tokenizer = load_tokenizer(model)
    if tokenizer is None:
        name = model if isinstance(model, str) else inspect_model(model).name
        raise TrainError(codes.NO_TOKENIZER(model=name))
    return tokenizer


@dataclass(frozen=True)
class Data:
    """What is trained on, and what is held out."""

    train: Examples
    held_out: Examples | None
    reports: Mapping[str, DataReport]


def rows_of(settings: Settings, seed: int) -> tuple[Rows, Rows | None]:
    """The rows to train on, and those held out.

    Raises:
        DataError: they cannot be read, or none would be left.
    """
    rows = load_rows(settings.data, split=settings.data_split, subset=settings.data_subset)
    if settings.eval_data is not None:
        subset = settings.data_subset if settings.eval_data == settings.data else None
        return rows, load_rows(settings.eval_data, split=settings.eval_data_split, subset=subset)
    if settings.eval_split is not None:
        return split_off(rows, settings.eval_split, seed, format=settings.format)
    return rows, None


def encoded(
    rows: Rows, held_out: Rows | None, tokenizer: PreTrainedTokenizerBase, settings: Settings
) -> Data:
    """Examples of the rows, packed if that is wanted.

    Raises:
        DataError: rows are bad, or nothing is to be learnt.
    """
    sets = {"train": rows} | ({} if held_out is None else {"eval": held_out})
    examples, reports = {}, {}
    for name, part in sets.items():
        found = encode(
            part,
            tokenizer,
            max_length=settings.max_length,
            train_on=settings.train_on,
            format=settings.format,
        )
        examples[name], reports[name] = found.examples, found.report
        if settings.packing:
            examples[name] = pack(found.examples, settings.max_length)
    return Data(examples["train"], examples.get("eval"), reports)
