"""Count what `bishare verify` says of adapters and faults on a real vLLM for the CPU: run with .venv-vllm.

    timeout 2400 .venv-vllm/bin/python -m benchmarks.verified verified.json [plain] [dora] [int8] [experts]

Servers of a tiny base on loopback, one after another: in float32, in bfloat16, of the base rounded to int8,
and in float32 with bishare's compact mode. A faulty folder is what a faulty engine would have read.
vLLM for the CPU computes no LoRA of experts, so these are asked of transformers, by the tests' server.
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
from transformers import AutoModelForCausalLM

from bishare_dsl import compile_spec
from bishare_dsl.cli.main import main as bishare
from bishare_dsl.folder.files import save_library
from bishare_dsl.models.load import architecture_of, load_model
from bishare_dsl.testing.tokenizer import tiny_tokenizer
from bishare_dsl.verify.card import read_card
from bishare_dsl.verify.judge import Row, judge
from bishare_dsl.verify.reference import Reference, read_contents
from bishare_dsl.verify.server import TEXTS, Server, ask
from tests.serve_vllm import conftest  # noqa: F401 - sets vLLM's environment
from tests.serve_vllm.test_verify import Running
from tests.support.families import tiny_model
from tests.verify.served import (
    FAULTS,
    LAYERS,
    Engine,
    change,
    judged,
    save_base,
    save_lora,
    serving,
)
from tests.verify.test_server import VERDICTS

KINDS = "q_proj, k_proj, v_proj, o_proj, gate_proj, up_proj, down_proj"
MEMBER = f"spec m\ntarget {KINDS}\nshare a per adapter, module rank 4 scale 2\n"
DORA = f"spec d\ntarget {KINDS}\nshare a per module rank 4 scale 2\nmagnitude per module\n"
EXPERTS = "spec e\ntarget parent experts, q_proj\nshare a per module rank 2 scale 2\n"
WANTED = VERDICTS | {"zero": "NOT APPLIED", "base": "OTHER BASE"}
WANTED |= {"no magnitude": "AS IF"}
counts: dict[str, Counter] = {}


def count(what, word, wanted):
    row = counts.setdefault(what, Counter())
    row["named" if word == wanted else f"{word} for {wanted}"] += 1
    print(f"{time.monotonic():.0f}", what, word, wanted, flush=True, file=sys.stderr)
    Path(sys.argv[1]).write_text(json.dumps(counts, indent=1) + "\n")


def drawn(plan, seed, size=0.15):
    random = torch.Generator().manual_seed(seed)
    return {
        t.name: (0.02 if t.name.endswith("mu") or "magnitude" in t.name else size)
        * torch.randn(t.shape, generator=random)
        for t in plan.tensors
    }


def broken(plan, tensors, fault):
    """The tensors that a faulty engine applies: a module that it ignores has no magnitude either."""
    if fault == "older":
        return drawn(plan, 99)
    new = {name: tensor.clone() for name, tensor in tensors.items()}
    sites = {(site.layer, site.kind, site.expert): site for site in plan.sites}
    last = max(site.layer or 0 for site in plan.sites)
    for site in plan.sites:
        layer = site.layer or 0
        off = fault in ("prefix", "zero") or (fault == "half" and layer > last // 2)
        off = off or (fault, site.kind) in (("up", "up_proj"), ("k", "k_proj"))
        before = sites.get((layer - 1, site.kind, site.expert))
        for number, term in enumerate(plan.terms_of[site.path]):
            for role, name in term.tensors.items():
                if off and role != "A":
                    new[name] *= 0
                if fault == "shifted":
                    old = before and tensors[plan.terms_of[before.path][number].tensors[role]]
                    new[name] = torch.zeros_like(new[name]) if old is None else old
            if term.is_magnitude:
                continue
            a, b = term.tensors["A"], term.tensors["B"]
            new[b] *= 0.5 if fault == "alpha" else 1
            if fault == "swapped" and new[a].shape == new[b].shape:
                new[a], new[b] = tensors[b], tensors[a]
            if fault == "littered":
                random = torch.Generator().manual_seed(layer)
                new[b] += 0.05 * torch.randn(new[b].shape, generator=random)
    return new


def save(folder, plan, text, tensors):
    save_library(folder, plan, {"x": tensors}, text, seed=0)
    return f"{folder}#x"


def asked_of(url, names):
    return ask(Server(url), names, None, lambda items, label: items)


def judge_faults(what, url, load, folders, contents, reference, other):
    """Load each faulty folder, and count the verdicts; the last is that on another base."""
    names = {fault: f"{what}-{fault}".replace(" ", "-") for fault in folders}
    for fault, folder in folders.items():
        load(names[fault], folder)
    asked = asked_of(url, [*names.values()])
    for fault, name in names.items():
        found = judged(asked[name], name, contents, reference)
        count(f"faults, {what}", found.word, WANTED[fault])
    found = judged(asked[names["none"]], names["none"], contents, other)
    told = found.word != "APPLIED" and "another base, or quantised" in found.why
    count(f"faults, {what}", "OTHER BASE" if told else found.word, "OTHER BASE")


def running(root, name, dtype, *more, **how):
    (root / name).mkdir()
    return Running(root / name, dtype, *more, **how)


def compiled_faults(what, root, base, text, faults, load, url, reference, other):
    model, _ = load_model(str(base), dtype="float32")
    plan = compile_spec(text, model).bishare.plan
    right = drawn(plan, 1)
    places = {f: save(root / f"{what}-{f}", plan, text, broken(plan, right, f)) for f in faults}
    if plan.has_magnitudes:  # An engine that knows none.
        text = text.partition("magnitude")[0]
        model, _ = load_model(str(base), dtype="float32")
        bare = compile_spec(text, model).bishare.plan
        tensors = {t.name: right[t.name] for t in bare.tensors}
        places["no magnitude"] = save(root / f"{what}-bare", bare, text, tensors)
    base_model, _ = load_model(str(base), dtype="float32")
    contents = read_contents(places["none"], base_model, plan.base)
    assert contents.complete, contents.problems
    judge_faults(what, url, load, places, contents, reference, other)


def main():
    root = Path(tempfile.mkdtemp())
    other = Reference(*load_model(str(save_base(root / "other", seed=1)), dtype="float32"), TEXTS)
    good = {f"g{i}": root / "good" / f"g{i}" for i in range(20)}
    faults = ["none", "prefix", "zero", "up", "k", "half", "shifted", "alpha", "swapped"]
    faults += ["littered", "older"]
    cards = {}

    def judge_good(one, what):
        contents = {}
        for name, folder in good.items():
            if not folder.exists():
                save_lora(
                    folder, one.base, seed=10 + int(name[1:]), size=0.02 * 1.2 ** int(name[1:])
                )
                card = root / f"{name}.json"
                command = ["verify", folder, "--model", one.base, "--write-card", card]
                bishare([str(word) for word in command])
                cards[name] = read_card(card)
            contents[name] = read_contents(
                folder, one.reference.model, architecture_of(str(one.base))
            )
            one.load(one.client(), name, folder)
        asked = asked_of(one.client().url, [*good])
        for i, name in enumerate(good):
            count(
                f"good, {what}",
                judged(asked[name], name, contents[name], one.reference).word,
                "APPLIED",
            )
            word = judge(Row(name), asked[name], cards[name].expected()).word
            count(f"card, own, {what}", word, "APPLIED")
            word = judge(Row(name), asked[name], cards[f"g{(i + 7) % 20}"].expected()).word
            count(f"card, another's, {what}", word, word if word != "APPLIED" else "another word")

    def plain_faults(one):
        folders = {}
        for fault in faults:
            folders[fault] = shutil.copytree(one.lora, root / f"{one.dtype}-{fault}")
            change(folders[fault], **FAULTS.get(fault, {}))
            if fault == "zero":
                change(
                    folders[fault], lambda found: {n: t * ("lora_A" in n) for n, t in found.items()}
                )
        load = lambda name, folder: one.load(one.client(), name, folder)  # noqa: E731
        judge_faults(
            f"LoRA, {one.dtype}",
            one.client().url,
            load,
            folders,
            one.contents,
            one.reference,
            other,
        )

    parts = sys.argv[2:] or ["plain", "dora", "int8", "experts"]
    if "plain" in parts:
        with running(root, "float32", "float32") as exact:
            plain_faults(exact)
            load = lambda name, folder: exact.load(exact.client(), name, folder)  # noqa: E731
            compiled_faults(
                "member",
                root,
                exact.base,
                MEMBER,
                faults,
                load,
                exact.client().url,
                exact.reference,
                other,
            )
            judge_good(exact, "float32")
            with running(root, "bfloat16", "bfloat16") as rounded:
                plain_faults(rounded)
                judge_good(rounded, "bfloat16")
                for i in range(0, 20, 2):  # The second server lacks half.
                    rounded.client().call("/unload_lora_adapter", {"lora_name": f"g{i}"})
                out = root / "table.json"
                with out.open("w") as file:
                    sys.stdout, stdout = file, sys.stdout
                    command = [
                        "verify",
                        root / "good",
                        "--model",
                        exact.base,
                        "--server",
                        exact.client().url,
                    ]
                    with suppress(SystemExit):
                        bishare([*map(str, [*command, "--server", rounded.client().url, "--json"])])
                    sys.stdout = stdout
                for row in json.loads(out.read_text())["rows"]:
                    lacks = (
                        row["server"] == rounded.client().url and int(row["adapter"][1:]) % 2 == 0
                    )
                    dtype = "float32" if row["server"] == exact.client().url else "bfloat16"
                    count(f"table, {dtype}", row["word"], "NOT THERE" if lacks else "APPLIED")
    if "dora" in parts:
        compact = ["--additional-config", '{"bishare_slots_gib": 1}']
        with running(root, "compact", "float32", *compact) as one:
            load = lambda name, folder: one.load(one.client(), name, folder)  # noqa: E731
            compiled_faults(
                "DoRA", root, one.base, DORA, faults, load, one.client().url, one.reference, other
            )
    if "int8" in parts:
        with running(root, "int8", "float32", int8=True) as one:
            judge_good(one, "int8")
    if "experts" not in parts:
        return
    sizes = {"initializer_range": 0.1, "hidden_size": 64, "num_hidden_layers": LAYERS}
    for seed, name in enumerate(("mixtral", "other mixtral")):
        tiny_model("mixtral", seed=seed, **sizes).save_pretrained(root / name)
        tiny_tokenizer().save_pretrained(root / name)
    engine = Engine(root / "mixtral")
    references = [
        Reference(*load_model(str(root / n), dtype="float32"), TEXTS)
        for n in ("mixtral", "other mixtral")
    ]

    def merge(name, folder):
        """Answer by the merged weights of the folder."""
        model = AutoModelForCausalLM.from_pretrained(root / "mixtral")
        from bishare_dsl import load_adapter

        load_adapter(folder, model).bishare.merge()
        engine.merged[name] = model

    with serving(engine) as url:
        wrong = [f for f in faults if f not in ("k", "swapped")]
        compiled_faults("experts", root, root / "mixtral", EXPERTS, wrong, merge, url, *references)


if __name__ == "__main__":
    main()
