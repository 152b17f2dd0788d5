"""Wrong folders of `conformance/refused`: bishare, PEFT and both readers refuse all of them."""

import shutil
import subprocess
from pathlib import Path

import pytest
from peft import PeftModel

from bishare_dsl import load_adapter
from bishare_dsl.diagnostics import AdapterError
from tests.examples.test_readers import FOLDER, MAKE, READER, ROOT, weights_of
from tests.support.families import tiny_model

FAMILIES = {"experts": "mixtral"}
pytestmark = pytest.mark.filterwarnings("ignore::bishare_dsl.diagnostics.BishareWarning")


@pytest.mark.parametrize("name", MAKE.REFUSED)
def test_all_refuse_it(name):
    folder = FOLDER / "refused" / name
    source, _ = MAKE.REFUSED[name]
    family = FAMILIES.get(source, "llama")
    with pytest.raises(AdapterError, match="BS6"):
        load_adapter(folder, tiny_model(family))
    with pytest.raises(AdapterError, match="BS6"):
        PeftModel.from_pretrained(tiny_model(family), str(folder))
    weights = weights_of(FOLDER / source / "expected.safetensors")
    with pytest.raises(SystemExit, match="does not know"):
        READER.read(folder, None, weights)
    if shutil.which("node"):
        command = ["node", str(ROOT / "examples" / "reader.mjs"), str(folder)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode != 0
        assert "does not know" in done.stderr


def test_there_is_a_folder_for_each():
    names = {path.name for path in Path(FOLDER, "refused").iterdir()}
    assert names == {*MAKE.REFUSED}
    assert len(names) >= 33
