"""Several tasks in one run."""

import json
import math
import shutil
from itertools import combinations, pairwise
from pathlib import Path

import pytest
import torch
from transformers import TrainerCallback

from bishare_dsl import load_adapter
from bishare_dsl.diagnostics import BishareError, BishareWarning
from bishare_dsl.folder.files import add_to_library, names_in, read_adapter, save_library
from bishare_dsl.folder.standing import BANK_TENSORS
from bishare_dsl.testing.models import tiny_model
from bishare_dsl.testing.tokenizer import tiny_tokenizer
from bishare_dsl.train import TrainingInterrupted, train
from bishare_dsl.train.data.batches import ALLOWED, Collator
from bishare_dsl.train.data.encoding import encode
from bishare_dsl.train.data.load import load_rows
from bishare_dsl.train.request import Settings
from bishare_dsl.train.tasks import PASS, Steps, Task, cut
from tests.train.conftest import SMALL, SPEC, go_on
from tests.train.test_resume import Asks

PLAIN = SPEC.replace("dropout 0.2\n", "")
LIBRARY = "spec s\nparam r = 2\ntarget q_proj\nshare x A per kind  B per adapter, kind rank r"
NO_NAMES = ("checkpoint-2", "a#b", "\x1b[2J", "/tmp/away", "..", "my task", "-x", "a+b")
HOW = SMALL | {"rows_at_once": 6, "logging_steps": 2, "quiet": True}


def start(spec, data, out, **how):
    return train(spec, tiny_model("llama"), data, out, tokenizer=tiny_tokenizer(), **HOW | how)


@pytest.fixture
def tasks(files):
    return {"long": str(files / "rows.jsonl"), "short": str(files / "others.jsonl")}


def tensors(folder):
    return load_adapter(folder, tiny_model("llama")).bishare.tensors()


def test_each_task_is_as_if_it_were_trained_alone(tasks, tmp_path, recwarn):
    """Its rows come in the same order; as many as that are no whole number of steps."""
    how = {"num_train_epochs": 5, "warmup_steps": None}
    made = start(PLAIN, tasks, tmp_path / "many", **how)
    assert not [entry for entry in made.history if "grad_norm" in entry]
    assert [(task.name, task.rows, task.steps) for task in made.tasks] == [
        ("long", 24, 30),
        ("short", 6, 10),
    ]
    for name, data in tasks.items():
        alone = start(PLAIN, data, tmp_path / name, **how).model.bishare.tensors()
        for key, found in tensors(tmp_path / "many" / name).items():
            torch.testing.assert_close(found, alone[key], rtol=0, atol=3e-5)
    # There is nothing to tell of gradients: an empty part of the bank is no tensor that trains.
    assert not [warning for warning in recwarn if "BS873" in str(warning.message)]


def test_a_tensor_in_two_places_is_trained_as_if_alone(tasks, tmp_path):
    """It gets the gradients of both places, in a bank as in one adapter."""
    text = """spec s
        target q_proj, o_proj
        share read   per layer                rank 2  where q_proj
        share write  A per module  B is read.A  rank 2  where o_proj  init A zeros
        share same   A per layer  B is A        rank 2  via Core
        """
    how = {"num_train_epochs": 2, "warmup_steps": None}
    start(text, tasks, tmp_path / "many", **how)
    for name, data in tasks.items():
        alone = start(text, data, tmp_path / name, **how).model.bishare.tensors()
        for key, trained in tensors(tmp_path / "many" / name).items():
            torch.testing.assert_close(trained, alone[key], rtol=0, atol=3e-5)


def test_a_library_shares_a_tensor_in_two_places(tasks, tmp_path):
    text = """spec s
        target q_proj, o_proj
        share read   A per layer  B per adapter, layer          rank 2  where q_proj
        share write  A per adapter, layer  B is read.A  rank 2  where o_proj  init A zeros
        """
    start(text, tasks, tmp_path / "many", max_steps=4)
    library = tmp_path / "many" / "library"
    first, second = (tensors(f"{library}#{name}") for name in tasks)
    for name in first:
        assert torch.equal(first[name], second[name]) == (
            name in ("read.layer_0.A", "read.layer_1.A")
        )


