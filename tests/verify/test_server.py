"""Verdicts about servers that apply an adapter rightly, or in wrong ways: over transformers, in this process."""

import json
import shutil

import pytest
import torch

from bishare_dsl.models.load import load_model
from bishare_dsl.verify.server import TEXTS, Server, ServerError
from tests.support.parts import quick
from tests.support.served import (
    FAULTS,
    Engine,
    ask_one,
    change,
    contents_of,
    faulty,
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
    "k": "ANOTHER ADAPTER",
    "half": "ANOTHER ADAPTER",
    "alpha": "AS IF SCALED",
    "older": "ANOTHER ADAPTER",
}
WORDS = {
    "none": "160 of its 160 tokens",
    "half": "a part of it, an older version",
    "alpha": "its scale",
    "prefix": "answers all texts as the base, bit for bit",
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


@pytest.fixture(scope="module")
def compiled(base):
    return save_compiled(base.parent / "compiled", base)


@pytest.mark.parametrize(
    ("kind", "fault"),
    quick(
        [*(("lora", fault) for fault in FAULTS), *(("compiled", f) for f in ("none", "prefix", "half", "older"))],
        [("lora", "none"), ("lora", "prefix"), ("lora", "half"), ("lora", "alpha"), ("lora", "k"), ("compiled", "none"), ("compiled", "older")],
    ),
)  # fmt: skip
def test_against_the_reference(engine, base, lora, compiled, reference, tmp_path, kind, fault):
    if kind == "lora":
        engine.load("mine", faulty(tmp_path / "served", lora, fault))
    else:
        engine.load("mine", compiled, fault)
    contents = contents_of(lora if kind == "lora" else compiled, base)
    asked = ask_one(Server(engine.url))
    assert asked.noise == 0
    found = judged(asked, "mine", contents, reference)
    rounded = kind == "lora" and engine.model.dtype == torch.bfloat16 and fault == "k"
    if rounded:  # Less than the rounding: never a wrong word, and what it is blind to is named.
        assert found.word in (VERDICTS[fault], "APPLIED")
        assert found.word != "APPLIED" or found.not_tested
    else:
        assert found.word == VERDICTS[fault], (found.why, found.numbers)
        assert WORDS.get(fault, "") in found.why
    assert any("a part of it" in one for one in found.not_tested) == (found.word == "APPLIED")
    without_weights = judged(asked, "mine", contents, None)
    assert without_weights.word == ("NOT APPLIED" if fault == "prefix" else "UNKNOWN")


def test_an_adapter_that_was_saved_on_another_base_is_a_warning(bishare, base, compiled, tmp_path):
    other = save_base(tmp_path / "other", seed=1)
    for model, warned in ((base, False), (other, True)):
        engine = Engine(model)
        engine.load("compiled", compiled)
        with serving(engine) as url:
            run = bishare("verify", compiled, "--model", model, "--server", url)
        assert (run.code, "warning[BS620]" in run.err) == (0, warned), run.err


@pytest.mark.parametrize(
    ("settings", "sizes", "word", "said"),
    [
        # Texts of tokens where there are no ids, five tokens for twenty, no field that is not OpenAI's.
        ({"ids": False}, (1, 1), "APPLIED", "base + adapter"),
        ({"most": 5}, (1, 1), "APPLIED", "base + adapter"),
        ({"ids": False, "most": 5, "unknown_fields": False}, (1, 1), "APPLIED", "base + adapter"),
        ({"scores": False}, (1, 1), "APPLIED", "greedy texts are the adapter's, 0 the base's"),
        ({"scores": False}, (1, 0), "NOT APPLIED", "0 of 6 greedy texts are the adapter's, 6 the base's"),
        ({"scores": False}, (1, -1), "UNKNOWN", "gives no log-probabilities"),
        # As vLLM's build for the CPU, if adapters and their base are in one batch.
        ({"restless": 2.0}, (1, 1), "UNKNOWN", "try again when no other requests run"),
        ({"dtype": torch.bfloat16}, (1e-2, 1e-2), "UNKNOWN", "this server's rounding is"),
        ({"seed": 1}, (1, 1), "UNKNOWN", "another base, or quantised"),
    ],
)  # fmt: skip
def test_servers(base, lora, reference, tmp_path, settings, sizes, word, said):
    """Those that offer less, round, or have another base; the sizes are of the files and on the server."""
    folders = []
    for size, name in zip(sizes, ("files", "served"), strict=True):
        folders.append(shutil.copytree(lora, tmp_path / name))
        change(folders[-1], lambda found, size=size: {n: t * size if "lora_B" in n else t for n, t in found.items()})  # fmt: skip
    own = save_base(tmp_path / "base", seed=1) if "seed" in settings else base
    engine = Engine(own, settings.get("dtype", torch.float32))
    vars(engine).update(settings)
    engine.load("mine", folders[1])
    with serving(engine) as url:
        asked = ask_one(Server(url))
    found = judged(asked, "mine", contents_of(folders[0], base), reference)
    assert (found.word, said in found.why) == (word, True), found.why
    if "most" in settings:
        assert {len(answer) for answer in asked.adapter} <= {5, 4}


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


def test_the_command_asks_and_says(bishare, engine, base, lora, tmp_path):
    engine.load("mine", lora)
    command = ["verify", lora, "--model", base, "--server", engine.url, "--name", "mine"]
    run = bishare(*command)
    assert run.code == 0, run.out + run.err
    assert "verdict     APPLIED: 'mine' answers as base + adapter" in run.out
    assert "not tested  " in run.out
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
    assert "verdict     NOT APPLIED" in run.out
    run = bishare(*command[:-1], "nobody", "--base", "base")
    assert (run.code, "error[BS870]" in run.err) == (1, True)
    assert "verdict     NOT THERE: the server at" in run.out
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
    faults = "ANOTHER ADAPTER and NOT APPLIED and AS IF SCALED and NOT THERE"
    problem = f"the server {two} does not apply 'b', 'c', 'd', 'e', 'f' as trained: {faults}"
    assert f"error[BS870]: {problem}\n" in run.err
    assert f"warning[BS871]: whether the server {down} applies 'a', 'b', " in run.err
    assert one not in run.err
    words = {(row["adapter"], row["server"]): row["word"] for row in data["rows"]}
    assert {words[name, one] for name in "abcdef"} == {"APPLIED"}
    assert {words[name, down] for name in "abcdef"} == {"UNKNOWN"}
    expected = {"a": "APPLIED", "b": "ANOTHER ADAPTER", "c": "NOT APPLIED", "d": "AS IF SCALED"}
    expected |= dict.fromkeys("ef", "NOT THERE")
    assert {name: words[name, two] for name in "abcdef"} == expected
    (twin,) = (r for r in data["rows"] if (r["adapter"], r["server"]) == ("a", one))
    assert "whether it is `f` instead, whose answers are the same" in twin["not_tested"]
    lines = [line for line in run.out.splitlines() if two in line]
    assert [line.split()[0] for line in lines] == [*"abcdef"]
    assert "'b' answers as `c`" in lines[1]
    assert "answers 404 to /completions" in lines[4]


def test_adapters_of_a_library_are_verified_by_their_names(bishare, base, tmp_path):
    from bishare_dsl import compile_spec
    from bishare_dsl.folder.files import save_library

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
