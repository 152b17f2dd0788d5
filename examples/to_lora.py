"""Write an adapter of shared factors as a plain LoRA of PEFT, with numpy alone: no bishare, no torch.

python examples/to_lora.py FOLDER OUT [NAME OF AN ADAPTER IN A LIBRARY]

It reads the folder by `reader.py` beside it. A module gets the pairs of all its terms, one below the other,
with their scales and gains in B.
"""

import json
import sys
from pathlib import Path

import numpy as np
from reader import ONE, factor, known, open_folder

CONFIG, TENSORS = "adapter_config.json", "adapter_model.safetensors"


def to_lora(folder, out, name=None):
    """Write the LoRA, and return A `(n, d_in)` and B `(d_out, n)` by the path of a module."""
    config, sharing, tensors = open_folder(folder, name)
    known(not sharing["full"], "a parameter that is trained in full, as a plain LoRA")
    pairs = {}
    for module in sharing["modules"]:
        known(not module.get("tied"), f"a weight that {module['module']} shares, as a plain LoRA")
        pairs[module["module"]] = pair_of(module, tensors)
    stored = {}
    for path, (a, b) in pairs.items():
        stored[f"base_model.model.{path}.lora_A.weight"] = a
        stored[f"base_model.model.{path}.lora_B.weight"] = b
    highest = max(len(a) for a, _ in pairs.values())
    ranks = {f"^{path.replace('.', chr(92) + '.')}": len(a) for path, (a, _) in pairs.items()}
    ranks = {pattern: rank for pattern, rank in ranks.items() if rank != highest}
    said = {
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
    Path(out, CONFIG).write_text(json.dumps(said, indent=2) + "\n", "utf-8")
    Path(out, TENSORS).write_bytes(file_of(stored))
    return pairs


def pair_of(module, tensors):
    """Return the pair of a module, for which dW = B A."""
    d_out, d_in = module["shape"]
    downs, ups = [], []
    for term in module["terms"]:
        known(
            term["transform"] != "Experts", "an update that depends on the input, as a plain LoRA"
        )
        t = {role: tensors[name] for role, name in term["tensors"].items()}
        up = factor(term, t, "B", d_out)[:, :d_out].T
        downs.append(factor(term, t, "A", d_in)[:, :d_in])
        ups.append(term["scale"] * up * t.get("gain_rank", ONE) * t.get("gain_out", ONE).T)
    return np.concatenate(downs).astype("<f4"), np.hstack(ups).astype("<f4")


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
