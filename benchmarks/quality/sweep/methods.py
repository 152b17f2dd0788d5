"""What is compared. A method of bishare is a shipped spec and values for its params, as `--set` has them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

KINDS = ["q_proj", "k_proj", "v_proj", "up_proj", "down_proj"]
# The paper's largest fraction of LoRA's parameters, in per cent.
BUDGET = 44.59
# One grid for all, in steps of 2 to 2.5.
GRID = (2e-4, 5e-4, 1e-3, 2e-3, 5e-3, 1e-2, 2e-2, 5e-2, 1e-1, 2e-1, 5e-1)


@dataclass(frozen=True)
class Method:
    """A method, and where on the grid its search begins.

    Attributes:
        spec: of bishare's, the spec; of PEFT's, the name of its config class.
        params: of the spec, or of the config.
        bishare: whether it is one of the specs that must stay within `BUDGET`.
    """

    name: str
    label: str
    spec: str
    params: Mapping[str, Any] = field(default_factory=dict)
    start: float = 2e-3
    peft: bool = False
    bishare: bool = False


METHODS = {
    method.name: method
    for method in (
        Method("lora", "LoRA r=8", "lora"),
        Method("ss", "SS {2,2,32}", "bishare_ss", {"r_intra": 2}, bishare=True),
        Method("gt", "GT {1,8,16} size 96", "bishare_gt", {"r_local": 1, "size": 96}, bishare=True),
        Method("ke_r_1", "KE `r_1` {2,4,16} size 64", "bishare_ke", {"size": 64}, bishare=True),
        Method("ke_1_r", "KE `1_r` {2,4,16} size 64", "bishare_ke_ab", {"size": 64}, bishare=True),
        Method("peft_lora", "PEFT LoRA r=8", "LoraConfig", {"r": 8, "lora_alpha": 16}, peft=True),
        Method(
            "peft_vera",
            "PEFT VeRA r=64",
            "VeraConfig",
            # Its frozen factors come from the seed, so they need not be in the file.
            {"r": 64, "d_initial": 0.1, "save_projection": False},
            2e-2,
            peft=True,
        ),
        Method(
            "peft_vb_lora",
            "PEFT VB-LoRA r=4, 90 vectors of 192",
            "VBLoRAConfig",
            # 256 of the paper divides none of the widths 576, 192 and 1536.
            {"r": 4, "num_vectors": 90, "vector_length": 192, "topk": 2},
            2e-2,
            peft=True,
        ),
    )
}

# The paper's ablations that fit this model: a method, and what is set on top of its params.
ABLATIONS: dict[str, tuple[tuple[str, Mapping[str, Any]], ...]] = {
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


def adapt(method: Method, params: Mapping[str, Any], model: Any, seed: int) -> Any:
    """The model with the method's adapter; the base's weights are frozen, the adapter's are float32."""
    if not method.peft:
        from bishare_dsl import compile_spec

        return compile_spec(method.spec, model, params=dict(params), seed=seed)
    import peft
    from transformers import set_seed

    set_seed(seed)
    if method.spec == "VeraConfig":
        params = {**params, "projection_prng_key": seed}
    config = getattr(peft, method.spec)(target_modules=KINDS, task_type="CAUSAL_LM", **params)
    return peft.get_peft_model(model, config)


def save(method: Method, model: Any, folder: Path) -> None:
    """Save the adapter alone, each library its own way."""
    (model if method.peft else model.bishare).save_pretrained(folder)


def counts(model: Path) -> dict[str, int]:
    """Trainable parameters of bishare's methods, from their plans.

    Raises:
        ValueError: a Bi-Share method has more than its budget.
    """
    from bishare_dsl import plan_spec

    found = {
        name: plan_spec(method.spec, str(model), params=dict(method.params)).trainable
        for name, method in METHODS.items()
        if not method.peft
    }
    for name, count in found.items():
        if METHODS[name].bishare and (share := 100 * count / found["lora"]) > BUDGET:
            raise ValueError(f"{name} has {share:.2f}% of LoRA's parameters, more than {BUDGET}%")
    return found
