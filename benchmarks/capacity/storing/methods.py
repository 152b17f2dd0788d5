"""The compared methods at a budget: LoRA at several placements, shipped specs, custom
designs, proposals.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from bishare_dsl.models import Architecture, architecture_of
from storing import placing
from storing.bases import BASES
from storing.store import Spec

FITTED = Path(__file__).parents[1] / "fitted.json"
"""The params with which a shipped spec is near a budget."""
SPECS = Path(__file__).parents[1] / "specs"
"""Of proposals, which are made by what was measured."""

Make = Callable[[Architecture, int], str | dict[str, Any] | None]
"""From a model and a budget: the text of a spec, or the params of one that ships; None where none fits."""


@dataclass(frozen=True)
class Method:
    """A way to spend a budget.

    Attributes:
        label: in tables.
        family: LoRA, shipped, own, drawn or proposed.
        make: what it is at a budget.
        start: the rate in the middle of the first three.
    """

    label: str
    family: str
    make: Make
    start: float = 1e-2


def _even(*kinds: str) -> Make:
    return lambda architecture, budget: placing.even(architecture, kinds, budget)


def _half(late: bool, *kinds: str) -> Make:
    def make(architecture: Architecture, budget: int) -> str | None:
        count = 1 + max(site.layer or 0 for site in architecture.sites)
        half = count // 2
        layers = range(count - half, count) if late else range(half)
        return placing.by_layer(architecture, kinds, layers, budget)

    return make


def _middle(*kinds: str) -> Make:
    def make(architecture: Architecture, budget: int) -> str | None:
        layer = (1 + max(site.layer or 0 for site in architecture.sites)) // 2
        return placing.by_layer(architecture, kinds, range(layer, layer + 1), budget)

    return make


def _grown(targets: str, *shares: str) -> Make:
    text = "\n\n".join(["spec own", f"target {targets}", "scale 2", *shares, ""])
    return lambda architecture, budget: placing.grown(architecture, text, budget)


def _shipped(name: str, **grid: Sequence[Any]) -> Make:
    return lambda architecture, budget: placing.fitted(architecture, name, grid, budget)


def _tiers(name: str, **fixed: Any) -> Make:
    """Spend a budget on three tiers as the paper does: most of it in the modules where there is enough, and
    in the model a multiple of a layer's rank."""

    def make(architecture: Architecture, budget: int) -> dict[str, Any] | None:
        for r_local in (2, 1, 0):
            found = [
                params
                for ratio in (2, 3, 4, 6, 8, 16)
                if (
                    params := placing.grown_params(
                        architecture,
                        name,
                        lambda r, ratio=ratio, r_local=r_local: {
                            **fixed,
                            "r_local": r_local,
                            "r_intra": r,
                            "r_inter": ratio * r,
                        },
                        budget,
                    )
                )
            ]
            if found:
                # The candidate with most modules per layer among those of nearly the right size.
                return max(found, key=lambda params: params["r_intra"])
        return None

    return make


def _drawn(seed: int) -> Make:
    return lambda architecture, budget: placing.drawn(architecture, budget, seed)


FIVE = ("q_proj", "k_proj", "v_proj", "up_proj", "down_proj")
_ONE_KIND = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
_SMALL, _ANY = range(9), (0, 1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96)
HIGH = 6.25e-2
"""Where the search of diagonals, coefficients and small cores begins: rates grow as numbers fall."""

LORA = {
    "lora": Method("LoRA on all five kinds", "LoRA", _even(*FIVE)),
    **{
        f"lora_{kind[:-5]}": Method(f"LoRA on `{kind[:-5]}`", "LoRA", _even(kind))
        for kind in _ONE_KIND
    },
    "lora_attention": Method("LoRA on q, k, v, o", "LoRA", _even(*_ONE_KIND[:4])),
    "lora_vo": Method("LoRA on v and o", "LoRA", _even("v_proj", "o_proj")),
    "lora_mlp": Method("LoRA on gate, up, down", "LoRA", _even(*_ONE_KIND[4:])),
    "lora_gate_up": Method("LoRA on gate and up", "LoRA", _even("gate_proj", "up_proj")),
    "lora_up_down": Method("LoRA on up and down", "LoRA", _even("up_proj", "down_proj")),
    "lora_up_late": Method("LoRA on `up`, late half", "LoRA", _half(True, "up_proj")),
    "lora_up_middle": Method("LoRA on `up`, the middle layer", "LoRA", _middle("up_proj")),
    "lora_up_early": Method("LoRA on `up`, early half", "LoRA", _half(False, "up_proj")),
}

