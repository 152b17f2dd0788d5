"""The plans that a server in compact mode has slots for: each its own, within the bytes that were granted."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bishare_dsl.diagnostics import AdapterError
from bishare_dsl.diagnostics.codes import adapter as codes
from bishare_dsl.models.inspect import inspect_config
from bishare_dsl.serve.terms import Layout
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
        self._rows, self._itemsize = lora.max_loras + 1, lora.lora_dtype.itemsize
        self._left, self.grows, self.folders = granted.bytes, True, granted.folders
        for folder in self.folders:
            self.number_of(folder, read_any(folder, self.base)[0])
        self.grows = granted.bytes is not None and not records_steps(config)

    def number_of(self, folder: str | Path, plan: Plan) -> int:
        """Return the number of an adapter's plan, which is added where it is another one.

        Raises:
            AdapterError: no plan is added any more (BS650), or its slots take more than is left (BS657).
        """
        reasons = [next(_differences(plan, held), None) for held in self.held]
        if None in reasons:
            return reasons.index(None)
        if not self.grows:
            reason = reasons[0] or "it has none"
            raise AdapterError(codes.OTHER_PLAN(folder=folder, reason=reason))
        if self._left is not None:
            layout = Layout(plan)
            need = (self._rows * layout.numbers + layout.common) * self._itemsize
            if need > self._left:
                gib, left = (f"{count / 2**30:.3g}" for count in (need, self._left))
                raise AdapterError(codes.NO_ROOM(folder=folder, need=gib, left=left))
            self._left -= need
        self.held.append(plan)
        return len(self.held) - 1


def _differences(plan: Plan, served: Plan) -> Iterator[str]:
    if plan is served:
        return
    for tensor in plan.tensors:
        if (twin := served.tensor.get(tensor.name)) is None:
            yield f"its tensor `{tensor.name}` is not in the server's plan"
        elif twin.shape != tensor.shape:
            yield f"its tensor `{tensor.name}` is {tensor.shape}, and {twin.shape} in the server's plan"
        elif twin.trainable != tensor.trainable:
            yield f"its tensor `{tensor.name}` is {'trained' if tensor.trainable else 'frozen'}"
    for name in served.tensor:
        if name not in plan.tensor:
            yield f"it has no tensor `{name}`"
    if plan.terms != served.terms:
        twins = {(term.share, term.site): term for term in served.terms}
        for term in plan.terms:
            if term != twins.get((term.share, term.site)):
                yield f"its share `{term.share}` is another one at `{term.site}`"
        yield "it has fewer terms"
