"""PEFT writes the files of an adapter in place, one after another: what a kill leaves is never taken for an adapter."""

import pytest
import torch
from peft import PeftModel, get_peft_model

from bishare_dsl import load_adapter
from bishare_dsl.diagnostics import AdapterError
from bishare_dsl.folder.files import CONFIG, TENSORS
from bishare_dsl.peft import BishareConfig
from bishare_dsl.testing.models import tiny_model


def save(folder, seed):
    model = get_peft_model(
        tiny_model("llama"), BishareConfig(spec="shared_input", task_type="CAUSAL_LM")
    )
    torch.manual_seed(seed)
    for parameter in model.parameters():
        if parameter.requires_grad:
            torch.nn.init.normal_(parameter)
    model.save_pretrained(str(folder))


def killed(*_, **__):
    raise KeyboardInterrupt


def cut(path):
    path.write_bytes(path.read_bytes()[:-40])


@pytest.mark.parametrize(
    ("before", "where", "code", "of_peft"),
    [
        (False, "between", "BS602", "adapter_config.json"),
        (True, "between", "BS607", "BS607"),
        (True, "tensors", "BS608", "not fully covered"),
        (True, "config", "BS604", r"\(char \d+\)"),
    ],
)
def test_what_a_kill_leaves_is_refused(tmp_path, monkeypatch, before, where, code, of_peft):
    if before:
        save(tmp_path, 0)
    with monkeypatch.context() as patch:
        if where != "config":
            patch.setattr(BishareConfig, "save_pretrained", killed)
        else:
            patch.setattr("bishare_dsl.peft.config.write_card", killed)
        with pytest.raises(KeyboardInterrupt):
            save(tmp_path, 1)
    if where != "between":
        cut(tmp_path / {"tensors": TENSORS, "config": CONFIG}[where])
    with pytest.raises(AdapterError, match=code):
        load_adapter(tmp_path, tiny_model("llama"))
    with pytest.raises(Exception, match=of_peft):
        PeftModel.from_pretrained(tiny_model("llama"), str(tmp_path))
    save(tmp_path, 1)
    load_adapter(tmp_path, tiny_model("llama"))


def test_the_card_is_ours_after_peft_has_saved_twice(tmp_path):
    save(tmp_path, 0)
    card = (tmp_path / "README.md").read_text("utf-8")
    assert "\n# shared_input\n" in card
    save(tmp_path, 1)
    assert (tmp_path / "README.md").read_text("utf-8") == card
    mine = card.replace("<!-- bishare writes this card", "<!-- my card") + "\nMine.\n"
    (tmp_path / "README.md").write_text(mine, "utf-8")
    save(tmp_path, 0)
    assert "\nMine.\n" in (tmp_path / "README.md").read_text("utf-8")
