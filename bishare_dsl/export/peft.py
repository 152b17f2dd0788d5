"""A LoRA in PEFT's form, for PEFT and for what serves PEFT's adapters.

vLLM takes an ``adapter_config.json`` without bias, ``modules_to_save`` and DoRA; since 0.32 it reads
``rank_pattern`` and ``alpha_pattern``, by PEFT's own rule. The highest rank may be at most its
``--max-lora-rank``, which is one of `VLLM_RANKS` and 16 by default.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import torch
from peft import LoraConfig
from peft.utils.transformers_weight_conversion import build_peft_weight_mapping
from safetensors.torch import save
from torch import nn
from transformers import PreTrainedModel
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import WeightConverter, WeightRenaming, rename_source_key
from transformers.models.auto import modeling_auto

from bishare_dsl.diagnostics import AdapterError, Problem, raise_errors
from bishare_dsl.diagnostics.codes import adapter as codes
from bishare_dsl.export.effective import MERGE, magnitude_vector
from bishare_dsl.export.experts import Named, Stack, each_expert, shared_outer, stacks, wrappers_of
from bishare_dsl.export.lora import Pair
from bishare_dsl.export.report import ExportReport
from bishare_dsl.models.hooks import is_sharded_tensor
from bishare_dsl.models.inspect import in_adapter, linear_maps
from bishare_dsl.models.site import Site
from bishare_dsl.models.weights import Weight
from bishare_dsl.plan import Plan
from bishare_dsl.writing import new_folder

CONFIG = "adapter_config.json"
TENSORS = "adapter_model.safetensors"
VLLM_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)

# PEFT's tasks, and where transformers keeps the names of the classes that do them.
_TASKS = {
    "CAUSAL_LM": modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    "SEQ_2_SEQ_LM": modeling_auto.MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES,
    "SEQ_CLS": modeling_auto.MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES,
    "TOKEN_CLS": modeling_auto.MODEL_FOR_TOKEN_CLASSIFICATION_MAPPING_NAMES,
    "QUESTION_ANS": modeling_auto.MODEL_FOR_QUESTION_ANSWERING_MAPPING_NAMES,
    "FEATURE_EXTRACTION": modeling_auto.MODEL_FOR_TEXT_ENCODING_MAPPING_NAMES,
}

# The heads that PEFT keeps with an adapter for a task, and misses where they are not there.
_HEADS = {
    "SEQ_CLS": ("classifier", "score"),
    "TOKEN_CLS": ("classifier", "score"),
    "QUESTION_ANS": ("qa_outputs",),
}

# The families whose experts PEFT 0.21 knows by the names that they had as modules, before transformers 5.
_WERE_MODULES = """
    afmoe beam cohere2_moe deepseek_v2 deepseek_v3 deepseek_v32 dots1 ernie4_5_moe exaone_moe flex_olmo
    glm4_moe glm4_moe_lite glm4v_moe glm_moe_dsa hunyuan_v1_moe longcat_flash mellum olmoe qwen3_moe
    qwen3_next qwen3_omni_moe qwen3_omni_moe_text qwen3_omni_moe_thinker sarvam_mla solar_open
