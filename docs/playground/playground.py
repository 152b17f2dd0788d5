"""What the playground's worker calls: the commands of bishare on the text of the page."""

import io
import json
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

from bishare_dsl.cli.main import main
from bishare_dsl.language.grammar import is_keyword, words
from bishare_dsl.lsp.words import MEANINGS
from bishare_dsl.models import PRESETS
from bishare_dsl.models.parts import PARTS
from bishare_dsl.resources import shipped_specs
from bishare_dsl.transforms import transform_kind, transform_names

SPEC, PICTURE = Path("my.share"), Path("sharing.svg")


def known() -> str:
    """Give the models and the specs that one may start from, and the words of the language."""
    texts = {name: path.read_text(encoding="utf-8") for name, path in shipped_specs().items()}
    meanings = MEANINGS | dict.fromkeys(PARTS, "A part of a block, of whatever name in a model.")
    meanings |= {name: transform_kind(name).title for name in transform_names()}
    keywords = [word for word in words() if is_keyword(word)]
    return json.dumps(
        {"models": list(PRESETS), "specs": texts, "keywords": keywords, "meanings": meanings}
    )


def run(command: str, text: str, model: str) -> str:
    """Run a command on a text. The result has its output, the text afterwards, and after a check without
    errors the picture of the spec."""
    SPEC.write_text(text, encoding="utf-8")
    on = [] if command == "fmt" else ["--model", model]
    code, output = called(command, str(SPEC), *on)
    picture = None
    if command == "check" and code == 0:
        PICTURE.unlink(missing_ok=True)
        called("show", str(SPEC), *on, "--out", str(PICTURE))
        picture = PICTURE.read_text(encoding="utf-8")
    answer = {"output": output, "text": SPEC.read_text(encoding="utf-8"), "picture": picture}
    return json.dumps(answer)


def called(*arguments: str) -> tuple[int, str]:
    """Run a command line, and return its exit code and all that it writes."""
    output = io.StringIO()
    with redirect_stdout(output), redirect_stderr(output):
        code = main(arguments)
    return code, output.getvalue()
