"""Write a LoRA for PEFT and for engines that serve PEFT's adapters.

vLLM accepts an ``adapter_config.json`` without bias, ``modules_to_save`` and DoRA; since 0.32 it supports
``rank_pattern`` and ``alpha_pattern`` by PEFT's rule. Its ``--max-lora-rank``, one of `VLLM_RANKS` and by
default 16, limits the highest rank.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig
from peft.utils.transformers_weight_conversion import convert_peft_config_for_transformers
from safetensors.torch import save
from torch import nn
from transformers.models.auto import modeling_auto

from bishare_dsl.convert.effective import MERGE, delta, magnitude_vector
from bishare_dsl.convert.experts import Named, stacks, wrappers_of
from bishare_dsl.convert.lora import Lora, Pair
from bishare_dsl.convert.peft_config import CONFIG, PREFIX, TENSORS
from bishare_dsl.convert.report import ExportReport
from bishare_dsl.diagnostics import AdapterError
from bishare_dsl.diagnostics.codes import adapter as codes
from bishare_dsl.models.hooks import is_sharded_tensor
from bishare_dsl.models.inspect import linear_maps
from bishare_dsl.models.site import Site, block_of, in_adapter
from bishare_dsl.models.weights import Weight
from bishare_dsl.plan import Plan
from bishare_dsl.writing import new_folder

ExpertsForm = Callable[
    [Sequence[tuple[Pair, Weight]], Mapping[str, Weight], nn.Module], Sequence[Named]
]
"""Names the pairs of experts in one parameter as a program does."""
VLLM_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)

# PEFT's tasks, and transformers' mappings to their classes.
_TASKS = {
    "CAUSAL_LM": modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    "SEQ_2_SEQ_LM": modeling_auto.MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES,
    "SEQ_CLS": modeling_auto.MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES,
    "TOKEN_CLS": modeling_auto.MODEL_FOR_TOKEN_CLASSIFICATION_MAPPING_NAMES,
    "QUESTION_ANS": modeling_auto.MODEL_FOR_QUESTION_ANSWERING_MAPPING_NAMES,
    "FEATURE_EXTRACTION": modeling_auto.MODEL_FOR_TEXT_ENCODING_MAPPING_NAMES,
}

# The heads that PEFT saves with an adapter for a task; loading fails without them.
_HEADS = {
    "SEQ_CLS": ("classifier", "score"),
    "TOKEN_CLS": ("classifier", "score"),
    "QUESTION_ANS": ("qa_outputs",),
}


def _check_not_taken(model: nn.Module, pairs: Sequence[Pair]) -> None:
    """Check that PEFT takes no module for an expert: it knows a family's experts by their last names.

    Raises:
        AdapterError: it does (BS646), and would adapt experts instead.
    """
    paths = [path for pair in pairs for path in pair.site.paths]
    taken = LoraConfig(target_modules=paths)
    with suppress(ValueError):  # It refuses gate without up.
        convert_peft_config_for_transformers(taken, model, None)
        if {*(taken.target_modules or ())} == {*paths}:
            return
    reason = "PEFT takes modules with names of experts for the experts of this family"
    raise AdapterError(codes.EXPORT_OPTION(option="format", reason=reason, help=MERGE))


def write_peft(
    folder: Path, lora: Lora, experts: ExpertsForm = stacks, *, one_rank: bool = False
) -> int:
    """Write a folder for PEFT, or an engine with PEFT's files, in one step, and return the highest rank.

    A parameter of experts is one of PEFT's target parameters, A ``(experts * rank, d_in)`` and B ``(d_out,
    rank * experts)``. If a module has several, PEFT nests their wrappers.

    Modules with a parameter trained in full are PEFT's ``modules_to_save``.

    Args:
        folder: new, or empty.
        lora: what to write.
        experts: returns the form of experts in one parameter; all except `stacks` are for vLLM and SGLang.
        one_rank: whether to pad all pairs with zeros to the highest rank.

    Raises:
        AdapterError: PEFT cannot save a module with a parameter trained in full (BS692), or takes a module
            for an expert (BS646).
        OSError: the system refused.
    """
    model = lora.model
    maps = linear_maps(model)
    vectors = _vectors(lora.plan, lora.tensors, lora.pairs, maps)
    single: list[Pair] = []
    of_experts: list[tuple[Pair, Weight]] = []
    for pair in lora.pairs:
        weight = maps[pair.name]
        if weight.expert is None:
            single.append(pair)
        else:
            of_experts.append((pair, weight))
    named = experts(of_experts, maps, model)
    targets: list[Pair | Named] = [*single, *named]
    if experts is stacks:
        _check_not_taken(model, single)
    if not targets:
        raise AdapterError(codes.NOT_KEPT_BY_PEFT(path=lora.plan.trained[0].parameter))
    highest = max(target.rank for target in targets)
    lowest = highest if one_rank else 0
    ranks = _ranks(targets, lowest)
    saved = _saved(lora, ranks, maps)
    tensors = _factors(targets, model, maps, lowest)
    tensors |= {f"{PREFIX}{path}.lora_magnitude_vector": m for path, m in vectors.items()}
    tensors |= {f"{PREFIX}{path}": value for path, value in saved.values.items()}
    config = _config(lora.plan, model, ranks, maps)
    config["use_dora"] = bool(vectors)
    if named and not any(target.is_parameter for target in named):
        # Programs that read this layout match last names.
        config["target_modules"] = _kinds(targets)
        config.pop("target_parameters", None)
    modules = [*_HEADS.get(config["task_type"] or "", ()), *saved.modules]
    config["modules_to_save"] = modules or None
    config["bias"] = "none"
    with new_folder(folder) as new:
        (new / CONFIG).write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")
        (new / TENSORS).write_bytes(save(tensors, {"format": "pt"}))
        lora.origin.write(new, lora.plan.spec)
    return highest


def _kinds(targets: Sequence[Pair | Named]) -> list[str]:
    """Return the last names of what is adapted."""
    kinds: set[str] = set()
    for target in targets:
        kinds.add(_kind(target.name) if isinstance(target, Pair) else target.kind)
    return sorted(kinds)


def _ranks(targets: Sequence[Pair | Named], lowest: int) -> dict[str, int]:
    """Return the rank of each path that is adapted, and at least ``lowest``."""
    ranks: dict[str, int] = {}
    for target in targets:
        paths = target.site.paths if isinstance(target, Pair) else (target.name,)
        for path in paths:
            ranks[path] = max(target.rank, lowest)
    return ranks


def _factors(
    targets: Sequence[Pair | Named], model: nn.Module, maps: Mapping[str, Weight], lowest: int
) -> dict[str, torch.Tensor]:
    """Return all factors by PEFT's names, padded with zeros to at least the rank ``lowest``."""
    parameters: list[tuple[str, str]] = []
    for target in targets:
        if isinstance(target, Named) and target.is_parameter:
            owner, _, name = target.name.rpartition(".")
            parameters.append((owner, name))
    wrappers = wrappers_of(model, parameters)
    factors: dict[str, torch.Tensor] = {}
    for target in targets:
        padding = (0, 0, 0, max(lowest - target.rank, 0))
        down = nn.functional.pad(target.down, padding)
        up = nn.functional.pad(target.up, padding)
        if isinstance(target, Pair) and target.site.layer is None:
            factors.update(_outside(target.site, maps, down, up))
            continue
        if isinstance(target, Named) and target.is_parameter:
            # All outputs of one rank are adjacent.
            down = down.flatten(0, -2)
            up = up.permute(2, 1, 0).flatten(1).mT
        key = f"{PREFIX}{wrappers.get(target.name, target.name)}"
        factors[f"{key}.lora_A.weight"] = down.contiguous()
        factors[f"{key}.lora_B.weight"] = up.mT.contiguous()
    return factors


