"""Finding the files that ship with bishare."""

from pathlib import Path

import pytest

from bishare_dsl import resources


def test_every_shipped_spec_is_found_by_its_name_and_a_file_of_the_user_wins(here):
    shipped = resources.shipped_specs()
    assert {"lora", "bishare_ss", "bishare_gt", "bishare_ke"} <= shipped.keys()
    assert list(shipped) == sorted(shipped)
    for name, path in shipped.items():
        for spelling in (name, f"{name}.share", f"specs/{name}", f"specs/{name}.share"):
            assert resources.find_spec(spelling) == path
    Path("lora.share").touch()
    assert resources.find_spec("lora.share") == Path("lora.share")
    assert resources.find_spec("lora") == shipped["lora"]


@pytest.mark.parametrize(
    "name", ["", "lara", "lora.yaml", "other/lora.share", "../specs/lora.share"]
)
def test_what_does_not_ship_is_not_found(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(FileNotFoundError) as caught:
        resources.find_spec(name)
    assert caught.value.filename == name


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("# LoRA (Hu, 2021): a pair\n# for each. And more.\nspec s", "LoRA (Hu, 2021): a pair for each."),
        ("# No end\nspec s", "No end"),
        ("# 1.5 and 3.2.1.\n", "1.5 and 3.2.1."),
        ("spec s\n# later.", ""),
    ],
)  # fmt: skip
def test_what_a_spec_says_it_is(text, sentence):
    assert resources.first_sentence(text) == sentence
