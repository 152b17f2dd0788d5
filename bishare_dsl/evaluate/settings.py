"""How to evaluate, in lm_eval's own words."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

SEEDS = (0, 1234, 1234, 1234)


@dataclass(frozen=True, kw_only=True)
class Settings:
    """lm_eval's flags of the same names, with its defaults.

    ``limit`` is a number of rows of each task, or a fraction of them below 1. ``seed`` is of Python, numpy,
    torch and the choice of few-shot examples: one for all, or four. Results are written into
    ``output_path`` as soon as a model is done, with ``log_samples`` every prompt and answer too.
    ``fewshot_as_multiturn`` follows ``apply_chat_template`` where it is None.
    """

    batch_size: int | str = 1
    max_batch_size: int | None = None
    limit: float | None = None
    apply_chat_template: bool | str = False
    fewshot_as_multiturn: bool | None = None
    system_instruction: str | None = None
    gen_kwargs: str | Mapping[str, Any] | None = None
    seed: int | tuple[int | None, int | None, int | None, int | None] = SEEDS
    output_path: str | os.PathLike[str] | None = None
    log_samples: bool = False
    confirm_run_unsafe_code: bool = False
