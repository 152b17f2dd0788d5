"""Every family of transformers, built small: how its layers are adapted, and which parameters are sites.

Each is built in a separate process from its config class: narrow, with random weights, and with as many
blocks as its kinds of layers need. `docs/families.csv` is written from the rows in `results/families.json`.

    python benchmarks/families.py                  # all of them, in 15 minutes of one core
    python benchmarks/families.py llama mixtral    # these again; the others' rows stay
    python benchmarks/families.py --table          # only the table
"""

from __future__ import annotations

import argparse
import csv
import dataclasses
import inspect
import io
import json
import os
import re
import signal
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from datetime import date
from pathlib import Path
from typing import Any

import torch
import transformers
from harness.probe import Probe, probe
from torch import nn
from transformers.models.auto import modeling_auto as auto
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from bishare_dsl.compiler import make_plan
from bishare_dsl.diagnostics import BishareError, ModelError, one_line
from bishare_dsl.models.inspect import inspect_model, linear_maps
from bishare_dsl.models.site import block_of
from bishare_dsl.models.weights import linear_widths
from bishare_dsl.peft.method import install

ROOT = Path(__file__).parents[1]
RESULTS = Path(__file__).parent / "results" / "families.json"
TABLE = ROOT / "docs" / "families.csv"
SECONDS = 120
TASKS = {
    "vision and language": ("IMAGE_TEXT_TO_TEXT", "ZERO_SHOT_IMAGE_CLASSIFICATION"),
    "encoder and decoder": ("SEQ_TO_SEQ_CAUSAL_LM", "SPEECH_SEQ_2_SEQ"),
    "encoder": ("MASKED_LM",),
    "decoder": ("CAUSAL_LM",),
    "vision": ("IMAGE_CLASSIFICATION", "VIDEO_CLASSIFICATION"),
    "audio": ("CTC", "AUDIO_CLASSIFICATION"),
}
SPEC = "spec every\ntarget {target}\nshare term per module rank 2"


def families() -> dict[str, tuple[str, str]]:
    """Return what each family is, and the class that is built: that of the first task that it does."""
    found: dict[str, tuple[str, str]] = {}
    for task, mappings in TASKS.items():
        for mapping in mappings:
            for family, names in getattr(auto, f"MODEL_FOR_{mapping}_MAPPING_NAMES").items():
                found.setdefault(family, (task, names if isinstance(names, str) else names[0]))
    return found


# A small config --------------------------------------------------------------------------------

LAYERS = r"(num_|n_)?([a-z]+_)?(hidden_|transformer_)?(layers?|blocks|groups)|depth|.*_depth"
KINDS = ("layer_types", "layers_block_type", "block_types", "mlp_layer_types")
SIZES = {
    r"(.*_)?vocab_size(_per_layer_input)?": 256,
    r"(num|n)(_routed|_local)?_experts|moe_num_experts|num_moe_experts": 4,
    r"num_experts_per_tok(en)?|(moe_)?(num_)?(experts_)?top_?k|moe_k|num_selects": 2,
    r"n_group|topk_group|num_expert_group": 1,
    r"first_k_dense_replace|num_dense_layers": 1,
}
WIDTHS = {
    r"(.*_)?(hidden_size|d_model|embed_dim|hidden_dim|n_embd|projection_dim|embedding_size|emb_dim|proj_dim"
    r"|embedding_dim|hidden_sizes?|width|output_dim|lru_width|model_dim|dim)": 64,
    r"(.*_)?(intermediate_size|ffn_dim|d_ff|mlp_dim|n_inner|d_inner|inner_dim|feed_forward_size|feedforward_dim)"
    r"(_mlp)?": 96,
    r"(.*_)?(num_attention_heads|attention_heads|num_heads|n_heads?|heads|linear_num_value_heads"
    r"|num_q_heads)": 4,
    r"(.*_)?(num_key_value_heads|n_kv_heads|num_kv_heads|linear_num_key_heads|kv_n_heads)": 2,
    r"(.*_)?(head_dim|d_kv|kv_channels|attention_head_size|linear_(key|value)_head_dim|dim_head)": 16,
    r"qk_rope_head_dim|rotary_dim": 8,
    r"(q|kv|o)_lora_rank": 24,
}
TOKENS = {"pad": 0, "bos": 1, "eos": 2, "decoder_start": 1, "sep": 2, "cls": 1, "mask": 3}
# What the rules above do not get right.
# A layer scale of 1e-6 leaves of an update less than what float32 rounds.
QUIRKS: dict[str, dict[str, Any]] = {"convnext": {"layer_scale_init_value": 1.0}}


