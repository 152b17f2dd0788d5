"""The names and types of the Trainer's arguments, read from the source of transformers.

Importing it takes seconds, and a wrong argument is answered at once.
"""

from __future__ import annotations

import ast
import builtins
import typing
from collections import defaultdict
from collections.abc import Mapping
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

_NOT_TAKEN = {
    *("output_dir", "resume_from_checkpoint", "save_only_model", "auto_find_batch_size"),
    *("push_to_hub", "use_liger_kernel", "liger_kernel_config", "deepspeed"),
    *("disable_tqdm", "label_smoothing_factor"),
    *("logging_nan_inf_filter", "remove_unused_columns"),
    *("gradient_checkpointing_kwargs", "activation_checkpointing_kwargs"),
}


@cache
def argument_types() -> Mapping[str, Any]:
    """Return the types of all accepted arguments by name; that of an enumeration is ``str``."""
    package = find_spec("transformers")
    assert package
    assert package.origin
    source = Path(package.origin).with_name("training_args.py").read_text("utf-8")
    classes = (node for node in ast.parse(source).body if isinstance(node, ast.ClassDef))
    body = next(node.body for node in classes if node.name == "TrainingArguments")
    known = defaultdict(lambda: str, vars(builtins) | vars(typing))
    types = {
        node.target.id: eval(ast.unparse(node.annotation), {}, known)
        for node in body
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name)
    }
    return {name: kind for name, kind in types.items() if name not in _NOT_TAKEN}


def is_flag(name: str) -> bool:
    """Return whether an argument is boolean, so that its option needs no value."""
    return name == "fsdp" or argument_types().get(name) in (bool, bool | None)
