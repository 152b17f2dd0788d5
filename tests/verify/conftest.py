import pytest

from bishare_dsl.models.load import load_model, meta_model
from bishare_dsl.verify.answers import TEXTS
from bishare_dsl.verify.contents import read_contents
from bishare_dsl.verify.reference import Reference
from tests.cli.conftest import bishare  # noqa: F401
from tests.verify.served import save_base, save_lora


@pytest.fixture(scope="session")
def base(tmp_path_factory):
    return save_base(tmp_path_factory.mktemp("verify") / "base")


@pytest.fixture(scope="session")
def lora(base):
    return save_lora(base.parent / "lora", base)


@pytest.fixture(scope="session")
def contents(base, lora):
    return read_contents(lora, meta_model(str(base)), "base")


@pytest.fixture(scope="session")
def reference(base):
    return Reference(*load_model(str(base), dtype="float32"), TEXTS)
