"""What must answer at once imports nothing slow: a fresh interpreter tells which modules a command has loaded."""

import json
import subprocess
import sys

import pytest

from bishare_dsl import plan_spec
from bishare_dsl.folder.files import save_adapter
from bishare_dsl.initial.values import draw

HEAVY = {"accelerate", "numpy", "peft", "safetensors", "torch", "transformers"}
# Lark imports it if it is installed.
UNUSED = {"regex"}

COMMANDS = (
    ["--help"],
    ["check", "specs/lora.share"],
    ["fmt", "--check", "specs/lora.share"],
    ["plan", "specs/lora.share", "--model", "llama-7b"],
    ["plan", "specs/bishare_ke.share", "--model", "llama-7b", "--json"],
    ["plan", "lora", "bishare_ke", "--model", "llama-7b", "--set", "r=4,8"],
    ["plan", "lora", "--model", "llama-7b", "--adapters", "200", "--memory", "80GB"],
    ["show", "lora", "--model", "llama-7b", "--out", "{out}/a.svg"],
    ["lsp"],  # Last: nothing can be printed once it has ended.
)
# A wrong command is answered before anything heavy is loaded: its arguments, its spec, its files.
MODEL = ("--model", "checkpoint")
SPEC = "spec s\ntarget q_proj\nshare a per module rank 1\n"
WRONG = (
    (["train", "lora", "--data", "rows.jsonl"], "BS736"),
    (["train", "lora", "--wrong", "1"], "BS730"),
    (["train", "nospec", *MODEL, "--data", "rows.jsonl", "--output_dir", "o"], "BS902"),
    (["train", "lora", "--model", "nowhere", "--data", "rows.jsonl", "--output_dir", "o"], "BS501"),
    (["convert", "cut", "--for", "bishare", "--out", "o"], "BS608"),
    (["convert", "broken", "--for", "bishare", "--out", "o"], "BS604"),
    (["convert", "list", "--for", "bishare", "--out", "o", *MODEL], "BS604"),
    (["convert", "vera", "--for", "bishare", "--out", "o", *MODEL], "BS656"),
    (["convert", "ours", "--for", "bishare", "--out", "o", "--rank", "4"], "BS646"),
    (["convert", "ours", "--out", "o", "--force"], "BS646"),
    (["merge", "nowhere", *MODEL, "--out", "o"], "BS601"),
    (["merge", "broken", "--model", "llama-7b", "--out", "o"], "BS604"),
    (["verify", "nowhere", "--model", "llama-7b"], "BS601"),
    (["verify", "cut", "--model", "llama-7b"], "BS608"),
    (["eval", "nowhere", *MODEL, "--data", "rows.jsonl"], "BS601"),
    (["eval", "--model", "nowhere", "--data", "rows.jsonl"], "BS501"),
    (["inspect", "nowhere"], "BS601"),
    (["inspect", "broken"], "BS604"),
    (["fit", "nowhere", "--spec", "lora", "--out", "o"], "BS601"),
    (["fit", "cut", "--spec", "nospec", "--out", "o"], "BS902"),
    (["compile", "lora", "--model", "nowhere"], "BS501"),
    (["diff", "nowhere", "lora", "--model", "llama-7b"], "BS9"),
    (["plan", "lora", *MODEL, "--set", "r=x y"], "BS903"),
)
# What the first one loads all have loaded, which needs one start.
RUN_ALL = """
import json, sys
from bishare_dsl.cli.main import main

for arguments in json.loads(sys.argv[1]):
    print(f"\x01{' '.join(arguments)}", flush=True)
    try:
        code = main(arguments)
    except SystemExit as stop:
        code = stop.code
    sys.stdout.flush()
    print(json.dumps([code, sorted({name.partition(".")[0] for name in sys.modules})]), file=sys.stderr)
"""


