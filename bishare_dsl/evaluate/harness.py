"""lm_eval on a live model."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterable
from functools import partial
from typing import TYPE_CHECKING, Any

from lm_eval import simple_evaluate
from lm_eval.loggers import EvaluationTracker
from lm_eval.models.huggingface import HFLM
from lm_eval.utils import sanitize_model_name

from bishare_dsl.diagnostics import BishareError, Problem, one_line
from bishare_dsl.diagnostics.codes import evaluate as codes
from bishare_dsl.evaluate.errors import EvaluateError
from bishare_dsl.evaluate.quiet import lm_eval_logs, overheard

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from bishare_dsl.evaluate.settings import Settings
    from bishare_dsl.evaluate.tasks import LoadedTasks, Run

Tick = Callable[[str, int, int], None]
"""Told what is being done, how many requests are, and how many there are (0: not known yet)."""


class Harness:
    """lm_eval with one set of tasks and settings, for one model after another.

    Args:
        loaded: the tasks.
        settings: the rest.
        base: what to call the base model in lm_eval's files.
        tick: told of progress.

    ``said`` collects what lm_eval warns of.
    """

    def __init__(
        self, loaded: LoadedTasks, settings: Settings, base: str, tick: Tick = lambda *_: None
    ) -> None:
        self.loaded, self.settings, self.base, self.tick = loaded, settings, base, tick
        self.said: list[str] = []

    def evaluate(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        label: str,
        folder: str | os.PathLike[str] | None = None,
    ) -> tuple[list[dict[str, Any]], list[Problem]]:
        """Evaluate a model as it stands.

        Args:
            model: in eval mode.
            tokenizer: the model's.
            label: what to call the model, in messages and in the files that are written.
            folder: of the adapter that is in it.

        Returns:
            What lm_eval returns, for each run of the tasks; and what to warn of (BS809).

        Raises:
            EvaluateError: lm_eval, a task or the model failed (BS806).
        """
        results, answers = [], _Answers()
        for run in self.loaded.runs:
            what = f"{label}: {', '.join(run.names)}"
            self.tick(what, 0, 0)
            answers.watch(run.tasks, partial(self.tick, what))
            with overheard(self.said):
                try:
                    results.append(self._run(model, tokenizer, run, label, folder, answers))
                except BishareError:
                    raise
                except Exception as error:  # lm_eval's, a task's, the model's: of any type
                    raise EvaluateError(
                        codes.RUN_FAILED(model=label, reason=one_line(error))
                    ) from error
        problems = []
        if answers.broken:
            problems.append(
                codes.NOT_NUMBERS(count=answers.broken, total=answers.likelihoods, model=label)
            )
        return results, problems

    def _run(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        run: Run,
        label: str,
        folder: str | os.PathLike[str] | None,
        answers: _Answers,
    ) -> dict[str, Any]:
        s = self.settings
        with lm_eval_logs():  # It warns of being given a model, which is what it is for.
            lm = HFLM(
                pretrained=model,
                tokenizer=tokenizer,
                batch_size=s.batch_size,
                max_batch_size=s.max_batch_size or 64,
            )
        lm.set_cache_hook(answers)
        tracker = None
        if s.output_path is not None:
            tracker = EvaluationTracker(output_path=str(s.output_path))
        seeds = s.seed if isinstance(s.seed, tuple) else (s.seed,) * 4
        names = {"pretrained": self.base}
        results: dict[str, Any] = simple_evaluate(
            model=lm,
            model_args=names if folder is None else {**names, "bishare": str(folder)},
            tasks=list(run.items),
            task_manager=self.loaded.manager,
            num_fewshot=run.num_fewshot,
            batch_size=s.batch_size,
            max_batch_size=s.max_batch_size,
            device=str(model.device),
            limit=s.limit,
            log_samples=s.log_samples,
            evaluation_tracker=tracker,
            system_instruction=s.system_instruction,
            apply_chat_template=s.apply_chat_template,
            fewshot_as_multiturn=(
                bool(s.apply_chat_template)
                if s.fewshot_as_multiturn is None
                else s.fewshot_as_multiturn
            ),
            gen_kwargs=s.gen_kwargs,
            random_seed=seeds[0],
            numpy_random_seed=seeds[1],
            torch_random_seed=seeds[2],
            fewshot_random_seed=seeds[3],
            confirm_run_unsafe_code=s.confirm_run_unsafe_code,
        )
        samples = results.pop("samples", None)
        if tracker is not None:
            about = tracker.general_config_tracker
            about.model_name, about.model_name_sanitized = label, sanitize_model_name(label)
            tracker.save_results_aggregated(results=results, samples=samples)
            for task in samples or ():
                tracker.save_results_samples(task_name=task, samples=samples[task])
        return results


class _Answers:
    """What lm_eval tells of each answer as it comes (it takes this for the hook of its cache)."""

    def __init__(self) -> None:
        self.likelihoods = self.broken = 0

    def watch(self, tasks: Iterable[Any], tick: Callable[[int, int], None]) -> None:
        """Count from nothing for the next tasks; their requests are made by the first answer."""
        self._tasks, self._tick = tasks, tick
        self._done = self._total = 0

    def add_partial(self, attr: str, req: object, res: Any) -> None:
        if self._total == 0:
            self._total = sum(each.repeats for task in self._tasks for each in task.instances)
        self._done += 1
        self._tick(self._done, self._total)
        if attr != "generate_until":
            self.likelihoods += 1
            self.broken += math.isnan(res[0] if isinstance(res, tuple) else res)
