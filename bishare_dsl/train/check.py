"""What a run needs before it begins: its arguments, what is trained, the tokenizer, every row, the base.

Nothing is written: what stops the run is raised, and what to know is given back.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from transformers import set_seed

from bishare_dsl.adapter.contents import StoredAdapter
from bishare_dsl.adapter.files import CONFIG, place_of, read_adapter
from bishare_dsl.adapter.handle import Handle
from bishare_dsl.compiler import ResolvedSpec, make_plan, read_fitting
from bishare_dsl.diagnostics import AdapterError, Problem, SourceMap
from bishare_dsl.diagnostics.codes import train as codes
from bishare_dsl.diagnostics.codes.adapter import COMPACT_FOR_GOOD
from bishare_dsl.diagnostics.codes.evaluate import NO_TOKENIZER
from bishare_dsl.models import Source, resolve
from bishare_dsl.models.inspect import other_task
from bishare_dsl.models.load import load_model, load_tokenizer
from bishare_dsl.train.arguments import training_arguments
from bishare_dsl.train.data.encoding import Encoded, encode
from bishare_dsl.train.data.formats import split_off
from bishare_dsl.train.data.load import load_rows
from bishare_dsl.train.data.rows import Rows
from bishare_dsl.train.errors import TrainError
from bishare_dsl.train.folder import check_new, has_bank
from bishare_dsl.train.groups import check_names

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase
    from trl import SFTConfig

    from bishare_dsl.train.reporter import Reporter
    from bishare_dsl.train.request import Request, Settings

Made = ResolvedSpec | StoredAdapter | Handle
"""What is to be trained: planned, read from a folder, or in the model already."""

_FEW, _LOW = 10_000, 1e-3
"""Parameters so few that a rate below this is a slip: PEFT's entry for UniLoRA learnt nothing by it."""


def begin(
    request: Request, reporter: Reporter, *, force: bool
) -> tuple[SFTConfig, PreTrainedModel | Source]:
    """Return the Trainer's arguments, and the base or where it is; see that the folder is free.

    Raises:
        BishareError: an argument is wrong, the folder holds a run (BS740), or there is no such base.
    """
    settings, folder = request.settings, request.output_dir
    evaluates = settings.eval_data is not None or settings.eval_split is not None
    args = training_arguments(request.arguments, str(folder), evaluates=evaluates)
    if args.process_index > 0:
        reporter.silence()
    set_seed(args.seed)
    if args.should_save:  # Another process may find what this one has written.
        check_new(folder, force=force or request.resume is not None)
    return args, resolve(request.model) if isinstance(request.model, str) else request.model


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
    stored = isinstance(spec, str) and "\n" not in spec and is_adapter(spec)
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


def is_adapter(spec: str) -> bool:
    """Tell whether a word names an adapter's folder: what does not is a spec."""
    return (place_of(spec)[0] / CONFIG).is_file()


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


def find_tokenizer(
    request: Request, base: PreTrainedModel | Source, given: PreTrainedTokenizerBase | None
) -> PreTrainedTokenizerBase:
    """Return the tokenizer that was given, or the checkpoint's.

    Raises:
        TrainError: there is none (BS805).
    """
    if given is None and isinstance(base, Source):
        given = load_tokenizer(base)
    if given is None:
        raise TrainError(
            NO_TOKENIZER(model=request.model if isinstance(base, Source) else "the model")
        )
    return given


def encode_as_asked(rows: Rows, tokenizer: PreTrainedTokenizerBase, settings: Settings) -> Encoded:
    """Encode rows by the settings of a run. Errors are as for `encode`."""
    return encode(
        rows,
        tokenizer,
        max_length=settings.max_length,
        train_on=settings.train_on,
        format=settings.format,
    )


def load_base(
    request: Request, base: PreTrainedModel | Source, reporter: Reporter
) -> PreTrainedModel:
    """Return the model that was given, or load the one that was named."""
    if not isinstance(base, Source):
        return base
    settings = request.settings
    reporter.note(f"loading {request.model} ...")
    bits = 4 if settings.load_in_4bit else 8 if settings.load_in_8bit else None
    return load_model(base, dtype=settings.dtype, device=settings.device_map, bits=bits)[0]


def note_low_rate(reporter: Reporter, learned: int, rate: float, settings: Settings) -> None:
    """Say that few parameters learn little at a low rate, where no share has a rate of its own."""
    if learned < _FEW and rate < _LOW and not settings.lr_of:
        advice = "try --learning_rate 2e-3"
        reporter.note(f"so few parameters learn little at a rate of {rate:g}: {advice}")
