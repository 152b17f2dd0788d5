"""The compact form: what running needs, in fewer bytes, for good."""

import copy
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch

from bishare_dsl import compile_spec, load_adapter, parse_spec, plan_spec
from bishare_dsl.adapter.files import read_adapter, save_adapter
from bishare_dsl.adapter.initial import draw
from bishare_dsl.diagnostics import AdapterError, BishareWarning
from bishare_dsl.models import preset
from bishare_dsl.testing.models import tiny_model
from bishare_dsl.transforms.vector_bank import VectorBank
from tests.adapter.conftest import logits
from tests.adapter.test_files import config_of, edit_tensors, refused, reseal
from tests.support.checks import randomize
from tests.support.stored import load_stored

TEXT = """
spec bank
target q_proj, down_proj
share s per model rank 2 via VectorBank(vectors = {vectors}, length = 4, top_k = {top_k}) start nonzero
"""


def made(vectors: int = 20, top_k: int = 2) -> Any:
    text = TEXT.format(vectors=vectors, top_k=top_k)
    model = compile_spec(parse_spec(text), tiny_model("llama"))
    randomize(model)
    return model


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made().bishare.save_pretrained(tmp_path / "compact", compact=True)
    return tmp_path / "compact"


@pytest.mark.parametrize(("vectors", "top_k"), [(20, 2), (20, 20), (300, 5)])
def test_the_same_logits_from_fewer_bytes(tmp_path: Path, vectors: int, top_k: int) -> None:
    model = made(vectors, top_k)
    model.bishare.save_pretrained(tmp_path, compact=True)
    assert torch.equal(logits(load_adapter(tmp_path, tiny_model("llama"))), logits(model))
    tensors = load_stored(tmp_path)
    bank, rows = 4 * vectors * 4, sum(len(t) for n, t in tensors.items() if n.endswith(":vectors"))
    # For each stretch of a factor the numbers of `top_k` vectors, and all but one of their weights.
    index = 1 if vectors <= 256 else 4
    size = sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())
    assert size == bank + rows * (index * top_k + 4 * (top_k - 1))
    assert rows == 2 * 2 * (32 + 40 + 48 + 32) // 4


def test_the_size_at_7b(tmp_path: Path) -> None:
    text = (
        "spec vb target q_proj, v_proj, k_proj, o_proj, up_proj, down_proj, gate_proj "
        "share s per model rank 4 via VectorBank start nonzero"
    )
    plan = plan_spec(parse_spec(text), preset("llama-7b"))
    tensors = draw(plan, 0)
    save_adapter(tmp_path / "all", plan, tensors, text, seed=0)
    save_adapter(tmp_path / "compact", plan, tensors, text, seed=0, compact=True)
    full, compact = (
        (tmp_path / name / "adapter_model.safetensors").stat().st_size
        for name in ("all", "compact")
    )
    bank = 90 * 256 * 4
    rows = (plan.trainable - 90 * 256) // 90
    header = 240 * 2 * len(plan.tensors)
    assert full > bank + 90 * 4 * rows
    assert compact < bank + 6 * rows + header
    assert compact < full / 27


def test_merging_export_and_disabling_work(folder: Path, tmp_path: Path) -> None:
    peft = pytest.importorskip("peft")
    model: Any = load_adapter(folder, tiny_model("llama"))
    want = logits(model)
    with model.bishare.disable_adapter():
        assert torch.equal(logits(model), logits(tiny_model("llama")))
    model.bishare.export(tmp_path / "peft")
    exported = peft.PeftModel.from_pretrained(tiny_model("llama"), tmp_path / "peft")
    torch.testing.assert_close(logits(exported), want, rtol=1e-4, atol=1e-4)
    plain = model.bishare.merge_and_unload()
    torch.testing.assert_close(logits(plain), want, rtol=1e-4, atol=1e-4)
    plain.train()  # A plain model, which may train.


@pytest.mark.parametrize(
    "copied", [lambda m: m, copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))]
)
def test_it_does_not_train(folder: Path, copied: Any) -> None:
    model = copied(load_adapter(folder, tiny_model("llama")))
    assert not any(parameter.requires_grad for parameter in model.parameters())
    with pytest.raises(AdapterError, match="BS637"):
        model.train()
    model.eval()


