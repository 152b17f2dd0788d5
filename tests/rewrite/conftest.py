from collections.abc import Callable

import pytest
from torch import nn
from transformers.pytorch_utils import Conv1D

from bishare_dsl.rewrite.capture import capture_region
from bishare_dsl.rewrite.fallback import linear_region
from bishare_dsl.rewrite.install import install
from bishare_dsl.rewrite.structure import structure_key
from bishare_dsl.rewrite.trace import UntraceableRegion


def install_identity(model: nn.Module) -> dict[str, str]:
    """Rewrite every region of `model` without adapting anything.

    Returns the reason, by class name, for each parent that had to fall back to its linears.
    """
    graphs, fallbacks = {}, {}
    for module in list(model.modules()):
        linears = [n for n, c in module.named_children() if isinstance(c, nn.Linear | Conv1D)]
        if not linears or "lm_head" in linears:
            continue
        key = structure_key(module)
        if key not in graphs:
            try:
                graphs[key] = capture_region(module, linears)
            except UntraceableRegion as error:
                graphs[key], fallbacks[type(module).__name__] = None, error.reason
        if graphs[key] is not None:
            install(module, graphs[key])
        else:
            for name in linears:
                linear = module.get_submodule(name)
                install(linear, linear_region(linear))
    return fallbacks


@pytest.fixture
def identity() -> Callable[[nn.Module], dict[str, str]]:
    return install_identity
