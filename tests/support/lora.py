"""Plain LoRAs, as `bishare convert --for bishare` reads and saves them."""

from __future__ import annotations

import os
from typing import Any

from bishare_dsl.adapter.contents import StoredAdapter
from bishare_dsl.cli.convert import save_again
from bishare_dsl.compiler import read_lora


def import_peft(
    folder: str | os.PathLike[str], model: Any, out: str | os.PathLike[str], named: Any = None
) -> StoredAdapter:
    """Save a plain LoRA as an equal adapter, and return what was read."""
    stored = read_lora(folder, model, named)
    save_again(stored, out)
    return stored
