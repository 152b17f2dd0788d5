"""Verdicts about servers that apply an adapter rightly, or in wrong ways: over transformers, in this process."""

import json
import shutil
from collections import Counter

import pytest
import torch

from bishare_dsl.models.load import meta_model
from bishare_dsl.verify.answers import TEXTS, distance
from bishare_dsl.verify.contents import read_contents
from bishare_dsl.verify.copies import Copies
from bishare_dsl.verify.judge import ask, judge
from bishare_dsl.verify.server import Server, VerifyError
from tests.support.parts import quick
from tests.verify.served import (
    FAULTS,
    Engine,
    FaultyServer,
    change,
    save_base,
    save_compiled,
    serving,
)

# What answers against the reference say of each fault, and what copies add.
BY_REFERENCE = {
    "none": "APPLIED",
    "prefix": "NOT APPLIED",
    "up": "AS IF",
    "k": "AS IF",
    "half": "AS IF",
    "shifted": "AS IF",
    "alpha": "AS IF",
    "swapped": "AS IF",
    "littered": "OTHER TENSORS",
}
WORDS = {
    "up": "without up_proj",
    "half": "with the first half of its layers alone",
    "shifted": "shifted by one layer",
    "alpha": "without its scale alpha / r",
    "swapped": "with A and B swapped",
    "prefix": "bit for bit, on 8 of 8 texts",
    "k": "without k_proj",
}
BY_COPIES = {
    "none": "APPLIED",
    "prefix": "NOT APPLIED",
    "up": "APPLIED IN PART",
    "k": "APPLIED IN PART",
    "half": "APPLIED IN PART",
    "shifted": "APPLIED IN PART",
    "alpha": "SCALE",
    "swapped": "APPLIED",  # Blind, and says so.
    "littered": "GARBAGE",
}
PARTS = {"up": "up_proj", "k": "k_proj", "half": "layers 2 to 3", "shifted": "layer 3, or shifts"}


@pytest.fixture(
    scope="module",
    params=quick([torch.float32, torch.bfloat16], [torch.float32]),
    ids=["float32", "bfloat16"],
)
def engine(request, base):
    found = Engine(base, request.param)
    with serving(found) as url:
        found.url = url
        yield found


def ask_mine(engine, lora, tmp_path, fault="none"):
    server = FaultyServer(engine.url)
    server.fault = fault
    folder = shutil.copytree(lora, tmp_path / "served")
    assert (
        server.call("/load_lora_adapter", {"lora_name": "mine", "lora_path": str(folder)})[0] == 200
    )
    return server, ask(server, "mine", server.base("mine"), lambda text: None)


@pytest.mark.parametrize(
    "fault", quick(FAULTS, ["none", "prefix", "half", "alpha", "swapped", "littered"])
)
def test_against_the_reference(engine, lora, contents, reference, tmp_path, fault):
    _, asked = ask_mine(engine, lora, tmp_path, fault)
    assert asked.exact
    found = judge(asked, "mine", contents, reference)
    kinds = {"k", "littered"} if engine.model.dtype == torch.bfloat16 else set()
    if (
        fault in kinds
    ):  # Less than the rounding: never a wrong word, and what it is blind to is named.
        assert found.word in (BY_REFERENCE[fault], "APPLIED")
        assert found.word != "APPLIED" or found.unseen
    else:
        assert found.word == BY_REFERENCE[fault], (found.sentence, found.numbers)
        assert WORDS.get(fault, "") in found.sentence
    assert any("--copies" in one for one in found.unseen) == (found.word == "APPLIED")


@pytest.mark.parametrize("fault", quick(FAULTS, ["none", "up", "shifted", "alpha", "littered"]))
def test_by_copies_alone(engine, lora, contents, tmp_path, fault):
    server, asked = ask_mine(engine, lora, tmp_path, fault)
    found = judge(asked, "mine", contents, None)
    assert found.word == ("NOT APPLIED" if fault == "prefix" else "cannot be judged")
    Copies(server, contents, asked, "base", "mine", tmp_path, lambda text: None).test(found)
    assert BY_COPIES[fault] in {found.word, *(word for word, _ in found.faults)}, found.sentence
    assert PARTS.get(fault, "") in found.sentence
    if fault in ("none", "swapped"):
        assert found.faults == []
        assert "A and B swapped" in found.unseen
    assert list(engine.adapters) == ["mine"]  # No copy is left, there or on the disk.
    assert [path.name for path in tmp_path.iterdir()] == ["served"]


