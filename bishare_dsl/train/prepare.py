"""From what was asked for to rows, examples, and a model with an adapter to train."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TypeGuard

from bishare_dsl.adapter.files import CONFIG, StoredAdapter
from bishare_dsl.compiler import Planned, install, make_plan, read_fitting
from bishare_dsl.diagnostics import AdapterError
from bishare_dsl.diagnostics.codes import train as codes
from bishare_dsl.diagnostics.codes.adapter import COMPACT_FOR_GOOD
from bishare_dsl.models import Source, architecture_of
from bishare_dsl.models.load import load_model, load_tokenizer
from bishare_dsl.spec import Spec
from bishare_dsl.train.data import DataReport, Examples, Rows, encode, load_rows, pack, split_off
from bishare_dsl.train.errors import TrainError
from bishare_dsl.train.trainer import adapter_of

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from bishare_dsl.adapter.handle import Handle
    from bishare_dsl.train.settings import Request, Settings
    from bishare_dsl.train.voice import Voice


def planned(
    request: Request, base: PreTrainedModel | Source, voice: Voice
) -> Planned | StoredAdapter | Handle:
    """What is to be trained: planned, read from a folder, or in the model already. No weights are read.

    Raises:
        BishareError: the spec or the adapter is wrong, or does not fit the model.
        FileNotFoundError: there is no such spec.
    """
    spec = request.spec
    adapter = None if isinstance(base, Source) else adapter_of(base)
    if request.params and (adapter is not None or is_adapter(spec)):
        reason = "`params` are a spec's, and an adapter has none to be set"
        raise TrainError(codes.BAD_COMBINATION(reason=reason))
    if adapter is not None:
        if spec is not None:
            raise TrainError(codes.SPEC_AND_ADAPTED(spec=adapter.plan.spec))
        return adapter
    if spec is None:
        raise TrainError(codes.MISSING_ARGUMENT(name="spec"))
    if is_adapter(spec):
        stored, findings = read_fitting(spec, base)
        voice.problems(findings)
        if stored.compact:
            raise AdapterError(COMPACT_FOR_GOOD())
        return stored
    made = make_plan(spec, base, request.params)
    voice.problems(made.problems, made.where)
    return made


def adapted(
    base: PreTrainedModel | Source,
    made: Planned | StoredAdapter | Handle,
    settings: Settings,
    seed: int,
    voice: Voice,
) -> PreTrainedModel:
    """The model with the adapter that is to be trained: drawn by the seed, loaded, or as it came.

    Raises:
        BishareError: the weights do not load, or parameters of the base would train as well (BS739).
    """
    if isinstance(base, Source):
        base = load_model(base, dtype=settings.dtype, device=settings.device_map)[0]
    if isinstance(made, (Planned, StoredAdapter)):
        for note in install(base, made, seed):
            voice.warn(note)
    adapter = adapter_of(base)
    assert adapter is not None
    own = {id(tensor) for tensor in adapter.tensors().values()}
    foreign = [n for n, p in base.named_parameters() if p.requires_grad and id(p) not in own]
    if foreign:
        raise TrainError(codes.FOREIGN_PARAMETERS(count=len(foreign), name=foreign[0]))
    return base


def is_adapter(spec: Spec | str | None) -> TypeGuard[str]:
    """Whether what stands in the place of a spec is the folder of an adapter."""
    return isinstance(spec, str) and "\n" not in spec and (Path(spec) / CONFIG).is_file()


def tokenizer_of(
    base: PreTrainedModel | Source, tokenizer: PreTrainedTokenizerBase | None
) -> PreTrainedTokenizerBase:
    """The one that was given, or the model's own.

    Raises:
        TrainError: it has none (BS738).
        ModelError: the model cannot be found, or has no weights.
    """
    if tokenizer is None and isinstance(base, Source):
        tokenizer = load_tokenizer(base)
    if tokenizer is None:
        name = base.place if isinstance(base, Source) else architecture_of(base).name
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
