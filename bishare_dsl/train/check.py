"""All that can be known of a run without the weights of its base; `run` tells it and acts on it.

Nothing is written, and nothing is said: what stops the run is raised, and what to know is given back.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeGuard

from bishare_dsl.adapter.contents import StoredAdapter
from bishare_dsl.adapter.files import CONFIG, place_of
from bishare_dsl.compiler import Planned, make_plan, read_fitting
from bishare_dsl.diagnostics import AdapterError, Problem, SourceMap
from bishare_dsl.diagnostics.codes import train as codes
from bishare_dsl.diagnostics.codes.adapter import COMPACT_FOR_GOOD
from bishare_dsl.diagnostics.codes.evaluate import NO_TOKENIZER
from bishare_dsl.models import Source, architecture_of, resolve
from bishare_dsl.models.inspect import other_task
from bishare_dsl.models.load import load_tokenizer
from bishare_dsl.train import folder as folders
from bishare_dsl.train import groups
from bishare_dsl.train import record as records
from bishare_dsl.train.arguments import Arguments, count_steps, warm_up_steps
from bishare_dsl.train.checkpoint import Checkpoint
from bishare_dsl.train.curve import can_draw
from bishare_dsl.train.data import DataReport, Examples, Rows, encode, load_rows, pack, split_off
from bishare_dsl.train.errors import TrainError
from bishare_dsl.train.trainer import adapter_of

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from bishare_dsl.adapter.handle import Handle
    from bishare_dsl.plan import Plan
    from bishare_dsl.spec import Spec
    from bishare_dsl.train.request import Request, Settings


@dataclass(frozen=True)
class CheckedRun:
    """A run that may begin.

    Attributes:
        request: what was asked.
        args: of the Trainer, with what follows from the data.
        resumed: the checkpoint to go on from.
        base: the model, or where it is.
        made: what is to be trained: planned, read from a folder, or in the model already.
        tokenizer: of the model.
        train: what is trained on.
        held_out: what is held out.
        reports: what became of the rows, by ``"train"`` and ``"eval"``.
        identity: what run this is.
        steps: of the optimizer.
        problems: that stop nothing, each with the text that it is about.
    """

    request: Request
    args: Arguments
    resumed: Checkpoint | None
    base: PreTrainedModel | Source
    made: Planned | StoredAdapter | Handle
    tokenizer: PreTrainedTokenizerBase
    train: Examples
    held_out: Examples | None
    reports: Mapping[str, DataReport]
    identity: Mapping[str, Any]
    steps: int
    problems: tuple[tuple[Problem, SourceMap | None], ...]

    @property
    def plan(self) -> Plan:
        """The plan of the adapter."""
        return self.made.plan


def check(
    request: Request,
    args: Arguments,
    *,
    tokenizer: PreTrainedTokenizerBase | None,
    force: bool,
    note: Callable[[str], None],
) -> CheckedRun:
    """Check whether a run may begin: folder, checkpoint, model, spec and every row.

    Args:
        request: what is asked.
        args: of the Trainer.
        tokenizer: that was given.
        force: whether an earlier run may be removed.
        note: takes a line before rows are encoded, which may take long.

    Raises:
        BishareError: it may not.
        FileNotFoundError: there is no such spec.
    """
    resumed = _resumed(request, force)
    base = resolve(request.model) if isinstance(request.model, str) else request.model
    if not isinstance(base, Source) and (other := other_task(base)) is not None:
        raise TrainError(codes.NOT_A_CAUSAL_CLASS(name=other))
    made, problems = _made(request, base, resumed)
    if wrong := [*groups.problems(made.plan, request.settings)]:
        raise TrainError(wrong)
    if tokenizer is None and isinstance(base, Source):
        tokenizer = load_tokenizer(base)
    if tokenizer is None:
        name = base.place if isinstance(base, Source) else architecture_of(base).name
        raise TrainError(NO_TOKENIZER(model=name))
    rows, held_out = _rows(request.settings, args.seed)
    note(f"encoding {len(rows) + len(held_out or ()):,} rows ...")
    settings, examples, reports = request.settings, {}, {}
    for name, part in {"train": rows, "eval": held_out}.items():
        if part is not None:
            found = encode(
                part,
                tokenizer,
                max_length=settings.max_length,
                train_on=settings.train_on,
                format=settings.format,
            )
            whole, reports[name] = found.examples, found.report
            examples[name] = pack(whole, settings.max_length) if settings.packing else whole
    steps = count_steps(args, len(examples["train"]))
    if "warmup_steps" not in request.arguments:
        known = None if resumed is None else resumed.run.get("warmup_steps")
        args.warmup_steps = warm_up_steps(steps, settings.recipe) if known is None else known
    identity = records.identity(request, made.plan, reports["train"], args, steps)
    if resumed is not None:
        problems += [(problem, None) for problem in _changes(resumed, identity, args, steps)]
    problems += [(problem, None) for problem in _schedule(args, steps)]
    if not can_draw():
        problems.append((codes.NO_CURVE(), None))
    return CheckedRun(
        request=request,
        args=args,
        resumed=resumed,
        base=base,
        made=made,
        tokenizer=tokenizer,
        train=examples["train"],
        held_out=examples.get("eval"),
        reports=reports,
        identity=identity,
        steps=steps,
        problems=tuple(problems),
    )


def _resumed(request: Request, force: bool) -> Checkpoint | None:
    """Find the checkpoint to go on from; for a run that begins, see that it may."""
    folder = request.output_dir
    if request.resume is None:
        folders.check_new(folder, force=force)
        return None
    if force:
        reason = "`force` begins anew, and `resume_from_checkpoint` goes on"
        raise TrainError(codes.BAD_COMBINATION(reason=reason))
    checkpoint = folders.find_checkpoint(folder, request.resume)
    if not folders.is_in(folder, checkpoint):
        folders.check_new(folder, force=False)
    return checkpoint


_Found = list[tuple[Problem, SourceMap | None]]


def _made(
    request: Request, base: PreTrainedModel | Source, resumed: Checkpoint | None
) -> tuple[Planned | StoredAdapter | Handle, _Found]:
    """Plan the spec, read the adapter, or find it in the model."""
    spec = request.spec
    adapter = None if isinstance(base, Source) else adapter_of(base)
    if request.params and (adapter is not None or _is_adapter(spec)):
        reason = "`params` are a spec's, and an adapter has none to be set"
        raise TrainError(codes.BAD_COMBINATION(reason=reason))
    if adapter is not None:
        if spec is not None:
            raise TrainError(codes.SPEC_AND_ADAPTED(spec=adapter.plan.spec))
        return adapter, []
    if spec is None and resumed is not None:
        spec = str(resumed.folder)
    if spec is None:
        raise TrainError(codes.MISSING_ARGUMENT(name="spec"))
    if _is_adapter(spec):
        stored, findings = read_fitting(spec, base)
        if stored.compact:
            raise AdapterError(COMPACT_FOR_GOOD())
        return stored, [(problem, None) for problem in findings]
    made = make_plan(spec, base, request.params)
    return made, [(problem, made.where) for problem in made.problems]


def _is_adapter(spec: Spec | str | None) -> TypeGuard[str]:
    return isinstance(spec, str) and "\n" not in spec and (place_of(spec)[0] / CONFIG).is_file()


def _rows(settings: Settings, seed: int) -> tuple[Rows, Rows | None]:
    """Read the rows to train on, and those held out."""
    rows = load_rows(settings.data, split=settings.data_split, subset=settings.data_subset)
    if settings.eval_data is not None:
        subset = settings.data_subset if settings.eval_data == settings.data else None
        return rows, load_rows(settings.eval_data, split=settings.eval_data_split, subset=subset)
    if settings.eval_split is not None:
        return split_off(rows, settings.eval_split, seed, format=settings.format)
    return rows, None


def _changes(
    resumed: Checkpoint, identity: Mapping[str, Any], args: Arguments, steps: int
) -> list[Problem]:
    """Find what is not as it was; all but a longer run and another division of the batch is an error."""
    assert resumed.state is not None
    before = resumed.run
    planned = before.get("steps", steps)
    longer = {"max_steps", "num_train_epochs", "steps"} if steps > planned else {"steps"}
    if different := records.differences(
        before, {n: v for n, v in identity.items() if n not in longer}
    ):
        help = f"begin a new run from its adapter: give `{resumed.folder}` in the place of the spec"
        raise TrainError(
            codes.OTHER_RUN(folder=resumed.folder, differences="; ".join(different), help=help)
        )
    found = [codes.LONGER(before=planned, now=steps)] if steps > planned else []
    was, now = resumed.state["division"], records.division(args)
    if was != now:
        said = (
            "{processes} processes with {per_device_train_batch_size} x "
            "{gradient_accumulation_steps} examples each"
        )
        found.append(codes.OTHER_SPLIT(before=said.format(**was), now=said.format(**now)))
    return found


def _schedule(args: Arguments, steps: int) -> list[Problem]:
    """Find a run that ends before the learning rate has warmed up."""
    warmup = args.get_warmup_steps(steps)
    if warmup < steps or args.lr_scheduler_type == "constant":
        return []
    reached = f"{args.learning_rate * (steps - 1) / warmup:.2g} of {args.learning_rate:g}"
    return [codes.LONG_WARMUP(steps=steps, warmup=warmup, reached=reached)]


def division_in_words(args: Arguments, steps: int) -> str:
    """Say how long a run is, and how a step is divided."""
    devices = f"{args.world_size} device{'s' if args.world_size > 1 else ''}"
    return (
        f"{steps:,} steps of {records.effective_batch(args):,} examples: {args.per_device_train_batch_size} "
        f"at once, on {devices}, {args.gradient_accumulation_steps} times"
    )
