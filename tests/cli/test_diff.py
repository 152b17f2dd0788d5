def test_two_specs_are_compared_by_plan(bishare):
    run = bishare("diff", "lora", "bishare_ss", "--model", "llama-7b")
    assert (run.code, run.out) == (2, "")
    assert "`bishare plan lora bishare_ss --model MODEL`" in run.err
    assert bishare("plan", "lora", "bishare_ss", "--model", "llama-7b").code == 0
