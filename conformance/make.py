"""Make the adapters of this folder, and the updates that they stand for, by the dense reference.

python conformance/make.py [FOLDER]

The values of what trains come from the generator of `docs/format.md`, so that every machine makes the same.
"""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from bishare_dsl import parse_spec
from bishare_dsl.folder.card import CARD
from bishare_dsl.folder.config import record_digest
from bishare_dsl.folder.contents import digest_of, entries_in
from bishare_dsl.folder.files import CONFIG, TENSORS, read_adapter, save_adapter, save_library
from bishare_dsl.initial.counter import fill
from bishare_dsl.initial.singular import singular_starts
from bishare_dsl.initial.values import draw
from bishare_dsl.models import architecture_of
from bishare_dsl.models.inspect import linear_maps
from bishare_dsl.plan import Plan, Term, build_plan
from bishare_dsl.testing.reference import REFERENCES, TermValues

HERE = Path(__file__).parent
sys.path.append(str(HERE.parent))
from tests.support.families import tiny_model
from tests.support.references import dense_delta

SEED = 5
WEIGHTS = "base.safetensors"
"""The weights of the modules, from which the tensors of `base` are computed, and which magnitudes scale."""
PARAMETERS = "parameters.safetensors"
"""The updates of `gpt_oss` as its base keeps its parameters."""

ADAPTERS = {
    "identity": "share s per module rank 4",
    "slice_sharing": "share s per model rank 4 via SS",
    "slices_at_the_ends": """
share a per layer rank 2 via SS(slice = leading)
share b per kind rank 3 via SS(slice = trailing)
""",
    "kronecker": "share s per layer rank 4 via KE(size = 16, shared_rank = 2)",
    "kronecker_cut": "share s per model rank 2 via KE(size = 12)",
    "kronecker_rowwise": "share s per model rank 3 via KE(size = 8, rowwise = true)",
    "gates": "share s per model rank 4 via GT(size = 8, gate_rank = 2)",
    "wide_gates": "share s per model rank 2 via GT(size = 8, gate_rank = 4)",
    "block_diagonal": """
share a per module rank 2 via BlockDiagonal(blocks = 4)
share b where q_proj per module rank 2 via BlockDiagonal(blocks = 2, cut = out)
share c where down_proj per module rank 2 via BlockDiagonal(blocks = 2, cut = in)
""",
    "grid": "share s per module rank 4 via Grid(blocks = 2)",
    "hadamard": "share s per model rank 2 via Hadamard",
    "miss": "share s per model rank 5 via MiSS",
    "rotation": """
share a per module rank 4 via Rotation(chunks_A = 3, chunks_B = 4)
share b per kind rank 5 via Rotation(stride = 2)
""",
    "loadings": "share s per model rank 2 via Loadings(vectors = 6)",
    "mixtures": """
share a per model rank 3 via Mix(count_A = 2, count_B = 3)
share b per kind rank 2 via Mix(count_B = 2)
""",
    "cores": """
share tt A per in B per out core per layer core_2 per kind core_3 per model rank 3
    via Core(cores = 3)
""",
    "router": "share s per module rank 2 via Experts(count = 3) gain out init 1",
    "vector_bank": """
share s per model rank 2 via VectorBank(vectors = 12, length = 4, top_k = 3) start nonzero
""",
    # Half of the logits of each row are equal, and larger than any exponential.
    "ties": "share s per model rank 2 via VectorBank(vectors = 12, length = 4, top_k = 3) start nonzero",
    # What is drawn.
    "random_basis": """
share s per model rank 2 via Basis(count = 5) init B kaiming_uniform freeze A, B
""",
    "random_shards": "share s per kind rank 6 via Shards(rows = 3, shards = 4)",
    "random_cores": """
share s per module rank 2
    via Core(count = 13, cores = 2) c per model init A normal, B normal freeze A, B, core
""",
    "gains_of_random_factors": """
share s per model rank 4
    via SS freeze A, B init B kaiming_normal gain rank init 0.1, out init 0
""",
    "stored_random_factors": """
share s per model rank 4
    via SS freeze A, B init B kaiming_normal gain rank init 0.1, out init 0
""",
    # What the base's weights give.
    "base": """
share s c per model rank 2 via Core(count = 5)
    init A svd_vectors, B svd_scaled freeze A, B, core per module
""",
    # What scales the base's weights, too.
    "magnitudes": "share s per module rank 2 magnitude per module",
    "shared_magnitude": """
share a per layer rank 2 via SS
share b where down_proj per module rank 1 scale 0.5
magnitude per kind where not v_proj
""",
    "plain_magnitude": """
share s where down_proj per module rank 2
share e where q_proj per module rank 2 via Experts(count = 2) gain out init 1
magnitude per module plain
""",
    # Where it is.
    "gpt_oss": "share s A per layer B per module rank 2 via SS",
    "experts": "share s A per layer B per module rank 2 via SS",
    "head_and_full": "share s per module rank 2",
    "several_terms": """
share local per module rank 1
share intra per layer rank 2 via KE(size = 16)
share inter per model rank 3 via GT(size = 8, gate_rank = 2) gain rank init 1 scale 0.5
""",
    # Whole numbers and scales; 5 rows of 15 leave half a byte.
    "int8": "share s per layer rank 4 via KE(size = 16) gain out init 1",
    "int4": "share a per layer rank 5 via KE(size = 15) share b per module rank 2 scale 0.5",
    "library": "share s A per module B per adapter, module rank 3",
}
"""The shares of each spec."""

