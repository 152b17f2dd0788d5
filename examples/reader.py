"""Read an adapter of shared factors with numpy alone, as docs/format.md says: dW of each module of its base.

python examples/reader.py FOLDER [NAME OF AN ADAPTER IN A LIBRARY]
"""

import base64
import hashlib
import json
import sys
import zlib
from pathlib import Path

import numpy as np

DTYPES = {"F64": "<f8", "F32": "<f4", "F16": "<f2", "BF16": "<u2", "U8": "u1", "I32": "<i4"}


def read(folder, name=None):
    """Return dW `(d_out, d_in)` by the path of a module, and what is trained in full by its parameter.

    Where a router makes it depend on x, a function of x `(n, d_in)` stands in the place of dW.
    """
    config = json.loads(Path(folder, "adapter_config.json").read_text("utf-8"))
    sharing = config["bishare"]["sharing"]
    if isinstance(sharing, str):
        sharing = json.loads(zlib.decompress(base64.b64decode(sharing)))
    known(config["peft_type"] == "BISHARE" and sharing["format"] == 1, "format")
    stored = {}
    for file in ("adapter_model", f"adapters/{name}")[: 1 if name is None else 2]:
        stored |= safetensors(Path(folder, f"{file}.safetensors"))
    tensors = {n: values(n, said, stored, config["seed"]) for n, said in sharing["tensors"].items()}
    full = {f["parameter"]: tensors[f["tensor"]].reshape(f["shape"]) for f in sharing["full"]}
    return {m["module"]: update(m, tensors) for m in sharing["modules"]}, full


def known(condition, what):
    """Refuse what this reader does not know."""
    if not condition:
        raise SystemExit(f"this reader does not know: {what}")


def safetensors(path):
    content = path.read_bytes()
    first = 8 + int.from_bytes(content[:8], "little")
    found = json.loads(content[8:first])
    found.pop("__metadata__", None)
    for key, said in found.items():
        array = np.frombuffer(content[first:][slice(*said["data_offsets"])], DTYPES[said["dtype"]])
        array = (array.astype("<u4") << 16).view("<f4") if said["dtype"] == "BF16" else array
        found[key] = array.reshape(said["shape"]).astype(float)
    return found


def values(name, said, stored, seed):
    if "parts" in said:
        return {part: stored[key] for part, key in said["parts"].items()}
    if "key" in said:
        return stored[said["key"]]
    known("base" not in said, "a start from the base's weights")
    [how] = said["draw"].items()
    drawn = draw(*how, said["shape"], f"{seed}:{said.get('like', name)}")
    if said["dtype"] == "bfloat16":  # To the nearest, of two that are as near the even one.
        bits = drawn.view("<u4")
        return ((bits + 0x7FFF + (bits >> 16 & 1)) & 0xFFFF0000).view("<f4").astype(float)
    return drawn.astype(said["dtype"]).astype(float)


