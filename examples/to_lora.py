"""Write an adapter of shared factors as a plain LoRA of PEFT: one file, numpy alone, no bishare, no torch.

python examples/to_lora.py FOLDER OUT [NAME OF AN ADAPTER IN A LIBRARY]

docs/format.md describes what it reads. A module gets the pairs of all its terms, one below the
other, with their scales and gains in B.
"""

import functools
import hashlib
import json
import re
import sys
from pathlib import Path

import numpy as np

CONFIG, TENSORS = "adapter_config.json", "adapter_model.safetensors"
DTYPES = {
    "F64": "<f8",
    "F32": "<f4",
    "F16": "<f2",
    "BF16": "<u2",
    "U8": "u1",
    "I8": "i1",
}
ONE = np.ones((1, 1))
# The roles of each transform except `gain_rank` and `gain_out`, and its options: all others are refused.
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
    "magnitude": ("mu", "plain"),
}
GAINS = ["gain_rank", "gain_out"]
WORDS = {
    "slice": ("leading", "centre", "trailing"),
    "cut": ("both", "in", "out"),
    "plain": (True, False),
}


FIELDS = {"format", "needs", "tensors", "terms", "modules", "full"}
FEATURES = ("drawn", "experts", "full", "int4", "int8", "library", "tied")


def to_lora(folder, out, name=None):
    """Write the LoRA, and return A `(n, d_in)` and B `(d_out, n)` by the path of a module."""
    config, sharing, tensors = open_folder(folder, name)
    if any(term["transform"] == "magnitude" for term in sharing["terms"]):
        raise SystemExit(
            "a plain LoRA cannot hold `magnitude`, which scales the base's weights too: "
            "merge it with `bishare merge FOLDER --model BASE --out NEW`"
        )
    known(not sharing["full"], "a parameter that is trained in full, as a plain LoRA")
    pairs = {}
    for module in sharing["modules"]:
        known(not module.get("tied"), f"a weight that {module['module']} shares, as a plain LoRA")
        pairs[module["module"]] = pair_of(module, sharing["terms"], tensors)
    stored = {}
    for path, (a, b) in pairs.items():
        stored[f"base_model.model.{path}.lora_A.weight"] = a.astype("<f4")
        stored[f"base_model.model.{path}.lora_B.weight"] = b.astype("<f4")
    highest = max(len(a) for a, _ in pairs.values())
    ranks = {f"^{path.replace('.', chr(92) + '.')}": len(a) for path, (a, _) in pairs.items()}
    ranks = {pattern: rank for pattern, rank in ranks.items() if rank != highest}
    written = {
        "peft_type": "LORA",
        "base_model_name_or_path": config.get("base_model_name_or_path"),
        "r": highest,
        "lora_alpha": highest,  # B has the scales.
        "rank_pattern": ranks,
        "alpha_pattern": ranks,
        "target_modules": sorted(pairs),
        "bias": "none",
        "inference_mode": True,
    }
    Path(out).mkdir(parents=True)
    Path(out, CONFIG).write_text(json.dumps(written, indent=2) + "\n", "utf-8")
    Path(out, TENSORS).write_bytes(file_of(stored))
    return pairs


def pair_of(module, terms, tensors, x=None):
    """Return A and B of a module, dW = B A; of a module with a router for an input x."""
    d_out, d_in = module["shape"]
    downs, ups = [], []
    for number, *places in module["terms"]:
        term = terms[number]
        t = dict(zip(term["roles"], (tensors[place] for place in places), strict=True))
        gain = t.get("gain_rank", ONE)
        if term["transform"] == "Experts":
            known(x is not None, "an update that depends on the input, as a plain LoRA")
            chances = t["G"] @ x
            chances = np.exp(chances - chances.max())
            gain = np.repeat(chances / chances.sum(), term["rank"])
        up = factor(term, t, "B", d_out)[:, :d_out].T
        downs.append(factor(term, t, "A", d_in)[:, :d_in])
        ups.append(term["scale"] * up * gain * t.get("gain_out", ONE).T)
    a, b = np.concatenate(downs), np.hstack(ups)
    known(len(a) == module.get("rank", len(a)), f"another rank of {module['module']}")
    return a, b