HOW: dict[str, dict[str, Any]] = {
    "gains_of_random_factors": {"type": torch.bfloat16},
    "stored_random_factors": {"frozen": "tensors", "dtype": "bfloat16"},
    "experts": {"family": "mixtral", "target": "up_proj, down_proj"},
    "head_and_full": {
        "family": "gemma2",
        "target": "lm_head, embed_tokens, q_proj",
        "train": "train norms",
    },
    "shared_magnitude": {"target": "q_proj, v_proj, down_proj"},
    "plain_magnitude": {"target": "q_proj, v_proj, down_proj"},
    "gpt_oss": {"family": "gpt_oss", "target": "parent experts"},
    "base": {"frozen": "base"},
    "int8": {"dtype": "int8"},
    "int4": {"dtype": "int4"},
    "library": {"names": ("law", "maths")},
}
"""What of them is otherwise: the family of the base, the target, what is trained in full, how it is saved."""


def make(folder: Path, name: str) -> None:
    """Make one adapter, and `expected.safetensors` beside its files."""
    how = dict(HOW.get(name, {}))
    family, target = how.pop("family", "llama"), how.pop("target", "q_proj, down_proj")
    dtype, names = how.pop("type", torch.float32), how.pop("names", None)
    text = f"spec {name}\ntarget {target}\n{ADAPTERS[name].strip()}\n{how.pop('train', '')}\n"
    model = tiny_model(family)
    plan, _ = build_plan(parse_spec(text), architecture_of(model))
    shutil.rmtree(folder / name, ignore_errors=True)
    (folder / name).mkdir(parents=True)
    if names:
        adapters = {label: trained(plan, dtype, i) for i, label in enumerate(names)}
        for label in names:  # What a library shares is that of its first.
            adapters[label] |= {n: adapters[names[0]][n] for n in plan.common}
        save_library(folder / name, plan, adapters, text, seed=SEED)
        for label, tensors in adapters.items():
            save_file(expected(plan, tensors), folder / name / f"expected-{label}.safetensors")
    else:
        tensors = trained(plan, dtype)
        if how.get("frozen") == "base":
            tensors |= singular_starts(plan, model)
            how["reproduced"] = singular_starts(plan, model, torch.float64)
        paths = {site.path for site in plan.sites}
        maps = {p: w.matrix().detach() for p, w in linear_maps(model).items() if p in paths}
        if how.get("frozen") == "base" or any(term.is_magnitude for term in plan.terms):
            save_file({p: w.contiguous() for p, w in maps.items()}, folder / name / WEIGHTS)
        save_adapter(folder / name, plan, tensors, text, seed=SEED, **how)
        if how.get("dtype"):
            tensors = read_adapter(folder / name).tensors()
        found = expected(plan, tensors, maps)
        save_file(found, folder / name / "expected.safetensors")
        if family == "gpt_oss":
            save_file(as_parameters(model, found), folder / name / PARAMETERS)
    (folder / name / CARD).unlink()


def as_parameters(
    model: torch.nn.Module, updates: Mapping[str, torch.Tensor]
) -> dict[str, torch.Tensor]:
    """Return what is added to the parameters of experts, as the model keeps them."""
    found: dict[str, torch.Tensor] = {}
    for path, weight in linear_maps(model).items():
        if path in updates:
            name = f"{weight.owner}.{weight.parameter}"
            shape = weight.module.get_parameter(weight.parameter).shape
            weight.part(found.setdefault(name, torch.zeros(shape))).copy_(updates[path])
    return found


