"""Every spec that ships, through every command that trains or takes what was trained.

The widths of the model are SmolLM2's, divided by 8, so that the sizes of kernels and tiles do not divide them.
"""

import json

import pytest

from bishare_dsl.adapter.files import names_in
from bishare_dsl.cli.main import main
from bishare_dsl.testing.models import tiny_model
from bishare_dsl.testing.tokenizer import tiny_tokenizer
from tests.methods.test_every_method import SCALED, TINY
from tests.support.parts import quick
from tests.support.tasks import tiny_tasks

SHAPES = {
    "hidden_size": 72, "intermediate_size": 192, "num_attention_heads": 9, "head_dim": 8,
    "num_key_value_heads": 3, "num_hidden_layers": 3,
}  # fmt: skip
REFUSED = {
    # Its gate depends on the input: no row of a mixed batch has it, and no matrix is equal to it.
    "hydralora": {"several": "BS673", "merge": "BS633", "export": "BS633", "fit": "BS633"},
    # They start as the weights of the base say, which a fit does not load.
    **{key: {"fit": "BS688"} for key in ["lora_xs", "pissa", "tiny_lora"]},
    # A magnitude scales the base's weights, too, which no product of factors does.
    **{key: {"fit": "BS675"} for key in SCALED},
}
EVALUATED = ("bishare_ke_ab", "hydralora", "library_core")
"""Specs whose adapters are also evaluated and fitted, which take long and depend little on the spec.

`tests/fit/test_linear.py` has the steps of all.
"""
SHORT = [
    *("--per_device_train_batch_size", "2", "--gradient_accumulation_steps", "1"),
    *("--learning_rate", "1e-2", "--logging_steps", "1", "-q"),
]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A folder with a model, the rows to train on, and a task of lm_eval."""
    folder = tmp_path_factory.mktemp("base")
    tiny_model("llama", **SHAPES).save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    tiny_tasks(folder / "tasks", rows=2)
    rows = [{"prompt": f"one {number} ", "completion": "c d e"} for number in range(6)]
    (folder / "one.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return str(folder)


@pytest.mark.parametrize("name", quick(TINY, ["library_core"]))
def test_every_command(name: str, base: str, tmp_path, capsys, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    # lm_eval lists every installed package into each result, which takes seconds.
    monkeypatch.setattr("torch.utils.collect_env.get_pretty_env_info", lambda: "")
    refused = REFUSED.get(name, {})

    def bishare(*words: str, what: str = "") -> bool:
        code = main([*words])
        out, err = capsys.readouterr()
        if what in refused:
            assert code == 1, f"{words}: {out}{err}"
            assert refused[what] in err, f"{words}: {out}{err}"
        else:
            assert code == 0, f"{words}: {out}{err}"
        return code == 0

    params = [word for key, value in TINY[name].items() for word in ("--set", f"{key}={value}")]
    train = ["train", name, "--model", base, *params, *SHORT, "--data", f"{base}/one.jsonl"]
    bishare(*train, "--output_dir", "alone", "--save_steps", "2", "--max_steps", "2")
    bishare("train", "--resume", "alone", "--max_steps", "3", "-q")
    assert json.loads((tmp_path / "alone" / "trainer_state.json").read_text())["global_step"] == 3
    several = ["--output_dir", "several", "--max_steps", "2", "--seeds", "2"]
    if bishare(*train, *several, what="several"):
        found = names_in(tmp_path / "several" / "library") or [
            path.parent.name for path in tmp_path.glob("several/*/adapter_config.json")
        ]
        assert {*found} == {"one-seed0", "one-seed1"}
    bishare("inspect", "alone")
    bishare("merge", "alone", "--model", base, "--out", "merged", "-q", what="merge")
    bishare("export", "alone", "--out", "lora", "--model", base, "-q", what="export")
    if name in EVALUATED:
        tasks = ["--tasks", "tiny_choose", "--include_path", f"{base}/tasks", "--limit", "1"]
        bishare("eval", "alone", "--model", base, *tasks, "-q")
    if name in EVALUATED or "fit" in refused:
        fit = ["fit", "alone", "--spec", name, *params, "--model", base, "--out", "fitted"]
        bishare(*fit, "--sweeps", "1", "-q", what="fit")
