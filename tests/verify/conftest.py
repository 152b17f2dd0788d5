import pytest

from bishare_dsl.models.load import load_model
from bishare_dsl.verify.reference import Reference
from bishare_dsl.verify.server import TEXTS
from tests.support.served import contents_of, save_base, save_lora


@pytest.fixture(scope="session")
def base(tmp_path_factory):
    return save_base(tmp_path_factory.mktemp("verify") / "base")


@pytest.fixture(scope="session")
def lora(base):
    return save_lora(base.parent / "lora", base)


@pytest.fixture(scope="session")
def contents(base, lora):
    return contents_of(lora, base)


@pytest.fixture(scope="session")
def reference(base):
    return Reference(*load_model(str(base), dtype="float32"), TEXTS)