def trained(plan: Plan, dtype: torch.dtype, number: int = 0) -> dict[str, torch.Tensor]:
    """Return an adapter's tensors, as if it had been trained: what is frozen is as it was drawn."""
    tensors = draw(plan, SEED)
    for tensor in plan.tensors:
        if tensor.trainable:
            tensors[tensor.name] = torch.empty(tensor.shape)
            fill(tensors[tensor.name].numpy(), {"normal": 0.5}, number, f"trained {tensor.name}")
            if plan.spec == "ties" and ".L_" in tensor.name:
                tensors[tensor.name] = 1000 + tensors[tensor.name].clamp(max=0.0)
    return {name: tensor.to(dtype) for name, tensor in tensors.items()}


def expected(
    plan: Plan, tensors: Mapping[str, torch.Tensor], weights: Mapping[str, torch.Tensor] = {}
) -> dict[str, torch.Tensor]:
    """Return W' - W of each module by its path, or some x and what they get; and what is trained in full.

    ``weights`` are W by module, where magnitudes scale them.
    """
    wide = {name: tensor.double() for name, tensor in tensors.items()}
    found = {t.parameter: wide[t.tensor].reshape(t.shape) for t in plan.trained}
    for site in plan.sites:
        terms = [term for term in plan.terms_of[site.path] if not term.is_magnitude]
        magnitude = plan.magnitude(site.path)
        zero = torch.zeros(site.d_out, site.d_in, dtype=torch.float64)
        base = weights[site.path].double() if magnitude else zero
        if all(term.linear for term in terms):
            added = sum((dense_delta(t, wide, site.d_in, site.d_out) for t in terms), start=zero)
            g = scales(magnitude, wide, base, base + added)
            found[site.path] = g[:, None] * (base + added) - base
        else:
            x = torch.empty(3, site.d_in)
            fill(x.numpy(), {"normal": 1.0}, SEED, f"x {site.path}")
            y = sum(routed(t, wide, x.double(), site.d_out) for t in terms)
            whole = x.double() @ base.mT
            found[f"{site.path}.x"] = x
            found[f"{site.path}.y"] = (whole + y) * scales(magnitude, wide, base) - whole
    return {name: tensor.float().contiguous() for name, tensor in found.items()}


def scales(
    magnitude: Term | None,
    tensors: Mapping[str, torch.Tensor],
    before: torch.Tensor,
    after: torch.Tensor | None = None,
) -> torch.Tensor:
    """Return g of each row of a module's weight, before and after its terms are added."""
    if magnitude is None:
        return torch.ones(len(before), dtype=torch.float64)
    g = 1 + tensors[magnitude.tensors["mu"]][0]
    if magnitude.options["plain"]:
        return g
    assert after is not None
    each = zip(before, after, strict=True)
    return g * torch.stack([w.norm() / torch.maximum(v.norm(), w.norm() / 1000) for w, v in each])


def routed(
    term: Term, tensors: Mapping[str, torch.Tensor], x: torch.Tensor, d_out: int
) -> torch.Tensor:
    """Return the update of a term that is not linear."""
    named = {role: tensors[name] for role, name in term.tensors.items()}
    values = TermValues(named, term.options, term.rank, x.shape[1], d_out)
    return term.scale * REFERENCES[term.transform](values, x) * named["gain_out"]


def set_ref(sharing: dict[str, Any], value: Any) -> None:
    sharing["modules"][0]["terms"][0][1] = value


def unused(sharing: dict[str, Any], tensors: dict[str, torch.Tensor]) -> None:
    sharing["tensors"].append({"key": "more", "count": 1, "shape": [2, 2]})
    tensors["more"] = torch.ones(1, 2, 2)


def turn(tensors: dict[str, torch.Tensor]) -> None:
    key = next(iter(tensors))
    tensors[key] = tensors[key].mT.contiguous()


def widen(tensors: dict[str, torch.Tensor], part: str) -> None:
    key = next(key for key in tensors if key.endswith(part))
    tensors[key] = tensors[key].int()


def fill_scales(tensors: dict[str, torch.Tensor]) -> None:
    next(t for key, t in tensors.items() if key.endswith(":scales")).fill_(torch.inf)


