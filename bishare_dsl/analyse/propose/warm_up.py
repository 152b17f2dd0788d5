"""Evidence from a few steps of training: of a LoRA in which nothing is shared."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from tempfile import TemporaryDirectory

from bishare_dsl.adapter.files import read_adapter
from bishare_dsl.analyse.keys import Grouping, share_of
from bishare_dsl.analyse.propose.evidence import Evidence, of_adapters
from bishare_dsl.analyse.read import read_updates
from bishare_dsl.models import architecture_of
from bishare_dsl.models.site import Site
from bishare_dsl.spec import Settings, Spec
from bishare_dsl.train.progress import progress
from bishare_dsl.train.reporter import Reporter
from bishare_dsl.train.request import make_request
from bishare_dsl.train.run import run

RANK = 8
"""Of the LoRA."""
SIZE = 8
"""Examples of a step."""
LEAST = 2
"""The fewest steps in which A changes: while B is 0 it has no gradient."""


def warm_up(
    model: str,
    sites: Sequence[Site],
    data: str,
    steps: int,
    *,
    seed: int = 0,
    dtype: str | None = None,
    on_cpu: bool = False,
    keep_starts: bool = False,
    reporter: Reporter,
) -> Evidence:
    """Train a LoRA for some steps, as `bishare train` does but for the size of a step; return its updates.

    Args:
        model: what names it, with its weights.
        sites: the modules to adapt.
        data: rows, as for training; they come again where there are too few.
        steps: `LEAST` at least.
        seed: of the LoRA and of the order of the rows.
        dtype: of the base's weights.
        on_cpu: whether a GPU is left alone.
        keep_starts: leave in the updates what A started as.
        reporter: is told what is found; where it is not quiet, steps are shown on standard error.

    Raises:
        BishareError: as `bishare_dsl.train.run.run` does.
        TrainingInterrupted: SIGINT or SIGTERM came; nothing of the run is left.
    """
    spec = Spec(
        name="warm_up",
        target=Grouping(architecture_of(model), sites).target,
        defaults=Settings(scale=2),
        shares=(share_of(f"share own  per module  rank {RANK}"),),
    )
    with ExitStack() as stack:
        folder = Path(stack.enter_context(TemporaryDirectory(prefix="bishare-")), "run")
        given = {
            "spec": spec,
            "model": model,
            "data": data,
            "output_dir": str(folder),
            "max_steps": steps,
            "per_device_train_batch_size": SIZE,
            "gradient_accumulation_steps": 1,
            "save_strategy": "no",
            "seed": seed,
            "dtype": dtype,
            "use_cpu": on_cpu or None,
        }
        shown = [] if reporter.quiet else [progress()]
        for bar in shown:
            stack.callback(bar.close)
        # Where it speaks, a run that is interrupted says that it leaves a checkpoint.
        unseen = Reporter(quiet=True, report=reporter.report, warn=reporter.warn)
        run(make_request(given, None), unseen, callbacks=shown)
        name = f"a LoRA of rank {RANK} after {steps:,} steps on {Path(data).name}"
        return of_adapters([read_updates(name, read_adapter(folder), keep_starts=keep_starts)])
