"""Count what `bishare verify` says of adapters and faults on a real vLLM for the CPU: run with .venv-vllm.

    timeout 900 .venv-vllm/bin/python -m benchmarks.verified > verified.json

Two servers of a tiny base on loopback, one in float32 with bishare's plug-in and one in bfloat16 without it.
A faulty folder is what a faulty engine would have read.
"""

import json
import shutil
import sys
import tempfile
import time
from collections import Counter
from contextlib import suppress
from pathlib import Path

import torch

from bishare_dsl import compile_spec
from bishare_dsl.adapter.files import save_library
from bishare_dsl.cli.main import main as bishare
from bishare_dsl.models.load import architecture_of, load_model
from bishare_dsl.verify.card import judge_card, read_card
from bishare_dsl.verify.contents import read_contents
from tests.serve_vllm import conftest  # noqa: F401 - sets vLLM's environment
from tests.serve_vllm.test_verify import Running
from tests.verify.served import FAULTS, LAYERS, ask_one, change, judged, save_lora
from tests.verify.test_server import VERDICTS

KINDS = "q_proj, k_proj, v_proj, o_proj, gate_proj, up_proj, down_proj"
TERMS = f"spec {{name}}\ntarget {KINDS}\nshare a per {{key}} rank 4 scale 2\n"
# A DoRA is served in compact mode alone, which this server does not run.
SPECS = {"member": TERMS.format(name="m", key="adapter, module")}
DEADLINE = time.monotonic() + 780


def drawn(plan, seed, size=0.15):
    random = torch.Generator().manual_seed(seed)
    return {t.name: size * torch.randn(t.shape, generator=random) for t in plan.tensors}


def broken(plan, tensors, fault):
    """The tensors that a faulty engine applies."""
    tensors = {name: tensor.clone() for name, tensor in tensors.items()}
    for site in plan.sites:
        for term in plan.terms_of[site.path]:
            names, layer = term.tensors, site.layer or 0
            off = fault == "prefix" or (fault == "half" and layer >= LAYERS // 2)
            off = off or (fault == "up" and site.kind == "up_proj")
            off = off or (fault == "k" and site.kind == "k_proj")
            for role in names:
                tensors[names[role]] *= 0 if off and role != "A" else 1
            if fault == "alpha":
                tensors[names["B"]] *= 0.5
            elif fault == "littered":
                tensors[names["B"]] += 0.05 * torch.randn(
                    tensors[names["B"]].shape, generator=torch.Generator().manual_seed(layer)
                )
    return tensors if fault != "older" else drawn(plan, 99)


def save(folder, plan, text, tensors):
    save_library(folder, plan, {"x": tensors}, text, seed=0)
    return f"{folder}#x"


def verdict(running, name, contents):
    return judged(ask_one(running.client(), name), name, contents, running.reference)


def main():
    root = Path(tempfile.mkdtemp())
    counts = {}

    def count(what, word, wanted):
        row = counts.setdefault(what, Counter())
        row["named" if word == wanted else f"{word} for {wanted}"] += 1
        print(what, word, wanted, flush=True, file=sys.stderr)

    running = []
    try:
        for dtype in ("float32", "bfloat16"):
            (root / dtype).mkdir()
            running.append(Running(root / dtype, dtype))
        exact, rounded = running
        for one in running:  # Faults of a plain LoRA.
            for fault in [*FAULTS, "older"]:
                served = shutil.copytree(one.lora, root / f"{one.dtype}-{fault}")
                change(served, **FAULTS.get(fault, {}))
                if fault == "older":
                    change(
                        served,
                        lambda found: {n: t.roll(1, 0).contiguous() for n, t in found.items()},
                    )
                one.load(one.client(), fault, served)
                word = verdict(one, fault, one.contents).word
                count(f"faults, LoRA, {one.dtype}", word, VERDICTS.get(fault, "OTHER TENSORS"))
        for kind, spec in SPECS.items():  # By the plug-in.
            model, _ = load_model(str(exact.base), dtype="float32")
            handle = compile_spec(spec, model).bishare
            plan, right = handle.plan, drawn(handle.plan, 1)
            place = save(root / f"{kind}-right", plan, spec, right)
            base, _ = load_model(str(exact.base), dtype="float32")
            contents = read_contents(place, base, plan.base)
            faults = ["none", "prefix", "up", "k", "half", "alpha", "littered", "older"]
            for fault in faults:
                served = save(root / f"{kind}-{fault}", plan, spec, broken(plan, right, fault))
                name = f"{kind}-{fault}".replace(" ", "-")
                exact.load(exact.client(), name, served)
                wanted = {"older": "OTHER TENSORS", "no magnitude": "AS IF"}.get(fault) or VERDICTS[
                    fault
                ]
                count(f"faults, {kind}, float32", verdict(exact, name, contents).word, wanted)
        good = root / "good"  # Good adapters of several sizes, and their cards.
        for i in range(20):
            save_lora(good / f"g{i}", exact.base, seed=10 + i, size=0.02 * 1.2**i)
        for one in running:
            for i in range(20):
                one.load(one.client(), f"g{i}", good / f"g{i}")
                found = read_contents(
                    good / f"g{i}", one.reference.model, architecture_of(str(exact.base))
                )
                asked = ask_one(one.client(), f"g{i}")
                word = judged(asked, f"g{i}", found, one.reference).word
                count(f"good, {one.dtype}", word, "APPLIED")
                card = root / f"g{i}.json"
                if not card.exists():
                    bishare(
                        [
                            "verify",
                            str(good / f"g{i}"),
                            "--model",
                            str(exact.base),
                            "--write-card",
                            str(card),
                        ]
                    )
                count(f"card, own, {one.dtype}", judge_card(read_card(card), asked).word, "APPLIED")
                other = root / f"g{(i - 7) % 20}.json"
                if other.exists():
                    word = judge_card(read_card(other), asked).word
                    count(
                        f"card, another's, {one.dtype}",
                        "applied" if word == "APPLIED" else "no",
                        "no",
                    )
                assert time.monotonic() < DEADLINE
        for i in range(0, 20, 2):  # The second server lacks half.
            rounded.client().call("/unload_lora_adapter", {"lora_name": f"g{i}"})
        out = root / "table.json"
        with out.open("w") as file:
            sys.stdout, stdout = file, sys.stdout
            command = ["verify", good, "--model", exact.base, "--server", exact.url]
            with suppress(SystemExit):
                bishare([*map(str, [*command, "--server", rounded.url, "--json"])])
            sys.stdout = stdout
        for row in json.loads(out.read_text())["rows"]:
            lacks = row["server"] == rounded.url and int(row["adapter"][1:]) % 2 == 0
            dtype = "float32" if row["server"] == exact.url else "bfloat16"
            count(f"table, {dtype}", row["word"], "NOT THERE" if lacks else "APPLIED")
    finally:
        for one in running:
            one.stop()
        print(json.dumps(counts, indent=1))


if __name__ == "__main__":
    main()
