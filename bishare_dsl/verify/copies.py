"""Probe a server with copies of an adapter, to find parts it ignores and leftovers in a slot.

A part of a trained adapter may change answers by less than bfloat16 rounding. So a copy has random values,
a third of the weight's size or larger, in a single part. If the answers do not change, the server ignores
the part.
"""

from __future__ import annotations

import json
import math
import re
import shutil
import uuid
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save

from bishare_dsl.export.from_peft import FACTOR
from bishare_dsl.export.peft import CONFIG, TENSORS
from bishare_dsl.export.peft_config import PREFIX, PeftConfig
from bishare_dsl.verify.answers import TEXTS, Answer, distance
from bishare_dsl.verify.contents import Contents, kind_of, layers_of
from bishare_dsl.verify.judge import (
    APPLIED,
    GARBAGE,
    IN_PART,
    NOT_APPLIED,
    SCALE,
    STALE,
    UNKNOWN,
    Asked,
    Verdict,
)
from bishare_dsl.verify.server import Server, shortened

LOUD = (0.3, 1.2, 4.8)
"""Sizes of a part's random values relative to its weight; if none has an effect, the part is ignored."""

_LEAST_CHANGE = 1e-5


@dataclass
class Copies:
    """Loads copies of an adapter into a server one at a time, and unloads each.

    The first copy of a bishare folder is unchanged. Other copies are PEFT LoRAs of the same modules.

    Attributes:
        server: a server that loads adapters at run time.
        contents: the adapter.
        asked: the answers of the base and the adapter.
        base, name: the server's names for these.
        scratch: a folder readable by the server.
        tell: receives progress messages.
    """

    server: Server
    contents: Contents
    asked: Asked
    base: str
    name: str
    scratch: Path
    tell: Callable[[str], None]
    floor: float = 0.0
    _count: int = field(default=0, init=False)

    def __post_init__(self) -> None:
        self._tensors, self._config, self._scales = _as_lora(self.contents)

    def test(self, verdict: Verdict) -> None:
        """Add the findings from copies to a verdict.

        Raises:
            VerifyError: the server loads no copy (BS872).
        """
        base, floor = self.asked.base, self.asked.noise
        fresh = self._answers() if self.contents.config is None else self._answers(self._tensors)
        self.floor = max(floor, distance(self._random(lambda path: True, _LEAST_CHANGE), base))
        verdict.numbers |= {"null": self.floor, "fresh": distance(self.asked.adapter, fresh)}
        self._parts(verdict)
        if self._differs(self.asked.adapter, fresh):
            off = verdict.numbers["fresh"]
            why = f"'{self.name}' differs from a fresh copy of the folder by {off:.2g}"
            verdict.fault(STALE, f"{why}: the server has older tensors; load them under a new name")
        empty = self._answers(
            {name: t * 0 if _is_up(name) else t for name, t in self._tensors.items()}
        )
        if self._differs(empty, base):
            off = distance(empty, base)
            why = f"a copy whose B is zero moves the answers by {off:.2g}"
            verdict.fault(GARBAGE, f"{why}: something else is in its slot")
        off = distance(self._answers(*self._folded()), fresh)
        if off > 2 * self.floor:
            copy = "copy whose scale alpha / r is folded into B"
            why = f"a {copy if self.contents.config else 'LoRA of the same update'} differs by {off:.2g}"
            verdict.fault(SCALE, f"{why}: the server applies another scale")
        verdict.unseen = [fault for fault in verdict.unseen if "--copies" not in fault]
        if "effect" not in verdict.numbers:
            verdict.unseen += ["A and B swapped", "another base", "layers shifted within the stack"]
        if verdict.word == UNKNOWN and not verdict.faults:
            verdict.word = APPLIED
            why = "each kind and both ends of the layers are heard"
            verdict.why = f"{why}, and '{self.name}' answers as a fresh copy"

    def _parts(self, verdict: Verdict) -> None:
        """Find kinds and layers that the server ignores."""
        kinds = list(dict.fromkeys(map(kind_of, self.contents.named)))
        silent = [kind for kind in kinds if not self._heard({kind}, kind_of)]
        if len(silent) == len(kinds):
            why = (
                "no module is applied, however large its values: the server knows none of the names"
            )
            verdict.fault(NOT_APPLIED, why)
            return
        if silent:
            verdict.fault(IN_PART, f"the server ignores {', '.join(silent)}")
        layers = layers_of(self.contents.named)
        half = len(layers) // 2
        ignored = {*self._silent_end(layers), *self._silent_end(layers[::-1])}
        for part in (layers[:half], layers[half:]):
            if not ignored & {*part} and part and not self._heard({*part}, _layer):
                ignored |= {*part}
        if ignored:
            several = f"layers {min(ignored)} to {max(ignored)}"
            why = (
                several
                if len(ignored) > 1
                else f"layer {min(ignored)}, or shifts all layers by one"
            )
            verdict.fault(IN_PART, f"the server ignores {why}")

    def _silent_end(self, ordered: list[int]) -> list[int]:
        """Return the leading layers that the server ignores, by bisection."""
        silent, most = 0, len(ordered)
        while silent < most:
            middle = (silent + most + 1) // 2 if silent else 1
            if self._heard({*ordered[:middle]}, _layer):
                most = middle - 1
            else:
                silent = middle
        return ordered[:silent]

    def _heard(self, part: Collection[object], of: Callable[[str], object]) -> bool:
        """Return whether large random values in a part change the answers."""
        for size in LOUD:
            answer = self._random(lambda path: of(path) in part, size)
            base = self.server.ask(self.base, TEXTS)
            # Not `>`: after an overflow, NaN must count as a change.
            if answer != base and not distance(answer, base) <= 1.5 * self.floor:
                return True
        return False

    def _random(self, part: Callable[[str], bool], size: float) -> list[Answer]:
        """Return the answers of a copy with random values of this size in one part, and zeros elsewhere."""
        random = torch.Generator().manual_seed(self._count)
        drawn = {}
        for name, tensor in self._tensors.items():
            module = _module(name)
            if module is not None and part(module):
                values = torch.randn(tensor.shape, generator=random)
                if _is_up(name):
                    # |W| is about sqrt(rows), and |B A| for normal values about sqrt(rows * rank *
                    # columns).
                    down = self._tensors.get(_down_of(name), tensor)
                    values *= size / (self._scales[module] * math.sqrt(down.numel()))
                drawn[name] = values.to(tensor.dtype)
        return self._answers(drawn)

    def _differs(self, one: list[Answer], other: list[Answer]) -> bool:
        return one != other if self.asked.exact else distance(one, other) > 2 * self.floor

    def _folded(self) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
        """Return tensors with their scales folded into B, and config changes that set the scale to 1."""
        folded = {
            name: (t.float() * self._scales[module or ""]).to(t.dtype) if _is_up(name) else t
            for name, t in self._tensors.items()
            for module in [_module(name)]
        }
        config = PeftConfig.model_validate(self._config)
        alphas = {"lora_alpha": config.r, "alpha_pattern": dict(config.rank_pattern)}
        return folded, alphas | {"use_rslora": False}

    def _answers(
        self,
        tensors: Mapping[str, torch.Tensor] | None = None,
        changes: Mapping[str, Any] | None = None,
    ) -> list[Answer]:
        """Load a copy under a unique name, query and unload it; without tensors, the unchanged folder."""
        self._count += 1
        self.tell(f"copy {self._count} ...")
        name = f"verify-{uuid.uuid4().hex[:8]}"
        folder = self.scratch / name
        folder.mkdir()
        if tensors is None:
            for file in (CONFIG, TENSORS):
                shutil.copy(self.contents.folder / file, folder)
        else:
            (folder / CONFIG).write_text(json.dumps(self._config | dict(changes or {})))
            (folder / TENSORS).write_bytes(save({n: t.contiguous() for n, t in tensors.items()}))
        body, root = {"lora_name": name, "lora_path": str(folder)}, False
        status, text = self.server.call("/load_lora_adapter", body)
        if status == 404:
            root = True
            status, text = self.server.call("/load_lora_adapter", body, root=True)
        if status != 200:
            raise self.server.fails(f"loads no copy of the adapter: {status} {shortened(text)}")
        try:
            return self.server.ask(name, TEXTS)
        finally:
            self.server.call("/unload_lora_adapter", {"lora_name": name}, root=root)
            shutil.rmtree(folder, ignore_errors=True)