def small(config: type[Any], *, narrow: bool) -> dict[str, Any]:
    """Return the arguments of a config class that make a small model of it."""
    tables = SIZES | (WIDTHS if narrow else {})
    default = config()
    names = [field.name for field in dataclasses.fields(config)]
    rows = {name: row for name in KINDS if isinstance(row := _value(default, name), list)}
    blocks = max([2, *(1 + row.index(kind) for row in rows.values() for kind in row)])
    chosen: dict[str, Any] = {name: row[:blocks] for name, row in rows.items() if name in names}
    tokens = 200
    for name in names:
        value = _value(default, name)
        if name == "conv_dim" and isinstance(value, (list, tuple)):
            chosen[name] = type(value)(32 for _ in value)
        elif name == "eos_token_id":
            chosen[name] = 2
        elif not isinstance(value, int) or isinstance(value, bool) or value < 0:
            continue
        elif re.fullmatch(LAYERS, name):
            chosen[name] = min(value, blocks)
        elif (token := re.fullmatch(r"(.+?)_token_(id|index)", name)) is not None:
            tokens += 1
            chosen[name] = TOKENS.get(token[1], tokens)
        else:
            sizes = (size for pattern, size in tables.items() if re.fullmatch(pattern, name))
            if (size := next(sizes, None)) is not None:
                chosen[name] = min(value, size)
    for name, kind in getattr(config, "sub_configs", {}).items():
        if (inner := _value(default, name)) is not None and hasattr(inner, "model_type"):
            chosen[name] = small(type(inner), narrow=narrow)
            if kind is not type(inner):
                chosen[name]["model_type"] = inner.model_type
    return chosen | QUIRKS.get(config.model_type, {})


def _value(config: Any, name: str) -> Any:
    try:
        return getattr(config, name, None)
    except Exception:  # noqa: BLE001 - one for each layer
        return None


def build(family: str) -> nn.Module:
    """Build a family's model on the CPU, narrow if its config allows that; in eval mode."""
    cls = getattr(transformers, families()[family][1])
    config = CONFIG_MAPPING[family]
    reasons = []
    for narrow in (True, False):
        try:
            made = config(**small(config, narrow=narrow))
            if not isinstance(made, cls.config_class):
                made = made.get_text_config()
            torch.manual_seed(0)
            with torch.device("meta"):
                size = sum(p.numel() for p in cls(made).parameters())
            if size > 5e8:
                raise MemoryError(f"{size:,} parameters")
            return cls(made).eval()
        except Exception as error:  # noqa: BLE001 - whatever a family's own code raises
            reasons.append(f"{type(error).__name__}: {one_line(error)}")
    raise RuntimeError("; ".join(dict.fromkeys(reasons)))


# What is measured ------------------------------------------------------------------------------


def measure(family: str) -> dict[str, Any]:
    """Adapt all sites of a family's model, and look at what came of it."""
    task, name = families()[family]
    row: dict[str, Any] = {"family": family, "task": task, "class": name}
    try:
        model = build(family)
    except Exception as error:  # noqa: BLE001 - whatever a family's own code raises
        return row | {"built": one_line(error)}
    blocks = {n: p for n, p in model.named_parameters() if block_of(n.rpartition(".")[0])}
    total = sum(p.numel() for p in blocks.values())
    row["parameters"] = total
    try:
        sites = inspect_model(model).sites
    except ModelError:
        sites = ()
    if not sites:
        return row | {
            "refused": ["BS514"],
            "sites": 0.0,
            "left": left_out(blocks, set(), total),
        }
    # Torch takes other kernels for weights that are trained: the base is frozen, as under an adapter.
    before = runs(model.requires_grad_(False))
    refused: dict[str, str] = {}
    notes: tuple[str, ...] = ()
    plan = None
    while plan is None:
        target = 'kind "*"' + " except " * bool(refused) + ", ".join(f'path "{p}"' for p in refused)
        try:
            made = make_plan(SPEC.format(target=target), model)
            notes = install(model, made)
            plan = made.plan
        except BishareError as error:
            found = error.problems[0]
            path = re.search(r"`([\w.]+)`", found.message)
            if path is None or path[1] in refused or len(refused) > 40:
                return row | {"refused": [f"{found.code}: {found.message}"], "sites": 0.0}
            refused[path[1]] = found.code
    adapted = [site for site in plan.sites if plan.rows(site.path)]
    maps = linear_maps(model)
    kept = {(maps[s.path].owner, maps[s.path].parameter) for s in adapted}
    row["sites"] = round(sum(s.d_in * s.d_out for s in adapted) / total, 4)
    row["left"] = left_out(blocks, {f"{owner}.{name}" for owner, name in kept}, total)
    row["refused"] = sorted(
        {f"{code} {re.sub(r'[0-9]+', '*', path)}" for path, code in refused.items()}
    )
    how = Counter[str]()
    for path, *_ in model.bishare.compiled.regions:
        module = model.get_submodule(path)
        mine = [s for s in adapted if s.path == path or s.path.rpartition(".")[0] == path]
        experts = [s for s in adapted if maps[s.path].owner == path != s.path]
        kind = "experts" if experts else "one by one" if linear_widths(module) else "traced"
        how[kind] += sum(s.d_in * s.d_out for s in experts or mine)
    row |= {kind: round(how[kind] / total, 4) for kind in ("traced", "one by one", "experts")}
    row["notes"] = [note.partition("\n")[0] for note in notes]
    heard = {s.path for s in adapted}
    return row | outputs(model, before, heard)