@pytest.mark.parametrize(("spec", "steps", "rate"), [(LIBRARY, 80, 0.01), (PLAIN, 60, 0.002)])
def test_by_default_the_largest_task_has_many_steps_and_the_loss_falls(
    tasks, tmp_path, capsys, spec, steps, rate
):
    """One epoch of small tasks is one step, and at the rate of one large task it moves nothing."""
    made = train(
        spec,
        tiny_model("llama"),
        tasks,
        tmp_path / "out",
        tokenizer=tiny_tokenizer(),
        max_length=32,
        save_strategy="no",
    )
    assert [task.steps for task in made.tasks] == [steps, steps]
    assert made.loss_last < 0.99 * made.loss_first
    assert f"learning rate {rate:g}" in capsys.readouterr().err
    assert "did not fall" not in str(made)
    asked = {"num_train_epochs": 1, "learning_rate": 1e-4, "per_device_train_batch_size": 4}
    still = start(LIBRARY, tasks, tmp_path / "still", gradient_accumulation_steps=16, **asked)
    assert [task.steps for task in still.tasks] == [1, 1]
    assert ": it did not fall; try a higher --learning_rate, or more --max_steps" in str(still)


def test_tasks_that_are_added_one_after_another_are_in_one_library(tasks, tmp_path, capsys):
    start(LIBRARY, tasks, tmp_path / "out", max_steps=1)
    libraries = [tmp_path / "out" / "library"]
    for name in ("first", "second"):
        added = {name: tasks["short"]}
        how = {"library": str(libraries[-1]), "start": "zero", "max_steps": 1, "quiet": False}
        start(None, added, tmp_path / name, **how)
        libraries.append(tmp_path / name / "library")
        said = f"`{libraries[-2]}` is as it was: add the next task to the copy, with `--library {libraries[-1]}`"
        assert said in capsys.readouterr().err
    assert {*names_in(libraries[-1])} == {"long", "short", "first", "second"}


@pytest.mark.parametrize("layer", [None, 1])
def test_a_tensor_without_a_gradient_in_any_task_is_named(tasks, tmp_path, layer, recwarn):
    model = tiny_model("llama")
    if layer is not None:
        model.model.layers[layer].mlp.forward = lambda x: x  # Past its terms.
    spec = "spec s\ntarget q_proj, up_proj\nshare x A per layer, in B per adapter, module rank 2\n"
    how = HOW | {"max_steps": 4, "warmup_steps": 0, "tokenizer": tiny_tokenizer()}
    train(spec, model, tasks, tmp_path / "out", **how)
    told = [str(w.message) for w in recwarn if "BS873" in str(w.message)]
    if layer is None:
        assert told == []
    else:
        assert len(told) == 1
        assert f"`x.layers.{layer}.mlp.up_proj.B`" in told[0]
        assert "in step 3" in told[0]


def test_a_task_sees_each_row_once_in_an_epoch(files):
    collator = Collator.of(tiny_tokenizer())
    data = [
        encode(load_rows(files / f"{n}.jsonl"), tiny_tokenizer(), max_length=32).examples
        for n in ("rows", "others")
    ]
    steps = Steps([Task("a", data[0]), Task("b", data[1])], collator, 4, 2, None, 6)
    assert len(steps) == 12
    seen = [[], []]
    for passes in steps:
        for one in passes:
            assert len(one.names) <= 6
            assert one.names == sorted(one.names)
            ids, mask = one.inputs["input_ids"], one.inputs["attention_mask"].bool()
            for name, row, real in zip(one.names, ids, mask, strict=True):
                seen["ab".index(name)].append(tuple(row[real].tolist()))
    for rows, examples in zip(seen, data, strict=True):
        assert sorted(rows) == sorted(2 * [tuple(e["input_ids"]) for e in examples])
    with pytest.raises(IndexError):
        steps[12]


