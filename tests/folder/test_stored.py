"""What stands in the file for a tensor."""

import pytest
import torch
from safetensors.torch import save

from bishare_dsl.folder.contents import digest_of, entries_in
from bishare_dsl.folder.stored import entries_of, tensor_of

TYPES = [
    *(torch.float64, torch.float32, torch.bfloat16, torch.float16, torch.bool),
    *(torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8),
]


@pytest.mark.parametrize("shape", [(2, 3), (4,), (), (0, 3)])
def test_what_is_in_memory_has_the_digest_of_its_file(shape):
    """So an adapter that PEFT writes is not made a file of twice."""
    tensors = {f"x.bishare_tensors.{i}": torch.ones(shape).to(t) for i, t in enumerate(TYPES)}
    tensors["x.bishare_tensors.a"] = torch.randn(3, 2, requires_grad=True).T
    content = save({key: tensor.detach().contiguous() for key, tensor in tensors.items()})
    assert digest_of(entries_of(tensors)) == digest_of(entries_in(content))


def test_what_is_read_has_the_type_that_was_written():
    for entry in entries_in(
        save({str(i): torch.ones(2, dtype=t) for i, t in enumerate(TYPES)})
    ).values():
        assert entries_of({"x": tensor_of(entry)})["x"]["dtype"] == entry["dtype"]
