"""Compositions and references in compact mode: each tensor is held once, and what is served is what was trained."""

import pytest

from tests.serve_vllm.conftest import engine
from tests.serve_vllm.served import CHUNKS, ROOM, Served, prompts_of, save_base
from tests.support.forms import FORMS, spec_of


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    root = tmp_path_factory.mktemp("forms")
    model = save_base(root / "base", "llama")
    with engine(root / "base", **CHUNKS, **ROOM, additional_config={"bishare_slots_gib": 1}) as llm:
        yield root, model, llm


@pytest.mark.parametrize("name", FORMS)
def test_every_form(server, name):
    root, model, llm = server
    number = [*FORMS].index(name)
    spec = root / f"form-{number}.share"
    spec.write_text(spec_of(name))
    served = Served(root, model, str(spec), 2, first=1 + 10 * number, params={})
    try:
        served.check(llm, prompts_of(6))
    finally:
        model.bishare.unload()
