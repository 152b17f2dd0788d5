"""An adapter of another base of the same shapes is warned of, in both modes and by name; no engine is started."""

import logging
import threading
import warnings
from types import SimpleNamespace

import pytest

from bishare_dsl import compile_spec
from bishare_dsl.serve.vllm import base as served_base
from bishare_dsl.serve.vllm import check
from bishare_dsl.serve.vllm.plain import served_folder
from bishare_dsl.testing.models import tiny_model

SPEC = "spec s\ntarget q_proj\nshare x per module rank 2\n"


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """Two bases of the same shapes, and an adapter that was saved on the first."""
    root = tmp_path_factory.mktemp("bases")
    for seed, name in enumerate(("first", "second")):
        tiny_model("llama", seed=seed).save_pretrained(root / name)
    model = tiny_model("llama")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        compile_spec(SPEC, model)
    model.bishare.save_pretrained(root / "adapter")
    return root


@pytest.fixture
def warned(root, monkeypatch, tmp_path, caplog):
    """The warnings of a function that checks the adapter on a base, twice."""
    monkeypatch.setenv("BISHARE_CACHE", str(tmp_path))
    monkeypatch.setattr(served_base, "_checks", {})
    monkeypatch.setattr(check, "_servers", {})
    # vLLM's logger hands nothing up.
    monkeypatch.setattr(served_base._log, "handlers", [caplog.handler])
    monkeypatch.setattr(served_base._log, "propagate", False)

    def warned(place, base):
        with caplog.at_level(logging.WARNING):
            for _ in range(2):
                place("mine", str(root / "adapter"), str(base))
            for thread in threading.enumerate():
                if thread.name == served_base.THREAD:
                    thread.join(120)
        return [record.getMessage() for record in caplog.records]

    return warned


def checked(additional):
    """Check as a server in a mode does."""

    def place(name, folder, base):
        config = SimpleNamespace(
            model_config=SimpleNamespace(model=base, hf_config=tiny_model("llama").config),
            additional_config=additional,
            parallel_config=SimpleNamespace(pipeline_parallel_size=1),
            lora_config=SimpleNamespace(fully_sharded_loras=False, max_loras=1, lora_dtype=None),
            compilation_config=SimpleNamespace(cudagraph_mode=None),
        )
        if base not in check._servers:
            check.start_checks(config)
        return check.check_folder(name, folder, base)

    return place


@pytest.mark.parametrize("mode", ["plain", "compact", "by name"])
def test_another_base_is_a_warning(root, warned, monkeypatch, mode):
    monkeypatch.setattr("bishare_dsl.serve.vllm.plans.records_steps", lambda config: False)
    monkeypatch.setattr("bishare_dsl.batched.bank.Layout.nbytes", lambda *_: 1)
    place = {
        "plain": checked({}),
        "compact": checked({"bishare_slots_gib": 1}),
        "by name": served_folder,
    }
    (message,) = warned(place[mode], root / "second")
    assert message.startswith("LoRA adapter 'mine': warning[BS620]")
    assert "its weights are" in message


def test_the_same_base_is_none(root, warned):
    assert warned(served_folder, root / "first") == []


def test_a_base_that_cannot_be_read_is_a_warning(root, warned):
    """Shapes are enough to serve; weights are not there."""
    (root / "first" / "model.safetensors").rename(root / "weights")
    try:
        (message,) = warned(served_folder, root / "first")
    finally:
        (root / "weights").rename(root / "first" / "model.safetensors")
    assert "whether it was saved on the served base is unknown" in message
    assert "BS513" in message
