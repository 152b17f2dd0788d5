"""The compared methods. A method of bishare is a spec with values for its params, as in `--set`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from harness import KINDS

HERE = Path(__file__).parent
# One grid for all, in steps of 2 to 2.5.
GRID = (2e-4, 5e-4, 1e-3, 2e-3, 5e-3, 1e-2, 2e-2, 5e-2, 1e-1, 2e-1, 5e-1)


class Method(NamedTuple):
    """A method, and where on the grid its search begins.

    Attributes:
        spec: of bishare's, the spec; of PEFT's, the name of its config class.
        params: of the spec, or of the config.
    """

    label: str
    spec: str
    params: Mapping[str, Any] = {}
    start: float = 2e-3
    peft: bool = False


def _tiers(label: str, spec: str, *ranks: int, **params: Any) -> Method:
    tiers = dict(zip(("r_local", "r_intra", "r_inter"), ranks, strict=True))
    return Method(f"{label} {{{','.join(map(str, ranks))}}}", spec, tiers | params)


MAIN = {
    "lora": Method("LoRA r=8", "lora"),
    "ss": Method("SS {2,2,32}", "bishare_ss", {"r_intra": 2}),
    "gt": Method("GT {1,8,16} size 96", "bishare_gt", {"r_local": 1, "size": 96}),
    "ke_r_1": Method("KE `r_1` {2,4,16} size 64", "bishare_ke", {"size": 64}),
    "ke_1_r": Method("KE `1_r` {2,4,16} size 64", "bishare_ke_ab", {"size": 64}),
    "rasa": Method("RaSA r=3", "rasa", {"r": 3}),
    "lily": Method("Lily r=48", "lily", {"r": 48}),
    # Gates of rank 4 alone are half of LoRA's parameters on a model as narrow as this, so that
    # one shared term is all that can have them.
    "gt_4": Method(
        "GT {0,8,0} size 64, gates of rank 4",
        "bishare_gt",
        {"r_local": 0, "r_inter": 0, "size": 64, "gate_rank": 4},
    ),
    "peft_lora": Method("PEFT LoRA r=8", "LoraConfig", {"r": 8, "lora_alpha": 16}, peft=True),
    "peft_vera": Method(
        "PEFT VeRA r=64",
        "VeraConfig",
        # Its frozen factors come from the seed, so they need not be in the file.
        {"r": 64, "d_initial": 0.1, "save_projection": False},
        start=2e-2,
        peft=True,
    ),
    "peft_vb_lora": Method(
        "PEFT VB-LoRA r=4, 90 vectors of 192",
        "VBLoRAConfig",
        # 256 of the paper divides none of the widths 576, 192 and 1536.
        {"r": 4, "num_vectors": 90, "vector_length": 192, "topk": 2},
        start=2e-2,
        peft=True,
    ),
}

SIZES = ("1.6M", "0.7M", "0.4M", "0.15M", "0.05M")
FRONT = {
    "LoRA": ("lora", "lora_3", "lora_2", "lora_no_downs", "lora_qv"),
    "SS": ("ss_1.6M", "ss", "ss_0.4M", "ss_0.15M", "ss_0.05M"),
    "KE `r_1`": ("ke_1.6M", "ke_0.7M", "ke_r_1", "ke_0.15M", "ke_0.05M"),
    "Lily": ("lily_120", "lily", "lily_30", "lily_11", "lily_4"),
}
"""Methods of about as many parameters as `SIZES`; below its rank 1 on all modules, LoRA is on fewer."""

METHODS = MAIN | {
    "lora_3": Method("LoRA r=3", "lora", {"r": 3}),
    "lora_2": Method("LoRA r=2", "lora", {"r": 2}),
    "lora_1": Method("LoRA r=1", "lora", {"r": 1}),
    "lora_no_downs": Method("LoRA r=1, no down_proj", str(HERE / "lora_no_downs.share")),
    "lora_qv": Method("LoRA r=1, q and v", str(HERE / "lora_qv.share")),
    "ss_1.6M": _tiers("SS", "bishare_ss", 6, 3, 32),
    "ss_0.4M": _tiers("SS", "bishare_ss", 1, 1, 32),
    "ss_0.15M": _tiers("SS", "bishare_ss", 0, 1, 16),
    "ss_0.05M": _tiers("SS", "bishare_ss", 0, 0, 16),
    "ke_1.6M": _tiers("KE `r_1`", "bishare_ke", 7, 24, 64, size=64),
    "ke_0.7M": _tiers("KE `r_1`", "bishare_ke", 3, 16, 16, size=64),
    "ke_0.15M": _tiers("KE `r_1`", "bishare_ke", 0, 32, 64, size=64),
    "ke_0.05M": _tiers("KE `r_1`", "bishare_ke", 0, 8, 64, size=64),
    "library_4": Method("library, r=4", str(HERE / "library.share"), {"r": 4}),
    **{f"lily_{r}": Method(f"Lily r={r}", "lily", {"r": r}) for r in (120, 30, 11, 4)},
}

TOGETHER = ("lora_2", "library_4", "lora")
"""Of many tasks in one run: adapters apart, adapters with a part in common, and one to cut."""

ABLATIONS: dict[str, tuple[tuple[str, dict[str, Any]], ...]] = {
    "window (Table 4)": (("ss", {"slice": "leading"}), ("ss", {"slice": "trailing"})),
    "start of the gates (Table 5)": (
        ("gt", {"gates": "kaiming_normal"}),
        ("gt", {"gates": "ones"}),
    ),
    "start of the kernels (Table 6)": (
        ("ke_r_1", {"kernel": "kaiming_uniform"}),
        ("ke_r_1", {"kernel": "ones"}),
    ),
    "one tier alone (Table 11)": (
        ("ke_r_1", {"r_local": 2, "r_intra": 0, "r_inter": 0}),
        ("ke_r_1", {"r_local": 0, "r_intra": 8, "r_inter": 0}),
        ("ke_r_1", {"r_local": 0, "r_intra": 0, "r_inter": 32}),
        ("ke_1_r", {"r_local": 0}),
    ),
    "ranks of the tiers (Table 12)": (
        ("ke_r_1", {"r_local": 1}),
        ("ke_r_1", {"r_intra": 16}),
        ("ke_r_1", {"r_inter": 64}),
    ),
    "extension a_b (Figure 4c)": (
        ("ke_1_r", {"shared_rank": 2}),
        ("ke_1_r", {"shared_rank": 4}),
    ),
}
"""The paper's ablations that fit this model: a method, and what is set on top of its params."""


def adapt(method: Method, params: Mapping[str, Any], model: Any, seed: int) -> Any:
    """Return the model with the method's adapter: the base's weights frozen, the adapter's in float32."""
    if not method.peft:
        from bishare_dsl import compile_spec

        return compile_spec(method.spec, model, params=params, seed=seed)
    import peft
    from transformers import set_seed

    set_seed(seed)
    if method.spec == "VeraConfig":
        params = {**params, "projection_prng_key": seed}
    config = getattr(peft, method.spec)(target_modules=KINDS, task_type="CAUSAL_LM", **params)
    return peft.get_peft_model(model, config)
