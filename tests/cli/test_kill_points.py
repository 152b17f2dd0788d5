"""Every command that writes, killed at each of its writes, and with a disk that is full at each of them.

`tests/train` does the same to training. What stands at the place afterwards is what was there before, or all that
the command writes; and the command can be given again.
"""

import contextlib
import errno
import fcntl
import os
import re
import shutil
import signal
import sys
from functools import partial
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import save

from bishare_dsl import compile_spec, writing
from bishare_dsl.cli.main import main
from bishare_dsl.folder.files import CONFIG, TENSORS, names_in, read_adapter
from bishare_dsl.testing.models import tiny_model
from bishare_dsl.testing.tokenizer import tiny_tokenizer
from tests.folder.test_files import reseal
from tests.support.checks import randomize
from tests.support.parts import quick

pytestmark = pytest.mark.skipif(os.name == "nt", reason="forks")
SPEC = "spec s\ntarget q_proj, v_proj\nshare a per layer rank 2 via KE(size = 4)\n"
LIBRARY = "spec s\ntarget q_proj\nshare a A per layer  B per adapter, module rank 2\n"
COMMANDS = {
    "compile": "compile s.share --model base --out OUT",
    "compile again": "compile s.share --model base --seed 1 --out OUT --force",
    "merge": "merge adapter --model base --out OUT",
    "convert": "convert adapter --model base --out OUT",
    "convert for gguf": "convert adapter --model base --for gguf --out OUT",
    "convert for bishare": "convert lora --for bishare --model base --out OUT",
    "convert several": "convert lora other --for bishare --model base --out OUT",
    "fit of a library": "fit lora other --spec library.share --model base --out OUT",
    "fit into a library": "fit third --library OUT --force",
    "fit into a library in the place of another": "fit other --library OUT --force",
    "show": "show s.share --model base --out OUT",
    "verify": "verify adapter --model base --write-card OUT",
    "fmt": "fmt OUT",
}

OUT = {"show": "out.svg", "verify": "card.json"}

