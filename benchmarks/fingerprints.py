"""Measure how far the fingerprint of SmolLM2-135M-Instruct is from those of the same base and of others.

    timeout 900 python -m benchmarks.fingerprints

Prints a row for each base: what `difference` says (0: the same), and the distance of each group.
"""

import copy
import math
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
from accelerate import disk_offload
from transformers import AutoModelForCausalLM

from bishare_dsl import compile_spec
from bishare_dsl.folder.fingerprint import difference, fingerprint
from examples.smollm2 import smollm2_folder

FSDP2 = """
import torch, torch.distributed as dist, sys
from torch.distributed.fsdp import fully_shard
from transformers import AutoModelForCausalLM
from bishare_dsl.folder.fingerprint import fingerprint
dist.init_process_group("gloo", init_method="tcp://127.0.0.1:29533", rank=0, world_size=1)
model = AutoModelForCausalLM.from_pretrained(sys.argv[1])
for layer in model.model.layers:
    fully_shard(layer)
try:
    print(fingerprint(model))
except Exception as error:
    print(error.problems[0].message)
"""


def loaded(folder, **how):
    return AutoModelForCausalLM.from_pretrained(folder, **how).eval()


def stepped(model, size, steps=1):
    """Steps of AdamW on one text."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=size, weight_decay=0)
    ids = torch.arange(5, 69).view(1, -1)
    for _ in range(steps):
        model(input_ids=ids, labels=ids).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return model


def merged(model, kinds, size):
    """An update of each module of so much of its weight, merged."""
    compile_spec(f"spec s\ntarget {kinds}\nshare a per module rank 4\n", model)
    handle = model.bishare
    random = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for site in handle.plan.sites:
            term, weight = handle.plan.terms_of[site.path][0], model.get_submodule(site.path).weight
            a, b = (handle.tensors()[term.tensors[role]] for role in "AB")
            a.copy_(torch.randn(a.shape, generator=random))
            b.copy_(torch.randn(b.shape, generator=random))
            b.mul_(size * weight.norm() / (b.mT @ a).norm())
    return handle.merge_and_unload()


def rounded(model, bits):
    """Linear maps of blocks in groups of 64 with so many bits, as weights in float32."""
    for name, weight in model.named_parameters():
        if weight.dim() == 2 and ".layers." in name:
            rows = weight.data.view(-1, 64)
            step = rows.abs().amax(1, keepdim=True) / (2 ** (bits - 1) - 1)
            weight.data = ((rows / step).round() * step).view_as(weight)
    return model


def bnb(folder, **how):
    from transformers import BitsAndBytesConfig

    return loaded(folder, quantization_config=BitsAndBytesConfig(**how), device_map="cpu")


def sharded(base, folder):
    base.save_pretrained(folder, max_shard_size="50MB")
    assert len([*Path(folder).glob("*.safetensors")]) > 5
    return loaded(folder)


def grown(model):
    model.resize_token_embeddings(len(model.get_input_embeddings().weight) + 128)
    return model


def reseeded(model):
    torch.manual_seed(1)
    return AutoModelForCausalLM.from_config(model.config).eval()


def main():
    folder, scratch = smollm2_folder(), tempfile.mkdtemp()
    # Values of four bits hide what rounding to bfloat16 does, so the base leaves that grid first.
    base = stepped(loaded(folder, dtype=torch.float32), 1e-3, steps=5).bfloat16()
    base.save_pretrained(f"{scratch}/base")
    saved = fingerprint(base)
    again = lambda dtype=torch.float32: loaded(f"{scratch}/base", dtype=dtype)  # noqa: E731
    rows = {
        "float32": lambda: again(),
        "bfloat16": lambda: again(torch.bfloat16),
        "float16": lambda: again(torch.float16),
        "in shards": lambda: sharded(base, f"{scratch}/shards"),
        "vocabulary + 128": lambda: grown(again()),
        "offloaded to disk": lambda: disk_offload(again(), f"{scratch}/disk"),
        "AdamW, one step of 1e-4": lambda: stepped(again(), 1e-4),
        "AdamW, one step of 1e-6": lambda: stepped(again(), 1e-6),
        "merged, 1e-3 of q and v": lambda: merged(again(), "q_proj, v_proj", 1e-3),
        "merged, 1e-2 of all": lambda: merged(again(), 'kind "*_proj"', 1e-2),
        "bitsandbytes int8": lambda: bnb(f"{scratch}/base", load_in_8bit=True),
        "bitsandbytes nf4": lambda: bnb(
            f"{scratch}/base", load_in_4bit=True, bnb_4bit_quant_type="nf4"
        ),
        "int8 as float32": lambda: rounded(again(), 8),
        "another seed": lambda: reseeded(base),
    }
    print(f"{'base':26} difference  linear  embedding  norms", flush=True)
    for name, make in rows.items():
        try:
            found = fingerprint(make())
        except Exception as error:  # noqa: BLE001 - A row of the table.
            print(f"{name:26} {type(error).__name__}: {error}"[:200], flush=True)
            continue
        far = [
            math.dist(one, other) / math.hypot(*one) if len(one) == len(other) else math.nan
            for one, other in (
                (getattr(saved, group), getattr(found, group))
                for group in ("linear", "embedding", "norms")
            )
        ]
        said = difference(saved, copy.copy(found))
        print(f"{name:26} {said:<9.2g}  " + "  ".join(f"{x:.2g}" for x in far), flush=True)
    told = subprocess.run(
        [sys.executable, "-c", FSDP2, f"{scratch}/base"],
        capture_output=True,
        text=True,
        check=False,
    )
    print(f"{'FSDP2':26} {told.stdout.strip() or told.stderr[-300:]}")


if __name__ == "__main__":
    main()
