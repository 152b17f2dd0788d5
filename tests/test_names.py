import pytest
from torch import nn

from bishare_dsl.names import _OF_TORCH, MAX_BYTES, module_names, name_fault


@pytest.mark.parametrize(
    "name", ["default", "a", "my task", "ä-2", "task_1", "b" * MAX_BYTES, "checkpoint"]
)
def test_names_that_an_adapter_can_have(name):
    assert name_fault(name) is None


PATHS = ["a.b", "..", "a/b", "/abs/path", "a\\b", "C:x", "a#b", "checkpoint-2"]
TAKEN = ["__base__", "_private", "keys", "train", "bishare", "base_model"]
HIDDEN = ["", "\x1b[2J", "a\nb", "a\x00b", "a\u202eb", " a", "a ", "\ud800"]
LONG = ["b" * (MAX_BYTES + 1), "ä" * (MAX_BYTES // 2 + 1)]


@pytest.mark.parametrize("name", [*PATHS, *TAKEN, *HIDDEN, *LONG, 3, None])
def test_names_that_no_adapter_can_have(name):
    assert name_fault(name)


def test_names_of_the_models_own_modules():
    taken = module_names(["model.layers.0.mlp.up_proj", "lm_head"])
    own = ("model", "layers", "0", "mlp", "up_proj", "lm_head")
    assert all(name_fault(name, taken) for name in own)
    assert name_fault("1", taken) is None


def test_the_names_that_torch_takes_are_those_of_its_modules():
    # What a class defines: other libraries put attributes of theirs on `nn.Module` when they are imported.
    kinds = [kind for kind in nn.ModuleDict.__mro__ if kind.__module__.startswith("torch.")]
    public = {
        name
        for kind in kinds
        for name, value in vars(kind).items()
        if not name.startswith("_") and getattr(value, "__module__", "torch").startswith("torch")
    }
    # Another torch may have fewer; a name that it has and the list has not would be a KeyError of torch.
    assert public <= _OF_TORCH
