"""`bishare verify` on a real vLLM: the faults of the tests, in float32 and in bfloat16, each with its sentence.

The server in float32 has bishare's plug-in, the other has none.
A faulty folder is what a faulty engine would have read: faults are put into what the client loads.
"""

import shutil

import pytest

from bishare_dsl.models.load import load_model
from bishare_dsl.verify.reference import Reference
from bishare_dsl.verify.server import TEXTS
from bishare_dsl.verify.server import Server as Client
from tests.serve_vllm.served import Server
from tests.support.served import (
    FAULTS,
    ask_one,
    change,
    contents_of,
    faulty,
    judged,
    save_base,
    save_compiled,
    save_lora,
)
from tests.verify.test_server import VERDICTS, WORDS


def round_to_int8(folder, base):
    """A base whose matrices in blocks are on a grid of 255 values for each row, in float32."""
    model, tokenizer = load_model(str(base), dtype="float32")
    for name, weight in model.named_parameters():
        if weight.dim() == 2 and ".layers." in name:
            step = weight.data.abs().amax(1, keepdim=True) / 127
            weight.data = (weight.data / step).round() * step
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


class Running(Server):
    """vLLM's server of a tiny base, in a type."""

    def __init__(self, root, dtype, *more, int8=False):
        self.root, self.dtype, self.has_plugin = root, dtype, dtype == "float32"
        self.base = save_base(root / ("exact" if int8 else "base"))
        self.lora = save_lora(root / "lora", self.base)
        self.contents = contents_of(self.lora, self.base)
        self.reference = Reference(*load_model(str(self.base), dtype="float32"), TEXTS)
        words = f"--dtype {dtype} --max-loras 2 --max-cpu-loras 4 --max-lora-rank 8"
        if int8:
            round_to_int8(root / "base", self.base)
        plugins = {"VLLM_PLUGINS": "bishare" if self.has_plugin else ""}
        super().__init__(root, words, *more, length=1024, **plugins)

    def client(self):
        return Client(f"{self.url}/v1")

    def load(self, server, name, folder, **more):
        body = {"lora_name": name, "lora_path": str(folder)} | more
        status, text = server.call("/load_lora_adapter", body)
        assert status == 200, text

    def judge(self, name, folder, contents=None, reference=None, **more):
        """Load a folder under a name, ask, and judge the answers."""
        server = self.client()
        self.load(server, name, folder, **more)
        asked = ask_one(server, name)
        assert asked.noise == 0
        if name != "mine":
            server.call("/unload_lora_adapter", {"lora_name": name})
        return judged(asked, name, contents or self.contents, reference or self.reference)


@pytest.fixture(scope="module", params=["float32", "bfloat16"])
def running(request, tmp_path_factory):
    with Running(tmp_path_factory.mktemp("verify"), request.param) as found:
        yield found


@pytest.mark.parametrize("fault", FAULTS)
def test_what_is_said_of_a_fault(running, tmp_path, fault):
    folder = faulty(tmp_path / "served", running.lora, fault)
    found = running.judge(f"mine-{fault}", folder)
    if running.dtype == "bfloat16" and fault == "k":
        assert found.word in (VERDICTS[fault], "APPLIED")
    else:
        assert found.word == VERDICTS[fault], (found.why, found.numbers)
        assert WORDS.get(fault, "") in found.why


@pytest.mark.parametrize("running", ["float32"], indirect=True)
@pytest.mark.parametrize("older", [False, True])
def test_a_folder_of_bishare(running, tmp_path, older):
    folder = save_compiled(tmp_path / "compiled", running.base)
    served = save_compiled(tmp_path / "older", running.base, seed=1) if older else folder
    found = running.judge("compiled", served, contents_of(folder, running.base))
    assert found.word == ("ANOTHER ADAPTER" if older else "APPLIED"), (found.why, found.numbers)


def test_a_zero_b_and_another_base(running, tmp_path):
    folder = shutil.copytree(running.lora, tmp_path / "served")
    change(folder, lambda found: {n: t * 0 if "lora_B" in n else t for n, t in found.items()})
    contents = contents_of(folder, running.base)
    assert [problem.code for problem in contents.problems] == ["BS864"]
    assert running.judge("zero", folder, contents).word == "NOT APPLIED"
    other = save_base(tmp_path / "other", seed=1)
    reference = Reference(*load_model(str(other), dtype="float32"), TEXTS)
    found = running.judge("mine-here", running.lora, reference=reference)
    assert found.word != "APPLIED"
    assert "another base, or quantised" in found.why


def test_older_tensors(running, tmp_path):
    """A fresh salt in each request keeps their results out of the prefix cache."""
    old = shutil.copytree(running.lora, tmp_path / "old")
    change(old, lambda found: {n: t.roll(1, 0).contiguous() for n, t in found.items()})
    assert running.judge("mine", old).word == "ANOTHER ADAPTER"
    shutil.rmtree(old)
    shutil.copytree(running.lora, old)
    assert running.judge("mine", old, load_inplace=True).word == "APPLIED"
