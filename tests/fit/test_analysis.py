"""What common factors keep: all of it where they are common, and what chance gives where they are not."""

import json
import math

import pytest
import torch

from bishare_dsl.compiler import make_plan
from bishare_dsl.convert.effective import delta
from bishare_dsl.fit.analysis import analyse, table
from bishare_dsl.folder.files import read_adapter, save_adapter
from bishare_dsl.initial.values import draw
from bishare_dsl.models.site import Architecture, Site

TARGET = "target q_proj, k_proj, v_proj, up_proj, down_proj"
INDEPENDENT = "own per module rank 4"
WIDTHS = {
    "self_attn.q_proj": (192, 192),
    "self_attn.k_proj": (192, 96),
    "self_attn.v_proj": (192, 96),
    "mlp.up_proj": (192, 320),
    "mlp.down_proj": (320, 192),
}


@pytest.fixture
def plant(tmp_path):
    """Save an adapter of a share: random tensors, or, with `change`, initial values that moved a little."""
    sites = tuple(
        Site.at(f"model.layers.{layer}.{path}", *width)
        for layer in range(8)
        for path, width in WIDTHS.items()
    )
    base = Architecture(name="x", family="llama", layers=8, parameters=10**8, sites=sites)

    def make(share, change=0.0, factor=1.0):
        made = make_plan(f"spec planted\n{TARGET}\nshare {share}\n", base)
        random = torch.Generator().manual_seed(0)
        tensors = draw(made.plan, 0)
        for tensor in made.plan.tensors:
            if tensor.trainable:
                noise = torch.randn(tensor.shape, generator=random) / tensor.shape[1] ** 0.5
                start = tensors[tensor.name] if change else 0.0
                tensors[tensor.name] = factor * (start + (change or 1.0) * noise)
        save_adapter(tmp_path / "adapter", made.plan, tensors, made.text(), seed=0)
        return read_adapter(tmp_path / "adapter")

    return make


def found(stored):
    return {(row.key, row.role): row for row in analyse(stored)}


def test_it_keeps_what_dense_matrices_keep(plant):
    stored = plant(INDEPENDENT)
    groups = {}
    for site in stored.plan.sites:
        update = delta(stored.plan, stored.tensors(), site).double()
        for role, rows in (("A", update), ("B", update.t())):
            groups.setdefault((site.kind, role, rows.shape[1]), []).append(rows)
    for role in "AB":
        squares = [
            torch.linalg.svdvals(torch.cat(rows)).square()
            for (_, r, _), rows in groups.items()
            if r == role
        ]
        want = float(sum(s[:4].sum() for s in squares) / sum(s.sum() for s in squares))
        assert found(stored)["kind", role].kept == pytest.approx(want, rel=1e-4)


@pytest.mark.parametrize(
    ("share", "key", "role"),
    [
        ("one A per layer, in B per module rank 4", "layer", "A"),
        ("one A per module B per kind rank 4", "kind", "B"),
        ("one A per in, layer // 4 B per module rank 4", "layer // 4", "A"),
        ("one A per in B per module rank 4", "model", "A"),
    ],
)
def test_what_is_shared_keeps_all_and_stands_above_chance(share, key, role, plant):
    row = found(plant(share))[key, role]
    assert row.kept == pytest.approx(1.0, abs=1e-3)
    assert row.chance < 0.85


def test_independent_updates_keep_what_chance_keeps(plant):
    for row in analyse(plant(INDEPENDENT)):
        assert row.kept == pytest.approx(row.chance, abs=0.03), row


def test_a_common_start_is_no_sharing(plant):
    """Of known initial values the change is measured: what is frozen stays, and shows what it shares."""
    frozen = plant("one A per in B per module rank 4 freeze A", change=0.1)
    assert found(frozen)["model", "A"].kept == pytest.approx(1.0, abs=1e-3)
    changed = found(plant(INDEPENDENT, change=0.03))["layer", "A"]
    assert changed.kept == pytest.approx(changed.chance, abs=0.05)


def test_the_table_has_the_mean_and_the_least_of_several(plant):
    one, other = analyse(plant("one A per in B per module rank 4")), analyse(plant(INDEPENDENT))
    rows = str(table([one, other])).splitlines()
    assert rows[0].split()[-2:] == ["least", "above"]
    first = next(row for row in rows if row.startswith("model") and " A " in row).split()
    gains = [next(r for r in rs if (r.key, r.role) == ("model", "A")).gain for rs in (one, other)]
    assert first[-2:] == [f"{100 * sum(gains) / 2:+.1f}", f"{100 * min(gains):+.1f}"]
    assert [row.chance for row in analyse(plant(INDEPENDENT), seed=1)] != [r.chance for r in other]


def test_the_command_prints_it_and_refuses_what_cannot_be_measured(
    trained, checkpoint, here, bishare
):
    stored = trained("lora", r=2)
    words = ["--model", checkpoint]
    assert "by chance" in bishare("analyse", "given", *words).out
    found = json.loads(bishare("analyse", "given", *words, "--json").out)
    assert [*map(len, found["adapters"].values())] == [10]
    for factor, code in ((0.0, "BS850"), (1e30, "BS628"), (math.inf, "BS694")):
        tensors = {n: factor * t if factor else 0 * t for n, t in stored.tensors().items()}
        save_adapter("bad", stored.plan, tensors, stored.spec_text, seed=0)
        fit = ["fit", "bad", "--spec", "lora", "--out", "new"]
        for command in (["analyse", "bad", *words], *[fit] * bool(factor)):
            run = bishare(*command)
            assert (run.code, f"error[{code}]" in run.err) == (1, True), run.err
        assert not (here / "new").exists()