def first_drawn(sharing: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = next(entry for entry in sharing["tensors"] if "draw" in entry)
    return found


Edit = Callable[[dict[str, Any], dict[str, torch.Tensor]], Any]
REFUSED: dict[str, tuple[str, Edit]] = {
    "another_format": ("identity", lambda s, t: s.update(format=4)),
    "unknown_field": ("identity", lambda s, t: s.update(more=1)),
    "unknown_need": ("identity", lambda s, t: s["needs"].append("Fold")),
    "need_of_nothing": ("identity", lambda s, t: s["needs"].append("drawn")),
    "need_left_out": ("random_basis", lambda s, t: s["needs"].remove("drawn")),
    "unknown_transform": ("identity", lambda s, t: s["terms"][0].update(transform="Fold")),
    "unknown_option": ("kronecker", lambda s, t: s["terms"][0]["options"].update(mirror=True)),
    "unknown_word": ("slices_at_the_ends", lambda s, t: s["terms"][0]["options"].update(slice="x")),
    "unknown_role": ("identity", lambda s, t: s["terms"][0]["roles"].append("gain_in")),
    "module_without_a_rank": ("identity", lambda s, t: s["modules"][0].pop("rank")),
    "another_rank": ("identity", lambda s, t: s["modules"][0].update(rank=9)),
    "module_twice": ("identity", lambda s, t: s["modules"].append(dict(s["modules"][0]))),
    "unknown_field_of_a_module": ("identity", lambda s, t: s["modules"][0].update(bias=1)),
    "blocks_without_a_place": ("identity", lambda s, t: s["modules"][0].update(module="x.q_proj")),
    "place_without_blocks": ("identity", lambda s, t: s["modules"][0].pop("blocks")),
    "no_blocks": ("identity", lambda s, t: s["modules"][0].update(blocks=[0, 0])),
    "negative_index": ("slice_sharing", lambda s, t: set_ref(s, -1)),
    "index_past_the_end": ("slice_sharing", lambda s, t: set_ref(s, 99)),
    "index_of_no_integer": ("slice_sharing", lambda s, t: set_ref(s, 0.5)),
    "tensors_of_a_role_missing": ("identity", lambda s, t: s["modules"][0]["terms"][0].pop()),
    "expert_that_is_none": ("identity", lambda s, t: s["modules"][0].update(expert=3)),
    "expert_left_out": ("experts", lambda s, t: s["modules"][0].pop("expert")),
    "surplus_tensor": ("identity", lambda s, t: t.update(more=torch.ones(1, 2, 2))),
    "missing_tensor": ("identity", lambda s, t: t.pop(next(iter(t)))),
    "unused_tensor": ("slice_sharing", unused),
    "rows_past_the_end": ("identity", lambda s, t: s["tensors"][0].update(row=1)),
    "stack_of_another_shape": ("identity", lambda s, t: turn(t)),
    "nan": ("identity", lambda s, t: next(iter(t.values())).view(-1)[:1].fill_(torch.nan)),
    "two_ways_to_store": ("int8", lambda s, t: s["tensors"][0].update(key="x")),
    "numbers_of_another_type": ("int8", lambda s, t: widen(t, ":int8")),
    "scales_that_are_infinite": ("int4", lambda s, t: fill_scales(t)),
    "drawn_otherwise": ("random_basis", lambda s, t: first_drawn(s).update(sha256="00000000")),
    "magnitude_before_a_term": ("magnitudes", lambda s, t: s["modules"][0]["terms"].reverse()),
}
"""Wrong folders: the adapter that each is made of, and what is changed in `sharing` or in the tensors."""


def make_refused(folder: Path, name: str) -> None:
    """Make a wrong folder, with digests of what is in it."""
    source, edit = REFUSED[name]
    shutil.rmtree(folder / "refused" / name, ignore_errors=True)
    out = folder / "refused" / name
    out.mkdir(parents=True)
    config = json.loads((HERE / source / CONFIG).read_text("utf-8"))
    tensors = load_file(HERE / source / TENSORS)
    edit(config["bishare"]["sharing"], tensors)
    save_file(tensors, out / TENSORS)
    record = config["bishare"]
    record["tensors"] = digest_of(entries_in((out / TENSORS).read_bytes()))
    record["digest"] = record_digest(config["spec"], config["seed"], record)
    (out / CONFIG).write_text(json.dumps(config, indent=1, sort_keys=True) + "\n", "utf-8")


if __name__ == "__main__":
    place = Path(sys.argv[1]) if len(sys.argv) > 1 else HERE
    for name in ADAPTERS:
        make(place, name)
    for name in REFUSED:
        make_refused(place, name)
