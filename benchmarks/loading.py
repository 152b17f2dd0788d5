"""Load the members of a library by name, and as many LoRAs of PEFT with equal numbers.

    python benchmarks/loading.py --adapters 1000

Each is read from its folder and made to tensors; bishare checks digests, shapes and values, and PEFT does
not. A member has 640 numbers of its own and 110,592 that are shared, and a LoRA of rank 1 on four kinds of
layers has 115,200. Times are of the processor, the best of some rounds in turns; the first warms the cache.
"""

from __future__ import annotations

import argparse
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from harness import write
from peft import LoraConfig, PeftConfig
from peft.utils.save_and_load import load_peft_weights
from safetensors.torch import save_file

import bishare_dsl.peft  # noqa: F401 - so that both have PEFT's imports
from bishare_dsl import parse_spec, plan_spec
from bishare_dsl.folder.files import names_in, read_adapter, read_members, save_library
from bishare_dsl.initial.values import draw
from bishare_dsl.models import preset
from bishare_dsl.resources import find_spec

NUMBERS = 640


def make_library(folder: Path, count: int) -> None:
    text = find_spec("library_core").read_text("utf-8")
    plan = plan_spec(parse_spec(text), preset("smollm2-135m"))
    common, own = draw(plan, 0), [t for t in plan.tensors if t.name not in plan.common]
    assert sum(t.size for t in own if t.trainable) == NUMBERS
    random = torch.Generator().manual_seed(0)
    members = {
        f"task{number}": common | {t.name: torch.randn(t.shape, generator=random) for t in own}
        for number in range(count)
    }
    save_library(folder, plan, members, text, seed=0)


def make_loras(folder: Path, count: int) -> None:
    random, kinds = torch.Generator().manual_seed(0), ("q_proj", "k_proj", "v_proj", "o_proj")
    plan = plan_spec(
        f"spec l\ntarget {', '.join(kinds)}\nshare l per module rank 1", preset("smollm2-135m")
    )
    for number in range(count):
        one = folder / f"task{number}"
        LoraConfig(r=1, target_modules=[*kinds], task_type="CAUSAL_LM").save_pretrained(one)
        tensors = {}
        for site in plan.sites:
            for side, shape in (("A", (1, site.d_in)), ("B", (site.d_out, 1))):
                name = f"base_model.model.{site.path}.lora_{side}.weight"
                tensors[name] = torch.randn(shape, generator=random)
        save_file(tensors, one / "adapter_model.safetensors", {"format": "pt"})


def by_name(library: Path) -> int:
    return sum(len(stored.tensors()) > 0 for stored in read_members(library, names_in(library)))


def alone(library: Path) -> int:
    names = names_in(library)
    return sum(len(read_adapter(f"{library}#{name}").tensors()) > 0 for name in names)


def by_peft(folder: Path) -> int:
    loaded = 0
    for one in folder.iterdir():
        PeftConfig.from_pretrained(one)
        loaded += len(load_peft_weights(str(one), device="cpu")) > 0
    return loaded


def processor_time(load: Callable[[Path], int], folder: Path, count: int) -> float:
    began = time.process_time()
    assert load(folder) == count
    return time.process_time() - began


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--adapters", type=int, default=1000)
    parser.add_argument("--rounds", type=int, default=3)
    settings = parser.parse_args()
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    count = settings.adapters
    with TemporaryDirectory() as scratch:
        library, loras = Path(scratch, "library"), Path(scratch, "loras")
        make_library(library, count)
        make_loras(loras, count)
        ways = {
            "a library's, by name": (by_name, library),
            "a library's, each alone": (alone, library),
            "PEFT's LoRAs": (by_peft, loras),
        }
        best = dict.fromkeys(ways, float("inf"))
        for _ in range(settings.rounds):
            for way, (load, folder) in ways.items():
                best[way] = min(best[way], processor_time(load, folder, count))
    peft = best["PEFT's LoRAs"]
    rows = [
        {
            "way": way,
            "adapters": count,
            "seconds": round(took, 3),
            "of PEFT's": round(took / peft, 2),
        }
        for way, took in best.items()
    ]
    print(rows) if count < 1000 else write("loading", rows, seed=0)


if __name__ == "__main__":
    main()
