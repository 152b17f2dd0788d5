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


def test_the_same(bishare):
    run = bishare("diff", "lora", "lora", "--model", "llama-7b")
    assert run.code == 0
    assert "0 of 160 modules differ" in run.out
    assert run.out.splitlines()[-1] == "the same modules share, at the same settings"


def test_parameters_trained_in_full_are_at_no_module(bishare, here):
    for name, trained in (("a", "norms"), ("b", "norms, lm_head")):
        (here / f"{name}.share").write_text(f"spec {name} train {trained}\n")
    run = bishare("diff", "a.share", "b.share", "--model", "llama-7b")
    assert (run.code, "lm_head.weight" in run.out, "everywhere" in run.out) == (0, True, False)


def test_shares_that_only_one_has(bishare):
    run = bishare("diff", "lora", "bishare_ke", "--model", "llama-7b")
    rows = [line.split() for line in run.out.splitlines()]
    assert ["intra", "-", "160", "-", "72,384"] in rows


def test_a_spec_that_does_not_fit_is_told(bishare, here):
    (here / "a.share").write_text(A.replace("q_proj", "q_porj"))
    run = bishare("diff", "a.share", "lora", "--model", "llama-7b")
    assert (run.code, run.out) == (1, "")
    assert "error[BS301]" in run.err
    assert "a.share:1:" in run.err


def test_a_param_that_neither_has_is_wrong_usage(bishare):
    run = bishare("diff", "lora", "bishare_ke", "--model", "llama-7b", "--set", "rr=1")
    assert run.code == 2
    assert "error[BS207]" in run.err
