"""Read an adapter of shared factors with numpy alone, as docs/format.md says: dW of each module of its base.

python examples/reader.py FOLDER [NAME OF AN ADAPTER IN A LIBRARY]
"""

import base64
import functools
import hashlib
import json
import sys
import zlib
from pathlib import Path

import numpy as np

DTYPES = {"F64": "<f8", "F32": "<f4", "F16": "<f2", "BF16": "<u2", "U8": "u1", "I32": "<i4"}
ONE = np.ones((1, 1))
# The roles of each transform beside `gain_rank` and `gain_out`, and its options: all others are refused.
KNOWN = {
    "Identity": ("A B", ""),
    "SS": ("A B", "slice"),
    "KE": ("A B K_A K_B", "size kernel shared_rank rowwise"),
    "GT": ("A B G_id G_iu G_od G_ou", "size gates gate_rank"),
    "Basis": ("A B c_A c_B", "count"),
    "Mix": ("A B m_A m_B", "count_A count_B"),
    "Loadings": ("A B L_A L_B", "vectors"),
    "Core": ("A B core core_2 core_3 c", "cores count"),
    "BlockDiagonal": ("A B", "blocks cut"),
    "Grid": ("A B", "blocks"),
    "Hadamard": ("A B A_2 B_2", ""),
    "MiSS": ("B", ""),
    "Rotation": ("A B", "chunks_A chunks_B stride"),
    "Shards": ("A B I_A I_B", "rows shards"),
    "VectorBank": ("bank L_A L_B", "vectors length top_k bank_bound logits_deviation"),
    "Experts": ("A B G", "count"),
}
WORDS = {"slice": ("leading", "centre", "trailing"), "cut": ("both", "in", "out")}


def read(folder, name=None):
    """Return dW `(d_out, d_in)` by the path of a module, and what is trained in full by its parameter.

    Where a router makes dW depend on x `(d_in)`, a function of x stands in its place.
    """
    _, sharing, tensors = open_folder(folder, name)
    updates = {}
    for module in sharing["modules"]:
        routed = any(term["transform"] == "Experts" for term in module["terms"])
        update = functools.partial(update_of, module, tensors)
        updates[module["module"]] = update if routed else update()
    full = {f["parameter"]: tensors[f["tensor"]].reshape(f["shape"]) for f in sharing["full"]}
    return updates, full


def open_folder(folder, name=None):
    """Return the config, `sharing`, and the tensors by name."""
    config = json.loads(Path(folder, "adapter_config.json").read_text("utf-8"))
    sharing = config["bishare"]["sharing"]
    if isinstance(sharing, str):
        sharing = json.loads(zlib.decompress(base64.b64decode(sharing)))
    known(config["peft_type"] == "BISHARE" and sharing["format"] == 1, "format")
    for term in (term for module in sharing["modules"] for term in module["terms"]):
        check(term)
    stored = safetensors(Path(folder, "adapter_model.safetensors"))
    stored |= safetensors(Path(folder, "adapters", f"{name}.safetensors")) if name else {}
    tensors = {n: values(n, said, stored, config["seed"]) for n, said in sharing["tensors"].items()}
    return config, sharing, tensors


def known(condition, what):
    """Refuse what this reader does not know."""
    if not condition:
        raise SystemExit(f"this reader does not know: {what}")


def check(term):
    """Refuse a transform, a role, an option or a word that this reader does not know."""
    known(term["transform"] in KNOWN, f"the transform {term['transform']}")
    roles, options = (names.split() for names in KNOWN[term["transform"]])
    for role in term["tensors"]:
        known(role in (*roles, "gain_rank", "gain_out"), f"the role {role} of {term['transform']}")
    for option, value in term["options"].items():
        said = f"{option} = {value} of {term['transform']}"
        known(option in options and value in WORDS.get(option, (value,)), said)


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
    if "key" in said:
        return stored[said["key"]]
    if "parts" in said:
        below = stored[said["parts"]["below"]]
        logits = np.full(said["shape"], -np.inf)
        places = stored[said["parts"]["vectors"]].astype(int)
        np.put_along_axis(logits, places, np.pad(-below, ((0, 0), (1, 0))), 1)
        return logits
    known("draw" in said, "a start from the base's weights")
    drawn = draw(*said["draw"].items(), said["shape"], f"{seed}:{said.get('like', name)}")
    if said["dtype"] == "bfloat16":  # To the nearest, of two that are as near the even one.
        bits = drawn.view("<u4")
        return ((bits + 0x7FFF + (bits >> 16 & 1)) & 0xFFFF0000).view("<f4").astype(float)
    return drawn.astype(said["dtype"]).astype(float)