@pytest.fixture(scope="module")
def compiled(base):
    return save_compiled(base.parent / "compiled", base)


@pytest.mark.parametrize(
    "fault", quick(["none", "prefix", "up", "half", "littered", "older"], ["none", "half", "older"])
)
def test_copies_of_a_folder_of_bishare(engine, base, compiled, reference, tmp_path, fault):
    contents = read_contents(compiled, meta_model(str(base)), "base")
    assert contents.plain
    assert len(contents.ranks) == 2
    engine.fault = "littered" if fault == "older" else "none" if fault == "littered" else fault
    try:
        server, asked = ask_mine(engine, compiled, tmp_path, "none")
        if fault == "older":
            engine.fault = "none"
        else:
            server.fault = fault
        found = judge(asked, "mine", contents, reference)
        words = {**BY_REFERENCE, "older": "OTHER TENSORS", "littered": "APPLIED"}
        assert found.word == words[fault], (found.sentence, found.numbers)
        if fault in ("up", "half"):  # Copies alone tell as much.
            found = judge(asked, "mine", contents, None)
        copies = Copies(server, contents, asked, "base", "mine", tmp_path, lambda text: None)
        copies.test(found)
        words = {found.word, *(word for word, _ in found.faults)}
        assert {"older": "STALE", **BY_COPIES}[fault] in words, found.sentence
        assert PARTS.get(fault, "") in found.sentence
        if fault == "none":
            assert found.faults == []
        assert list(engine.adapters) == ["mine"]
    finally:
        engine.fault = "none"


def test_tensors_that_are_older(engine, lora, contents, reference, tmp_path):
    old = shutil.copytree(lora, tmp_path / "old")
    change(old, lambda found: {n: t.roll(1, 0) for n, t in found.items()})
    server, asked = ask_mine(engine, old, tmp_path)
    found = judge(asked, "mine", contents, reference)
    assert found.word == "OTHER TENSORS"
    Copies(server, contents, asked, "base", "mine", tmp_path, lambda text: None).test(found)
    assert "STALE" in dict(found.faults)


def test_another_base(lora, contents, reference, tmp_path):
    engine = Engine(save_base(tmp_path / "base", seed=1))
    with serving(engine) as engine.url:
        _, asked = ask_mine(engine, lora, tmp_path)
        found = judge(asked, "mine", contents, reference)
    assert found.word != "APPLIED"
    assert "another base, or quantised" in found.warnings[0]


def test_a_base_that_answers_with_an_adapter_is_not_judged(
    base, lora, contents, reference, tmp_path
):
    """As vLLM's build for the CPU does when both are in one batch."""
    engine = Engine(base)
    engine.restless = 2.0
    with serving(engine) as engine.url:
        _, asked = ask_mine(engine, lora, tmp_path)
        found = judge(asked, "mine", contents, reference)
    assert asked.noise > 0.3
    assert found.word == "cannot be judged"
    assert "ask it alone" in found.why


def test_an_effect_below_the_rounding_is_not_judged(base, lora, contents, reference, tmp_path):
    engine = Engine(base, torch.bfloat16)
    small = shutil.copytree(lora, tmp_path / "small")
    change(small, lambda found: {n: t * (1e-2 if "lora_B" in n else 1) for n, t in found.items()})
    from bishare_dsl.models.load import meta_model
    from bishare_dsl.verify.contents import read_contents

    little = read_contents(small, meta_model(str(base)), "base")
    with serving(engine) as engine.url:
        _, asked = ask_mine(engine, small, tmp_path)
        found = judge(asked, "mine", little, reference)
    assert found.word == "cannot be judged"
    assert "this server's rounding is" in found.why


@pytest.mark.parametrize(
    ("ids", "most", "unknown_fields"), [(False, 20, True), (True, 5, True), (False, 5, False)]
)
def test_servers_that_offer_less(
    base, lora, contents, reference, tmp_path, ids, most, unknown_fields
):
    """Texts of tokens where there are no ids, five tokens for twenty, no field that is not OpenAI's."""
    engine = Engine(base)
    engine.ids, engine.most, engine.unknown_fields = ids, most, unknown_fields
    with serving(engine) as engine.url:
        _, asked = ask_mine(engine, lora, tmp_path)
        found = judge(asked, "mine", contents, reference)
    assert {len(answer) for answer in asked.adapter} <= {most, most - 1}
    assert found.word == "APPLIED"


