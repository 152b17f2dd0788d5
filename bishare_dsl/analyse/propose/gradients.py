"""The gradients of modules' weights over some batches, by small sketches; no weight's gradient is made.

With random ``P (d_in, k)`` and ``S (l, d_out)``, ``Y = G P`` and ``Z = S G`` are the gradients that a LoRA's
factors would get, were they ``P`` and ``S``. Summed over batches they give the strongest directions of the
summed G: with ``Q`` a basis of ``Y``, ``G`` is near ``Q (S Q)^+ Z`` (Tropp et al., 2017).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any
from zlib import crc32

import torch

from bishare_dsl.analyse.batches import on_device
from bishare_dsl.analyse.progress import Watch, no_progress
from bishare_dsl.analyse.propose.evidence import RANK
from bishare_dsl.analyse.update import Factored
from bishare_dsl.models.site import Site

if TYPE_CHECKING:
    from torch import nn
    from transformers import PreTrainedModel

_INPUTS, _OUTPUTS = RANK + 8, 2 * (RANK + 8) + 1


class _Sketch:
    """The two sketches of one module's gradient, and what draws them."""

    def __init__(self, site: Site, seed: int):
        random = torch.Generator().manual_seed(crc32(f"{seed}:{site.path}".encode()))
        self.right = torch.randn(site.d_in, min(_INPUTS, site.d_in), generator=random)
        self.left = torch.randn(min(_OUTPUTS, site.d_out), site.d_out, generator=random)
        self.y = torch.zeros(site.d_out, self.right.shape[1])
        self.z = torch.zeros(self.left.shape[0], site.d_in)

    def add(self, x: torch.Tensor, g: torch.Tensor) -> None:
        """Add a batch: inputs (tokens, d_in), and gradients of the outputs (tokens, d_out)."""
        self.y += g.t() @ (x @ self.right)
        self.z += (g @ self.left.t()).t() @ x

    def factored(self) -> Factored:
        """Return the strongest directions of the sum."""
        basis = torch.linalg.qr(self.y).Q
        # lstsq of what fits S Q to Z, in the least squares.
        small = torch.linalg.lstsq((self.left @ basis).double(), self.z.double()).solution
        return Factored.of(small.float(), basis.t())


def gradients(
    model: PreTrainedModel,
    sites: Sequence[Site],
    batches: Sequence[dict[str, torch.Tensor]],
    *,
    seed: int = 0,
    watch: Watch = no_progress,
) -> Mapping[Site, Factored]:
    """Return the gradient of each module's weight, summed over batches, by its strongest directions.

    Args:
        model: the base; it is as before afterwards.
        sites: the modules.
        batches: with labels.
        seed: of the sketches.
        watch: goes over the batches.
    """
    sketches = {site: _Sketch(site, seed) for site in sites}
    with _frozen(model), _hooked(model, sketches):
        for batch in watch(batches, "reading gradients"):
            model(**on_device(batch, model)).loss.backward()
    return {site: sketch.factored() for site, sketch in sketches.items()}


@contextmanager
def _frozen(model: PreTrainedModel) -> Iterator[None]:
    """Keep gradients from the weights: they reach the embeddings' output and no further."""
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]

    def begin(module: nn.Module, inputs: Any, output: torch.Tensor) -> None:
        output.requires_grad_(True)

    for parameter in trained:
        parameter.requires_grad_(False)
    handle = model.get_input_embeddings().register_forward_hook(begin)
    try:
        with torch.enable_grad():
            yield
    finally:
        handle.remove()
        for parameter in trained:
            parameter.requires_grad_(True)


@contextmanager
def _hooked(model: nn.Module, sketches: Mapping[Site, _Sketch]) -> Iterator[None]:
    with ExitStack() as stack:
        for site, sketch in sketches.items():
            module = model.get_submodule(site.path)
            stack.callback(module.register_forward_hook(_hook(sketch)).remove)
        yield


def _hook(sketch: _Sketch) -> Callable[[nn.Module, tuple[torch.Tensor, ...], torch.Tensor], None]:
    def hook(module: nn.Module, inputs: tuple[torch.Tensor, ...], output: torch.Tensor) -> None:
        if not output.requires_grad:
            return
        x = inputs[0].detach().flatten(0, -2)

        def add(g: torch.Tensor) -> None:
            sketch.add(x.float().cpu(), g.detach().flatten(0, -2).float().cpu())

        output.register_hook(add)

    return hook