def draw(how, shape, text):
    (kind, amount), count = how, shape[0] * shape[1]
    known(kind in ("constant", "uniform", "normal", "choice"), kind)
    key = np.frombuffer(hashlib.sha256(text.encode()).digest()[:16], "<u8").astype("u8")
    philox = np.random.Philox(key=key)
    if kind == "choice":
        places = np.argsort(philox.random_raw(amount), kind="stable")[: shape[0]]
        return np.stack((places // 256, places % 256), 1)
    words = philox.random_raw((count + 1) // 2).astype("<u8").view("<u4")[:count]
    u = (words + 0.5) * 2.0**-32
    low, high = amount if kind == "uniform" else (amount, amount)
    made = amount * normal(u) if kind == "normal" else low + (high - low) * u
    return made.astype("<f4").reshape(shape)


def normal(u):
    q = u - 0.5
    t = 0.180625 - q * q
    near = q * np.polyval([59.109374720, 159.29113202, 50.434271938, 3.3871327179], t)
    near /= np.polyval([67.187563600, 78.757757664, 17.895169469, 1], t)
    m, e = np.frexp(np.minimum(u, 1 - u))
    y = (m - 1) / (m + 1)
    p = np.polyval(1 / np.arange(21, 0, -2), y * y)
    t = np.sqrt(-e * 0.6931471805599453 - 2 * y * p) - 1.6
    far = np.polyval([0.17023821103, 1.3067284816, 2.7568153900, 1.4234372777], t)
    far /= np.polyval([0.12021132975, 0.73700164250, 1], t)
    return np.where(abs(q) <= 0.425, near, np.copysign(far, q))


def update_of(module, tensors, x=None):
    """Return dW of a module, for x where there is a router."""
    total, (d_out, d_in) = 0, module["shape"]
    for term in module["terms"]:
        t = {role: tensors[name] for role, name in term["tensors"].items()}
        gain = t.get("gain_rank", ONE)
        if term["transform"] == "Experts":
            chances = t["G"] @ x
            chances = np.exp(chances - chances.max())
            gain = np.repeat(chances / chances.sum(), term["rank"])
        b = factor(term, t, "B", d_out)[:, :d_out].T * gain * t.get("gain_out", ONE).T
        total = total + term["scale"] * b @ factor(term, t, "A", d_in)[:, :d_in]
    return total


def factor(term, t, x, d):
    """Return the effective factor X of a term, whose side is d wide; what is more is cut off."""
    o, r, own = term["options"], term["rank"], t.get(x)
    match term["transform"]:
        case "Identity":
            return own
        case "SS":
            spare = own.shape[1] - d
            return own[:, {"leading": 0, "trailing": spare, "centre": spare // 2}[o["slice"]] :]
        case "KE":
            k = t[f"K_{x}"]
            return np.stack([*map(np.kron, k, own)]) if o["rowwise"] else np.kron(k, own)
        case "GT":
            p, q = t["A"] @ t["G_iu"].T, t["B"] @ t["G_od"].T
            if r < o["gate_rank"]:
                return p @ t["G_id"] if x == "A" else q @ t["G_ou"]
            return t["G_id"] if x == "A" else p.T @ q @ t["G_ou"]
        case "Basis" | "Mix":
            return mixed(t.get(f"c_{x}", t.get(f"m_{x}", ONE)), own)
        case "Loadings":
            return t[f"L_{x}"] @ own
        case "Core" if x == "A":
            return own
        case "Core":
            cores = [mixed(t.get("c", ONE), t["core"]), t.get("core_2"), t.get("core_3")]
            return functools.reduce(np.matmul, [*cores[: max(o["cores"], 1)], own])
        case "BlockDiagonal":
            return own if o["cut"] == {"A": "out", "B": "in"}[x] else diagonal(own, o["blocks"])
        case "Grid":
            parts = [own] if x == "A" else np.split(own, o["blocks"])
            return np.concatenate([diagonal(part, o["blocks"]) for part in parts])
        case "Hadamard":
            return (own[:, None, :d] * t[f"{x}_2"]).reshape(r * r, d)
        case "MiSS":
            return np.tile(np.eye(r), -(-d // r)) if x == "A" else own
        case "Rotation":
            count = o[f"chunks_{x}"]
            stride = max(r // count, 1) if o["stride"] is None else o["stride"]
            return np.hstack([np.roll(own, k * stride, 0) for k in range(count)])
        case "Shards":
            high, low = t[f"I_{x}"].astype(int).T
            pieces = own.reshape(r * o["shards"], -1)
            return pieces[(256 * high + low) % len(pieces)].reshape(o["rows"], d)
        case "VectorBank":
            logits = t[f"L_{x}"]
            places = np.argsort(-logits, 1, kind="stable")[
                :, : o["top_k"]
            ]  # Of equal ones the first.
            largest = np.take_along_axis(logits, places, 1)
            weights = np.exp(largest - largest[:, :1])
            weights /= weights.sum(1, keepdims=True)
            return np.einsum("sk,skl->sl", weights, t["bank"][places]).reshape(r, d)
        case "Experts":
            return np.tile(own, (o["count"], 1)) if x == "A" else own
        case other:
            return known(False, f"the transform {other}")


def mixed(weights, x):
    """Add up the matrices that lie one below the other in x."""
    return np.tensordot(weights[0], x.reshape(weights.size, -1, x.shape[1]), 1)


def diagonal(x, k):
    """Put k parts of the columns of x along a diagonal."""
    parts = x.reshape(len(x), k, -1)
    return np.einsum("kl,ilj->kilj", np.eye(k), parts).reshape(k * len(x), -1)


if __name__ == "__main__":
    updates, full = read(*sys.argv[1:])
    for place, value in (updates | full).items():
        sys.stdout.write(f"{place}  {value if callable(value) else np.linalg.norm(value)}\n")
