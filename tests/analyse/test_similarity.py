"""Measures of pairs, against the same of dense matrices; and what each of them can see."""

import math
from dataclasses import replace

import pytest
import torch

from bishare_dsl.analyse.maps import maps
from bishare_dsl.analyse.similarity import rmi, similarity
from tests.analyse.conftest import INDEPENDENT, TARGET

SHARED_A = f"spec planted {TARGET} share one A per layer, in B per module rank 4"
SHARED_PAIR = f"spec planted {TARGET} share one per kind rank 4"


def entropy(matrix: torch.Tensor) -> float:
    """The authors' own, of a flat matrix (Equation 8)."""
    return math.log(float(matrix.double().std(correction=0))) + math.log(2 * math.pi) / 2 + 0.5


def authors_rmi(x: torch.Tensor, y: torch.Tensor) -> float:
    both = torch.cat([x.flatten(), y.flatten()])
    information = entropy(x) + entropy(y) - entropy(both)
    return information / min(entropy(x), entropy(y))


def dense(update) -> torch.Tensor:
    whole = update.whole
    return whole.left.t() @ torch.diag(whole.values) @ whole.right


def of(*matrices: torch.Tensor) -> torch.Tensor:
    return rmi(
        torch.tensor([float(m.double().mean()) for m in matrices]),
        torch.tensor([float(m.double().square().mean()) for m in matrices]),
        torch.tensor([float(m.numel()) for m in matrices]),
    )


def test_rmi_of_independent_random_matrices_of_one_scale_is_1():
    torch.manual_seed(0)
    x, y = torch.randn(300, 200) * 0.01, torch.randn(100, 500) * 0.01
    assert float(of(x, y)[0, 1]) == pytest.approx(1.0, abs=2e-3)
    assert float(of(x, y)[0, 1]) == pytest.approx(authors_rmi(x, y), abs=1e-5)
    # Of another scale, as the same matrix ten times as large, it is less: the more alike, the less.
    assert float(of(x, torch.randn(300, 200) * 0.02)[0, 1]) == pytest.approx(0.926, abs=2e-3)
    assert float(of(x, 10 * x)[0, 1]) == pytest.approx(0.893, abs=2e-3)


def test_the_measures_are_those_of_the_dense_matrices(read):
    updates = read(INDEPENDENT).updates[:5]
    found = similarity(updates)
    one, other = dense(updates[1]), dense(updates[2])  # k_proj and v_proj, 192 -> 96
    assert float(found["rmi"][1, 2]) == pytest.approx(authors_rmi(one, other), abs=1e-4)
    cosine = float((one * other).sum() / one.norm() / other.norm())
    assert float(found["cosine"][1, 2]) == pytest.approx(cosine, abs=1e-5)
    bases = [torch.linalg.svd(matrix).Vh[:4] for matrix in (one, other)]
    squares = torch.linalg.svdvals(bases[0] @ bases[1].t()).square()
    assert float(found["angles_in"][1, 2]) == pytest.approx(float(squares.mean()), abs=1e-5)


def test_of_different_widths_there_is_rmi_alone(read):
    found = similarity(read(INDEPENDENT).updates[:5])
    q, down = 0, 4
    assert math.isnan(found["angles_in"][q, down])
    assert float(found["angles_out"][q, down]) < 0.1
    assert math.isnan(found["cosine"][q, down])
    assert math.isfinite(found["rmi"][q, down])


def mean(adapter, measure: str, title: str) -> float:
    (found,) = [m for m in maps(adapter.updates) if (m.measure, m.title) == (measure, title)]
    return found.mean


def test_planted_sharing_is_seen_where_rmi_sees_none(read):
    independent, shared = read(INDEPENDENT), read(SHARED_A, name="shared")
    assert mean(independent, "rmi", "modules of a layer") > 0.9
    assert (
        abs(
            mean(shared, "rmi", "modules of a layer")
            - mean(independent, "rmi", "modules of a layer")
        )
        < 0.02
    )
    # The A of down_proj is as wide as no other.
    assert mean(shared, "angles_in", "modules of a layer") == pytest.approx(1.0, abs=1e-4)
    assert mean(independent, "angles_in", "modules of a layer") < 0.05
    assert mean(shared, "angles_out", "modules of a layer") < 0.05
    assert mean(shared, "angles_in", "q_proj across layers") < 0.05


def test_a_pair_for_all_layers_is_seen_across_layers(read):
    shared = read(SHARED_PAIR)
    assert mean(shared, "cosine", "v_proj across layers") == pytest.approx(1.0, abs=1e-4)
    assert mean(shared, "angles_out", "v_proj across layers") == pytest.approx(1.0, abs=1e-4)
    assert abs(mean(shared, "cosine", "modules of a layer")) < 0.1


def test_what_modules_started_as_alike_is_no_sharing(read):
    """With one A at the start and no change of it in common, only the start looks shared."""
    text = f"spec planted {TARGET} share one A per in B per module rank 4 freeze A"
    frozen = read(text, change=0.1)
    assert mean(frozen, "angles_in", "q_proj across layers") == pytest.approx(1.0, abs=1e-3)
    alike, apart = read(INDEPENDENT, change=0.03), read(INDEPENDENT, change=0.03, seed=1, name="b")
    from bishare_dsl.analyse.analysis import compare_adapters

    def angle(one, other):
        charts = {chart.measure: chart for chart in compare_adapters([one, other])}
        return charts["angles_in"].mean

    assert angle(alike, apart) < 0.05
    kept = [
        replace(one, updates=tuple(replace(u, trained=u.whole) for u in one.updates))
        for one in (alike, apart)
    ]
    assert angle(*kept) > 0.8
