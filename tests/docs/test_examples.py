"""Every example of the README and the documentation does what the text around it says.

The word behind a fence and what follows it say how a block is checked:

- ```` ```share ````: a whole spec, as the formatter writes it, that plans for Llama-7B with neither error nor
  warning. ``model=NAME`` plans it for another preset, ``warning=BS350`` expects exactly these warnings, and
  ``error=BS201`` exactly these errors (and then any layout). ``fragment`` adds a header, a target and a
  share where the block has none. ``file=NAME`` is a file that the page's specs may `use`, and its commands read.
- ```` ```python ````: runs, after the other Python of its page. A `text` block right behind it is what it
  prints. Models that it loads are tiny ones, and the current folder is an empty one. ```` ```py ```` needs an
  engine that is not installed here, and runs in the tests of that engine.
- ```` ```console run ````: every line that starts with ``$ bishare`` succeeds; ``exit=1`` expects another
  exit code. A `text` block right behind it is what it prints. ``many`` is run by `test_pages`.
"""

import contextlib
import io
import re
import shlex
import sys
import warnings
from dataclasses import dataclass
from pathlib import Path

import pytest

from bishare_dsl.diagnostics import BishareError
from bishare_dsl.language import format_text, parse_spec
from bishare_dsl.models import preset
from bishare_dsl.plan import build_plan

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
FENCE = re.compile(r"^( *)```(\w+) ?(.*)\n((?:.*\n)*?)\1```$", re.MULTILINE)
TARGET = "target q_proj, k_proj, v_proj, up_proj, down_proj\n"


@dataclass(frozen=True)
class Block:
    page: Path
    line: int
    language: str
    marks: tuple[str, ...]
    text: str
    follows: "Block | None" = None

    def values(self, name):
        return [mark.partition("=")[2] for mark in self.marks if mark.startswith(f"{name}=")]

    @property
    def place(self):
        return f"{self.page.name}:{self.line}"


def blocks_of(page):
    text = page.read_text(encoding="utf-8")
    found, end = [], None
    for match in FENCE.finditer(text):
        _, language, marks, body = match.groups()
        # What a block prints stands right behind it.
        adjacent = found and end is not None and not text[end : match.start()].strip()
        line = text.count("\n", 0, match.start()) + 1
        before = found[-1] if adjacent and language == "text" else None
        found.append(Block(page, line, language, tuple(marks.split()), body, before))
        end = match.end()
    return found


BLOCKS = [block for page in PAGES for block in blocks_of(page)]


def examples(language, mark=None):
    return pytest.mark.parametrize(
        "block",
        [b for b in BLOCKS if b.language == language and (mark is None or mark in b.marks)],
        ids=lambda block: block.place,
    )


def printed(block):
    """What the text behind a block says that it prints; None where there is none."""
    return next((b.text for b in BLOCKS if b.follows is block), None)


def whole(block):
    """The block as a whole spec."""
    if "fragment" not in block.marks:
        return block.text
    said = {line.split()[0] for line in block.text.splitlines() if line and line[0].isalpha()}
    # Each with an empty line between, so that nothing is aligned with the block's own lines.
    parts = ["spec example\n", *([] if "target" in said else [TARGET]), block.text]
    if "share" not in said:
        parts.append("share local  per module  rank 4\n")
    return "\n".join(parts)


def findings(text, model):
    """The codes of all errors, and of all warnings."""
    try:
        problems = build_plan(parse_spec(text), preset(model))[1]
    except BishareError as error:
        problems = error.problems
    return [
        sorted({p.code for p in problems if p.severity == severity})
        for severity in ("error", "warning")
    ]


def write_files(page):
    """Those that a page has, into the current folder."""
    for block in BLOCKS:
        for name in block.values("file") if block.page == page else ():
            Path(name).write_text(block.text, encoding="utf-8")