@pytest.mark.parametrize(("accelerates", "a_pass"), [(False, PASS), (True, 10**9)])
def test_no_other_passes_take_less_time(monkeypatch, accelerates, a_pass):
    """Padding is computed too, and each pass costs; rows with options have passes of their own."""
    monkeypatch.setattr("torch.accelerator.is_available", lambda: accelerates)
    lengths = [171, 17, 18, 25, 90, 26, 95, 170]
    rows = [{"input_ids": [0] * length} for length in lengths]

    def cost(passes):
        return sum(len(one) * max(lengths[i] for i in one) + a_pass for one in passes)

    order, found = sorted(range(8), key=lengths.__getitem__), cut(rows, 5)
    ends = [(0, *ends, 8) for n in range(8) for ends in combinations(range(1, 8), n)]
    divided = ([order[i:j] for i, j in pairwise(all_ends)] for all_ends in ends)
    assert cost(found) == min(cost(d) for d in divided if max(map(len, d)) <= 5)
    assert sorted(i for one in found for i in one) == [*range(8)]
    assert max(map(len, found)) <= 5
    assert [8] in cut([*rows, {"input_ids": [0], ALLOWED: []}], 16)


def test_what_was_stopped_goes_on_bit_for_bit(tasks, tmp_path):
    how = {"eval_split": 2, "eval_steps": 2, "save_strategy": "steps", "save_steps": 100}
    whole = start(SPEC, tasks, tmp_path / "whole", **how)
    assert whole.tasks[0].steps > whole.tasks[1].steps
    assert all(task.eval_loss is not None for task in whole.tasks)
    with pytest.raises(TrainingInterrupted):
        start(SPEC, tasks, tmp_path / "parts", callbacks=[Asks(4)], **how)
    assert not (tmp_path / "parts" / "long").exists()
    with pytest.raises(BishareError, match="other tasks"):
        go_on(tmp_path / "parts", data={"other": tasks["long"]})
    again = go_on(tmp_path / "parts")
    for of_task in ("eval_loss", "loss_first", "loss_last"):
        found, wanted = ([getattr(t, of_task) for t in r.tasks] for r in (again, whole))
        assert found == wanted, of_task
    for name in tasks:
        found = tensors(tmp_path / "parts" / name)
        assert all(torch.equal(found[n], t) for n, t in tensors(tmp_path / "whole" / name).items())
    json.dumps(again.as_dict())
    assert "long" in str(again)


def test_what_no_key_gives_to_an_adapter_is_shared(tasks, tmp_path):
    text = "spec s\ntarget q_proj, v_proj\nshare x A per kind  B per adapter, kind rank 4"
    made = start(text, tasks, tmp_path / "out", max_steps=3)
    one, two = (tensors(task.folder) for task in made.tasks)
    same = {name for name in one if torch.equal(one[name], two[name])}
    assert same == made.model.bishare.plan.common
    begun = start(text, tasks, tmp_path / "none", max_steps=1, learning_rate=0.0)
    first = tensors(begun.tasks[0].folder)
    assert not any(torch.equal(one[name], first[name]) for name in one)


def test_a_task_that_comes_later_trains_its_own_part(tasks, tmp_path):
    text = "spec s\ntarget q_proj, v_proj\nshare x A per kind  B per adapter, kind rank 4"
    first = start(text, tasks, tmp_path / "first", max_steps=3)
    library, how = str(tmp_path / "first" / "library"), {"max_steps": 2}
    later = start(None, {"later": tasks["short"]}, tmp_path / "out", library=library, **how)
    common = first.model.bishare.plan.common
    new, old = tensors(later.tasks[0].folder), tensors(first.tasks[0].folder)
    for name, found in new.items():
        assert torch.equal(found, old[name]) == (name in common), name
    kept = tensors(tmp_path / "out" / "library#long")
    assert all(torch.equal(found, old[name]) for name, found in kept.items())
    assert f"{tmp_path / 'out' / 'library'}#later, " in str(later)
    with pytest.raises(BishareError, match=r"BS616.*it lies in the library"):
        start(None, {"later": tasks["short"]}, Path(library) / "run", library=library, **how)
    assert not (Path(library) / "run").exists()
    wrong = {
        "has a spec.*leave the spec": (text, library),
        "already.*leave their files out": (None, library),
        "is no library.*lists adapters and libraries": (None, str(tmp_path)),
        "is no library.*`--library [^#]*/library`": (
            None,
            f"{tmp_path / 'first' / 'library'}#none",
        ),
        rf"is no library.*`--library {tmp_path / 'first' / 'library'}`": (
            None,
            str(tmp_path / "first"),
        ),
        rf"is no library.*`{tmp_path / 'first' / 'library'}`: write": (
            None,
            str(tmp_path / "first" / "beside"),
        ),
    }
    for number, (said, (spec, place)) in enumerate(wrong.items()):
        data = tasks if "already" in said else {"later": tasks["short"]}
        with pytest.raises(BishareError, match=f"(?s)BS732.*{said}"):
            start(spec, data, tmp_path / str(number), library=place, **how)


