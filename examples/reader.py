"""Read an adapter of shared factors with numpy alone, as docs/format.md says: dW of each module of its base.

python examples/reader.py FOLDER [NAME OF AN ADAPTER IN A LIBRARY]

`to_lora.py` beside it has the factors.
"""

import functools
import sys

import numpy as np
from to_lora import open_folder, pair_of


def read(folder, name=None, weights=None):
    """Return dW `(d_out, d_in)` by the path of a module, and what is trained in full by its parameter.

    Where a router makes dW depend on x `(d_in)`, a function of x stands in its place.
    `weights` are W `(d_out, d_in)` of the base by module, for tensors that start from them.
    """
    _, sharing, tensors = open_folder(folder, name, weights)
    updates = {}
    for module in sharing["modules"]:
        update = functools.partial(update_of, module, sharing["terms"], tensors)
        routed = any(sharing["terms"][i]["transform"] == "Experts" for i, *_ in module["terms"])
        updates[module["module"]] = update if routed else update()
    full = {f["parameter"]: tensors[f["tensor"]].reshape(f["shape"]) for f in sharing["full"]}
    return updates, full


def update_of(module, terms, tensors, x=None):
    """Return dW of a module, for x where there is a router."""
    a, b = pair_of(module, terms, tensors, x)
    return b @ a


if __name__ == "__main__":
    updates, full = read(*sys.argv[1:])
    for place, value in (updates | full).items():
        sys.stdout.write(f"{place}  {value if callable(value) else np.linalg.norm(value)}\n")
