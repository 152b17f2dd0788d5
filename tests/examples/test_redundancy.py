"""Relative mutual information as the paper defines it, of dense matrices, and what it can tell."""

import math
from itertools import pairwise

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from bishare_dsl import load_adapter
from bishare_dsl.convert.effective import delta
from bishare_dsl.folder.files import read_adapter


def written_out(x, y):
    """Equations 8 to 10 of dense values."""

    def entropy(values):
        return math.log(values.std(correction=0)) + math.log(2 * math.pi) / 2 + 0.5

    x, y = x.double().flatten(), y.double().flatten()
    mutual = entropy(x) + entropy(y) - entropy(torch.cat([x, y]))
    return mutual / min(entropy(x), entropy(y))


@pytest.fixture
def dense(trained):
    stored = read_adapter(trained)
    tensors = stored.tensors()
    return {site: delta(stored.plan, tensors, site) for site in stored.plan.sites}


def test_it_is_the_measure_of_dense_updates(checkpoint, trained, dense):
    from redundancy import moments_of_update, relative_mutual_information, updates_of

    moments = {s: moments_of_update(u) for s, u in updates_of(trained, str(checkpoint)).items()}
    assert list(moments) == list(dense)
    sites = list(dense)
    for x, y in pairwise(sites):
        rmi = relative_mutual_information(moments[x], moments[y])
        assert rmi == pytest.approx(written_out(dense[x], dense[y]), rel=1e-5)


def test_it_is_one_for_any_two_matrices_of_one_deviation():
    """The paper's measure sees no sharing: which is why the example prints what chance gives."""
    from redundancy import Moments, relative_mutual_information

    alone = Moments(100, total=0.0, squares=100 * 0.01**2)
    tenfold = Moments(100, total=0.0, squares=100 * 0.1**2)
    assert relative_mutual_information(alone, alone) == pytest.approx(1.0)
    assert relative_mutual_information(alone, tenfold) == pytest.approx(0.893, abs=5e-4)


def test_the_tables_compare_kinds_in_a_layer_and_layers_beside_chance(
    checkpoint, trained, dense, capsys
):
    from redundancy import main

    main(str(trained), str(checkpoint))
    within, across = capsys.readouterr().out.strip().split("\n\n")
    head, _, *rows = within.splitlines()
    assert head.split() == ["module", "and", "RMI", "by", "chance"]
    assert len(rows) == 10  # Pairs of five kinds.
    first, second, rmi, chance = rows[0].split()
    of = {(site.layer, site.kind): update for site, update in dense.items()}
    wanted = [written_out(of[layer, first], of[layer, second]) for layer in (0, 1)]
    assert float(rmi) == pytest.approx(sum(wanted) / 2, abs=6e-4)
    assert float(chance) == pytest.approx(float(rmi), abs=0.05)
    _, _, row = across.splitlines()
    assert row.split()[:2] == ["0", "1"]


def test_activations_are_those_of_the_adapted_model(checkpoint, trained, dense, tmp_path):
    from redundancy import inputs_of, moments_of_output, updates_of

    lines = ["a b c", "d e"]
    inputs = inputs_of(str(trained), str(checkpoint), lines)
    model = load_adapter(trained, AutoModelForCausalLM.from_pretrained(checkpoint))
    tokenizer = AutoTokenizer.from_pretrained(checkpoint)
    states = [
        model(**tokenizer(line, return_tensors="pt"), output_hidden_states=True).hidden_states[1]
        for line in lines
    ]
    normed = model.model.layers[1].input_layernorm(torch.cat([s[0] for s in states])).detach()
    updates = {site.path: update for site, update in updates_of(trained, str(checkpoint)).items()}
    path = "model.layers.1.self_attn.q_proj"
    torch.testing.assert_close(inputs[path], normed, rtol=1e-4, atol=1e-5)
    output = normed.double() @ next(u for s, u in dense.items() if s.path == path).double().T
    moments = moments_of_output(updates[path], inputs[path])
    assert moments.count == output.numel()
    assert moments.squares == pytest.approx(float(output.square().sum()), rel=1e-3)
