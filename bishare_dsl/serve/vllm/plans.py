"""The plans and libraries with slots in compact mode, within the memory limit."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from bishare_dsl.batched.bank import Layout
from bishare_dsl.diagnostics import AdapterError
from bishare_dsl.diagnostics.codes import adapter as codes
from bishare_dsl.models.inspect import inspect_config
from bishare_dsl.serve.vllm.folder import Read, read_any
from bishare_dsl.serve.vllm.private import records_steps
from bishare_dsl.serve.vllm.settings import Granted

if TYPE_CHECKING:
    from bishare_dsl.plan import Plan


class Held(NamedTuple):
    """Adapters that share slots.

    Attributes:
        plan: their plan.
        library: the digest of their library's shared tensors; None without any.
    """

    plan: Plan
    library: str | None


class Plans:
    """The plans of a server's adapters, numbered by arrival; each library of a plan has a separate number.

    Plans of the folders in the settings are added at the start. Later plans are added on arrival, unless
    steps are recorded as CUDA graphs, which contain the kernels of fixed plans. A number is never reused:
    each process of a server assigns the same numbers without communication.

    Args:
        config: vLLM's config.
        granted: bishare's settings.

    Attributes:
        base: the shapes of the served model.
        folders: the folders in the settings.
        held: the plans and libraries.
        grows: whether plans can be added.
    """

    def __init__(self, config: Any, granted: Granted):
        lora = config.lora_config
        self.base = inspect_config(config.model_config.hf_config)
        self.held: list[Held] = []
        self._rows = lora.max_loras + 1
        self._dtype = lora.lora_dtype
        self._left = granted.bishare_slots_gib
        self.grows = True
        self.folders = granted.bishare_plans
        for folder in self.folders:
            self.number_of(folder, read_any(folder, self.base))
        self.grows = self._left is not None and not records_steps(config)

    def number_of(self, folder: str | Path, read: Read) -> int:
        """Return the number of an adapter's plan and library, after adding them if they are new.

        Raises:
            AdapterError: no plan can be added (BS650), or the slots exceed the remaining memory (BS657).
        """
        new = Held(read.plan, read.library)
        others = [_difference(new, held) for held in self.held]
        if None in others:
            return others.index(None)
        if not self.grows:
            why = f"it differs from the first one's in {others[0]}" if others else "it has none"
            raise AdapterError(codes.OTHER_PLAN(folder=folder, why=why))
        if self._left is not None:
            layout = Layout(new.plan, library=new.library is not None)
            need = layout.nbytes(self._rows, self._dtype) / 2**30
            if need > self._left:
                raise AdapterError(codes.NO_ROOM(folder=folder, need=need, left=self._left))
            self._left -= need
        self.held.append(new)
        return len(self.held) - 1


def _difference(new: Held, served: Held) -> str | None:
    """Describe how an adapter's plan or library differs from a served one; None if they are equal."""
    if new.plan is not served.plan:
        ours = _parts(new.plan)
        theirs = _parts(served.plan)
        for part in {**ours, **theirs}:
            if ours.get(part) != theirs.get(part):
                return part
    return None if new.library == served.library else "the tensors that its library shares"


def _parts(plan: Plan) -> dict[str, object]:
    tensors = {f"tensor `{t.name}`": (t.shape, t.trainable) for t in plan.tensors}
    return {**tensors, **{f"share `{t.share}` at `{t.site}`": t for t in plan.terms}}
