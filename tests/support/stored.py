"""Read an adapter's folder, and save a plain LoRA as one."""

from safetensors.torch import load_file

from bishare_dsl.cli.convert import save_again
from bishare_dsl.folder.config import attribute_in, is_seed
from bishare_dsl.folder.files import TENSORS, read_adapter
from bishare_dsl.folder.stacks import stacks_of
from bishare_dsl.loading import read_lora


def load_stored(folder):
    """Return the whole tensors in an adapter's folder by their names in the plan, as they lie there."""
    stored = read_adapter(folder)
    found = {attribute_in(key): t for key, t in load_file(folder / TENSORS).items()}
    stacks = [*stacks_of(stored.plan, stored.config.entries)]
    assert {key for key in found if not is_seed(key)} == {stack.key for stack in stacks}
    return {
        tensor.name: value
        for stack in stacks
        for tensor, value in zip(stack.tensors, found[stack.key], strict=True)
    }


def import_peft(folder, model, out, named=None):
    """Save a plain LoRA as an equal adapter, and return what was read."""
    stored = read_lora(folder, model, named)
    save_again(stored, out)
    return stored