@dataclass(frozen=True)
class _Saved:
    """What PEFT saves whole.

    Attributes:
        modules: the paths of modules with a parameter trained in full, heads aside.
        values: the tensors of these modules and of heads, by path in the base.
    """

    modules: Sequence[str]
    values: Mapping[str, torch.Tensor]


def _saved(lora: Lora, adapted: Collection[str], maps: Mapping[str, Weight]) -> _Saved:
    """Return what PEFT saves whole; ``adapted`` are the paths with a low-rank update.

    Raises:
        AdapterError: PEFT cannot save a module with a parameter trained in full (BS692), or a tensor has no
            values in this process (BS617).
    """
    model = lora.model
    trained: dict[str, torch.Tensor] = {}
    for parameter in lora.plan.trained:
        if parameter.tensor in lora.tensors:
            for path in parameter.paths:
                value = lora.tensors[parameter.tensor].view(parameter.shape)
                trained[path] = value.cpu().clone()
    values: dict[str, torch.Tensor] = {}
    for head in _heads(model):
        values |= _values(model, head, trained)
    modules = {path.rpartition(".")[0]: path for path in sorted(trained.keys() - values.keys())}
    others = {path for path, _ in model.named_modules(remove_duplicate=False)} - modules.keys()
    # A layer of a block may be a target.
    targets = {*adapted, *filter(block_of, maps)}
    for module, path in modules.items():
        contains_target = any(f"{target}.".startswith(f"{module}.") for target in targets)
        # PEFT wraps every module whose path ends like this one.
        wraps_another = any(other.endswith(module) for other in others)
        if contains_target or wraps_another:
            raise AdapterError(codes.NOT_KEPT_BY_PEFT(path=path))
        values |= _values(model, module, trained)
    return _Saved(list(modules), values)


