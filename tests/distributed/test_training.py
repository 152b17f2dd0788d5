"""`bishare train` on two processes: what one process learns, the same everywhere, saved once.

Process r of n takes the batches r, r + n, ... of one order. So two processes with two rows at once see the
rows that one process sees with four. (transformers 5.4 divides gradients by the number of accumulated
batches, so that this is to be the same.)
"""

import io
import json
import os
import random
import re
import shutil
from contextlib import contextmanager, redirect_stdout

import pytest
import torch
from safetensors.torch import load_file
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import distributed
from torch.nn.parallel import DistributedDataParallel
from transformers import PreTrainedTokenizerFast, TrainerCallback

from bishare_dsl.cli.main import main
from bishare_dsl.testing.models import tiny_model
from bishare_dsl.train import TrainError, train
from tests.distributed.test_two_processes import MIXED
from tests.distributed.together import Together

pytestmark = pytest.mark.long

SPEC = "\n".join(
    line for line in MIXED.splitlines() if " via GT" not in line and "bank" not in line
)
RECIPE = {
    "learning_rate": 0.01,
    "warmup_steps": 2,
    "max_steps": 6,
    "logging_steps": 1,
    "save_steps": 3,
    "gradient_accumulation_steps": 2,
    "eval_steps": 3,
    "load_best_model_at_end": True,
}
TENSORS = "adapter_model.safetensors"
# In float32 the order of sums is all that differs; six steps let it grow to some 1e-6.
CLOSE = 1e-5


def inputs(folder):
    """A base with its tokenizer, rows of all lengths, a spec, and a run in one process."""
    words = ["<pad>", "<s>", "</s>", "<unk>", *(f"w{i}" for i in range(60))]
    backend = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, "<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    special = {"pad_token": "<pad>", "bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, **special)
    tokenizer.save_pretrained(folder / "base")
    tiny_model("llama").save_pretrained(folder / "base")
    draw = random.Random(0)

    def rows(lengths):
        texts = [(draw.choices(words[4:], k=3), draw.choices(words[4:], k=k)) for k in lengths]
        pairs = [{"prompt": " ".join(a), "completion": " " + " ".join(b)} for a, b in texts]
        return "".join(json.dumps(pair) + "\n" for pair in pairs)

    (folder / "rows.jsonl").write_text(rows([draw.randint(1, 6) for _ in range(32)]))
    # transformers' mean over batches is that over rows where all of them learn as much.
    (folder / "held-out.jsonl").write_text(rows([4] * 8))
    (folder / "spec.share").write_text(SPEC)
    assert main(command(asked(folder, "alone", per_device_train_batch_size=4))) == 0


together = Together(inputs)


def asked(folder, name, **more):
    """The arguments of a run, by those of `train`; its batch is divided for two processes."""
    return {
        "spec": str(folder / "spec.share"),
        "model": str(folder / "base"),
        "data": str(folder / "rows.jsonl"),
        "eval_data": str(folder / "held-out.jsonl"),
        "output_dir": str(folder / name),
        "per_device_train_batch_size": 2,
        **RECIPE,
        **more,
    }


def command(arguments):
    """The same on the command line."""
    spec, *options = arguments.items()
    return ["train", spec[1], "-q", *(f"--{name}={value}" for name, value in options)]


def log(folder):
    """What was logged, but for what depends on the machine, or on padding."""
    entries = json.loads((folder / "trainer_state.json").read_text())["log_history"]
    left_out = re.compile("second|runtime|flos|tokens|train_loss")
    return [{k: v for k, v in entry.items() if not left_out.search(k)} for entry in entries]


def assert_as_one_process(folder, name):
    """A run logged and saved what the one in one process did."""
    if distributed.is_initialized():
        distributed.barrier()  # The first process has more to do at the end of a run.
    entries, alone = log(folder / name), log(folder / "alone")
    assert len(entries) == len(alone) >= 8
    for entry, expected in zip(entries, alone, strict=True):
        assert entry == pytest.approx(expected, abs=CLOSE), (entry, expected)
    for place in (".", "checkpoint-6"):
        stored, expected = (load_file(folder / n / place / TENSORS) for n in (name, "alone"))
        assert stored.keys() == expected.keys()
        for tensor, value in stored.items():
            torch.testing.assert_close(value, expected[tensor], atol=CLOSE, rtol=0, msg=tensor)


def assert_bit_for_bit(folder, name, expected):
    assert log(folder / name) == log(folder / expected)
    stored = (folder / n / TENSORS for n in (name, expected))
    assert len({path.read_bytes() for path in stored}) == 1


def on_process(number, act):
    """A callback by which one process does something to its model when two steps are done."""

    class Acts(TrainerCallback):
        def on_step_begin(self, args, state, control, **given):
            if state.global_step == 2 and args.process_index == number:
                act(given["model"])

    return Acts()


@together
def fsdp_and_several_tasks_are_refused(folder):
    """accelerate's config asks for FSDP."""
    with pytest.raises(TrainError, match=r"BS732(?s:.*)FSDP"):
        train(**asked(folder, "fsdp"), quiet=True)
    tasks = {"data": {name: str(folder / "rows.jsonl") for name in "ab"}, "eval_data": None}
    many = asked(folder, "many", **tasks, load_best_model_at_end=False, eval_steps=None)
    with ddp(), pytest.raises(TrainError, match=r"BS732(?s:.*)torchrun"):
        train(**many, quiet=True)
    assert not (folder / "fsdp").exists()
    assert not (folder / "many").exists()


@contextmanager
def ddp():
    """Let accelerate's config, which asks for FSDP, ask for DDP."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ACCELERATE_USE_FSDP", "false")
        yield patch


@together
def the_command(folder):
    """One process speaks, and DDP need not look for parameters that are not used."""
    looked, wrap = [], DistributedDataParallel.__init__

    def wrapped(self, *given, **options):
        looked.append(options.get("find_unused_parameters", False))
        wrap(self, *given, **options)

    with ddp() as patch, redirect_stdout(io.StringIO()) as printed:
        patch.setattr(DistributedDataParallel, "__init__", wrapped)
        assert main(command(asked(folder, "command", gradient_checkpointing=True))) == 0
    assert looked == [False]
    assert printed.getvalue().count("adapter  ") == (os.environ["RANK"] == "0")
    assert_as_one_process(folder, "command")


@together
def the_command_that_is_resumed(folder):
    if os.environ["RANK"] == "0":
        shutil.copytree(folder / "command", folder / "again")
    distributed.barrier()
    with ddp():
        assert main(["train", "-q", f"--resume={folder / 'again' / 'checkpoint-3'}"]) == 0
    assert_bit_for_bit(folder, "again", "command")


@together
def a_loss_that_is_no_number_on_one_process(folder):
    """All of them stop."""
    spoil = on_process(1, lambda model: model.bishare.tensors()["inter.A"].data.fill_(torch.nan))
    given = asked(folder, "spoilt", load_best_model_at_end=False)
    with ddp(), pytest.raises(TrainError, match="BS750"):
        train(**given, quiet=True, callbacks=[spoil])


@pytest.mark.parametrize("name", together)
def test_two_processes(name, found):
    assert [process[name] for process in found] == ["", ""]
