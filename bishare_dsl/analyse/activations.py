"""What the updates of an adapter add to the tokens of some data, and what each share is worth on them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from bishare_dsl.analyse.batches import on_device
from bishare_dsl.analyse.progress import Watch, no_progress
from bishare_dsl.analyse.rmi import rmi
from bishare_dsl.analyse.similarity import Blocks, cka_of
from bishare_dsl.analyse.update import Factored, Update
from bishare_dsl.models.site import Site
from bishare_dsl.plan.names import without_start

if TYPE_CHECKING:
    from torch import nn
    from transformers import PreTrainedModel

    from bishare_dsl.adapter.handle import Handle

TOKENS = 4096
"""The most that activations are kept of."""


@dataclass(frozen=True)
class Activity:
    """What an update adds to each token.

    Attributes:
        site: the module.
        reduced: (tokens, rank), as long as what is added, and at the same angles.
        left: makes what is added of it: ``reduced @ left`` (tokens, d_out).
    """

    site: Site
    reduced: torch.Tensor
    left: torch.Tensor

    def permuted(self, random: torch.Generator) -> Activity:
        """Return the same with the tokens in a random order."""
        order = torch.randperm(len(self.reduced), generator=random)
        return Activity(self.site, self.reduced[order], self.left)


@dataclass(frozen=True)
class Worth:
    """The mean loss of a trained token: of the base, with the adapter, and without each of its shares."""

    base: float
    adapted: float
    without: Mapping[str, float]


def activity_similarity(things: Sequence[Activity]) -> dict[str, torch.Tensor]:
    """Return RMI and linear CKA of what each two updates add to the same tokens, (n, n) float64."""
    sizes = torch.tensor([float(len(t.reduced) * t.left.shape[1]) for t in things])
    means = torch.tensor(
        [float((t.reduced.mean(dim=0) * t.left.mean(dim=1)).sum()) for t in things]
    )
    energies = torch.tensor([float(t.reduced.double().square().sum()) for t in things])
    centred = torch.cat([t.reduced - t.reduced.mean(dim=0) for t in things], dim=1)
    squares = Blocks([t.reduced.shape[1] for t in things]).sums((centred.t() @ centred).square())
    return {
        "activation_rmi": rmi(means, energies / sizes, sizes),
        "activation_cka": cka_of(squares),
    }


@torch.no_grad()
def activities(
    model: PreTrainedModel,
    looks: Mapping[str, Sequence[Update]],
    batches: Sequence[dict[str, torch.Tensor]],
    watch: Watch = no_progress,
) -> dict[str, list[Activity]]:
    """Run the data through a model and keep what several sets of updates add to the same inputs.

    Modules that do not see every token, as experts, are left out.

    Args:
        model: with the adapter, so that its modules read what they read with it.
        looks: updates of the same modules, by name.
        batches: of tokens, with an ``attention_mask``.
        watch: goes over the batches.
    """
    read = _Inputs(model, {n: [(u.site, u.whole) for u in found] for n, found in looks.items()})
    seen = 0
    with read.hooked():
        for batch in watch(batches, "reading activations"):
            inputs = on_device(batch, model)
            read.mask = inputs["attention_mask"].bool()
            model(input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"])
            seen += int(read.mask.sum())
            if seen >= TOKENS:
                break
    return {
        name: [
            Activity(u.site, torch.cat(parts), u.whole.left)
            for u in found
            if sum(map(len, parts := read.parts.get((name, u.site.path), []))) == seen
        ]
        for name, found in looks.items()
    }


class _Inputs:
    """Reads what comes into modules, and keeps what factors make of it."""

    def __init__(
        self, model: nn.Module, looks: Mapping[str, Sequence[tuple[Site, Factored]]]
    ) -> None:
        self.mask = torch.empty(0)
        self.parts: dict[tuple[str, str], list[torch.Tensor]] = {}
        self._model = model
        self._read: dict[str, list[tuple[str, Factored]]] = {}
        for name, found in looks.items():
            for site, factored in found:
                self._read.setdefault(site.path, []).append((name, factored))

    @contextmanager
    def hooked(self) -> Iterator[None]:
        with ExitStack() as stack:
            for path in self._read:
                module = self._model.get_submodule(path)
                handle = module.register_forward_pre_hook(self._hook(path))
                stack.callback(handle.remove)
            yield

    def _hook(self, path: str) -> Any:
        def hook(module: nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
            (x,) = inputs[:1]
            if x.shape[:-1] != self.mask.shape:
                return
            rows = x[self.mask].float().cpu()
            for name, factored in self._read[path]:
                made = rows @ factored.right.t() * factored.values
                self.parts.setdefault((name, path), []).append(made)

        return hook


@torch.no_grad()
def worth(
    handle: Handle,
    batches: Sequence[dict[str, torch.Tensor]],
    watch: Watch = no_progress,
) -> Worth:
    """Measure what each share is worth: the loss without it, its tensors all zero for that time.

    Args:
        handle: ``model.bishare``; its tensors are as before afterwards.
        batches: with labels.
        watch: goes over the shares.
    """
    model = handle.model
    with handle.disable_adapter():
        base = _loss(model, batches)
    adapted, without = _loss(model, batches), {}
    shares = tuple(dict.fromkeys(without_start(term.share) for term in handle.plan.terms))
    for share in watch(shares, "leaving out shares"):
        with _left_out(handle, share):
            without[share] = _loss(model, batches)
    return Worth(base, adapted, without)


@contextmanager
def _left_out(handle: Handle, share: str) -> Iterator[None]:
    names = [tensor.name for tensor in handle.plan.tensors if without_start(tensor.share) == share]
    tensors = {name: handle.tensors()[name] for name in names}
    before = {name: tensor.detach().clone() for name, tensor in tensors.items()}
    try:
        for tensor in tensors.values():
            tensor.zero_()
        yield
    finally:
        for name, tensor in tensors.items():
            tensor.copy_(before[name])


def _loss(model: PreTrainedModel, batches: Sequence[dict[str, torch.Tensor]]) -> float:
    """Return the mean loss of a trained token."""
    total = tokens = 0.0
    for batch in batches:
        trained = float((batch["labels"][:, 1:] >= 0).sum())
        total += float(model(**on_device(batch, model)).loss) * trained
        tokens += trained
    return total / tokens