def test_trainer_is_refused(folder: Path, tmp_path: Path) -> None:
    from transformers import Trainer, TrainingArguments

    arguments = TrainingArguments(str(tmp_path / "runs"), max_steps=1, use_cpu=True, report_to=[])
    rows = [{"input_ids": torch.arange(4), "labels": torch.arange(4)}]
    model = load_adapter(folder, tiny_model("llama"))
    with pytest.raises(AdapterError, match="BS637"):
        Trainer(model, arguments, train_dataset=rows).train()


@pytest.mark.filterwarnings("error::bishare_dsl.diagnostics.BishareWarning")
def test_what_is_left_out_is_not_told_as_a_fault(folder: Path, tmp_path: Path) -> None:
    model: Any = load_adapter(folder, tiny_model("llama"))
    model.bishare.save_pretrained(tmp_path / "again", compact=True)


def test_gains_are_kept_whole(tmp_path: Path) -> None:
    """They are no logits, of which the largest would do."""
    model = compile_spec(
        TEXT.format(vectors=20, top_k=2) + "gain rank init 1, out init 1", tiny_model("llama")
    )
    randomize(model)
    model.bishare.save_pretrained(tmp_path, compact=True)
    assert torch.equal(logits(load_adapter(tmp_path, tiny_model("llama"))), logits(model))


def test_saved_again_it_is_the_same(folder: Path, tmp_path: Path) -> None:
    model: Any = load_adapter(folder, tiny_model("llama"))
    model.bishare.save_pretrained(tmp_path / "again")  # There is nothing more to save.
    for path in folder.iterdir():
        assert (tmp_path / "again" / path.name).read_bytes() == path.read_bytes()


def test_saving_compactly_leaves_the_adapter_in_training(tmp_path: Path) -> None:
    model = made()
    model.bishare.save_pretrained(tmp_path, compact=True)
    model.train()
    assert all(tensor.requires_grad for tensor in model.bishare.tensors().values())


def test_an_adapter_without_a_compact_form_says_so(tmp_path: Path) -> None:
    text = "spec s target q_proj share x per module rank 2"
    model: Any = compile_spec(parse_spec(text), tiny_model("llama"))
    with pytest.warns(BishareWarning, match="BS636"):
        model.bishare.save_pretrained(tmp_path, compact=True)
    load_adapter(tmp_path, tiny_model("llama")).train()


def test_frozen_logits_are_drawn(tmp_path: Path) -> None:
    text = TEXT.format(vectors=20, top_k=2).replace("start", "freeze L_A start")
    model: Any = compile_spec(parse_spec(text), tiny_model("llama"))
    model.bishare.save_pretrained(tmp_path, compact=True)
    config = read_adapter(tmp_path).config
    assert {name.rpartition(".")[2] for name in config.drawn} == {"L_A"}
    assert {name.rpartition(".")[2] for name in config.compact} == {"L_B"}
    assert torch.equal(logits(load_adapter(tmp_path, tiny_model("llama"))), logits(model))


# What is wrong with a folder ------------------------------------------------------------------------

NAME = "s.layers.0.self_attn.q_proj.L_A"


def test_a_missing_part(folder: Path) -> None:
    edit_tensors(folder, lambda tensors: tensors.pop(f"{NAME}:below"))
    refused(folder, "BS609", f"{NAME}:below")


def test_a_tensor_in_parts_that_is_drawn_too(tmp_path: Path) -> None:
    text = TEXT.format(vectors=20, top_k=2).replace("start", "freeze L_A start")
    compile_spec(parse_spec(text), tiny_model("llama")).bishare.save_pretrained(
        tmp_path, compact=True
    )
    sharing = config_of(tmp_path)["bishare"]["sharing"]
    entry = next(entry for entry in sharing["tensors"] if "draw" in entry)
    entry["parts"] = {"vectors": "a", "below": "b"}
    reseal(tmp_path, sharing=sharing)
    refused(tmp_path, "BS607", "not what its spec gives")


