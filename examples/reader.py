"""Read an adapter of shared factors with numpy alone, as docs/format.md says: the update of each weight.

python examples/reader.py FOLDER [NAME OF AN ADAPTER IN A LIBRARY]

`to_lora.py` beside it has the factors.
"""

import functools
import sys

import numpy as np
from to_lora import known, open_folder, pair_of


def read(folder, name=None, weights=None):
    """Return the updates `(d_out, d_in)` by module, and what is trained in full by its parameter.

    Where a router makes one depend on x `(d_in)`, a function of x stands in its place.
    `weights` are W `(d_out, d_in)` of the base by module, for magnitudes and starts from the base.
    """
    _, sharing, tensors = open_folder(folder, name, weights)
    updates = {}
    for module in sharing["modules"]:
        update = functools.partial(update_of, module, sharing["terms"], tensors, weights or {})
        routed = any(sharing["terms"][i]["transform"] == "Experts" for i, *_ in module["terms"])
        plain = sharing["terms"][module["terms"][-1][0]]["options"].get("plain", True)
        known(plain or not routed, "lengths of rows that depend on the input")
        updates[module["module"]] = update if routed else update()
    full = {f["parameter"]: tensors[f["tensor"]].reshape(f["shape"]) for f in sharing["full"]}
    return updates, full


def update_of(module, terms, tensors, weights, x=None):
    """Return what is added to the weight of a module, for x where there is a router."""
    *others, (last, *places) = module["terms"]
    if terms[last]["transform"] != "magnitude":
        a, b = pair_of(module, terms, tensors, x)
        return b @ a
    path, mu = module["module"], tensors[places[0]]
    known(path in weights, f"the weight of {path}, which `magnitude` scales: pass `weights`")
    weight = whole = weights[path]
    fits = weight.shape == (*module["shape"],) and mu.shape == (1, len(weight))
    known(fits and "expert" not in module, f"such a magnitude at {path}")
    if others:
        a, b = pair_of(module | {"terms": others}, terms, tensors, x)
        whole = weight + b @ a
    g = 1 + mu.T
    if not terms[last]["options"]["plain"]:
        before, after = (np.linalg.norm(w, axis=1, keepdims=True) for w in (weight, whole))
        after = np.maximum(after, before / 1000)
        g *= np.divide(before, after, out=np.ones_like(g), where=before != after)
    return g * whole - weight


if __name__ == "__main__":
    updates, full = read(*sys.argv[1:])
    for place, value in (updates | full).items():
        sys.stdout.write(f"{place}  {value if callable(value) else np.linalg.norm(value)}\n")