NEW = sorted(name for name in COMMANDS if name != "fmt" and not name.startswith("fit into"))
"""Those that need nothing at the place."""


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A folder with all that the commands read."""
    folder = tmp_path_factory.mktemp("made")
    small = {"num_hidden_layers": 2}
    tiny_model("llama", **small).save_pretrained(folder / "base")
    tiny_tokenizer().save_pretrained(folder / "base")
    (folder / "s.share").write_text(SPEC)
    (folder / "library.share").write_text(LIBRARY)
    model = tiny_model("llama", **small)
    compile_spec(SPEC, model)
    randomize(model)
    model.bishare.save_pretrained(folder / "adapter")
    for seed, name in enumerate(("lora", "other")):
        model = get_peft_model(
            tiny_model("llama", **small), LoraConfig(r=2, target_modules=["q_proj", "v_proj"])
        )
        random = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for parameter in (p for p in model.parameters() if p.requires_grad):
                parameter.copy_(torch.randn(parameter.shape, generator=random))
        model.save_pretrained(folder / name)
    shutil.copytree(folder / "other", folder / "third")
    shutil.copytree(folder / "lora", folder / "old" / "other")
    given = {"--spec": "library.share", "--model": "base", "--out": "lib"}
    words = (word for option, name in given.items() for word in (option, str(folder / name)))
    assert main(["fit", str(folder / "lora"), str(folder / "old/other"), *words]) == 0
    return folder


def content(path):
    """All that stands at a path: of an adapter or a library what is read there, whatever a kill has left beside it."""
    if path.is_file():
        return path.read_bytes()
    config = path / CONFIG
    if config.is_file() and '"BISHARE"' in config.read_text():
        found = (read_adapter(f"{path}{one}") for one in [f"#{n}" for n in names_in(path)] or [""])
        return [(one.spec_text, one.config.seed, save(one.tensors())) for one in found]
    parts = {p.name: content(p) for p in path.iterdir()} if path.exists() else {}
    if CONFIG not in parts:
        parts.pop(TENSORS, None)  # The first half of an adapter is none.
    return {n: one for n, one in parts.items() if one and not n.endswith((".new", ".lock"))} or None


CHANGES = ("open", "os.mkdir", "os.remove", "os.rename", "os.rmdir")


def at_write(number, folder, act, events=CHANGES):
    """Do something when this process changes the folder for the ``number``-th time, before it does."""
    left = [number]

    def hook(event, arguments):
        if event not in events or str(folder) not in str(arguments[0]):
            return
        if event == "open" and not arguments[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT):
            return
        left[0] -= 1
        if left[0] == 0:
            (folder.parent / "reached").touch()
            act(arguments[0])

    sys.addaudithook(hook)


def run(command, log, before):
    """Run a command in a child: its exit code, or the signal that ended it, below zero."""
    if (pid := os.fork()) == 0:
        with (
            log.open("w") as said,
            Path(os.devnull).open("w") as nowhere,
            contextlib.redirect_stderr(said),
            contextlib.redirect_stdout(nowhere),
        ):
            before()
            code = main(command)
        os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def kill(_):
    os.kill(os.getpid(), signal.SIGKILL)


def full(path):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), path)


def points(name, made, folder, act, events=CHANGES):
    """Yield what is there after a command to which something happened, at each of its writes in turn.

    That is the place, what stood there before, what stands there if nothing happens, the exit code and the messages.
    """
    log, before, reached = folder / "log", folder / "before", folder / "reached"
    words = COMMANDS[name].split()
    names = {path.name: str(path) for path in made.iterdir()}

    def command(out):
        return [str(out) if word == "OUT" else names.get(word, word) for word in words]

    if name == "fmt":
        before.write_text(SPEC.replace("\nshare", " share"))
    elif name.endswith("again"):
        shutil.copytree(made / "adapter", before)
        reseal(before, command=words[0])
    elif name.startswith("fit into"):
        shutil.copytree(made / "lib", before)
    out = OUT.get(name, "out")
    wanted = folder / "wanted" / out
    for number in range(200):
        place = folder / (str(number) if number else "wanted") / out
        place.parent.mkdir()
        if before.exists():
            (shutil.copytree if before.is_dir() else shutil.copy)(before, place)
        reached.unlink(missing_ok=True)
        start = partial(at_write, number, place.parent, act, events) if number else str
        code = run(command(place), log, start)
        if not number:
            assert code == 0, log.read_text()
            assert content(wanted) != content(before)
            continue
        if not reached.exists():
            assert code == 0, log.read_text()
            assert number > 1
            return
        yield place, content(before), content(wanted), code, log.read_text()
        again = run(command(place), log, str)  # It goes through, and leaves nothing else.
        assert again == 0 or "BS618" in log.read_text()  # It was there already.
        assert content(place) == content(wanted)
        left = {p.relative_to(place.parent) for p in place.parent.rglob("*")}
        more = left - {p.relative_to(wanted.parent) for p in wanted.parent.rglob("*")}
        # Half of one file, the mark of what is complete and an empty lock stay until the next writer of that name.
        left_by_kill = r"(\w+/)*\.[\w.]+(\.\w{8})?\.(lock|new)"
        assert not [one for one in more if not re.fullmatch(left_by_kill, str(one))]
    raise AssertionError("it never comes to an end")


ONTO_NOTHING = {
    "fit": "fit lora --spec s.share --model base --out OUT",
    "fit into a copy": "fit third --library lib --out OUT",
    **{name: COMMANDS[name] for name in NEW if name not in (*OUT, "convert several")},
}
AGAIN = ("fit", "fit into a copy", "fit of a library", "compile", "convert for bishare")
APPEARS = [
    *(
        (name, began, "lock")
        for began in (False, True)
        for name in (AGAIN if began else ONTO_NOTHING)
    ),
    *((name, False, "put") for name in ONTO_NOTHING),
    *((name, True, "put") for name in ("fit into a copy", "fit of a library")),
]


@pytest.mark.parametrize(
    ("name", "began", "moment"),
    quick(
        APPEARS,
        [("compile", False, "put"), ("fit", True, "lock"), ("fit of a library", True, "put")],
    ),
)
def test_what_appears_while_a_command_works_is_left_alone(
    name, began, moment, made, tmp_path, monkeypatch, capsys
):
    """G20: an adapter that appeared in place of nothing, or of what `--force` was meant for, was replaced."""
    place, names = tmp_path / "out", {path.name: str(path) for path in made.iterdir()}
    stranger = made / ("lib" if "library" in name or "copy" in name else "adapter")
    words = [str(place) if w == "OUT" else names.get(w, w) for w in ONTO_NOTHING[name].split()]
    if began:
        shutil.copytree(stranger, place)
        reseal(place, command=words[0])  # It is an earlier result of the command.
        words += ["--force"]

    module, function = {"lock": (fcntl, "flock"), "put": (writing, "_rename")}[moment]
    real = getattr(module, function)

    def appear(*call):
        monkeypatch.setattr(module, function, real)
        if place.exists():
            place.rename(tmp_path / "aside")
        shutil.copytree(stranger, place)
        (place / "notes").write_text("precious")
        return real(*call)

    monkeypatch.setattr(module, function, appear)
    assert main(words) == 2
    said = capsys.readouterr().err
    assert "error[BS616]" in said
    assert (
        "appeared or changed meanwhile, and is left alone: give another name, or run again" in said
    )
    (place / "notes").unlink()
    names_left = {path.name: path.read_bytes() for path in place.rglob("*") if path.is_file()}
    assert names_left == {p.name: p.read_bytes() for p in stranger.rglob("*") if p.is_file()}
    assert {path.name for path in tmp_path.iterdir()} <= {"out", "aside"}


@pytest.mark.parametrize(
    "other",
    ["lora third --spec library.share --model base --out OUT --force", "third --library OUT"],
)
def test_a_library_that_changes_while_an_adapter_is_fitted_to_it_is_left_alone(
    other, made, tmp_path, monkeypatch, capsys
):
    """G1: the adapter got the shared tensors of another library, and two of one name replaced each other."""
    library, real, changed = tmp_path / "lib", fcntl.flock, []
    shutil.copytree(made / "lib", library)
    names = {path.name: str(path) for path in made.iterdir()} | {"OUT": str(library)}

    def change(*call):
        monkeypatch.setattr(fcntl, "flock", real)
        assert main(["fit", *(names.get(word, word) for word in other.split())]) == 0
        changed.append(content(library))
        real(*call)

    monkeypatch.setattr(fcntl, "flock", change)
    assert main(["fit", names["third"], "--library", str(library)]) == 2
    said = capsys.readouterr().err
    assert "error[BS616]" in said
    assert "changed meanwhile: run again" in said
    assert [content(library)] == changed


@pytest.mark.parametrize("act", [kill, full])
@pytest.mark.parametrize("name", quick(COMMANDS, ["compile again"]))
def test_a_kill_and_a_full_disk_at_each_write_leave_the_old_or_the_new(name, act, made, tmp_path):
    """That the disk is full is an error with a code."""
    events = ("open", "os.mkdir") if act is full else CHANGES
    for place, before, wanted, code, said in points(name, made, tmp_path, act, events):
        found = content(place)
        if act is kill:
            assert code in (0, -signal.SIGKILL), said
        elif code:
            assert code != 70, said
            assert "error[BS" in said
            assert "No space left on device" in said
        else:
            assert found == wanted
        if name == "convert several":  # Each is whole, or not there.
            assert (found or {}).items() <= wanted.items()
        else:  # What comes last, such as a card, may be what fails.
            assert found in (before, wanted)


@pytest.mark.parametrize("name", quick(NEW, ["compile"]))
def test_a_file_that_cannot_be_written_to_its_end_is_an_error_with_a_code(name, made, tmp_path):
    """The system names no file then."""
    names = {path.name: str(path) for path in made.iterdir()}
    log = tmp_path / "log"

    def command(out):
        out.parent.mkdir()
        return [str(out) if w == "OUT" else names.get(w, w) for w in COMMANDS[name].split()]

    out = OUT.get(name, "out")
    wanted, place = tmp_path / "wanted" / out, tmp_path / "limited" / out
    assert run(command(wanted), log, str) == 0, log.read_text()
    sizes = [path.stat().st_size for path in wanted.parent.rglob("*") if path.is_file()]

    def limit():
        import resource

        resource.setrlimit(resource.RLIMIT_FSIZE, (max(sizes) // 2, max(sizes) // 2))

    code, said = run(command(place), log, limit), log.read_text()
    assert code == 2, said
    assert "error[BS" in said
    assert "File too large" in said or "os error 27" in said
    found = content(place)
    if name == "convert several":
        assert (found or {}).items() <= content(wanted).items()
    else:
        assert found is None
        assert [path for path in place.parent.rglob("*") if path.is_file()] == []