_OWN_POOL = "share pool  per kind  rank RANK  gain rank init 1"
OWN = {
    "pool_up": Method("pool on `up`, a diagonal each", "own", _grown("up_proj", _OWN_POOL)),
    "pool_five": Method(
        "pool per kind on five, a diagonal each", "own", _grown(placing.SHARED, _OWN_POOL)
    ),
    "pool_gate_up": Method(
        "pool per kind on gate and up, a diagonal each",
        "own",
        _grown("gate_proj, up_proj", _OWN_POOL),
    ),
    "pool_up_halves": Method(
        "pool on `up` per half of the layers, a diagonal each",
        "own",
        _grown("up_proj", "share pool  per 2 * layer // layers  rank RANK  gain rank init 1"),
    ),
    "pool_up_core": Method(
        "pool on `up`, a matrix each",
        "own",
        _grown(
            "up_proj", "share pool  A per kind  B per kind  core per module  rank RANK  via Core"
        ),
    ),
    "pool_up_no_gain": Method(
        "pool on `up`, no diagonal", "own", _grown("up_proj", "share pool  per kind  rank RANK")
    ),
    "a_up": Method(
        "A shared on `up`, B own",
        "own",
        _grown("up_proj", "share a  A per kind  B per module  rank RANK"),
    ),
    "b_up": Method(
        "B shared on `up`, A own",
        "own",
        _grown("up_proj", "share b  A per module  B per kind  rank RANK"),
    ),
    "own_pool_up": Method(
        "rank 1 and a pool on `up`, a diagonal each",
        "own",
        _grown("up_proj", "share own  per module  rank 1", _OWN_POOL),
    ),
    "pool_q": Method("pool on `q`, a diagonal each", "own", _grown("q_proj", _OWN_POOL)),
    "pool_down": Method("pool on `down`, a diagonal each", "own", _grown("down_proj", _OWN_POOL)),
}

SHIPPED = {
    "ss": Method("SS", "shipped", _tiers("bishare_ss")),
    "gt": Method("GT", "shipped", _tiers("bishare_gt", size=32)),
    "ke_r_1": Method("KE `r_1`", "shipped", _tiers("bishare_ke", size=32)),
    "ke_1_r": Method("KE `1_r`", "shipped", _tiers("bishare_ke_ab", size=32)),
    "ke_rowwise": Method("KE row by row", "shipped", _tiers("bishare_ke_rowwise", size=32)),
    "vera": Method(
        "VeRA", "shipped", _shipped("vera", r=(*range(1, 99, 3), *range(100, 600, 20))), HIGH
    ),
    "rasa": Method("RaSA", "shipped", _shipped("rasa", r=_SMALL[1:], k=_SMALL[1:])),
    "lily": Method(
        "Lily",
        "shipped",
        _shipped("lily", r=(*range(1, 17), *range(18, 65, 2)), groups=(2,), count=(2,)),
    ),
    "lora_xs": Method("LoRA-XS", "shipped", _shipped("lora_xs", r=range(1, 33)), HIGH),
    "mos": Method("MoS", "shipped", _shipped("mos", budget=_SMALL[1:], private=(0, 1), r=(4, 8))),
    "share_lora": Method(
        "ShareLoRA, A per kind", "shipped", _shipped("share_lora", r_share_a=range(1, 17))
    ),
    "shared_input": Method("A per input", "shipped", _shipped("shared_input", r=_SMALL[1:])),
    "shared_core": Method(
        "shared factors, own cores", "shipped", _shipped("shared_core", r=range(1, 33))
    ),
    "masa": Method(
        "MASA", "shipped", _shipped("masa", r=_SMALL[1:], groups=(1, 2), count=(1, 2, 3))
    ),
    "metatt": Method("MetaTT", "shipped", _shipped("metatt", r=range(1, 40))),
    "tied_lora": Method(
        "Tied-LoRA", "shipped", _shipped("tied_lora", r=(*range(1, 17), *range(18, 90, 3)))
    ),
    "vb_lora": Method(
        "VB-LoRA",
        "shipped",
        _shipped("vb_lora", r=(1, 2), vectors=range(4, 400, 12), length=(32,)),
        HIGH,
    ),
    "nola": Method(
        "NOLA", "shipped", _shipped("nola", count=(*range(1, 99), *range(100, 260, 10))), HIGH
    ),
    "prolora": Method(
        "PRoLoRA", "shipped", _shipped("prolora", r_shared=_ANY[1:], r_unshared=(0, 1, 2))
    ),
    "melora": Method("MELoRA", "shipped", _shipped("melora", r=_SMALL[1:])),
    "gralora": Method("GraLoRA", "shipped", _shipped("gralora", r=(2, 4, 6))),
    "miss": Method("MiSS", "shipped", _shipped("miss", r=range(1, 33))),
    "ladder": Method("ladder", "shipped", _shipped("ladder", r=(1, 2), group=(2, 4), size=(32,))),
    "pissa": Method("PiSSA", "shipped", _shipped("pissa", r=_SMALL[1:])),
}