def test_the_tensor_beside_its_parts(folder: Path) -> None:
    edit_tensors(folder, lambda tensors: tensors.update({NAME: torch.zeros(16, 20)}))
    refused(folder, "BS610", NAME)


@pytest.mark.parametrize(
    ("part", "value", "why"),
    [
        ("vectors", torch.zeros(3, 2, dtype=torch.uint8), "are not the largest 2 of 16 rows"),
        ("below", torch.zeros(16, 2), "are not the largest 2 of 16 rows"),
        ("vectors", torch.full((16, 2), 20, dtype=torch.uint8), "there are 20 vectors"),
    ],
)
def test_parts_that_do_not_fit(folder: Path, part: str, value: torch.Tensor, why: str) -> None:
    edit_tensors(folder, lambda tensors: tensors.update({f"{NAME}:{part}": value}))
    refused(folder, "BS608", why)


def test_a_part_of_a_type_that_torch_does_not_sum(folder: Path) -> None:
    wrong = torch.zeros(16, 2, dtype=torch.float8_e5m2)
    edit_tensors(folder, lambda tensors: tensors.update({f"{NAME}:below": wrong}))
    refused(folder, "BS608", "F8_E5M2")


def test_softmax_sees_the_same_numbers() -> None:
    bank = VectorBank(vectors=50, length=4, top_k=7)
    tensor = torch.randn(30, 50) * 20
    parts = bank.compact("L_A", tensor)
    assert parts is not None
    again = bank.restore("L_A", parts, (30, 50))
    old, new = tensor.topk(7), again.topk(7)
    assert torch.equal(old.indices, new.indices)
    assert torch.equal(old.values.softmax(-1), new.values.softmax(-1))
    assert torch.isinf(again).sum() == 30 * 43
    assert bank.compact("bank", tensor) is None


def test_a_model_that_may_not_train_is_in_eval_altogether(tmp_path: Path) -> None:
    text = "spec b target q_proj share s per model rank 2 via VectorBank(length = 4) start nonzero"
    compile_spec(parse_spec(text), tiny_model("llama")).bishare.save_pretrained(
        tmp_path, compact=True
    )
    training = tiny_model("llama").train()
    with pytest.raises(AdapterError, match="BS637"):
        load_adapter(tmp_path, training)
    assert not hasattr(training, "bishare")
    model = load_adapter(tmp_path, tiny_model("llama"))
    with pytest.raises(AdapterError, match="BS637"):
        model.train()
    assert not any(module.training for module in model.modules())


def test_rounding_a_file_changes_no_choice(tmp_path: Path) -> None:
    """Logits that differ by less than bfloat16 tells choose the same vectors."""
    model = compile_spec(TEXT_OF_MANY, tiny_model("llama"))
    random = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for tensor in model.bishare.tensors().values():
            tensor.copy_(torch.randn(tensor.shape, generator=random) * 0.1)
    model.bishare.save_pretrained(tmp_path, dtype="bfloat16")
    stored, others = read_adapter(tmp_path).tensors(), 0
    for name, tensor in model.bishare.tensors().items():
        is_logits = ".L_" in name
        assert torch.equal(stored[name], tensor if is_logits else tensor.bfloat16().float())
        if is_logits:
            rounded, exact = (t.topk(2).indices.sort(1).values for t in (tensor.bfloat16(), tensor))
            others += int((rounded != exact).any(1).sum())
    assert others, "rounded, no row would have chosen others"


TEXT_OF_MANY = """spec s
target q_proj, v_proj
share s per model rank 4 via VectorBank(vectors = 256, length = 4, top_k = 2) start nonzero
"""


def test_of_equal_logits_the_first_count() -> None:
    from bishare_dsl.transforms import load_transform

    transform = load_transform("VectorBank", {"vectors": 4, "length": 1, "top_k": 2})
    logits = torch.tensor([[0.0, 5.0, 5.0, 5.0], [1.0, 1.0, 1.0, 1.0]])
    tensors = {"L_A": logits, "bank": torch.tensor([[1.0], [2.0], [4.0], [8.0]])}
    assert transform.factor("A", tensors, 1, 2).tolist() == [[3.0, 1.5]]
    assert transform.compact("A", logits)["vectors"].tolist() == [[1, 2], [0, 1]]
