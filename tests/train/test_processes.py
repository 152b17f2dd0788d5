"""FSDP that would not be used as asked; what two processes do is in tests/distributed."""

from types import SimpleNamespace as Some

import pytest

from bishare_dsl.train import TrainError
from bishare_dsl.train.arguments import check_sharding


def trainer(plugin: object) -> Some:
    return Some(args=Some(fsdp=True), accelerator=Some(state=Some(fsdp_plugin=plugin)))


@pytest.mark.parametrize("plugin", [Some(fsdp_version=1), Some()], ids=["FSDP 1", "accelerate 1.3"])
def test_fsdp_1_is_refused(plugin: Some) -> None:
    with pytest.raises(TrainError, match=r"BS754.*FSDP 1"):
        check_sharding(trainer(plugin))


def test_fsdp_2_is_taken() -> None:
    check_sharding(trainer(Some(fsdp_version=2)))