"""
# The names. By `gate`, a router's, PEFT finds its weight; Mixtral's `w1`, `w2` and `w3` only experts had.
_OF_EXPERTS = ("gate_proj", "up_proj", "down_proj")


def taken_for_others(model: nn.Module, sites: Iterable[Site]) -> list[Problem]:
    """Warn of the modules that PEFT takes for others (BS693).

    It goes by last names for a family's experts, and renames what it loads by transformers' patterns for the
    names in checkpoints.

    Args:
        model: the base, adapted or not.
        sites: what a folder in PEFT's form has pairs for.
    """
    family = getattr(getattr(model, "config", None), "model_type", None)
    paths = [path for site in sites if site.expert is None for path in site.paths]
    as_experts = family in _WERE_MODULES.split()
    experts = [path for path in paths if as_experts and _kind(path) in _OF_EXPERTS]
    maps = linear_maps(model)
    owners = dict.fromkeys(maps[site.path].owner for site in sites if site.expert is not None)
    renamed = _renamed(model, [*paths, *owners]) if family else ()
    others = [path for path in renamed if path not in experts]
    return [
        codes.TAKEN_FOR_OTHERS(
            path=taken[0],
            more=f" and {len(taken) - 1} more" if taken[1:] else "",
            what=what,
            family=family,
        )
        for what, taken in (("experts", experts), ("other modules", others))
        if taken
    ]


def _renamed(model: nn.Module, paths: Iterable[str]) -> Iterator[str]:
    """Find the modules whose pairs PEFT looks for under other names than those that it is given."""
    of_checkpoints = get_model_conversion_mapping(cast(PreTrainedModel, model))
    transforms = build_peft_weight_mapping(cast(Any, of_checkpoints), "default", LoraConfig())
    renamings = [t for t in transforms if isinstance(t, WeightRenaming)]
    converters = [t for t in transforms if isinstance(t, WeightConverter)]
    for path in paths if transforms else ():
        key = f"base_model.model.{path}.lora_A.weight"
        renamed, converter = rename_source_key(key, renamings, converters)
        if converter or not key.endswith(renamed.replace(".default", "")):
            yield path


def write_peft(
    folder: Path,
    plan: Plan,
    model: nn.Module,
    tensors: Mapping[str, torch.Tensor],
    pairs: Sequence[Pair],
    whole: Mapping[str, torch.Tensor],
    *,
    uniform: bool = False,
    experts: str = "fused",
) -> int:
    """Write pairs as a folder that PEFT loads, in one step; give the highest rank in it.

    What experts have in one parameter is a target parameter of PEFT's, A ``(experts * rank, d_in)`` and B
    ``(d_out, rank * experts)``. Where a module has several, PEFT wraps one round the other.

    What is trained in full is in one of PEFT's ``modules_to_save``, but for biases, which PEFT keeps where
    their modules have them.

    Args:
        folder: new, or empty.
        plan: the adapter's.
        model: the base, adapted or not.
        tensors: those of the plan, by name.
        pairs: what is added to its modules.
        whole: what is trained in full, by the names of the tensors.
        uniform: fill all pairs up with zeros to the highest rank.
        experts: one of `EXPERTS`; all but ``fused`` is for vLLM and SGLang.

    Raises:
        AdapterError: the experts have no factor in common (BS685), or PEFT cannot keep what is trained in
            full (BS692).
        OSError: the system refused.
    """
    maps = linear_maps(model)
    vectors = _vectors(plan, tensors, pairs, maps)
    single = [pair for pair in pairs if maps[pair.site.path].expert is None]
    of_experts = [(p, w) for p in pairs if (w := maps[p.site.path]).expert is not None]
    stacked: list[Stack] = []
    named: list[Named] = []
    if experts == "fused":
        stacked = stacks(of_experts)
    else:
        form = each_expert if experts == "each" else shared_outer
        named = form(of_experts, maps, model)
    targets: list[Pair | Stack | Named] = [*single, *stacked, *named]
    if not targets:
        reason = "there is no low-rank term, and PEFT keeps it beside one alone"
        raise AdapterError(codes.NOT_KEPT_BY_PEFT(path=plan.trained[0].parameter, reason=reason))
    highest = max(target.rank for target in targets)
    wrappers = wrappers_of(model, [(stack.owner, stack.parameter) for stack in stacked])
    factors: dict[str, torch.Tensor] = {}
    for target in targets:
        fill = (0, 0, 0, highest - target.rank if uniform else 0)
        down, up = nn.functional.pad(target.down, fill), nn.functional.pad(target.up, fill)
        if isinstance(target, Pair) and target.site.layer is None:
            factors.update(_outside(target.site, maps, down, up))
            continue
        if isinstance(target, Stack):  # All outputs of one rank are side by side.
            down, up = down.flatten(0, -2), up.permute(2, 1, 0).flatten(1)
        else:
            up = up.mT
        key = f"base_model.model.{wrappers.get(target.name, target.name)}"
        factors[f"{key}.lora_A.weight"] = down.contiguous()
        factors[f"{key}.lora_B.weight"] = up.contiguous()
        if target.name in vectors:
            factors[f"{key}.lora_magnitude_vector"] = vectors[target.name]
    ranks = {
        path: highest if uniform else target.rank
        for target in targets
        for path in (target.site.paths if isinstance(target, Pair) else [target.name])
    }
    trained = {
        path: whole[t.tensor].view(t.shape).to(_parameter(model, path).dtype).cpu().clone()
        for t in plan.trained
        for path in (t.paths if t.tensor in whole else ())
    }
    head = _head(model, trained)
    # PEFT keeps biases by their names, as they are, and anything else in whole modules.
    modules: dict[str, str] = {}
    for path in trained.keys() - head.keys():
        module, _, name = path.rpartition(".")
        if "bias" not in name:
            modules[module] = path
    _check_modules(model, modules, ranks)
    biases = {p for p in trained if p not in head and p.rpartition(".")[0] not in modules}
    for module in sorted(modules):
        for path, value in model.get_submodule(module).state_dict(prefix=f"{module}.").items():
            if path not in trained and not in_adapter(path):
                head[path] = _value(path, value)
    # PEFT wraps a module once for each of its parameters.
    wraps = Counter(path if path in maps else path.rpartition(".")[0] for path in ranks)
    for path, kept in (head | trained).items():
        module, _, name = path.rpartition(".")
        inner = ".base_layer" * (wraps[module] if path in biases else 0)
        factors[".".join(filter(None, ["base_model.model", f"{module}{inner}", name]))] = kept
    config = _config(plan, model, ranks, maps) | {"use_dora": bool(vectors)}
    if named:  # Programs that read such a folder go by last names.
        kinds = {_kind(pair.name) for pair in single} | {one.kind for one in named}
        config |= {"target_modules": sorted(kinds)}
        config.pop("target_parameters", None)
    saved = [*_HEADS.get(config["task_type"] or "", ()), *sorted(modules)]
    config |= {"modules_to_save": saved or None, "bias": "all" if biases else "none"}
    with new_folder(folder) as new:
        (new / CONFIG).write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")
        (new / TENSORS).write_bytes(save(factors, {"format": "pt"}))
    return highest


def _vectors(
    plan: Plan,
    tensors: Mapping[str, torch.Tensor],
    pairs: Sequence[Pair],
    maps: Mapping[str, Weight],
) -> dict[str, torch.Tensor]:
    """Return the m of DoRA of every module, by path, on the CPU; nothing where the adapter has no magnitude.

    Raises:
        AdapterError: a weight is not here (BS624), or PEFT has no DoRA of a module (BS675).
    """
    if len(plan.unscaled) == len(plan.terms):
        return {}
    found, problems = {}, []
    for pair in pairs:
        weight = maps[pair.name]
        if weight.expert is not None or weight.looks_up or pair.site.tied:
            action = f"export `{pair.name}` for PEFT, whose DoRA is of linear layers,"
            problems.append(codes.SCALES_BASE(action=action, help=MERGE))
        elif (kept := weight.kept()) is not None and (kept.is_meta or is_sharded_tensor(kept)):
            reason = "it is on the meta device" if kept.is_meta else "it is sharded"
            problems.append(codes.NO_WEIGHT(path=pair.name, reason=reason))
        else:
            dense = weight.matrix() if weight.replacement() is None else weight.dense()
            added = pair.up.float().mT @ pair.down.float()
            found[pair.name] = magnitude_vector(plan, tensors, pair.name, added, dense)
    raise_errors(AdapterError, problems[:5])
    return found


def _check_modules(model: nn.Module, saved: Mapping[str, str], targets: Collection[str]) -> None:
    """See that PEFT can keep modules whole: it wraps every one whose path ends like that of one of them.

    Args:
        model: the base.
        saved: the modules, each with a parameter in it that is trained in full.
        targets: the paths of what the LoRA adapts.

    Raises:
        AdapterError: it would wrap another, or one that has a target in it (BS692).
    """
    paths = [path for path, _ in model.named_modules(remove_duplicate=False)]
    problems = []
    for module, parameter in sorted(saved.items()):
        inside = [path for path in targets if f"{path}.".startswith(f"{module}.")]
        alike = [path for path in paths if path.endswith(module) and path not in saved]
        if not module:
            reason = "the module that has it is the model"
        elif inside:
            reason = f"the module that has it has `{inside[0]}`, which the LoRA adapts"
        elif alike:
            reason = f"PEFT would take `{alike[0]}` for the module that has it, too"
        else:
            continue
        problems.append(codes.NOT_KEPT_BY_PEFT(path=parameter, reason=reason))
    raise_errors(AdapterError, problems)


def _outside(
    site: Site, maps: Mapping[str, Weight], down: torch.Tensor, up: torch.Tensor
) -> Iterator[tuple[str, torch.Tensor]]:
    """Return the factors of a head, an embedding or both, by their names.

    PEFT has an embedding's A as ``(rank, vocabulary)`` and its B as ``(width, rank)``.
    """
    for path in site.paths:
        swapped = maps[path].looks_up and not maps[site.path].looks_up
        a, b = (up, down) if swapped else (down, up)
        label, end = ("lora_embedding", "") if maps[path].looks_up else ("lora", ".weight")
        yield f"base_model.model.{path}.{label}_A{end}", a.clone()
        yield f"base_model.model.{path}.{label}_B{end}", b.t().clone().contiguous()


def served_by_vllm(report: ExportReport, rank: int) -> ExportReport:
    """Add what vLLM needs: its least ``--max-lora-rank``, or a warning that there is none (BS632).

    Args:
        rank: the highest that was written.
    """
    if enough := next((allowed for allowed in VLLM_RANKS if allowed >= rank), None):
        return replace(report, max_lora_rank=enough)
    limit = codes.RANK_FOR_VLLM(rank=rank, limit=VLLM_RANKS[-1])
    return replace(report, warnings=(*report.warnings, limit))


def _config(
    plan: Plan, model: nn.Module, ranks: Mapping[str, int], maps: Mapping[str, Weight]
) -> dict[str, Any]:
    modules = [path for path in ranks if path in maps]
    parameters = [path for path in ranks if path not in maps]
    linears = [path for path in modules if not maps[path].looks_up]
    name = getattr(getattr(model, "config", None), "name_or_path", None)
    highest = max(ranks.values())
    pattern = _pattern(ranks, highest)
    task = _task_type(model)
    return {
        "peft_type": "LORA",
        "task_type": task,
        "base_model_name_or_path": name or plan.base.model_id,
        "r": highest,
        "lora_alpha": highest,
        "target_modules": _target_modules(model, modules) if modules else [],
        **({"target_parameters": parameters} if parameters else {}),
        "fan_in_fan_out": bool(linears) and all(maps[path].transposed for path in linears),
        "lora_dropout": 0.0,
        "use_rslora": False,
        "use_dora": False,
        "rank_pattern": pattern,
        "alpha_pattern": pattern,  # alpha over rank is 1
        "inference_mode": True,
    }


def _task_type(model: nn.Module) -> str | None:
    """Return PEFT's name of what a model is for; None, which PEFT loads too, where there is no name."""
    names = {cls.__name__ for cls in type(model).__mro__}
    return next((task for task, known in _TASKS.items() if names & _class_names(known)), None)