def left_out(blocks: dict[str, nn.Parameter], kept: set[str], total: int) -> list[str]:
    """Name the largest parameters of blocks that are not the weights of sites, with their share."""
    sizes = Counter[str]()
    for name, parameter in blocks.items():
        if name not in kept:
            _, _, rest = block_of(name)  # type: ignore[misc]
            sizes[re.sub(r"\b\d+\b", "*", rest)] += parameter.numel()
    large = [(name, size / total) for name, size in sizes.most_common(4) if size / total >= 0.03]
    return [f"{name} {share:.0%}" for name, share in large]


def inputs_of(model: Any, main: str) -> Iterator[dict[str, torch.Tensor]]:
    """Yield inputs to try, the least first: values of the shapes that the model's config tells, if any."""
    config: Any = getattr(model, "config", None)
    parameters = inspect.signature(model.forward).parameters
    vision = getattr(config, "vision_config", config)
    random = torch.Generator().manual_seed(0)

    def ids() -> torch.Tensor:
        vocabulary = config.get_text_config().vocab_size
        return torch.randint(vocabulary, (2, 16), generator=random)

    def values(*shape: Any) -> torch.Tensor | None:
        known = all(isinstance(size, int) for size in shape)
        return torch.randn(2, *shape, generator=random) if known else None

    def pixels() -> torch.Tensor | None:
        side = getattr(vision, "image_size", None)
        sides = side if isinstance(side, (list, tuple)) else (side, side)
        return values(getattr(vision, "num_channels", None), *sides)

    def features() -> torch.Tensor | None:
        frames = getattr(config, "max_source_positions", None)
        return values(getattr(config, "num_mel_bins", None), frames and 2 * frames)

    ways: dict[str, Callable[[], torch.Tensor | None]] = {
        "input_ids": ids,
        "pixel_values": pixels,
        "input_features": features,
        "input_values": lambda: values(4000),  # a quarter of a second
    }
    first = ways[main]() if config is not None and main in ways else None
    if first is None:
        return
    made = {main: first}
    if config.is_encoder_decoder:
        made["decoder_input_ids"] = ids()
    yield dict(made)
    for name in ("pixel_values", "input_ids"):
        if name not in made and name in parameters and (more := ways[name]()) is not None:
            made[name] = more
            yield dict(made)


def run(module: Any) -> Probe:
    """Run a model on the first of its `inputs_of` that it runs on."""
    main = getattr(module, "main_input_name", "")
    found = Probe(reason=f"no inputs are known for `{main}`")
    for made in inputs_of(module, main):
        try:
            return probe(module, made)
        except Exception as error:  # noqa: BLE001 - whatever a family's own code raises
            reason = f"the model does not run on {', '.join(made)} alone: {one_line(error)}"
            found = Probe(reason=reason)
    return found


def runs(model: nn.Module) -> dict[str, Probe]:
    """Run the model, and each of its towers alone, on what their configs tell; by path."""
    found = {}
    towers = {
        id(m): (n, m)
        for n, m in model.named_modules()
        if isinstance(m, transformers.PreTrainedModel)
    }
    for path, module in towers.values():
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                found[path] = run(module)
            except Exception as error:  # noqa: BLE001 - whatever a family's own code raises
                found[path] = Probe(reason=one_line(error))
    return found


