"""What `check_spec` accepts, and that it notices each broken promise."""

import pytest

from bishare_dsl.testing.models import tiny_model
from bishare_dsl.testing.specs import check_spec

SPEC = """
spec example
let group = match layer { 0: 0; else: 1 }
target q_proj, v_proj, up_proj
share local per module rank 2 scale 2 / (1 + layer) dropout 0.1
share groups per group, kind rank 3 init A orthogonal freeze A
share slices per layer rank 2 ** 2 via SS scale match kind { q_proj: 1; else: -1 }
share kron per model rank 4 via KE(size = 8) then Core
"""


@pytest.mark.parametrize(
    "text",
    [
        SPEC,
        "spec s target q_proj share s per module rank 4 init A svd, B svd",
        "spec s target q_proj share s per layer rank 4 via VectorBank(vectors = 4, length = 4, top_k = 2) start nonzero",
        "spec s target q_proj, v_proj share s per layer rank 4 via SS magnitude per module",
        "spec s target q_proj train norms share s per layer rank 2",
        "spec s target q_proj share s per module rank 2 via Experts(count = 2)",
    ],
)  # fmt: skip
def test_promises_are_kept(text):
    check_spec(text, tiny_model("llama", num_hidden_layers=3))


def test_path_of_a_spec(tmp_path):
    path = tmp_path / "example.share"
    path.write_text(SPEC)
    check_spec(path, tiny_model("llama"))
    check_spec(str(path), tiny_model("llama"))


@pytest.mark.parametrize(
    ("name", "what"),
    [
        ("_check_fresh", "fresh"),
        ("_check_dense", "float64"),
        ("_check_saving", "loading"),
        ("_check_merging", "merged"),
        ("_check_export", "PEFT"),
    ],
)
def test_broken_promise_is_noticed(name, what, monkeypatch):
    from bishare_dsl.testing import specs

    real, run, calls = getattr(specs, name), specs._run, []

    def broken(*args):
        def changed(model, inputs):
            calls.append(model)
            logits = run(model, inputs)
            return logits + 0.1 * len(calls)

        with monkeypatch.context() as patch:
            patch.setattr(specs, "_run", changed)
            real(*args)

    monkeypatch.setattr(specs, name, broken)
    with pytest.raises(AssertionError, match=what):
        check_spec(SPEC, tiny_model("llama"))
