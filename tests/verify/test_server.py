"""Verdicts about servers that apply an adapter rightly, or in wrong ways: over transformers, in this process."""

import json
import shutil

import pytest
import torch

from bishare_dsl.models.load import load_model
from bishare_dsl.verify.answers import TEXTS, distance
from bishare_dsl.verify.judge import compare
from bishare_dsl.verify.reference import NONE, WHOLE, Located
from bishare_dsl.verify.server import Server, ServerError
from bishare_dsl.verify.verdict import Verdict
from tests.support.parts import quick
from tests.verify.served import (
    FAULTS,
    Engine,
    FaultyServer,
    ask_one,
    change,
    contents_of,
    judged,
    save_base,
    save_compiled,
    save_lora,
    serving,
)

# The verdict on each fault, and a part of its sentence.
VERDICTS = {
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
    "prefix": "answers all texts as the base, bit for bit",
    "k": "without k_proj",
}


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
    return ask_one(server)


@pytest.mark.parametrize(
    "fault", quick(FAULTS, ["none", "prefix", "half", "alpha", "swapped", "littered"])
)
def test_against_the_reference(engine, lora, contents, reference, tmp_path, fault):
    asked = ask_mine(engine, lora, tmp_path, fault)
    assert asked.noise == 0
    found = judged(asked, "mine", contents, reference)
    kinds = {"k", "littered"} if engine.model.dtype == torch.bfloat16 else set()
    if (
        fault in kinds
    ):  # Less than the rounding: never a wrong word, and what it is blind to is named.
        assert found.word in (VERDICTS[fault], "APPLIED")
        assert found.word != "APPLIED" or found.unseen
    else:
        assert found.word == VERDICTS[fault], (found.why, found.numbers)
        assert WORDS.get(fault, "") in found.why
    assert any("its slot" in one for one in found.unseen) == (found.word == "APPLIED")
    without_weights = judged(asked, "mine", contents, None)
    assert without_weights.word == ("NOT APPLIED" if fault == "prefix" else "cannot be judged")


@pytest.fixture(scope="module")
def compiled(base):
    return save_compiled(base.parent / "compiled", base)


@pytest.mark.parametrize(
    "fault", quick(["none", "prefix", "up", "half", "littered"], ["none", "half", "littered"])
)
def test_a_folder_of_bishare(engine, base, compiled, reference, tmp_path, fault):
    contents = contents_of(compiled, base)
    assert str(contents).endswith("rank 3 and 4")
    engine.fault = fault
    try:
        found = judged(ask_mine(engine, compiled, tmp_path), "mine", contents, reference)
    finally:
        engine.fault = "none"
    assert found.word == VERDICTS[fault], (found.why, found.numbers)


def test_an_adapter_that_was_saved_on_another_base_is_a_warning(bishare, base, compiled, tmp_path):
    other = save_base(tmp_path / "other", seed=1)
    for model, warned in ((base, False), (other, True)):
        engine = Engine(model)
        engine.load("compiled", compiled)
        with serving(engine) as url:
            run = bishare("verify", compiled, "--model", model, "--server", url)
        assert (run.code, "warning[BS620]" in run.err) == (0, warned), run.err


def test_tensors_that_are_older(engine, lora, contents, reference, tmp_path):
    old = shutil.copytree(lora, tmp_path / "old")
    change(old, lambda found: {n: t.roll(1, 0) for n, t in found.items()})
    found = judged(ask_mine(engine, old, tmp_path), "mine", contents, reference)
    assert found.word == "OTHER TENSORS"


def test_another_base(lora, contents, reference, tmp_path):
    engine = Engine(save_base(tmp_path / "base", seed=1))
    with serving(engine) as engine.url:
        asked = ask_mine(engine, lora, tmp_path)
        found = judged(asked, "mine", contents, reference)
    assert found.word != "APPLIED"
    assert "another base, or quantised" in found.why


def test_a_base_that_answers_with_an_adapter_is_not_judged(
    base, lora, contents, reference, tmp_path
):
    """As vLLM's build for the CPU does when both are in one batch."""
    engine = Engine(base)
    engine.restless = 2.0
    with serving(engine) as engine.url:
        asked = ask_mine(engine, lora, tmp_path)
        found = judged(asked, "mine", contents, reference)
    assert asked.noise > 0.3
    assert found.word == "cannot be judged"
    assert "try again when no other requests run" in found.why


@pytest.mark.parametrize(("floors", "word"), [(1, False), (3.9, False), (4.1, True), (40, True)])
@pytest.mark.parametrize("applied", [True, False])
def test_an_effect_is_judged_from_four_floors_on(floors, word, applied):
    """Answers are exact, so that the effect alone decides; below it there is no verdict, right or wrong."""
    floor, rows = 0.01, torch.arange(3)
    base = -torch.rand(3, 9, generator=torch.Generator().manual_seed(0)) - 1
    whole = base - floors * floor
    given = whole if applied else base
    heard = Located(rows, rows, given[rows, rows], floor)
    verdict = Verdict()
    compare(verdict, "mine", heard, {NONE: base, WHOLE: whole})
    wanted = ("APPLIED" if applied else "NOT APPLIED") if word else "cannot be judged"
    assert verdict.word == wanted
    assert word or "this server's rounding is 0.01" in verdict.why


