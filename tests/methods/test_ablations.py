"""Every ablation of the paper's Tables 4 to 8, 11 and 12, and Figure 4c: a shipped spec and params alone."""

import math

import pytest

from bishare_dsl import plan_spec
from tests.methods.conftest import sites

KAIMING = ("kaiming_normal", "kaiming_uniform", "ones")

# Table 4: the window. Table 5: the gates' start. Table 6: the kernels' start. Tables 7, 8: the size.
TABLES = [
    *(("bishare_ss", (2, 4, 8), {"slice": s}) for s in ("leading", "trailing", "centre")),
    *(("bishare_gt", (2, 8, 16), {"gates": start}) for start in KAIMING),
    *(("bishare_ke", (2, 4, 16), {"kernel": start}) for start in KAIMING),
    *(("bishare_gt", (2, 8, 16), {"size": size}) for size in (512, 1024, 2048)),
    *(("bishare_ke_rowwise", (2, 4, 16), {"size": size}) for size in (64, 128, 256)),
]
# Table 11: one tier alone.
TABLES += [
    (spec, tuple(rank if i == tier else 0 for i in range(3)), {})
    for spec in ("bishare_ss", "bishare_gt", "bishare_ke")
    for tier in range(3)
    for rank in (8, 16, 32)
]
# Table 12: the ranks of the three tiers.
TABLES += [
    ("bishare_ke", (local, 4, 16), {}) for local in (2, 4, 8, 16)
] + [
    ("bishare_ke", (2, intra, 16), {}) for intra in (2, 8, 16)
] + [
    ("bishare_ke", (2, 4, inter), {}) for inter in (8, 32, 64)
]  # fmt: skip
# Figure 4c: the extension a_b, with shared dimension a.
TABLES += [("bishare_ke_ab", (2, 4, 16), {"shared_rank": a}) for a in (1, 2, 4)]

SIZE = {"bishare_gt": 1024, "bishare_ke": 256, "bishare_ke_rowwise": 256, "bishare_ke_ab": 256}


def formula(spec, ranks, params):
    """Trainable parameters on Llama 1 7B, worked out from Sections 3.2.1 to 3.2.3."""
    every = sites("llama-7b")
    local, *tiers = ranks
    count = sum(local * (i + o) for i, o in every)
    size = params.get("size", SIZE.get(spec))
    for rank, pools in zip(tiers, (32, 1), strict=True):
        if rank == 0:
            continue
        if spec == "bishare_ss":
            count += pools * rank * (11008 + 11008)
            continue
        shared = params.get("shared_rank", rank)
        count += pools * shared * 2 * size
        if spec == "bishare_gt":
            count += sum(i + size + size + o for i, o in every)
        else:
            rows = rank if spec == "bishare_ke_rowwise" else rank // shared
            count += sum(rows * (math.ceil(i / size) + math.ceil(o / size)) for i, o in every)
    return count


@pytest.mark.filterwarnings("ignore::bishare_dsl.diagnostics.BishareWarning")
@pytest.mark.parametrize(("spec", "ranks", "params"), TABLES)
def test_count(spec, ranks, params):
    tiers = dict(zip(("r_local", "r_intra", "r_inter"), ranks, strict=True))
    plan = plan_spec(spec, "llama-7b", {**tiers, **params})
    assert plan.trainable == formula(spec, ranks, params)
    assert set(plan.shares) == {
        name for name, rank in zip(("local", "intra", "inter"), ranks, strict=True) if rank
    }
    options = {name: value for term in plan.terms for name, value in term.options.items()}
    assert params.items() <= options.items()
