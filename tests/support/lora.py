"""Plain LoRAs, as `bishare convert --for bishare` reads and saves them."""

from bishare_dsl.cli.convert import save_again
from bishare_dsl.compiler import read_lora


def import_peft(folder, model, out, named=None):
    """Save a plain LoRA as an equal adapter, and return what was read."""
    stored = read_lora(folder, model, named)
    save_again(stored, out)
    return stored