def test_a_small_effect_on_a_server_that_rounds(base, lora, contents, reference, tmp_path):
    engine = Engine(base, torch.bfloat16)
    small = shutil.copytree(lora, tmp_path / "small")
    change(small, lambda found: {n: t * (1e-2 if "lora_B" in n else 1) for n, t in found.items()})
    with serving(engine) as engine.url:
        asked = ask_mine(engine, small, tmp_path)
        found = judged(asked, "mine", contents_of(small, base), reference)
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
        asked = ask_mine(engine, lora, tmp_path)
        found = judged(asked, "mine", contents, reference)
    assert {len(answer) for answer in asked.adapter} <= {most, most - 1}
    assert found.word == "APPLIED"


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
    with pytest.raises(ServerError, match=f"BS872.*{said}"):
        server.base(["mine"])
    with pytest.raises(ServerError, match=said.replace("/models", "/completions")):
        server.ask("mine", TEXTS)


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
    data = json.loads(bishare(*command, "--json").out)
    (row,) = data["rows"]
    assert (row["word"], row["server"], data["problems"]) == ("APPLIED", engine.url, [])
    assert row["numbers"]["effect"] > 4 * row["numbers"]["floor"]
    config = shutil.copy(base / "config.json", tmp_path / "config.json")  # Shapes alone.
    run = bishare(*command[:3], config, *command[4:])
    assert (run.code, "BS871" in run.err) == (2, True)
    engine.adapters["mine"] = {}
    run = bishare(*command)
    assert (run.code, "error[BS870]" in run.err) == (1, True)
    assert "verdict   NOT APPLIED" in run.out
    run = bishare(*command[:-1], "nobody", "--base", "base")
    assert (run.code, "error[BS870]" in run.err) == (1, True)
    assert "verdict   NOT THERE: the server at" in run.out
    assert "answers 404 to /completions" in run.out


@pytest.fixture(scope="module")
def several(base):
    """Five LoRAs in a folder, and a copy of the first."""
    root = base.parent / "loras"
    for i, name in enumerate("abcde"):
        save_lora(root / name, base, seed=i)
    shutil.copytree(root / "a", root / "f")
    return root


def test_a_table_of_adapters_and_servers(bishare, base, several):
    """A server has all as they are, of another each name answers in another way, and one is down."""
    right, wrong = Engine(base), Engine(base)
    for name in "abcdef":
        right.load(name, several / name)
    wrong.load("a", several / "a")
    wrong.load("b", several / "c")
    wrong.adapters["c"] = {}
    wrong.load("d", several / "d")
    wrong.adapters["d"] = {p: (a, b, s / 2) for p, (a, b, s) in wrong.adapters["d"].items()}
    down = "http://127.0.0.1:9/v1"
    with serving(right) as one, serving(wrong) as two:
        command = ["verify", several, "--model", base]
        command += [word for url in (one, two, down) for word in ("--server", url)]
        run = bishare(*command)
        data = json.loads(bishare(*command, "--json").out)
    assert run.code == 1
    applied = "does not apply 'b', 'c', 'd', 'e', 'f' as it was trained"
    assert f"error[BS870]: the server {applied}" in run.err
    assert "warning[BS871]" in run.err
    words = {(row["adapter"], row["server"]): row["word"] for row in data["rows"]}
    assert {words[name, one] for name in "abcdef"} == {"APPLIED"}
    assert {words[name, down] for name in "abcdef"} == {"cannot be judged"}
    expected = {"a": "APPLIED", "b": "ANOTHER ADAPTER", "c": "NOT APPLIED", "d": "AS IF"}
    expected |= dict.fromkeys("ef", "NOT THERE")
    assert {name: words[name, two] for name in "abcdef"} == expected
    (twin,) = (r for r in data["rows"] if (r["adapter"], r["server"]) == ("a", one))
    assert "whether it is `f` instead, whose answers are as near" in twin["unseen"]
    lines = [line for line in run.out.splitlines() if two in line]
    assert [line.split()[0] for line in lines] == [*"abcdef"]
    assert "'b' answers as `c`" in lines[1]
    assert "answers 404 to /completions" in lines[4]


def test_adapters_of_a_library_are_verified_by_their_names(bishare, base, tmp_path):
    from bishare_dsl import compile_spec
    from bishare_dsl.adapter.files import save_library

    model, _ = load_model(str(base), dtype="float32")
    text = "spec l\ntarget q_proj, up_proj\nshare s per adapter, module rank 2\n"
    plan = compile_spec(text, model).bishare.plan
    random = torch.Generator().manual_seed(0)
    members = {
        name: {t.name: 0.3 * torch.randn(t.shape, generator=random) for t in plan.tensors}
        for name in "cd"
    }
    save_library(tmp_path / "lib", plan, members, text, seed=0)
    engine = Engine(base)
    for name in "cd":
        engine.load(name, f"{tmp_path}/lib#{name}")
    with serving(engine) as url:
        command = ["verify", "--model", base, "--server", url, "--json"]
        one = json.loads(bishare(*command, f"{tmp_path}/lib#c").out)["rows"]
        both = json.loads(bishare(*command, tmp_path / "lib").out)["rows"]
        engine.adapters["d"] = engine.adapters["c"]
        swapped = json.loads(bishare(*command, tmp_path / "lib").out)["rows"]
    assert [(row["adapter"], row["word"]) for row in one] == [("c", "APPLIED")]
    assert [(row["adapter"], row["word"]) for row in both] == [("c", "APPLIED"), ("d", "APPLIED")]
    assert [row["word"] for row in swapped] == ["APPLIED", "ANOTHER ADAPTER"]