def _as_lora(
    contents: Contents,
) -> tuple[Mapping[str, torch.Tensor], dict[str, Any], Mapping[str, float]]:
    """Return an adapter as a PEFT LoRA: its tensors, its config, and the scales of its modules."""
    if contents.config is not None:
        return contents.tensors, contents.config.model_dump(exclude_unset=True), contents.scales
    ranks = {path: len(pair.down) for path, pair in contents.pairs.items()}
    highest = max(ranks.values())
    pattern = {f"^{re.escape(path)}": rank for path, rank in ranks.items() if rank != highest}
    config = {"peft_type": "LORA", "r": highest, "lora_alpha": highest, "bias": "none"}
    config |= {"target_modules": sorted({*map(kind_of, ranks)})}
    config |= {"rank_pattern": pattern, "alpha_pattern": pattern}
    tensors = {
        f"{PREFIX}{path}.lora_{factor}.weight": tensor
        for path, pair in contents.pairs.items()
        for factor, tensor in (("A", pair.down), ("B", pair.up))
    }
    return tensors, config, dict.fromkeys(ranks, 1.0)


def _module(name: str) -> str | None:
    """Return the module of a factor; None for other tensors."""
    match = FACTOR.fullmatch(name.removeprefix(PREFIX))
    return match[1] if match else None


def _is_up(name: str) -> bool:
    return name.endswith(("lora_B.weight", "lora_embedding_B"))


def _down_of(name: str) -> str:
    return name.replace("lora_B.weight", "lora_A.weight").replace("embedding_B", "embedding_A")


def _layer(path: str) -> int | None:
    return next(iter(layers_of([path])), None)