def outputs(model: Any, before: dict[str, Probe], sites: set[str]) -> dict[str, Any]:
    """Compare what the model gives: fresh with its base, trained with itself merged."""
    # Random weights may give no numbers at all.
    ran = {
        path: p
        for path, p in before.items()
        if p.output is not None and p.output.isfinite().all() and p.output.numel()
    }
    if not ran:
        return {"ran": [], "why": before[""].reason or "what it gives is not finite"}
    fresh = {path: probe(model.get_submodule(path), p.inputs) for path, p in ran.items()}
    same = all(torch.equal(fresh[path].output, p.output) for path, p in ran.items())
    random = torch.Generator().manual_seed(0)
    tensors = model.bishare.tensors()
    for tensor in tensors.values():
        tensor.data = torch.randn(tensor.shape, generator=random) * tensor.shape[0] ** -0.5 * 0.2
    trained = {path: probe(model.get_submodule(path), p.inputs).output for path, p in ran.items()}
    for path, p in ran.items():
        module = model.get_submodule(path)
        modes = {"use_cache": False} if "use_cache" in str(module.forward.__doc__) else {}
        found = module(**p.inputs, **modes)
        value = found[p.name] if p.name != "the output" else found
        if value.requires_grad:
            value.float().square().sum().backward()
    silent = sum(t.grad is None or not t.grad.any() for t in tensors.values())
    report: dict[str, Any] = {
        "ran": sorted(ran),
        "fresh": same,
        "silent": round(silent / len(tensors), 3),
    }
    moved = {}
    model.bishare.merge(keep_base=False)
    for path in ran:
        merged = probe(model.get_submodule(path), ran[path].inputs).output
        scale = (trained[path] - ran[path].output).norm()
        moved[path] = float((merged - trained[path]).norm() / scale) if scale else 0.0
    report["merged"] = float(f"{max(moved.values()):.2g}")
    return report


def alone(family: str) -> dict[str, Any]:
    """Measure in a separate process, which may die or take too long."""
    read, write = os.pipe()
    if (child := os.fork()) == 0:
        signal.alarm(SECONDS)
        try:
            row = measure(family)
        except Exception as error:  # noqa: BLE001 - whatever a family's own code raises
            row = {"family": family, "failed": f"{type(error).__name__}: {one_line(error)}"}
        os.write(write, json.dumps(row).encode())
        os._exit(0)
    os.close(write)
    with os.fdopen(read, "rb") as stream:
        text = stream.read()
    os.waitpid(child, 0)
    return (
        json.loads(text)
        if text
        else {"family": family, "failed": f"died, or took over {SECONDS} s"}
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--table", action="store_true")
    parser.add_argument("family", nargs="*")
    asked = parser.parse_args()
    kept = read()
    if not asked.table:
        transformers.logging.set_verbosity_error()
        warnings.simplefilter("ignore")
        for family in ("llama", "mixtral", "bert", "clip", "t5"):  # imported once
            getattr(transformers, families()[family][1])
        for family in asked.family or families():
            kept[family] = alone(family)
            print(json.dumps(kept[family]), flush=True)
            keep(kept)
    TABLE.write_text(table(kept), encoding="utf-8")


def read() -> dict[str, dict[str, Any]]:
    """Read the rows that were written, by family."""
    if not RESULTS.exists():
        return {}
    return {row["family"]: row for row in json.loads(RESULTS.read_text())["rows"]}


def keep(rows: Mapping[str, dict[str, Any]]) -> None:
    """Write rows, one a line."""
    ordered = [json.dumps(rows[family]) for family in families() if family in rows]
    about = {
        "command": "python benchmarks/families.py",
        "date": date.today().isoformat(),
        "transformers": transformers.__version__,
        "torch": torch.__version__,
    }
    lines = ",\n    ".join(ordered)
    RESULTS.write_text(f'{json.dumps(about, indent=2)[:-2]},\n  "rows": [\n    {lines}\n  ]\n}}\n')


# The table -------------------------------------------------------------------------------------

COLUMNS = ("family", "task", "class", "adapted", "how", "same", "left out")


def table(rows: Mapping[str, dict[str, Any]]) -> str:
    """Return the rows as CSV, one family a line."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(COLUMNS)
    order = list(TASKS)
    task = {name: found[0] for name, found in families().items()}
    for name in sorted(rows, key=lambda name: (order.index(task[name]), name)):
        writer.writerow([name, task[name], *cells(rows[name])])
    return out.getvalue()


def cells(row: Mapping[str, Any]) -> list[str]:
    """Return the cells of a family's row after its name and task, in the order of `COLUMNS`."""
    if "sites" not in row:
        why = row.get("built") or row.get("failed") or ""
        return [row.get("class", ""), "", "not built", "", " ".join(why.split())[:120]]
    how = [
        f"{kind} {row[kind]:.0%}" for kind in ("traced", "one by one", "experts") if row.get(kind)
    ]
    refused = ["no linear layer"] if row["refused"] == ["BS514"] else row["refused"]
    left = [*(row.get("left") or ()), *refused]
    return [row["class"], f"{row['sites']:.0%}", ", ".join(how), same(row), ", ".join(left)]


def same(row: Mapping[str, Any]) -> str:
    """Tell whether a fresh adapter and a merged one compute what they should: ``yes``, ``no``, or ``-``."""
    if not row.get("ran"):
        return "-"
    return "yes" if row["fresh"] and row["merged"] < 1e-3 else "no"


if __name__ == "__main__":
    main()
