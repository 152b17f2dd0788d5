import json

LINE = "trainable params: 3,660,032 || all params: 6,742,075,648 || trainable%: 0.0543"


def test_the_plan_of_the_paper_reads_as_it_should(bishare, check_golden):
    run = bishare("plan", "bishare_ke", "--model", "llama-7b")
    assert (run.code, run.err) == (0, "")
    assert run.out.splitlines()[-1] == LINE
    check_golden("plan.txt", run.out)


def test_warnings_go_to_stderr_with_their_place(bishare):
    run = bishare("plan", "bishare_ke", "--model", "llama-7b", "--set", "size=300")
    assert run.code == 0
    assert "warning" not in run.out
    assert "warning[BS351]" in run.err
    assert "^^^" in run.err


def test_json_adds_up(bishare):
    run = bishare("plan", "bishare_ke", "--model", "llama-7b", "--json")
    assert (run.code, run.err) == (0, "")
    plan = json.loads(run.out)
    assert plan["trainable"] == 3_660_032
    assert plan["all"] == 6_742_075_648
    assert plan["frozen"] == 0
    assert plan["bytes"] == 4 * 3_660_032
    assert [share["name"] for share in plan["shares"]] == ["local", "intra", "inter"]
    assert sum(share["trainable"] for share in plan["shares"]) == plan["trainable"]
    assert sum(t["shape"][0] * t["shape"][1] for t in plan["tensors"]) == plan["trainable"]
    assert plan["problems"] == []
    assert len(plan["sites"]) == 160
    assert {pool["role"] for pool in plan["pools"]} == {"A", "B"}
    assert len(plan["pools"]) == 2 * (160 + 32 + 1)
    assert sum(row["parameters"] for row in plan["roles"]) == plan["trainable"]
    of_adapter = {"weights": 4 * 3_660_032, "gradients": 4 * 3_660_032, "optimizer": 8 * 3_660_032}
    assert plan["memory"] == {"base": 2 * 6_738_415_616, **of_adapter}


def test_a_magnitude_has_no_rank_and_no_scale(bishare, tmp_path):
    file = tmp_path / "m.share"
    file.write_text("spec m target q_proj share s per module rank 2 magnitude per module plain")
    run = bishare("plan", str(file), "--model", "llama-7b")
    row = next(line for line in run.out.splitlines() if line.startswith("magnitude"))
    assert " ".join(row.split()) == "magnitude 32 - - - 32, private 131,072 0%"
    assert "`magnitude`: via magnitude(plain = true)" in run.out
    shares = json.loads(bishare("plan", str(file), "--model", "llama-7b", "--json").out)["shares"]
    assert [(s["ranks"], s["scales"]) for s in shares] == [([2], [1.0]), ([], [])]


def rows(run):
    assert run.err == ""
    return json.loads(run.out)["rows"]


def test_all_combinations_are_compared(bishare, check_golden):
    command = ["plan", "lora", "bishare_ke", "-m", "llama-7b", "-m", "llama-1-13b"]
    command += ["--set", "r=4, 8", "-s", "r_inter=8,16"]
    run = bishare(*command)
    assert (run.code, run.err) == (0, "")
    check_golden("plan-compare.txt", run.out)
    found = rows(bishare(*command, "--json"))
    # A param is set in the specs that have it.
    assert [(r["file"], r["model"], r["set"]) for r in found] == [
        (spec, model, {name: value})
        for spec, name, values in (("lora", "r", (4, 8)), ("bishare_ke", "r_inter", (8, 16)))
        for model in ("llama-7b", "llama-1-13b")
        for value in values
    ]
    for row in found:
        name, value = next(iter(row["set"].items()))
        alone = bishare("plan", row["file"], "-m", row["model"], "-s", f"{name}={value}", "--json")
        assert row["trainable"] == json.loads(alone.out)["trainable"]
        assert row["bytes"] == 4 * row["trainable"]
    assert [row["of_lora"] for row in found if row["file"] == "lora"] == [0.5, 1, 0.5, 1]
    # The paper's Table 2: 25.6 % of LoRA's.
    assert found[5]["of_lora"] == 3_660_032 / 14_024_704
    assert found[5]["maximum_rank"] == [22, 22]


def test_a_combination_that_does_not_fit_leaves_the_others(bishare):
    run = bishare("plan", "lora", "-m", "llama-7b", "--set", "r=2.5,4")
    assert (run.code, run.err.count("error[BS211]")) == (1, 1)
    refused, other = (" ".join(line.split()) for line in run.out.splitlines()[2:4])
    assert other == "lora llama-7b 4 7,012,352 26.8 4 4 50.00%"
    assert refused == "lora llama-7b 2.5 BS211"


def test_two_specs_are_compared_by_plan(bishare):
    run = bishare("diff", "lora", "bishare_ss", "--model", "llama-7b")
    assert (run.code, run.out) == (2, "")
    assert "`bishare plan lora bishare_ss --model MODEL`" in run.err
    assert bishare("plan", "lora", "bishare_ss", "--model", "llama-7b").code == 0


def test_a_plan_of_many_shares_is_summarised_and_whole_in_json(bishare, here):
    shares = [f"share s{i} per module rank 1 where layer == {i % 32}" for i in range(300)]
    (here / "many.share").write_text("\n".join(["spec many", "target q_proj, v_proj", *shares, ""]))
    run = bishare("plan", "many.share", "--model", "llama-7b")
    assert run.code == 0
    assert len(run.out.splitlines()) < 70
    assert run.out.count("s0 and 299 like it") == 3  # of the shares, and of A and B
    assert "`s0`, `s1`, `s2`, `s3`, `s4`, `s5`, `s6`, `s7`, `s8`, `s9` and 290 more: scale 1" in (
        " ".join(run.out.split())
    )
    plan = json.loads(bishare("plan", "many.share", "--model", "llama-7b", "--json").out)
    assert len(plan["shares"]) == 300
    assert len(plan["roles"]) == 600
    assert "`s299`" in plan["conclusion"]
