"""A reference keeps what a model computes, and has the base's own tensors."""

import pytest
import torch

from bishare_dsl.diagnostics import AdapterError


def logits(model, ids):
    with torch.no_grad():
        return model(ids).logits


def test_it_keeps_what_the_model_computes_while_that_trains(adapted, ids):
    model = adapted().train()
    before = logits(model.eval(), ids)
    reference = model.bishare.reference()
    assert torch.equal(logits(reference, ids), before)
    assert not reference.training
    assert not any(parameter.requires_grad for parameter in reference.parameters())
    trained = {n: t for n, t in model.bishare.tensors().items() if t.requires_grad}
    assert trained
    model.train()(ids, labels=ids).loss.backward()
    torch.optim.SGD(trained.values(), lr=1.0).step()
    assert not torch.equal(logits(model.eval(), ids), before)
    assert torch.equal(logits(reference, ids), before)


def test_only_what_trains_is_a_copy(adapted):
    model = adapted()
    reference = model.bishare.reference()
    own = {name for name, p in model.named_parameters() if p.requires_grad}
    theirs = dict(reference.named_parameters())
    for name, parameter in model.named_parameters():
        assert (theirs[name] is parameter) == (name not in own), name
    buffers = dict(reference.named_buffers())
    assert all(buffers[name] is buffer for name, buffer in model.named_buffers())


def test_a_part_of_the_base_that_trains_is_copied_too(adapted, ids):
    model = adapted()
    model.lm_head.weight.requires_grad_(True)
    reference = model.bishare.reference()
    before = logits(reference, ids)
    with torch.no_grad():
        model.lm_head.weight.zero_()
    assert torch.equal(logits(reference, ids), before)


def test_taking_its_adapter_out_leaves_the_model_as_it_is(adapted, ids, base):
    model = adapted()
    before = logits(model, ids)
    reference = model.bishare.reference()
    plain = reference.bishare.unload()
    assert torch.equal(logits(plain, ids), logits(base("llama"), ids))
    assert torch.equal(logits(model, ids), before)
    trains = {id(p) for p in model.parameters() if p.requires_grad}
    assert trains == {id(t) for t in model.bishare.tensors().values() if t.requires_grad}


def test_it_is_of_an_active_adapter(adapted):
    model = adapted()
    with model.bishare.disable_adapter(), pytest.raises(AdapterError, match="BS626"):
        model.bishare.reference()
    model.bishare.merge()
    with pytest.raises(AdapterError, match="BS620"):
        model.bishare.reference()