def draw(kind, amount, shape, text):
    key = np.frombuffer(hashlib.sha256(text.encode()).digest()[:16], "<u8").astype("u8")
    philox, count = np.random.Philox(key=key), shape[0] * shape[1]
    if kind == "choice":
        places = np.argsort(philox.random_raw(amount), kind="stable")[: shape[0]]
        return np.stack((places // 256, places % 256), 1).astype("f4")
    words = philox.random_raw((count + 1) // 2).astype("<u8").view("<u4")[:count].astype(float)
    known(kind in ("constant", "uniform", "normal"), kind)
    low, high = amount if kind == "uniform" else (amount, amount)
    u = (words + 0.5) * 2.0**-32
    made = low * normal(u) if kind == "normal" else low + (high - low) * u
    return made.astype("<f4").reshape(shape)


def normal(u):
    q = u - 0.5
    t = 0.180625 - q * q
    top = ((59.109374720 * t + 159.29113202) * t + 50.434271938) * t + 3.3871327179
    near = q * top / (((67.187563600 * t + 78.757757664) * t + 17.895169469) * t + 1)
    m, e = np.frexp(np.minimum(u, 1 - u))
    y = (m - 1) / (m + 1)
    p = np.full_like(y, 1 / 21)
    for odd in range(19, 0, -2):
        p = p * (y * y) + 1 / odd
    t = np.sqrt(-e * 0.6931471805599453 - 2 * y * p) - 1.6
    top = ((0.17023821103 * t + 1.3067284816) * t + 2.7568153900) * t + 1.4234372777
    far = top / ((0.12021132975 * t + 0.73700164250) * t + 1)
    return np.where(abs(q) <= 0.425, near, np.copysign(far, q))


def update(module, tensors):
    terms = [(t, {role: tensors[n] for role, n in t["tensors"].items()}) for t in module["terms"]]
    if all(said["transform"] != "Experts" for said, _ in terms):
        return sum(matrix(said, own, *module["shape"]) for said, own in terms)
    return lambda x: sum(added(said, own, *module["shape"], x) for said, own in terms)


def added(said, own, d_out, d_in, x):
    """Return what a term adds for x."""
    if said["transform"] != "Experts":
        return x @ matrix(said, own, d_out, d_in).T
    chances = np.exp(x @ own["G"].T)[:, :, None]
    down = chances / chances.sum(1, keepdims=True) * (x @ own["A"].T)[:, None]
    return said["scale"] * own.get("gain_out", 1) * (down.reshape(len(x), -1) @ own["B"])


def matrix(said, own, d_out, d_in):
    """Return dW of a term."""
    a, b = factor(said, own, "A", d_in), factor(said, own, "B", d_out)
    up = b.T * own.get("gain_rank", 1) * said["scale"]
    return own.get("gain_out", np.ones((1, 1))).T * (up @ a)


def factor(said, t, x, d):
    """Return the effective factor X of a term, whose side is d wide."""
    o, r, own = said["options"], said["rank"], t.get(x)
    match said["transform"]:
        case "Identity" | "SS":
            spare = own.shape[1] - d
            start = {"trailing": spare, "centre": spare // 2}.get(o.get("slice"), 0)
            return own[:, start : start + d]
        case "KE":
            k = t[f"K_{x}"]
            return (np.stack([*map(np.kron, k, own)]) if o["rowwise"] else np.kron(k, own))[:, :d]
        case "GT":
            p, q = t["A"] @ t["G_iu"].T, t["B"] @ t["G_od"].T
            if r < o["gate_rank"]:
                return p @ t["G_id"] if x == "A" else q @ t["G_ou"]
            return t["G_id"] if x == "A" else p.T @ q @ t["G_ou"]
        case "Basis" | "Mix":
            return weighed(t.get(f"c_{x}", t.get(f"m_{x}")), own, r)[:, :d]
        case "Loadings":
            return t[f"L_{x}"] @ own[:, :d]
        case "Core":
            between = weighed(t.get("c"), t["core"], r)
            for core in ("core_2", "core_3")[: o["cores"] - 1]:
                between = between @ t[core]
            return (own if x == "A" else between @ own)[:, :d]
        case "BlockDiagonal":
            return own if o["cut"] == {"A": "out", "B": "in"}[x] else diagonal(own, o["blocks"])
        case "Grid":
            parts = [own] if x == "A" else np.split(own, o["blocks"])
            return np.concatenate([diagonal(part, o["blocks"]) for part in parts])
        case "Hadamard":
            return (own[:, None, :d] * t[f"{x}_2"]).reshape(r * r, d)
        case "MiSS":
            return np.tile(np.eye(r), -(-d // r))[:, :d] if x == "A" else own[:, :d]
        case "Rotation":
            count = o[f"chunks_{x}"]
            stride = max(r // count, 1) if o["stride"] is None else o["stride"]
            return np.hstack([np.roll(own, k * stride, 0) for k in range(count)])[:, :d]
        case "Shards":
            high, low = t[f"I_{x}"].astype(int).T
            pieces = own.reshape(r * o["shards"], -1)
            return pieces[(256 * high + low) % len(pieces)].reshape(o["rows"], d)
        case "VectorBank":
            logits = t[f"L_{x}"]
            if isinstance(logits, dict):
                places, below = logits["vectors"].astype(int), logits["below"]
                logits = np.hstack([np.zeros((len(below), 1)), -below])
            else:
                places = np.argsort(-logits, 1)[:, : o["top_k"]]
                logits = np.take_along_axis(logits, places, 1)
            weights = np.exp(logits - logits[:, :1])
            weights /= weights.sum(1, keepdims=True)
            return (weights[:, :, None] * t["bank"][places]).sum(1).reshape(r, d)
        case other:
            return known(False, f"the transform {other}")


def weighed(weights, x, r):
    """Add up the matrices of r rows that lie one below the other in x; without weights there is one."""
    return x if weights is None else np.tensordot(weights[0], x.reshape(-1, r, x.shape[1]), 1)


def diagonal(x, count):
    """Put equal parts of the columns of x along a diagonal."""
    return np.block(
        [[p * (i == j) for j in range(count)] for i, p in enumerate(np.split(x, count, 1))]
    )


if __name__ == "__main__":
    updates, full = read(*sys.argv[1:])
    for place, value in (updates | full).items():
        sys.stdout.write(f"{place}  {value if callable(value) else np.linalg.norm(value)}\n")
