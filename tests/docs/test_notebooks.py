"""The notebooks of `examples/notebooks` run from top to bottom, in a kernel of their own, without a network."""

from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

NOTEBOOKS = sorted((Path(__file__).parents[2] / "examples" / "notebooks").glob("*.ipynb"))


def test_there_are_two():
    assert [path.stem for path in NOTEBOOKS] == ["train", "who_shares"]


@pytest.fixture
def run(tmp_path, monkeypatch):
    """Run a notebook, and give what its cells show, by the kind of it."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")

    def run(name):
        [path] = [path for path in NOTEBOOKS if path.stem == name]
        book = nbformat.read(path, as_version=4)
        nbformat.validate(book)
        assert not [cell for cell in book.cells if cell.get("outputs")], "kept without its outputs"
        resources = {"metadata": {"path": str(tmp_path)}}
        NotebookClient(book, timeout=300, kernel_name="python3", resources=resources).execute()
        outputs = [output for cell in book.cells for output in cell.get("outputs", ())]
        text = "".join(output.get("text", "") for output in outputs)
        html = "".join(output.get("data", {}).get("text/html", "") for output in outputs)
        return text, html

    return run


@pytest.mark.long
def test_who_shares(run):
    text, html = run("who_shares")
    assert "r = 16:" in text
    assert "did you mean `q_proj`?" in text
    assert "<svg" in html


@pytest.mark.long
def test_train(run):
    text, _ = run("train")
    assert "trainable params" in text
    assert "adapter_model.safetensors" in text
    assert "merged, the logits differ" in text