def _vectors(
    plan: Plan,
    tensors: Mapping[str, torch.Tensor],
    pairs: Sequence[Pair],
    maps: Mapping[str, Weight],
) -> dict[str, torch.Tensor]:
    """Return DoRA's m of every module by path, on the CPU; empty if the adapter has no magnitude.

    Raises:
        AdapterError: a weight is missing (BS624), PEFT does not support DoRA on a module (BS675), or a row
            of W + dW is 0 (BS628).
    """
    if not plan.has_magnitudes:
        return {}
    vectors = {}
    for pair in pairs:
        weight = maps[pair.name]
        if weight.expert is not None or weight.looks_up or pair.site.tied:
            action = f"export `{pair.name}` for PEFT, whose DoRA is of linear layers,"
            raise AdapterError(codes.SCALES_BASE(action=action, help=MERGE))
        stored = weight.stored()
        if stored is not None and (stored.is_meta or is_sharded_tensor(stored)):
            reason = "it is on the meta device" if stored.is_meta else "it is sharded"
            raise AdapterError(codes.NO_WEIGHT(path=pair.name, reason=reason))
        dense = weight.values().cpu()
        change = delta(plan, tensors, pair.site, dense).cpu()
        vector = magnitude_vector(dense, pair.up.float().mT @ pair.down.float(), change)
        if vector.isnan().any():
            action = "PEFT's DoRA, which divides by the length of each row, of which one is 0,"
            raise AdapterError(codes.NOT_FINITE(action=action, path=pair.name))
        vectors[pair.name] = vector
    return vectors


def _outside(
    site: Site, maps: Mapping[str, Weight], down: torch.Tensor, up: torch.Tensor
) -> Iterator[tuple[str, torch.Tensor]]:
    """Return the factors of a head, an embedding or both by name.

    PEFT stores an embedding's A as ``(rank, vocabulary)`` and its B as ``(width, rank)``.
    """
    for path in site.paths:
        looks_up = maps[path].looks_up
        if looks_up and not maps[site.path].looks_up:
            a, b = up, down
        else:
            a, b = down, up
        label, end = ("lora_embedding", "") if looks_up else ("lora", ".weight")
        yield f"{PREFIX}{path}.{label}_A{end}", a.clone()
        yield f"{PREFIX}{path}.{label}_B{end}", b.t().clone().contiguous()