@examples("share")
def test_spec(block, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_files(block.page)
    if block.values("file"):
        # It may not be a whole spec; what uses it shows that it can be read.
        assert format_text(block.text) == block.text
        return
    text = whole(block)
    model = (block.values("model") or ["llama-7b"])[0]
    errors, found_warnings = findings(text, model)
    assert errors == sorted(block.values("error"))
    if not errors:
        assert found_warnings == sorted(block.values("warning"))
        assert format_text(text) == text


@examples("share")
def test_a_key_shares_something(block, tmp_path, monkeypatch):
    """No page teaches a key such as `layer, kind`, which on Llama is `module` in other words."""
    monkeypatch.chdir(tmp_path)
    write_files(block.page)
    if block.values("error") or block.values("file"):
        return
    spec = parse_spec(whole(block))
    plan = build_plan(spec, preset((block.values("model") or ["llama-7b"])[0]))[0]
    shares = {share.name: share for share in spec.shares}
    largest = {}
    for pool in plan.pools:
        role = pool.share, pool.role
        largest[role] = max(largest.get(role, 0), plan.users[pool.tensor])
    for (name, role), members in largest.items():
        key = shares[name].keys.get(role, shares[name].per)
        assert members > 1 or "'module'" in str(key), (name, role)


@pytest.fixture
def elsewhere(tmp_path, monkeypatch):
    """An empty current folder, and tiny models in place of those that examples load."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from bishare_dsl.testing.models import tiny_model
    from bishare_dsl.testing.tokenizer import tiny_tokenizer

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(
        AutoModelForCausalLM, "from_pretrained", lambda *_args, **_options: tiny_model("llama")
    )
    monkeypatch.setattr(
        AutoTokenizer, "from_pretrained", lambda *_args, **_options: tiny_tokenizer()
    )
    # lm_eval lists every installed package into each result, which takes seconds.
    monkeypatch.setattr("torch.utils.collect_env.get_pretty_env_info", lambda: "")


@pytest.fixture
def clean_registry(monkeypatch):
    """A page may register transforms and references; what it registers goes with it."""
    from bishare_dsl.testing import reference
    from bishare_dsl.transforms import registry

    monkeypatch.setattr(registry, "_REGISTERED", dict(registry._REGISTERED))
    monkeypatch.setattr(reference, "REFERENCES", dict(reference.REFERENCES))


@pytest.mark.parametrize(
    "page", [p for p in PAGES if any(b.language == "python" for b in blocks_of(p))], ids=str
)
@pytest.mark.usefixtures("elsewhere", "clean_registry")
def test_python(page, monkeypatch):
    from types import ModuleType

    # A class whose annotations are looked up needs a module to look in.
    module = ModuleType("example_of_docs")
    monkeypatch.setitem(sys.modules, module.__name__, module)
    write_files(page)
    for block in (b for b in BLOCKS if b.page == page and b.language == "python"):
        code = "\n" * block.line + block.text  # So that a traceback has the page's line numbers.
        out = io.StringIO()
        with contextlib.redirect_stdout(out), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            exec(compile(code, str(page), "exec"), vars(module))
        if (expected := printed(block)) is not None:
            assert out.getvalue() == expected, block.place


@examples("console", "run")
@pytest.mark.usefixtures("elsewhere")
def test_console(block, capsys):
    from bishare_dsl.cli.main import main

    wanted = int((block.values("exit") or ["0"])[0])
    commands = [line[2:] for line in block.text.splitlines() if line.startswith("$ bishare")]
    assert commands
    write_files(block.page)
    for command in commands:
        assert main(shlex.split(command, comments=True)[1:]) == wanted, command
    out = capsys.readouterr().out
    if (expected := printed(block)) is not None:
        assert out == expected


def test_the_first_spec_and_the_commands_of_the_readme_warn_of_nothing(elsewhere, bishare):
    blocks = [b for b in BLOCKS if b.page.name == "README.md"]
    spec = next(b for b in blocks if b.language == "share")
    snippet = next(b for b in blocks if b.language == "python" and "SmolLM2" in b.text)
    assert spec.values("file")[0] in snippet.text
    for model in ("smollm2-135m", "llama-7b"):
        assert findings(spec.text, model) == [[], []]
    write_files(spec.page)
    for block in blocks:
        if "run" not in block.marks or block.values("exit"):
            continue
        for line in block.text.splitlines():
            run = bishare(*shlex.split(line)[2:])
            assert (run.code, "warning" in run.err) == (0, False), line


def test_examples_are_found():
    """The checks above are of something."""
    assert {block.language for block in BLOCKS} >= {"share", "python", "console"}
    known = {"share", "python", "py", "console", "text", "bash", "toml", "json", "lua"}
    assert not [b.place for b in BLOCKS if b.language not in known]
    marks = r"fragment|run|many|(model|warning|error|exit|file)=[\w.-]+"
    assert not [b.place for b in BLOCKS if not all(re.fullmatch(marks, m) for m in b.marks)]
