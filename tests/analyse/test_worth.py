"""Shares left out, against an adapter without them."""

import pytest
import torch

from bishare_dsl import load_adapter
from bishare_dsl.analyse.worth import worth
from bishare_dsl.models import architecture_of
from bishare_dsl.testing.models import tiny_model

SPEC = """spec planted target q_proj, k_proj, v_proj, up_proj, down_proj
share own per module rank 2 share all per model rank 2 via SS"""


@pytest.fixture
def adapted(plant):
    folder = plant(SPEC, model=architecture_of(tiny_model("llama")))
    return load_adapter(folder, tiny_model("llama"))


@pytest.fixture
def batches():
    random = torch.Generator().manual_seed(0)
    ids = torch.randint(3, 60, (4, 9), generator=random)
    mask = torch.ones_like(ids)
    mask[1, 6:] = 0
    labels = ids.where(mask.bool(), -100)
    return [
        {
            "input_ids": ids[i : i + 2],
            "attention_mask": mask[i : i + 2],
            "labels": labels[i : i + 2],
        }
        for i in (0, 2)
    ]


def test_a_share_is_left_out_and_put_back(adapted, batches):
    model = adapted

    def logits(of):
        with torch.no_grad():
            return of(input_ids=batches[0]["input_ids"]).logits

    before = logits(model)
    found = worth(model.bishare, batches)
    assert torch.equal(logits(model), before)
    # Without one share the adapter is the other alone.
    tensors = model.bishare.tensors()
    with torch.no_grad():
        for name, tensor in tensors.items():
            if name.startswith("all."):
                tensor.zero_()
        total = sum(
            float(model(**batch).loss) * float((batch["labels"][:, 1:] >= 0).sum())
            for batch in batches
        )
        trained = sum(float((batch["labels"][:, 1:] >= 0).sum()) for batch in batches)
    assert found.without["all"] == pytest.approx(total / trained, rel=1e-5)
    assert found.base != found.adapted != found.without["own"]
