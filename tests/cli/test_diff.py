import json

A = "spec a target q_proj, v_proj share s per layer rank 4 via SS\n"
B = "spec b target q_proj, v_proj param r = 4 share s per layer // 2 rank r via SS\n"


def test_what_is_shared_differently(bishare, here, check_golden):
    (here / "a.share").write_text(A)
    (here / "b.share").write_text(B)
    run = bishare("diff", "a.share", "b.share", "--model", "llama-7b", "--set", "r=8")
    assert (run.code, run.err) == (0, "")
    check_golden("diff.txt", run.out)


def test_json(bishare, here):
    (here / "a.share").write_text(A)
    (here / "b.share").write_text(B)
    run = bishare("diff", "a.share", "b.share", "-m", "llama-7b", "--json")
    found = json.loads(run.out)
    assert found["modules"] == 64
    assert found["before"]["trainable"] == 2 * found["after"]["trainable"]
    assert [(c["what"], len(c["sites"]), c["before"], c["after"]) for c in found["changes"]] == [
        ("modules per A", 64, "2", "4"),
        ("modules per B", 64, "2", "4"),
    ]
    assert found["problems"] == []


def test_a_spec_that_does_not_fit_is_told(bishare, here):
    (here / "a.share").write_text(A.replace("q_proj", "q_porj"))
    run = bishare("diff", "a.share", "lora", "--model", "llama-7b")
    assert (run.code, run.out) == (1, "")
    assert "error[BS301]" in run.err
    assert "a.share:1:" in run.err
