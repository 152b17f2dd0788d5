import math

import pytest
import torch

from bishare_dsl.train.guard import Guard, NotFiniteError, check_step


def test_the_loss_of_a_step_is_the_sum_of_its_parts():
    guard = Guard()
    guard.see(torch.tensor(1.5))
    guard.see(torch.tensor(2.0, dtype=torch.bfloat16))
    assert guard.loss() == 3.5
    guard.see(torch.tensor(math.inf))
    guard.see(torch.tensor(1.0))
    assert guard.loss() == math.inf
    assert guard.loss() == 0


@pytest.mark.parametrize(
    ("loss", "elsewhere", "gradient", "what", "restore"),
    [
        (math.nan, False, 1.0, "the loss", True),
        (math.inf, True, math.nan, "the loss", True),
        (1.0, True, 1.0, "the loss", True),
        (1.0, False, math.inf, "the gradient", False),
    ],
)
def test_what_may_not_be_applied(loss, elsewhere, gradient, what, restore):
    with pytest.raises(NotFiniteError) as caught:
        check_step(loss, elsewhere, gradient)
    assert (caught.value.what, caught.value.restore) == (what, restore)
    assert not math.isfinite(caught.value.value)


def test_what_may():
    check_step(1.0, False, 2.0)


def test_parameters_are_kept_and_come_back():
    parameters = [torch.nn.Parameter(torch.zeros(2)), torch.nn.Parameter(torch.ones(1))]
    guard = Guard()
    assert guard.step is None
    for step in (1, 2):
        guard.keep(parameters, step)
        with torch.no_grad():
            for parameter in parameters:
                parameter.add_(1)
    guard.restore(parameters)
    assert guard.step == 2
    assert [p.tolist() for p in parameters] == [[1, 1], [2]]
