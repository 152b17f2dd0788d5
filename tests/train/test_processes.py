"""FSDP that would not be used as asked; what two processes do is in tests/distributed."""

from types import SimpleNamespace as Some

import pytest

from bishare_dsl.train import TrainError
from bishare_dsl.train.processes import check_sharding


@pytest.mark.parametrize("plugin", [Some(fsdp_version=1), Some()], ids=["FSDP 1", "accelerate 1.3"])
def test_fsdp_1_is_refused(plugin: Some) -> None:
    trainer = Some(args=Some(fsdp=True), accelerator=Some(state=Some(fsdp_plugin=plugin)))
    with pytest.raises(TrainError, match=r"BS754.*FSDP 1"):
        check_sharding(trainer)
