"""Every parameter count that the paper prints for LoRA, SS, GT and KE, from the shipped specs."""

import pytest

from bishare_dsl.language import read_file
from bishare_dsl.models import preset
from bishare_dsl.plan import build_plan
from bishare_dsl.resources import shipped_specs

RANKS = ("r_local", "r_intra", "r_inter")

# model, spec, ranks, other params, trainable parameters
COUNTS = [
    ("llama-7b", "lora", (), {"r": 8}, 14_024_704),
    ("llama-7b", "bishare_ss", (2, 4, 32), {}, 7_028_736),
    ("llama-7b", "bishare_gt", (2, 8, 16), {"size": 1024}, 8_224_768),
    ("llama-7b", "bishare_gt", (2, 8, 16), {"size": 512}, 7_618_560),
    ("llama-7b", "bishare_gt", (2, 8, 16), {"size": 2048}, 9_437_184),
    ("llama-7b", "bishare_ke", (2, 4, 16), {"size": 256}, 3_660_032),
    ("llama-7b", "bishare_ke", (2, 4, 16), {"size": 256, "shared_rank": 16}, 3_593_600),
    (
        "llama-7b",
        "bishare_ke",
        (2, 4, 16),
        {"size": 64, "shared_rank": 16, "rowwise": "true"},
        4_072_448,
    ),
    (
        "llama-7b",
        "bishare_ke",
        (2, 4, 16),
        {"size": 128, "shared_rank": 16, "rowwise": "true"},
        3_816_960,
    ),
    (
        "llama-7b",
        "bishare_ke",
        (2, 4, 16),
        {"size": 256, "shared_rank": 16, "rowwise": "true"},
        3_716_864,
    ),
    ("llama-3-8b", "lora", (), {"r": 8}, 14_155_776),
    ("llama-3-8b", "bishare_ss", (2, 4, 16), {}, 7_667_712),
    ("llama-3-8b", "bishare_gt", (2, 4, 16), {"size": 1024}, 8_028_160),
    ("llama-3-8b", "bishare_ke", (2, 8, 32), {"size": 256}, 3_832_320),
    ("llama-1-13b", "lora", (), {"r": 8}, 21_954_560),
    ("llama-1-13b", "bishare_ss", (2, 4, 8), {}, 10_133_504),
    ("llama-1-13b", "bishare_gt", (2, 4, 8), {"size": 1024}, 12_140_544),
    ("llama-1-13b", "bishare_ke", (2, 8, 32), {"size": 256}, 5_938_432),
]


def planned(name, model, ranks=(), **params):
    spec, _ = read_file(shipped_specs()[name])
    return build_plan(
        spec.with_params({**dict(zip(RANKS, ranks, strict=False)), **params}), preset(model)
    )[0]


@pytest.mark.parametrize(("model", "name", "ranks", "params", "count"), COUNTS)
def test_count_is_the_paper_s(model, name, ranks, params, count):
    assert planned(name, model, ranks, **params).trainable == count


def test_defaults_of_the_files_are_the_ranks_of_section_4_1():
    defaults = {
        name: tuple(
            param.value
            for param in read_file(shipped_specs()[name])[0].params
            if param.name in RANKS
        )
        for name in ("bishare_ss", "bishare_gt", "bishare_ke")
    }
    assert defaults == {
        "bishare_ss": (2, 4, 32),
        "bishare_gt": (2, 8, 16),
        "bishare_ke": (2, 4, 16),
    }


def test_rank_at_a_site_is_what_figure_4a_measures():
    path = "model.layers.0.self_attn.q_proj"
    assert planned("bishare_ss", "llama-7b", (2, 4, 16)).rows(path) == 22
    assert planned("bishare_ke", "llama-7b", (2, 4, 16)).rows(path) == 22
    assert planned("bishare_gt", "llama-7b", (2, 4, 16)).rows(path) == 4
