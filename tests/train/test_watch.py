"""Tensors without a gradient are named."""

import warnings

import pytest

from bishare_dsl.diagnostics import BishareWarning
from bishare_dsl.testing.models import tiny_model


def test_a_module_that_is_not_used_is_named(start, tmp_path):
    """The third step names the tensors of a layer that is left out, and none of a whole model."""
    model = tiny_model("llama")
    model.model.layers[1].mlp.forward = lambda x: x
    spec = "spec s\ntarget q_proj, up_proj\nshare x per module rank 2\n"
    said = r"BS873.*2 of 8 trainable .*in step 3: .*layers\.1\.mlp.*up_proj__A"
    with pytest.warns(BishareWarning, match=said):
        start(tmp_path / "out", spec=spec, model=model, max_steps=4)
    with warnings.catch_warnings():
        warnings.simplefilter("error", BishareWarning)
        start(tmp_path / "again", spec=spec, max_steps=4)
