"""Ctrl-C is Ctrl-C, also where Python or Pydantic makes an error of it."""

import signal

import pydantic
import pytest

from bishare_dsl.cli import main as cli
from bishare_dsl.diagnostics.interrupt import hides_interrupt
from bishare_dsl.folder.files import read_adapter, save_adapter
from bishare_dsl.initial.values import draw
from bishare_dsl.models import site
from tests.folder.test_files import TEXT, saved


class Interrupts:
    def __set_name__(self, owner, name):
        signal.raise_signal(signal.SIGINT)


def make_class(*_, **__):
    """Make a class of Pydantic while Ctrl-C comes: a RuntimeError of Python."""

    class Made(pydantic.BaseModel):
        model_config = pydantic.ConfigDict(ignored_types=(Interrupts,))
        field = Interrupts()

    return Made


def test_a_class_that_is_made_while_ctrl_c_comes_is_told_from_a_bug():
    with pytest.raises(RuntimeError) as caught:
        make_class()
    assert hides_interrupt(caught.value)
    assert not hides_interrupt(RuntimeError("KeyboardInterrupt"))


def test_the_command_line_ends_with_130(monkeypatch, capsys):
    monkeypatch.setattr(type(cli.bishare), "invoke", make_class)
    assert cli.main(["specs"]) == 130
    assert "interrupted; nothing was left half-written" in capsys.readouterr().err


def test_a_save_is_interrupted_as_such_and_leaves_the_old_adapter(tmp_path, monkeypatch):
    plan = read_adapter(saved(tmp_path / "adapter")).plan
    block_of = site.block_of

    def interrupted(path):
        signal.raise_signal(signal.SIGINT)
        return block_of(path)

    values = draw(plan, 1)
    monkeypatch.setattr(site, "block_of", interrupted)
    with pytest.raises(KeyboardInterrupt):
        save_adapter(tmp_path / "adapter", plan, values, TEXT, seed=1)
    monkeypatch.setattr(site, "block_of", block_of)
    assert read_adapter(tmp_path / "adapter").config.seed == 0
    assert [path.name for path in tmp_path.iterdir()] == ["adapter"]


@pytest.mark.parametrize("dump", ["model_dump", "model_dump_json"])
def test_a_plan_that_a_user_writes_is_interrupted_as_such(tmp_path, monkeypatch, dump):
    plan = read_adapter(saved(tmp_path / "adapter")).plan

    def interrupted(path):
        signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(site, "block_of", interrupted)
    for record in (plan, plan.base):
        with pytest.raises(KeyboardInterrupt):
            getattr(record, dump)()