def served_by_vllm(report: ExportReport, rank: int) -> ExportReport:
    """Add the lowest ``--max-lora-rank`` of vLLM, or a warning that there is none (BS632).

    Args:
        rank: the highest rank written.
    """
    for allowed in VLLM_RANKS:
        if allowed >= rank:
            return replace(report, max_lora_rank=allowed)
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
    config: dict[str, Any] = {
        "peft_type": "LORA",
        "task_type": task_type(model),
        "base_model_name_or_path": name or plan.base.model_id,
        "r": highest,
        "lora_alpha": highest,
        "target_modules": _target_modules(model, modules) if modules else [],
        "fan_in_fan_out": bool(linears) and all(maps[path].transposed for path in linears),
        "lora_dropout": 0.0,
        "use_rslora": False,
        "rank_pattern": pattern,
        "alpha_pattern": pattern,  # alpha over rank is 1
        "inference_mode": True,
    }
    if parameters:
        config["target_parameters"] = parameters
    return config


def task_type(model: nn.Module) -> str | None:
    """Return PEFT's name of a model's task; None, which PEFT accepts, if there is no name."""
    names = {cls.__name__ for cls in type(model).__mro__}
    return next((task for task, known in _TASKS.items() if names & _class_names(known)), None)


def _heads(model: nn.Module) -> list[str]:
    """Return the paths of the heads that PEFT saves with an adapter for the model's task."""
    names = _HEADS.get(task_type(model) or "", ())
    paths = [path for path, _ in model.named_modules(remove_duplicate=False)]
    return [path for path in paths if path.rpartition(".")[2] in names and not in_adapter(path)]


def _values(
    model: nn.Module, module: str, trained: Mapping[str, torch.Tensor]
) -> dict[str, torch.Tensor]:
    """Return the adapter's values of a module's tensors by path, and copies of the base's where it has none.

    Raises:
        AdapterError: a tensor has no values in this process (BS617).
    """
    # No `state_dict` of the whole base: bitsandbytes rounds its weights again for it.
    state = model.get_submodule(module).state_dict(prefix=f"{module}.")
    values = {}
    for path, value in state.items():
        if in_adapter(path):
            continue
        if path not in trained and (value.is_meta or is_sharded_tensor(value)):
            where = "on the meta device" if value.is_meta else "sharded over several processes"
            raise AdapterError(codes.NO_VALUES(name=path, reason=f"it is {where}"))
        values[path] = trained[path] if path in trained else value.detach().cpu().clone()
    return values


def _class_names(known: Mapping[str, str | tuple[str, ...]]) -> set[str]:
    of_each = ([names] if isinstance(names, str) else names for names in known.values())
    return {name for names in of_each for name in names}


def _pattern(ranks: Mapping[str, int], default: int) -> dict[str, int]:
    """Return the ranks that differ from the default, by kind if a kind has only one, else by path.

    A key is a regular expression that PEFT embeds in ``(.*\\.)?(KEY)$``. A kind matches a whole last name,
    and a path is anchored at the start.
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
    """Return PEFT targets that select exactly these modules: kinds if possible, else paths, else a regex.

    PEFT selects a module if its path is a target or ends in a dot and a target.
    """
    names = [name for name, _ in model.named_modules() if not in_adapter(name)]
    for targets in (sorted({_kind(path) for path in paths}), list(paths)):
        endings = tuple(f".{target}" for target in targets)
        if {name for name in names if f".{name}".endswith(endings)} == set(paths):
            return targets
    return "|".join(re.escape(path) for path in paths)