def open_folder(folder, name=None, weights=None):
    """Return the config, `sharing`, and the tensors.

    `weights` are W (d_out, d_in) of the base by module, for tensors that start from them.
    """
    config = json.loads(Path(folder, CONFIG).read_text("utf-8"))
    known(config["peft_type"] == "BISHARE", "the method of this folder")
    known(not config.get("modules_to_save"), "modules that PEFT saved beside it")
    sharing = config["bishare"]["sharing"]
    known(sharing["format"] == 3, "this format")
    known({*sharing} == FIELDS, "these fields of `sharing`")
    for word in sharing["needs"]:
        known(word in KNOWN or word in FEATURES or (word == "base" and weights), word)
    known({*sharing["needs"]} - {"library"} == {*used(sharing)} - {"library"}, "other `needs`")
    for term in sharing["terms"]:
        check(term)
    stored = safetensors(Path(folder, TENSORS))
    stored |= safetensors(Path(folder, "adapters", f"{name}.safetensors")) if name else {}
    modules = [one for entry in sharing["modules"] for one in expanded(entry, "module")]
    full = [one for entry in sharing["full"] for one in expanded(entry, "parameter")]
    sharing = sharing | {"modules": modules, "full": full}
    tensors, kinds, left = [], [], {key for key in stored if not is_seed(key)}
    for entry in sharing["tensors"]:
        known(entry.get("count", 1) > 0, "a count of none")
        kinds += [entry] * entry.get("count", 1)
        if "base" in entry and weights:
            tensors.append(from_base(len(tensors), entry, sharing, weights))
        else:
            tensors += values(entry, stored, left)
    known(not left, f"the tensor {min(left, default='')}, which `sharing` does not name")
    check_modules(sharing, tensors, kinds)
    return config, sharing, tensors


def used(sharing):
    """Return the words of what is in a folder."""
    yield from (term["transform"] for term in sharing["terms"])
    text = [*sharing["tensors"], *sharing["modules"], *sharing["full"]]
    words = {"draw": "drawn", "expert": "experts"} | {
        w: w for w in ("base", "int8", "int4", "tied")
    }
    yield from (word for key, word in words.items() if any(key in entry for entry in text))
    yield from ["full"] * bool(sharing["full"])


def is_seed(key):
    return key.rpartition(".")[2].startswith("seed_")


def expanded(entry, name):
    """Return the modules or parameters of an entry, one for each block."""
    path, (first, count) = entry[name], entry.get("blocks", (0, 1))
    known(("blocks" in entry) == ("{}" in path) and count > 0, f"the blocks of {path}")
    here = {key: value for key, value in entry.items() if key != "blocks"}

    def at(ref, k):
        return ref[0] + k * ref[1] if isinstance(ref, list) else ref

    for k in range(count):
        more = {name: path.replace("{}", str(first + k))}
        if name == "module":
            terms = [[term, *(at(ref, k) for ref in refs)] for term, *refs in entry["terms"]]
            yield here | more | {"terms": terms}
        else:
            yield here | more | {"tensor": at(entry["tensor"], k)}