@pytest.mark.parametrize("via", ["Loadings(vectors = 3)", "KE(size = 4)"])
def test_a_library_whose_keys_name_no_adapter_is_shared_too(tasks, tmp_path, via):
    """As `fit` makes one of a transform with private numbers."""
    text = f"spec s\nparam r = 4\ntarget q_proj, v_proj\nshare x per kind rank r via {via}\n"
    begun = start(text, tasks["short"], tmp_path / "first", max_steps=3).model.bishare
    plan, values = begun.plan, {n: t.detach().clone() for n, t in begun.tensors().items()}
    assert not plan.is_library
    assert 0 < plan.private < plan.trainable
    save_library(tmp_path / "lib", plan, {"one": values, "two": values}, text, seed=0)
    assert "each adapter: " in (tmp_path / "lib" / "README.md").read_text()
    how = {"library": str(tmp_path / "lib"), "max_steps": 2}
    later = start(None, {"later": tasks["short"]}, tmp_path / "out", **how)
    place = f"{tmp_path / 'out' / 'library'}#later"
    assert (later.tasks[0].folder, f"{plan.private:,} private" in str(later)) == (place, True)
    assert later.as_dict()["trainable"] == plan.private
    found, trained = tensors(place), later.model.bishare["later"].tensors()
    for name, tensor in found.items():
        assert torch.equal(tensor, trained[name]), name
        assert torch.equal(tensor, values[name]) == (name in plan.common), name


def test_a_run_does_not_go_on_with_another_library(tasks, tmp_path):
    """Adapters may be added to it, but its shared tensors are what the first steps trained on."""
    text = "spec s\ntarget q_proj, v_proj\nshare x A per kind  B per adapter, kind rank 4"
    start(text, tasks, tmp_path / "first", max_steps=2)
    library = tmp_path / "first" / "library"
    member = read_adapter(f"{library}#long")
    how = {"library": str(library), "max_steps": 6, "callbacks": [Asks(4)]}
    with pytest.raises(TrainingInterrupted):
        start(None, {"later": tasks["short"]}, tmp_path / "out", **how)
    values = {name: tensor + 1 for name, tensor in member.tensors().items()}
    add_to_library(library, {"new": values})
    shutil.copytree(tmp_path / "out", tmp_path / "more")
    go_on(tmp_path / "more")
    assert "new" in names_in(tmp_path / "more" / "library")
    save_library(library, member.plan, {"long": values}, member.spec_text, seed=0)
    with pytest.raises(BishareError, match=r"BS732.*another library"):
        go_on(tmp_path / "out")


def test_a_task_of_no_numbers_stops_alone(tasks, tmp_path):
    with pytest.warns(BishareWarning, match=r"BS750.*`short` is not written"):
        made = start(PLAIN, tasks, tmp_path / "out", callbacks=[_Break("short")], max_steps=4)
    assert [math.isfinite(task.loss_last) for task in made.tasks] == [True, False]
    assert [task.folder for task in made.tasks] == [str(tmp_path / "out" / "long"), None]
    assert not (tmp_path / "out" / "short").exists()
    whole = start(PLAIN, tasks, tmp_path / "whole", max_steps=4)
    for name, found in whole.model.bishare["long"].tensors().items():
        torch.testing.assert_close(
            found, made.model.bishare["long"].tensors()[name], rtol=0, atol=1e-5
        )