def _parameter(model: nn.Module, path: str) -> nn.Parameter:
    """Return a parameter of the base, whatever stands in its place."""
    module, _, name = path.rpartition(".")
    kept = model.get_submodule(module)._parameters[name]
    assert kept is not None, path
    return kept


def _head(model: nn.Module, trained: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Return the tensors of the head that PEFT keeps with an adapter for the model's task.

    Args:
        model: the base.
        trained: those that the adapter has, by their paths in the base.

    Raises:
        AdapterError: they have no values here (BS617).
    """
    names = _HEADS.get(_task_type(model) or "", ())
    found = {}
    for path, value in model.state_dict().items():
        parts = path.split(".")
        if not in_adapter(path) and any(part in names for part in parts[:-1]):
            if path in trained:
                found[path] = trained[path]
                continue
            found[path] = _value(path, value)
    return found


def _value(path: str, value: torch.Tensor) -> torch.Tensor:
    """Return a copy of a tensor of the base.

    Raises:
        AdapterError: it has no values here (BS617).
    """
    sharded = is_sharded_tensor(value)
    if value.is_meta or sharded:
        where = "sharded over several processes" if sharded else "on the meta device"
        raise AdapterError(codes.NO_VALUES(name=path, reason=f"it is {where}"))
    return value.detach().cpu().clone()


def _class_names(known: Mapping[str, str | tuple[str, ...]]) -> set[str]:
    return {
        name for names in known.values() for name in ([names] if isinstance(names, str) else names)
    }


def _pattern(ranks: Mapping[str, int], default: int) -> dict[str, int]:
    """Return the modules of other ranks than the default, by kind where all of a kind have one, else by path.

    A key is a regular expression that PEFT puts in ``(.*\\.)?(KEY)$``: a kind is a module's last name and
    no less, and a path is bound to the start.
    """
    of_kind: dict[str, set[int]] = {}
    for path, rank in ranks.items():
        of_kind.setdefault(_kind(path), set()).add(rank)
    pattern = {}
    for path, rank in ranks.items():
        if rank != default:
            uniform = len(of_kind[_kind(path)]) == 1
            pattern[re.escape(_kind(path)) if uniform else f"^{re.escape(path)}"] = rank
    return pattern


def _kind(path: str) -> str:
    return path.rpartition(".")[2]


def _target_modules(model: nn.Module, paths: Sequence[str]) -> list[str] | str:
    """Return what makes PEFT choose these modules and no others: kinds if they do, else paths, else a regex.

    PEFT takes a module whose path is a target or ends in a dot and a target.
    """
    names = [name for name, _ in model.named_modules() if not in_adapter(name)]
    for targets in (sorted({_kind(path) for path in paths}), list(paths)):
        endings = tuple(f".{target}" for target in targets)
        if {name for name in names if f".{name}".endswith(endings)} == set(paths):
            return targets
    return "|".join(re.escape(path) for path in paths)