def test_a_server_of_llama_cpp_is_asked_by_scales(base, lora, contents, reference, tmp_path):
    engine = Engine(base)
    with serving(engine) as engine.url:
        ask_mine(engine, lora, tmp_path)
        engine.adapters["other"] = {}
        engine.llama = True
        server = Server(engine.url)
        asked = ask(server, "mine", server.base("mine"), lambda text: None)
        assert judge(asked, "mine", contents, reference).word == "APPLIED"
        asked = ask(server, "other", server.base("other"), lambda text: None)
        assert judge(asked, "other", contents, reference).word == "NOT APPLIED"
        with pytest.raises(VerifyError, match=r"BS872.*has no adapter 'nobody'"):
            server.base("nobody")


@pytest.mark.parametrize(
    ("status", "end", "said"),
    [
        (401, "/v1", r"answers 401 to /models: \{\}(?s:.*)BISHARE_SERVER_KEY"),
        (404, "", r"answers 404 to /models: \{\}(?s:.*)http://localhost:8000/v1$"),
    ],
)
def test_a_server_that_refuses_to_list_its_models(monkeypatch, status, end, said):
    monkeypatch.setattr(Server, "call", lambda *_, **__: (status, "{}"))
    server = Server(f"http://localhost:8000{end}")
    with pytest.raises(VerifyError, match=f"BS872.*{said}"):
        server.base("mine")
    with pytest.raises(VerifyError, match=said.replace("/models", "'mine'")):
        server.ask("mine", TEXTS)


def test_a_server_that_does_not_answer(engine):
    with pytest.raises(VerifyError, match=r"BS872.*answers 404 to 'nobody'"):
        Server(engine.url).ask("nobody", TEXTS)
    with pytest.raises(VerifyError, match=r"BS872.*does not answer"):
        Server("http://127.0.0.1:9/v1").ask("mine", TEXTS)
    with pytest.raises(VerifyError, match=r"BS872.*http://"):
        Server("file:///etc/passwd")


def test_a_token_that_is_not_listed_counts_as_the_least():
    one, other = [{1: -1.0, 2: -3.0}], [{1: -1.0, 3: -2.0}]
    # Token 1: 0; 2: -3 against at most -2; 3: at most -3 against -2.
    assert distance(one, other) == pytest.approx((2 / 3) ** 0.5)
    assert distance(one, one) == 0


def test_the_command_asks_and_says(bishare, engine, base, lora, tmp_path):
    ask_mine(engine, lora, tmp_path)
    command = ["verify", lora, "--model", base, "--server", engine.url, "--name", "mine"]
    run = bishare(*command)
    assert run.code == 0, run.out + run.err
    assert "verdict   APPLIED: 'mine' answers as base + adapter" in run.out
    assert "not seen  " in run.out
    data = json.loads(bishare(*command, "--copies", "--json").out)
    assert (data["word"], data["faults"], data["problems"]) == ("APPLIED", [], [])
    assert data["numbers"]["effect"] > 4 * data["numbers"]["floor"]
    config = shutil.copy(base / "config.json", tmp_path / "config.json")  # Shapes alone.
    run = bishare(*command[:3], config, *command[4:])
    assert (run.code, "BS871" in run.err) == (2, True)
    engine.adapters["mine"] = {}
    run = bishare(*command)
    assert (run.code, "error[BS870]" in run.err) == (1, True)
    assert "verdict   NOT APPLIED" in run.out
    run = bishare(*command[:-1], "nobody", "--base", "base")
    assert (run.code, "BS872" in run.err) == (2, True)


def test_a_server_that_loads_no_copies_is_judged_by_its_answers(bishare, base, lora, tmp_path):
    engine = Engine(base)
    with serving(engine) as engine.url:
        ask_mine(engine, lora, tmp_path)
        engine.loads = False
        run = bishare(
            *("verify", lora, "--model", base, "--server", engine.url, "--name", "mine", "--copies")
        )
    assert (run.code, "BS872" in run.err) == (2, True)
    assert "loads no copy of the adapter: 404" in run.err
    assert "verdict   APPLIED" in run.out


def test_every_fault_is_told_by_one_or_the_other():
    told = Counter(
        fault
        for table in (BY_REFERENCE, BY_COPIES)
        for fault, word in table.items()
        if word != "APPLIED"
    )
    assert told.keys() == FAULTS.keys() - {"none"}