def check_modules(sharing, tensors, kinds):
    """Refuse modules and parameters that this reader does not know, or that refer to what is not there."""
    paths = [module["module"] for module in sharing["modules"]]
    paths += [full["parameter"] for full in sharing["full"]]
    known(len(paths) == len({*paths}), "a module or a parameter twice")
    used = set()
    for module in sharing["modules"]:
        path, known_fields = (
            module["module"],
            {"module", "shape", "rank", "tied", "expert", "terms"},
        )
        known({*module} <= known_fields, f"these fields of {path}")
        terms = [sharing["terms"][at(n, sharing["terms"])] for n, *_ in module["terms"]]
        names = [term["transform"] for term in terms]
        ranked = "magnitude" not in names and "Experts" not in names
        known(("rank" in module) == ranked, f"the rank of {path}")
        known("magnitude" not in names[:-1], f"such a magnitude at {path}")
        expert = re.search(r"experts\.(\d+)\.", path)
        known(module.get("expert") == (expert and int(expert[1])), f"the expert of {path}")
        for term, (_, *places) in zip(terms, module["terms"], strict=True):
            known(len(places) == len(term["roles"]), f"the tensors of {path}")
            used |= {at(place, tensors) for place in places}
            for role, place in zip(term["roles"], places, strict=True):
                selects = role in ("L_A", "L_B", "I_A", "I_B")
                selects &= term["transform"] in ("VectorBank", "Shards")
                known(not (selects and "scales" in kinds[place]), f"a quantised {role}")
    for full in sharing["full"]:
        size = tensors[at(full["tensor"], tensors)].size
        known(size == np.prod(full["shape"]), f"the shape of {full['parameter']}")
        used.add(full["tensor"])
    known(used == {*range(len(tensors))}, "a tensor that nothing uses")


def at(index, entries):
    known(isinstance(index, int) and 0 <= index < len(entries), f"the index {index}")
    return index


def known(condition, what):
    """Refuse what this reader does not know."""
    if not condition:
        raise SystemExit(f"this reader does not know: {what}")


def check(term):
    """Refuse a transform, a role, an option or a word that this reader does not know."""
    known(term["transform"] in KNOWN, f"the transform {term['transform']}")
    roles, options = (names.split() for names in KNOWN[term["transform"]])
    if term["transform"] == "magnitude":
        known(term["rank"] == term["scale"] == 1, "a rank or a scale of magnitude")
    else:
        roles += GAINS
    for role in term["roles"]:
        known(role in roles, f"the role {role} of {term['transform']}")
    for option, value in term["options"].items():
        named = f"{option} = {value} of {term['transform']}"
        known(option in options and value in WORDS.get(option, (value,)), named)


def safetensors(path):
    content = path.read_bytes()
    first = 8 + int.from_bytes(content[:8], "little")
    found = json.loads(content[8:first])
    found.pop("__metadata__", None)
    for key, entry in found.items():
        known(entry["dtype"] in DTYPES, f"the type {entry['dtype']}")
        array = np.frombuffer(
            content[first:][slice(*entry["data_offsets"])], DTYPES[entry["dtype"]]
        )
        array = (array.astype("<u4") << 16).view("<f4") if entry["dtype"] == "BF16" else array
        found[key] = array.reshape(entry["shape"])
    return found


def values(entry, stored, left):
    """Return the values of the tensors of an entry, wherever they are; its keys are taken from `left`."""
    fields = {"shape", "count", "row", "key", "int8", "int4", "scales", "offset"}
    if "draw" in entry:
        fields = {"shape", "draw", "text", "dtype", "sha256"}
    known(
        {*entry} <= fields and "base" not in entry,
        "a start from the base's weights, or such an entry",
    )
    if "draw" not in entry:
        keys = [entry[name] for name in ("key", "int8", "int4", "scales") if name in entry]
        known(len(keys) == (1 if "key" in entry else 2), "two ways to store a tensor")
        for key in keys:
            known(key in stored, f"the missing tensor {key}")
            left.discard(key)
        rows = range(first := entry.get("row", 0), first + entry["count"])
        known(first >= 0 and all(rows.stop <= len(stored[key]) for key in keys), "these rows")
        if "key" not in entry:
            return [quantised(entry, stored, row) for row in rows]
        array = stored[entry["key"]]
        known([*array.shape[1:]] == entry["shape"] and array.dtype.kind == "f", "such a stack")
        known(np.isfinite(array).all(), "values that are not finite")
        return [array[row].astype(float) for row in rows]
    drawn = draw(*entry["draw"].items(), entry["shape"], entry["text"])
    if entry["dtype"] == "bfloat16":  # To the nearest, of two that are as near the even one.
        bits = drawn.view("<u4")
        drawn = (bits + 0x7FFF + (bits >> 16 & 1)) >> 16
        check_digest(drawn.astype("<u2"), entry)
        return [(drawn << 16).astype("<u4").view("<f4").astype(float)]
    drawn = drawn.astype(entry["dtype"])
    check_digest(drawn, entry)
    return [drawn.astype(float)]