def run_alone(program, *arguments, cwd=None):
    run = subprocess.run(
        [sys.executable, "-c", program, *arguments],
        stdin=subprocess.DEVNULL,
        cwd=cwd,
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stderr
    return run


def test_no_command_loads_anything_heavy(tmp_path):
    commands = [[word.format(out=tmp_path) for word in command] for command in COMMANDS]
    run = run_alone(RUN_ALL, json.dumps(commands))
    told = [json.loads(line) for line in run.stderr.splitlines() if line.startswith("[")]
    _, *printed = run.stdout.split("\x01")
    assert len(told) == len(printed) == len(COMMANDS)
    for arguments, (code, modules), output in zip(commands, told, printed, strict=True):
        name, _, output = output.partition("\n")
        assert name == " ".join(arguments)
        assert not code, arguments
        assert not {*modules} & (HEAVY if arguments == ["lsp"] else HEAVY | UNUSED), arguments
        assert output or arguments[0] in ("check", "fmt", "lsp"), arguments


def test_an_error_that_needs_no_tensor_loads_nothing_heavy(tmp_path):
    config = {
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 64, "vocab_size": 99,
        "intermediate_size": 96, "num_attention_heads": 4, "num_key_value_heads": 4, "num_hidden_layers": 2,
        "tie_word_embeddings": False,
    }  # fmt: skip
    lora = {"peft_type": "LORA", "r": 8, "target_modules": ["q_proj"]}
    files = {
        "checkpoint/config.json": json.dumps(config),
        "cut/adapter_config.json": json.dumps(lora | {"base_model_name_or_path": "llama-7b"}),
        "cut/adapter_model.safetensors": "x",
        "broken/adapter_config.json": "{",
        "list/adapter_config.json": "[]",
        "vera/adapter_config.json": '{"peft_type": "VERA"}',
        "rows.jsonl": '{"prompt": "a", "completion": "b"}\n',
    }
    for place, text in files.items():
        (tmp_path / place).parent.mkdir(exist_ok=True)
        (tmp_path / place).write_text(text)
    plan = plan_spec(SPEC, "smollm2-135m")
    save_adapter(tmp_path / "ours", plan, draw(plan, 0), SPEC, seed=0)
    run = run_alone(RUN_ALL, json.dumps([words for words, _ in WRONG]), cwd=tmp_path)
    told = [json.loads(line) for line in run.stderr.splitlines() if line.startswith("[")]
    answers = run.stderr.split("\n[")
    for (words, wanted), (code, modules), answer in zip(WRONG, told, answers, strict=False):
        assert code in (1, 2), words
        assert f"error[{wanted}" in answer, words
        # The reader of files imports safetensors, and that of names huggingface_hub: neither is slow.
        assert not {*modules} & (HEAVY - {"safetensors"}), words
    assert len(told) == len(WRONG)
    assert {path.name for path in tmp_path.iterdir()} == {"ours", *(p.split("/")[0] for p in files)}


def test_package_loads_nothing_but_itself():
    program = "import json, sys; import bishare_dsl; print(json.dumps([0, sorted(sys.modules)]), file=sys.stderr)"
    _, modules = json.loads(run_alone(program).stderr.splitlines()[-1])
    ours = {name for name in modules if name.startswith("bishare_dsl")}
    assert ours == {"bishare_dsl", "bishare_dsl.lazy", "bishare_dsl.version"}
    warn = "logging.getLogger('bitsandbytes.backends.cpu.ops').warning('no gemm_4bit_forward')"
    assert not run_alone(f"import logging, bishare_dsl; {warn}").stderr


def test_exports_resolve_and_are_kept():
    import bishare_dsl

    for name in bishare_dsl.__all__:
        assert getattr(bishare_dsl, name) is not None
        assert name in vars(bishare_dsl)
        assert name in dir(bishare_dsl)


def test_unknown_export_is_an_attribute_error():
    import bishare_dsl

    with pytest.raises(AttributeError, match="no attribute 'compile'"):
        bishare_dsl.compile  # noqa: B018