class _Break(TrainerCallback):
    """Makes the values of adapters with a word in their names no numbers, from the second step on."""

    def __init__(self, word):
        self.word = word

    def on_step_begin(self, args, state, control, model=None, **_):
        if state.global_step == 1:
            for name in model.bishare.adapters:
                if self.word in name:
                    bank, row = model.bishare[name].bank
                    with torch.no_grad():
                        bank.own[row, 0] = torch.nan


def test_a_run_without_a_finite_adapter_is_an_error(tasks, tmp_path):
    how = {"eval_split": 2, "max_steps": 4}
    with pytest.raises(BishareError, match=r"BS750.*`long` is not written, `short` is"):
        start(PLAIN, tasks, tmp_path / "out", callbacks=[_Break("")], **how)
    assert not (tmp_path / "out" / "long").exists()


def test_a_spec_with_a_warning_trains(tasks, tmp_path, recwarn):
    """As every KE whose size divides no width, and so `bishare_ke` on SmolLM2; each run says it once."""
    text = "spec s\nparam r = 2\ntarget q_proj, v_proj\nshare a where q_proj per kind rank r\n"
    made = start(text, tasks, tmp_path / "out", max_steps=1)
    assert len([task for task in made.tasks if task.folder]) == 2
    assert sum("BS308" in str(w.message) for w in recwarn) == 1


@pytest.mark.parametrize(
    ("data", "how", "code"),
    [
        *(({name: "rows"}, {}, "BS638") for name in ("__base__", "n" * 201, "mlp", "train")),
        *(({name: "rows"}, {}, "BS731") for name in NO_NAMES),
        (["rows", "rows"], {}, "BS731"),
        ({"a": "rows"}, {"optim": "sgd"}, "BS732"),
        ({"a": "rows"}, {"label_smoothing_factor": 0.1}, "BS730"),
        ({"a": "rows"}, {"search": ["learning_rate=1e-4,1e-3"]}, "BS730"),
        ({"a": "rows"}, {"spec": "hydralora"}, "BS673"),
    ],
)
def test_what_is_refused(files, tmp_path, data, how, code):
    path = str(files / "rows.jsonl")
    given = [path] * 2 if isinstance(data, list) else dict.fromkeys(data, path)
    with pytest.raises(BishareError, match=code):
        start(how.pop("spec", PLAIN), given, tmp_path / "out", **how)
    assert not (tmp_path / "out").exists()


def test_names_of_tasks(files):
    rows, others = str(files / "rows.jsonl"), str(files / "others.jsonl")
    wanted = {"rows": rows, "others": others}
    assert Settings(data=[rows, others]).data == wanted
    assert Settings(data=str(files)).data == dict(sorted(wanted.items()))
    assert Settings(data=[f"a={rows}"]).data == {"a": rows}
    assert Settings(data=rows).data == rows
    with pytest.raises(ValueError, match="two tasks"):
        Settings(data=[rows, rows])


@pytest.mark.parametrize(("rate", "said"), [(1e-4, 1), (5e-3, 0)])
def test_few_parameters_at_a_low_rate_are_noted_once(files, tmp_path, capsys, rate, said):
    how = {"learning_rate": rate, "max_steps": 1, "quiet": False}
    start(PLAIN, [str(files / f"{n}.jsonl") for n in ("rows", "others")], tmp_path / "many", **how)
    assert capsys.readouterr().err.count(f"at a rate of {rate:g}: try --learning_rate 2e-3") == said