GATE = {
    "gate": Method("LoRA r=8 on all five kinds", "gate", lambda architecture, budget: {"r": 8}),
}
"""Not of any budget."""
CHOSEN = {
    **{
        f"drawn_{seed}": Method(f"drawn at random, {seed}", "drawn", _drawn(seed))
        for seed in (0, 1, 3)
    },
}
PROPOSED = {
    "proposed": "`propose` of a trained LoRA r=8",
    "proposed_gradients": "`propose` of gradients",
    "proposed_seven": "`propose` of gradients, of all seven kinds",
    "energy": "LoRA, ranks by the energy of gradients",
    "energy_seven": "LoRA, ranks by the energy of gradients, of all seven kinds",
}


def _stored(base: str, name: str) -> Make:
    def make(architecture: Architecture, budget: int) -> str | None:
        file = SPECS / f"{name}-{base}-{budget}.share"
        return file.read_text() if file.exists() else None

    return make


def methods(base: str) -> dict[str, Method]:
    """Return all methods for a base, those of most interest first."""
    stored = {
        name: Method(label, "proposed", _stored(base, name)) for name, label in PROPOSED.items()
    }
    first = ("gate", "lora", "lora_up", "pool_up", "ke_r_1", "ke_1_r", "vera")
    every = {**GATE, **LORA, **OWN, **stored, **CHOSEN, **SHIPPED}
    return {name: every[name] for name in (*first, *every)}


@cache
def spec_of(base: str, name: str, budget: int) -> Spec | None:
    """Return what a method is at a budget, or None where it has nothing of that size."""
    method = methods(base)[name]
    if method.family == "shipped":
        made: str | dict[str, Any] | None = _fitted(base, name, budget)
    else:
        made = method.make(architecture(base), budget)
    if made is None or (name == "gate" and budget != BASES[base].gated):
        return None
    return (made, {}) if isinstance(made, str) else (_FILES[name], made)


def _fitted(base: str, name: str, budget: int) -> dict[str, Any] | None:
    """Return a shipped spec's params, which take long to find, from a file where they are known."""
    known = json.loads(FITTED.read_text()) if FITTED.exists() else {}
    key = f"{base} {budget} {name}"
    if key not in known:
        known[key] = methods(base)[name].make(architecture(base), budget)
        FITTED.write_text(json.dumps(known, indent=0, sort_keys=True) + "\n")
    return known[key]


_FILES = {
    "gate": "lora",
    "ss": "bishare_ss",
    "gt": "bishare_gt",
    "ke_r_1": "bishare_ke",
    "ke_1_r": "bishare_ke_ab",
    "ke_rowwise": "bishare_ke_rowwise",
} | {name: name for name in SHIPPED if not name.startswith(("ss", "gt", "ke_"))}


@cache
def architecture(base: str) -> Architecture:
    """Return the shapes of a base."""
    return architecture_of(BASES[base].load())