def quantised(entry, stored, row):
    """Return whole numbers times the scale of their group of 64, plus the offset."""
    count = entry["shape"][0] * entry["shape"][1]
    form, kind, size, shape = "int4", "u1", 7, [-(-count // 2)]
    if "int8" in entry:
        form, kind, size, shape = "int8", "i1", 127, [*entry["shape"]]
    numbers, scales = stored[entry[form]][row], stored[entry["scales"]][row]
    fits = numbers.dtype == kind and [*numbers.shape] == shape
    fits &= scales.dtype in ("<f2", "<f4") and scales.shape == (-(-count // 64),)
    fits = fits and np.isfinite(scales).all()
    numbers = numbers.astype(int).ravel()
    if form == "int4":
        numbers = np.stack((numbers & 15, numbers >> 4), 1).ravel() - 8
    known(fits and abs(numbers).max() <= size and not numbers[count:].any(), f"such {form} numbers")
    scaled = numbers[:count].astype("<f4") * np.repeat(scales.astype("<f4"), 64)[:count]
    scaled = scaled + np.float32(entry.get("offset", 0))
    return scaled.reshape(entry["shape"]).astype(float)


def from_base(place, entry, sharing, weights):
    """Return a tensor that the base's weights give."""
    users = {}
    for module in sharing["modules"]:
        for number, *places in module["terms"]:
            if place in places:
                weight = weights[module["module"]]
                role = sharing["terms"][number]["roles"][places.index(place)]
                users[module["module"]] = weight if role == "A" else weight.T
    [(start, amount)] = entry["base"].items()
    _, values, vectors = np.linalg.svd(np.concatenate([*users.values()]), full_matrices=False)
    count = entry["shape"][0]
    rows = slice(len(values) - count, None) if start.endswith("_bottom") else slice(count)
    power = {"svd": 0.5, "svd_bottom": 0.5, "svd_scaled": 1}.get(start, 0)
    made = amount * values[rows, None] ** power * vectors[rows]
    random = draw(("normal", 1), (2 * count, made.shape[1]), "0:marks").astype(float)
    products = np.einsum("icj,ij->ic", random.reshape(count, 2, -1), made)
    signs = np.array([(1 - 2 * (int(k) // 2), 1 - 2 * (int(k) % 2)) for k in entry["signs"]])
    sure = abs(products).sum(1) >= 0.008 * np.linalg.norm(made, axis=1)
    turn = np.where((products * signs).sum(1, keepdims=True) < 0, -1, 1)
    apart = abs((turn * products).sum(0) - entry["sums"]).max()
    known(sure.all() and apart <= 0.002 * np.linalg.norm(made), "these weights of the base")
    return turn * made


def check_digest(drawn, entry):
    """Refuse a tensor that comes out otherwise than it was."""
    found = hashlib.sha256(np.ascontiguousarray(drawn).tobytes()).hexdigest()
    known(found.startswith(entry["sha256"]), f"how {entry['text']} was drawn")


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
            # Of equal logits the first.
            places = np.argsort(-logits, 1, kind="stable")[:, : o["top_k"]]
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


def file_of(tensors):
    """Return the bytes of a file of safetensors, of float32."""
    header, data, end = {}, [], 0
    for key, value in tensors.items():
        data.append(np.ascontiguousarray(value).tobytes())
        start, end = end, end + len(data[-1])
        header[key] = {"dtype": "F32", "shape": [*value.shape], "data_offsets": [start, end]}
    text = json.dumps(header | {"__metadata__": {"format": "pt"}}).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text + b"".join(data)


if __name__ == "__main__":
    made = to_lora(*sys.argv[1:])
    sys.stdout.write(
        f"{len(made)} modules, at most of rank {max(len(a) for a, _ in made.values())}\n"
    )
