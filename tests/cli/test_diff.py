"""``bishare diff`` with one adapter: what each share adds, by kind and by layer."""

import json

import pytest
import torch

from bishare_dsl.compiler import make_plan
from bishare_dsl.convert.effective import delta
from bishare_dsl.folder.files import read_adapter, save_adapter
from bishare_dsl.initial.values import draw
from bishare_dsl.models import architecture_of
from bishare_dsl.plan.together import plan_of_shares
from tests.support.families import tiny_model

TEXT = """
spec tiers
target q_proj, down_proj, embed_tokens
share near  per module  rank 2
share far  per kind  rank 3  where kind != embed_tokens
"""


def saved(folder, checkpoint, text, seed=None):
    """An adapter of a text in a folder; without a seed, as it is before training."""
    made = make_plan(text, architecture_of(str(checkpoint)))
    values = draw(made.plan, 0)
    if seed is not None:
        random = torch.Generator().manual_seed(seed)
        values = {name: torch.randn(v.shape, generator=random) / 3 for name, v in values.items()}
    save_adapter(folder, made.plan, values, made.text(), seed=0)


def test_parts_are_those_of_the_dense_updates(bishare, here, checkpoint):
    saved(here / "tiers", checkpoint, TEXT, seed=1)
    adapter = read_adapter(here / "tiers")
    want = {}
    for site in adapter.plan.sites:
        for share in ("near", "far"):
            part = plan_of_shares(adapter.plan, {share})
            if part.terms_of[site.path]:
                square = delta(part, adapter.tensors(), site).double().square().sum()
                want[site.path, share] = float(square)
    whole = sum(
        float(delta(adapter.plan, adapter.tensors(), site).double().square().sum())
        for site in adapter.plan.sites
    )
    data = json.loads(bishare("diff", "tiers", "--json").out)
    assert data["norm"] == pytest.approx(whole**0.5)
    assert data["all"]["together"] == pytest.approx(whole)
    for path, energy in data["modules"].items():
        parts = {share: value for (module, share), value in want.items() if module == path}
        assert energy["shares"] == pytest.approx(parts, rel=1e-4)
    for share in ("near", "far"):
        by_kind = {"q_proj": 0.0, "down_proj": 0.0, "embed_tokens": 0.0}
        by_layer = {"0": 0.0, "1": 0.0, "outside of blocks": 0.0}
        for (path, of_share), value in want.items():
            if of_share == share:
                site = next(site for site in adapter.plan.sites if site.path == path)
                by_kind[site.kind] += value
                by_layer["outside of blocks" if site.layer is None else str(site.layer)] += value
        for groups, expected in ((data["kinds"], by_kind), (data["layers"], by_layer)):
            assert groups.keys() == expected.keys()
            for name, value in expected.items():
                part = groups[name]["shares"].get(share, 0.0)
                assert part == pytest.approx(value, rel=1e-4), name
    out = bishare("diff", "tiers").out
    assert "parts may not add up to 100%" in out
    row = next(line for line in out.splitlines() if line.startswith("embed_tokens")).split()
    near = want["model.embed_tokens", "near"] / whole
    assert row[1:] == [f"{near:.1%}", f"{near:.1%}"]  # `far` covers none of it.


def test_layers_of_two_towers_are_told_apart(bishare, here):
    text = "spec s\ntarget q, wi\nshare a per module rank 2\n"
    made = make_plan(text, tiny_model("t5"))
    values = {t.name: torch.ones(t.shape) for t in made.plan.tensors}
    save_adapter(here / "t5", made.plan, values, made.text(), seed=0)
    layers = json.loads(bishare("diff", "t5", "--json").out)["layers"]
    assert layers.keys() == {f"{tower} {n}" for tower in ("encoder", "decoder") for n in range(2)}


def test_notes_say_what_is_not_measured(bishare, here, checkpoint):
    text = "spec s\ntarget q_proj\nmagnitude per module\ntrain norms\nshare a per module rank 2\n"
    saved(here / "more", checkpoint, text, seed=2)
    out = bishare("diff", "more").out
    assert "magnitudes are left out" in out
    assert "5 parameters trained in full" in out
    assert "add up" not in out
    saved(here / "scales", checkpoint, "ia3", seed=3)
    assert "the updates of ia3 are no matrices" in bishare("diff", "scales").out
    saved(here / "fresh", checkpoint, TEXT)
    run = bishare("diff", "fresh")
    assert (run.code, run.err) == (0, "")
    assert "the updates of tiers are zero" in run.out


def test_a_spec_is_not_an_adapter(bishare, here):
    run = bishare("diff", "lora", "--model", "llama-7b")
    assert run.code == 2
    assert "`lora` is not the folder of an adapter" in run.out + run.err
