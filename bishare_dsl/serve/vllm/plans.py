"""The plans that a server in compact mode has slots for: each its own, within the bytes that were granted."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from bishare_dsl.batched.bank import Layout
from bishare_dsl.diagnostics import AdapterError
from bishare_dsl.diagnostics.codes import adapter as codes
from bishare_dsl.models.inspect import inspect_config
from bishare_dsl.serve.vllm.folder import read_any
from bishare_dsl.serve.vllm.private import records_steps
from bishare_dsl.serve.vllm.settings import Granted

if TYPE_CHECKING:
    from bishare_dsl.plan import Plan


class Plans:
    """The plans of a server's adapters, numbered as they came.

    Those of the folders that the settings name are there from the start. Others are added while they come,
    unless steps are recorded, which have the kernels of the plans that there were.

    Args:
        config: vLLM's.
        granted: what its settings say.

    Attributes:
        base: the shapes of the model that is served.
        folders: that the settings name.
        held: the plans.
        grows: whether others are added.
    """

    def __init__(self, config: Any, granted: Granted):
        lora = config.lora_config
        self.base = inspect_config(config.model_config.hf_config)
        self.held: list[Plan] = []
        self._rows, self._dtype = lora.max_loras + 1, lora.lora_dtype
        self._left, self.grows = granted.bishare_slots_gib, True
        self.folders = granted.bishare_plans
        for folder in self.folders:
            self.number_of(folder, read_any(folder, self.base)[0])
        self.grows = self._left is not None and not records_steps(config)

    def number_of(self, folder: str | Path, plan: Plan) -> int:
        """Return the number of an adapter's plan, which is added where it is another one.

        Raises:
            AdapterError: no plan is added any more (BS650), or its slots take more than is left (BS657).
        """
        others = [_difference(plan, held) for held in self.held]
        if None in others:
            return others.index(None)
        if not self.grows:
            what = others[0] if others else "plan at all"
            raise AdapterError(codes.OTHER_PLAN(folder=folder, what=what))
        if self._left is not None:
            need = Layout(plan).nbytes(self._rows, self._dtype) / 2**30
            if need > self._left:
                raise AdapterError(codes.NO_ROOM(folder=folder, need=need, left=self._left))
            self._left -= need
        self.held.append(plan)
        return len(self.held) - 1


def _difference(plan: Plan, served: Plan) -> str | None:
    """Say what is another one in two plans; None where they are the same."""
    if plan is served:
        return None
    mine, theirs = _parts(plan), _parts(served)
    return next((part for part in {**mine, **theirs} if mine.get(part) != theirs.get(part)), None)


def _parts(plan: Plan) -> dict[str, object]:
    tensors = {f"tensor `{t.name}`": (t.shape, t.trainable) for t in plan.tensors}
    return {**tensors, **{f"share `{t.share}` at `{t.site}`": t for t in plan.terms}}
