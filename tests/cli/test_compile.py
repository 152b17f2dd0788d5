import json
import shutil

from safetensors import safe_open

from bishare_dsl.folder.config import file_key
from bishare_dsl.folder.files import TENSORS, read_adapter, save_adapter
from bishare_dsl.folder.stacks import stacks_of


def tensors(folder):
    return {name: value.tolist() for name, value in read_adapter(folder).tensors().items()}


def test_spec_and_model_are_enough(bishare, here):
    run = bishare("compile", "bishare_ke", "--model", "smollm2-135m", "--set", "size=64")
    assert (run.code, run.out) == (0, "bishare_ke-smollm2-135m\n")
    assert "trainable params: " in run.err
    folder = "bishare_ke-smollm2-135m"
    weights = "HuggingFaceTB/SmolLM2-135M-Instruct"  # A preset has shapes and no weights.
    assert run.err.endswith(
        "it is untrained; train it, or load it in Python:\n"
        f"bishare train {folder} --model {weights} --data FILES --output_dir DIR\n"
        f"model = bishare_dsl.load_adapter('{folder}', model)\n"
    )
    stored = read_adapter(here / "bishare_ke-smollm2-135m")
    assert stored.plan.params["size"] == 64
    assert "size        = 64" in stored.spec_text
    with safe_open(stored.folder / TENSORS, framework="numpy") as file:
        assert set(file.keys()) == {file_key(s.key) for s in stacks_of(stored.plan, {})}
    assert [path.name for path in here.iterdir()] == ["bishare_ke-smollm2-135m"]


def test_an_adapter_is_replaced_when_asked_and_nothing_else(bishare, here, checkpoint):
    command = ["compile", "lora", "--model", checkpoint, "--out", "it"]
    bishare(*command)
    before = tensors("it")
    run = bishare(*command, "--seed", 1)
    assert (run.code, run.out) == (2, "")
    assert "error[BS618]" in run.err
    assert tensors("it") == before
    assert bishare(*command, "--seed", 1, "--force").code == 0
    assert tensors("it") != before
    shutil.rmtree(here / "it")
    (here / "precious.txt").write_text("mine")
    run = bishare("compile", "lora", "--model", checkpoint, "--out", ".", "--force")
    assert run.code == 2
    assert "error[BS905]" in run.err
    assert [path.name for path in here.iterdir()] == ["precious.txt"]
    run = bishare("compile", "lora", "--model", checkpoint, "--out", "precious.txt", "--force")
    assert run.code == 2
    assert (here / "precious.txt").read_text() == "mine"


def test_an_interrupt_leaves_nothing(bishare, here, checkpoint, monkeypatch):
    def interrupt(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr("bishare_dsl.folder.files.write_card", interrupt)
    run = bishare("compile", "lora", "--model", checkpoint, "--out", "sub/it")
    assert (run.code, run.out) == (130, "")
    assert run.err.splitlines()[-1].startswith("error: interrupted")
    assert not list(here.glob("sub/.*"))
    assert not (here / "sub" / "it").exists()


def test_emit_writes_nothing(bishare, here, checkpoint):
    outputs = {}
    for stage in ("spec", "plan", "graph", "code"):
        run = bishare("compile", "lora", "--model", checkpoint, "--emit", stage)
        assert run.code == 0
        outputs[stage] = run.out
    assert not list(here.iterdir())
    assert json.loads(outputs["spec"])["name"] == "lora"
    assert json.loads(outputs["plan"])["base"]["name"] == "tiny"
    assert "# model.layers.0.self_attn after FuseIslands: forward" in outputs["graph"]
    assert "graph():" in outputs["graph"]
    assert "def forward(self, hidden_states" in outputs["code"]
    # Layers are alike: one program for all attentions, one for all MLPs.
    assert outputs["code"].count(": forward\n") == 2


def test_force_does_not_replace_what_was_trained(bishare, here, checkpoint):
    """Saved again after training, an adapter is no longer the result of `compile`."""
    command = ["compile", "lora", "--model", checkpoint, "--out", "it"]
    bishare(*command)
    stored = read_adapter("it")
    trained = {name: tensor + 1 for name, tensor in stored.tensors().items()}
    save_adapter("it", stored.plan, trained, stored.spec_text, seed=0)
    before = tensors("it")
    run = bishare(*command, "--force")
    assert (run.code, "error[BS905]" in run.err) == (2, True)
    assert tensors("it") == before
