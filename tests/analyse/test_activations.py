"""What updates add to tokens, against dW itself; and shares left out, against an adapter without them."""

import pytest
import torch

from bishare_dsl import load_adapter
from bishare_dsl.adapter.files import read_adapter
from bishare_dsl.analyse.activations import TOKENS, activities, activity_similarity, worth
from bishare_dsl.analyse.read import read_updates
from bishare_dsl.models import architecture_of
from bishare_dsl.testing.models import tiny_model
from tests.analyse.test_similarity import authors_rmi

SPEC = """spec planted target q_proj, k_proj, v_proj, up_proj, down_proj
share own per module rank 2 share all per model rank 2 via SS"""


@pytest.fixture
def adapted(plant):
    folder = plant(SPEC, model=architecture_of(tiny_model("llama")))
    model = load_adapter(folder, tiny_model("llama"))
    return model, read_updates("adapter", read_adapter(folder))


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


def added(model, update, batches):
    """dW x at each token that is not padding, (tokens, d_out)."""
    rows = []

    def keep(module, inputs):
        rows.append(inputs[0].detach())

    handle = model.get_submodule(update.site.path).register_forward_pre_hook(keep)
    with torch.no_grad():
        for batch in batches:
            model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"])
    handle.remove()
    masks = [batch["attention_mask"].bool() for batch in batches]
    x = torch.cat([part[mask] for part, mask in zip(rows, masks, strict=True)])
    whole = update.whole
    return x @ (whole.left.t() @ torch.diag(whole.values) @ whole.right).t()


def test_activities_are_those_of_the_dense_updates(adapted, batches):
    model, adapter = adapted
    chosen = [u for u in adapter.updates if u.site.kind in ("k_proj", "down_proj")]
    found = activities(model, {"adapter": chosen}, batches)["adapter"]
    assert [a.site for a in found] == [u.site for u in chosen]
    dense = [added(model, update, batches) for update in chosen]
    for activity, exact in zip(found, dense, strict=True):
        torch.testing.assert_close(activity.reduced @ activity.left, exact, atol=1e-4, rtol=1e-4)
    likeness = activity_similarity(found)
    assert float(likeness["activation_rmi"][0, 1]) == pytest.approx(
        authors_rmi(dense[0], dense[1]), rel=1e-3
    )
    x, y = (part - part.mean(dim=0) for part in dense[:2])
    cka = (y.t() @ x).norm() ** 2 / ((x.t() @ x).norm() * (y.t() @ y).norm())
    assert float(likeness["activation_cka"][0, 1]) == pytest.approx(float(cka), rel=1e-3)


def test_no_more_tokens_are_kept_than_are_looked_at(adapted, batches):
    model, adapter = adapted
    many = batches * (TOKENS // 33 + 5)
    found = activities(model, {"adapter": adapter.updates[:1]}, many)["adapter"]
    assert TOKENS <= len(found[0].reduced) < TOKENS + 33


def test_a_share_is_left_out_and_put_back(adapted, batches, plant):
    model, _ = adapted

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
