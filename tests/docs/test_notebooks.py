"""The notebooks of `examples/notebooks` run from top to bottom, in a kernel of their own, without a network."""

from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

FOLDER = Path(__file__).parents[2] / "examples" / "notebooks"
SHOWN = {
    "train": ("trainable params", "adapter_model.safetensors", "merged, the logits differ"),
    "who_shares": ("r = 16:", "did you mean `q_proj`?", "<svg"),
}


def test_there_are_two():
    assert {path.stem for path in FOLDER.glob("*.ipynb")} == {*SHOWN}


@pytest.mark.long
@pytest.mark.parametrize("name", SHOWN)
def test_a_notebook_runs(name, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    book = nbformat.read(FOLDER / f"{name}.ipynb", as_version=4)
    nbformat.validate(book)
    assert not [cell for cell in book.cells if cell.get("outputs")], "kept without its outputs"
    resources = {"metadata": {"path": str(tmp_path)}}
    NotebookClient(book, timeout=300, kernel_name="python3", resources=resources).execute()
    outputs = [output for cell in book.cells for output in cell.get("outputs", ())]
    text = ""
    for output in outputs:
        data = output.get("data", {})
        text += output.get("text", "") + data.get("text/html", "") + data.get("image/svg+xml", "")
    assert [said for said in SHOWN[name] if said not in text] == []
