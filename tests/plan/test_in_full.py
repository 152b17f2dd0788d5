"""What `train` says: which parameters are trained in full, how they are counted, and what is refused."""

import pytest

from bishare_dsl import parse_spec, plan_spec
from bishare_dsl.diagnostics import BishareError
from bishare_dsl.language import spec_text

UNTIED, TIED = "llama-7b", "smollm2-135m"


def planned(train, model=UNTIED, target="q_proj"):
    text = f"spec s\ntarget {target}\ntrain {train}\nshare x per module rank 4"
    return plan_spec(text, model)


def refused(*given, **more):
    with pytest.raises(BishareError) as info:
        planned(*given, **more)
    return str(info.value)


NORMS = 32 * 2 + 1


@pytest.mark.parametrize(
    ("train", "count", "size"),
    [
        ("norms", NORMS, NORMS * 4096),
        ("norm", 1, 4096),
        ("lm_head", 1, 32000 * 4096),
        ("heads, embeddings", 2, 2 * 32000 * 4096),
        ("input_layernorm and layer in -4..", 4, 4 * 4096),
        ('kind "*norm" except input_layernorm', 33, 33 * 4096),
        ('path "model.layers.?.input_layernorm.weight"', 10, 10 * 4096),
        ("norms and layer != none", 64, 64 * 4096),
    ],
)
def test_what_is_selected_and_counted(train, count, size):
    plan = planned(train)
    assert len(plan.trained) == count
    assert plan.shares["train"] == size
    assert plan.trainable == size + plan.shares["x"]
    assert all(plan.tensor[t.tensor].init == "base" for t in plan.trained)
    assert all(t.name.startswith("train.") == (t.share == "train") for t in plan.tensors)


def test_biases_where_a_model_has_some():
    plan = planned("biases", "qwen2.5-7b")
    kinds = {t.parameter.split(".")[-2] for t in plan.trained}
    assert kinds == {"q_proj", "k_proj", "v_proj"}
    assert len(planned("biases and q_proj", "qwen2.5-7b").trained) == 28
    assert "BS301" in refused("biases")


def test_tied_ones_are_one_parameter():
    (trained,) = planned("heads, embeddings", TIED).trained
    assert trained.paths == ("model.embed_tokens.weight", "lm_head.weight")
    said = refused("lm_head", TIED)
    assert "BS315" in said
    assert "`train` does not name `model.embed_tokens.weight`" in said


@pytest.mark.parametrize(
    ("train", "target", "code", "words"),
    [
        ("nrom", "q_proj", "BS301", "did you mean `norm`?"),
        ("norms, nothing", "q_proj", "BS301", "`nothing`"),
        ('path "model.nrom.*"', "q_proj", "BS301", "`path model.nrom.*`"),
        ("v_proj", "q_proj", "BS317", "shares adapt it"),
        ("lm_head", "q_proj, lm_head", "BS316", "take it out of `train`"),
        ("norms except norms", "q_proj", "BS303", "`except` takes away all"),
        ("layer > 3", "q_proj", "BS210", "`layer != none` leaves it out"),
        ("norms, norm and lm_head", "q_proj", "BS301", "this condition"),
        ("nrom and norms", "q_proj", "BS301", "did you mean `norm`?"),
        ("norms and biases", "q_proj", "BS301", "`biases`"),
    ],
)
def test_what_is_wrong_is_told_at_its_place(train, target, code, words):
    said = refused(train, target=target)
    assert code in said
    assert words in said
    assert ":3:" in said  # the line of `train`


def test_a_word_of_the_language():
    spec = parse_spec(
        "spec s target q_proj train norms, lm_head except norm share x per module rank 4"
    )
    assert spec.train is not None
    assert "train norms, lm_head except norm\n" in spec_text(spec)
    assert parse_spec(spec_text(spec)) == spec
    with pytest.raises(BishareError, match=r"BS124"):
        parse_spec("spec s target q_proj train norm train norms share x per module rank 4")


def test_the_own_statement_goes_before_a_used_one(tmp_path):
    (tmp_path / "a.share").write_text("spec a target q_proj train norm share x per module rank 4")
    for own, count in (("", 1), ("train norms", NORMS)):
        (tmp_path / "b.share").write_text(f'spec b use "a.share" {own}')
        assert len(plan_spec(tmp_path / "b.share", UNTIED).trained) == count
