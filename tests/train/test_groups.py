"""Learning rates of shares and factors."""

import pytest
import torch
from transformers import TrainerCallback

from bishare_dsl import compile_spec
from bishare_dsl.testing.models import tiny_model
from bishare_dsl.train import TrainError
from bishare_dsl.train.groups import names_of, regroup
from tests.train.conftest import losses, values

SPEC = """spec two
target q_proj, v_proj
share a per module rank 2
share b per kind rank 2
"""


def found(rates):
    """The rate of each tensor, by its name, and those of the groups."""
    model = compile_spec(SPEC, tiny_model("llama"))
    tensors = model.bishare.tensors()
    optimizer = torch.optim.AdamW([*tensors.values()], lr=1e-3)
    regroup(optimizer, tensors, model.bishare.plan, rates)
    names = {id(tensor): name for name, tensor in tensors.items()}
    groups = optimizer.param_groups
    assert sum(len(group["params"]) for group in groups) == len(tensors)
    rate_of = {
        names[id(p)]: pytest.approx(group["lr"]) for group in groups for p in group["params"]
    }
    return rate_of, [group["lr"] for group in groups]


def test_a_factor_and_a_share_and_a_factor_of_a_share():
    rates, groups = found({"B": "16x", "b": "5e-4", "b.A": "0.5"})
    for name, rate in rates.items():
        expected = {"aA": 1e-3, "aB": 16e-3, "bA": 0.5, "bB": 5e-4}[name[0] + name[-1]]
        assert rate == expected, name
    assert groups[0] == 1e-3  # It is the rate that is logged.


def test_nothing_said_is_one_group():
    assert found({})[1] == [1e-3]


def test_what_names_a_tensor():
    model = compile_spec(SPEC, tiny_model("llama"))
    assert set().union(*names_of(model.bishare.plan).values()) == {
        "a", "b", "A", "B", "a.A", "a.B", "b.A", "b.B"
    }  # fmt: skip


class Looks(TrainerCallback):
    def on_step_begin(self, args, state, control, optimizer=None, **_):
        self.groups = [g["initial_lr"] for g in optimizer.param_groups]


def test_a_run(start, tmp_path):
    looks = Looks()
    more = {"lr_of": {"B": "4x"}, "logging_steps": 1}
    first = start(tmp_path / "it", callbacks=[looks], **more)
    assert looks.groups == [1e-2, 4e-2]
    assert first.history[0]["learning_rate"] == 1e-2
    plain = start(tmp_path / "plain", logging_steps=1)
    assert losses(first)[0] == losses(plain)[0]
    assert losses(first)[2] != losses(plain)[2]
    assert any(not torch.equal(t, values(plain)[n]) for n, t in values(first).items())


def test_a_tensor_at_a_rate_of_0_stays(start, tmp_path):
    result = start(tmp_path / "it", lr_of={"A": "0"})
    fresh = compile_spec(result.model.bishare.spec_text, tiny_model("llama")).bishare.tensors()
    for name, tensor in values(result).items():
        assert torch.equal(tensor, fresh[name]) == name.endswith("A")


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ({"lr_of": {"C": "2x"}}, r"`lr_of` cannot be `C`: no share and no factor"),
        ({"lr_of": {"aa": 0.1}}, "did you mean .*`a`"),
        ({"lr_of": {"B": "fast"}}, "neither a rate"),
        ({"lr_of": ["B"]}, "NAME=RATE"),
    ],
)
def test_what_is_wrong(start, tmp_path, more, said):
    with pytest.raises(TrainError, match=f"(?s)BS731.*{said}"):
        start(tmp_path / "it", **more)
    assert not (tmp_path / "it").exists()