def test_a_name_that_another_process_adds_meanwhile_is_refused(tasks, tmp_path):
    """The run finds it when it writes. Neither adapter is lost."""
    start(LIBRARY, tasks, tmp_path / "first")
    library = tmp_path / "first" / "library"
    theirs = read_adapter(f"{library}#long").tensors()

    class Other(TrainerCallback):
        def on_train_begin(self, *_, **__):
            add_to_library(library, {"new": theirs})

    how = {"library": str(library), "save_strategy": "steps", "callbacks": [Other()]}
    with pytest.raises(BishareError, match=r"BS616.*adapters of these names, changed meanwhile"):
        start(None, {"new": tasks["short"]}, tmp_path / "late", **how)
    found = read_adapter(f"{library}#new").tensors()
    assert all(torch.equal(tensor, theirs[name]) for name, tensor in found.items())
    assert not (tmp_path / "late" / "library").exists()
    assert [*(tmp_path / "late").glob("checkpoint-*/seal.json")]


@pytest.mark.parametrize("what", ["library", "out/library", "out/later"])
def test_what_changes_while_tasks_train_is_left_alone(what, tasks, tmp_path):
    """G1 and G20: members got the shared tensors of another library, and what appeared was replaced."""
    first = start(LIBRARY, tasks, tmp_path / "first", max_steps=1)
    (tmp_path / "first" / "library").rename(library := tmp_path / "library")
    start(PLAIN, tasks["short"], tmp_path / "adapter", max_steps=1)
    place, handle = tmp_path / what, first.model.bishare
    members = {"long": {name: tensor + 1 for name, tensor in handle.tensors().items()}}

    def files():
        return {path: path.read_bytes() for path in place.rglob("*") if path.is_file()}

    class Changes(TrainerCallback):
        def on_step_end(self, *_, **__):
            if what == "library":
                save_library(library, handle.plan, members, handle.spec_text, seed=0)
            else:
                shutil.copytree(library if "library" in what else tmp_path / "adapter", place)
            found.update(files())

    found, how = {}, {"max_steps": 1, "callbacks": [Changes()]}
    spec, more = (PLAIN, {}) if "later" in what else (None, {"library": str(library)})
    data = {"later": tasks["short"], "other": tasks["long"]}
    with pytest.raises(BishareError, match=r"BS616.*meanwhile"):
        start(spec, data, tmp_path / "out", **how, **more)
    assert files() == found != {}


@pytest.mark.parametrize("place", ["long", "library"])
def test_what_stands_where_an_adapter_will_be_written_is_not_replaced(place, tasks, tmp_path):
    """It is refused before the first step: a run of one task refused it, and one of several did not."""
    spec = LIBRARY if place == "library" else PLAIN
    start(spec, tasks, tmp_path / "first", max_steps=1)
    out = tmp_path / "out"
    shutil.copytree(tmp_path / "first" / place, out / place)
    before = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    with pytest.raises(BishareError, match=f"BS740.*out/{place}"):
        start(spec, tasks, out, max_steps=1)
    assert {path: path.read_bytes() for path in out.rglob("*") if path.is_file()} == before


@pytest.mark.parametrize("spec", [PLAIN, LIBRARY])
@pytest.mark.parametrize("step", [1, 2])
def test_a_run_that_was_killed_while_it_saved_a_checkpoint_goes_on(tasks, tmp_path, spec, step):
    """Its checkpoint has the bank as the weights of a model, and no seal."""
    how = {"max_steps": 2, "save_strategy": "steps", "save_steps": 1}
    for name in ("whole", "parts"):
        start(spec, tasks, tmp_path / name, **how)
    folder = tmp_path / "parts"
    for path in folder.iterdir():
        if not path.name.startswith("checkpoint-") and path.name != "run.json":
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    begun = folder / f"checkpoint-{step}"
    header, *_ = (begun / "model.safetensors").read_bytes()[8:].split(b"}}")
    assert {name for name in BANK_TENSORS if f'"{name}"'.encode() in header}
    (begun / "seal.json").unlink()
    (begun / "optimizer.pt").write_bytes(b"begun")
    if step == 1:
        shutil.rmtree(folder / "checkpoint-2")
        start(spec, tasks, folder, **how)
    else:
        go_on(folder)
    for path in (tmp_path / "whole").rglob("*.safetensors"):
        if "checkpoint" not in str(path):
            other = folder / path.relative_to(tmp_path / "whole")
            assert other.read_bytes() == path.read_bytes(), other
