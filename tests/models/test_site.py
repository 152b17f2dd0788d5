"""Sites and architectures as data."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from bishare_dsl.models import Architecture, Site


def test_a_path_says_layer_kind_and_parent() -> None:
    site = Site.at("transformer.h.11.attn.c_attn", 768, 2304)
    assert site == Site(
        path="transformer.h.11.attn.c_attn",
        layer=11,
        kind="c_attn",
        parent="attn",
        d_in=768,
        d_out=2304,
    )


@pytest.mark.parametrize("path", ["lm_head", "model.proj", "classifier.0", ""])
def test_outside_a_block_there_is_no_site(path: str) -> None:
    assert Site.at(path, 2, 2) is None


def test_the_first_number_is_the_layer() -> None:
    site = Site.at("model.layers.3.mlp.experts.7.w1", 4, 8)
    assert site is not None
    assert (site.layer, site.parent) == (3, "experts")


def test_data_is_frozen_closed_and_goes_through_json() -> None:
    site = Site.at("layers.0.fc", 4, 8)
    assert site is not None
    model = Architecture(name="n", family="f", layers=1, parameters=32, sites=(site,))
    assert Architecture.model_validate_json(model.model_dump_json()) == model
    with pytest.raises(ValidationError):
        site.layer = 2  # type: ignore[misc]
    with pytest.raises(ValidationError):
        Site(**site.model_dump(), width=3)
    with pytest.raises(ValidationError):
        Site(**{**site.model_dump(), "d_in": 0})
